"use strict";
const read = cell => {
  const text = (cell.dataset.value ?? cell.textContent).split("→").pop().replaceAll(",", "").replaceAll("−", "-");
  const found = text.match(/-?\d+(\.\d+)?(e-?\d+)?/);
  return found ? Number(found[0]) : NaN;
};
const compare = (column, rises) => (one, other) => {
  const [a, b] = [one, other].map(row => row.cells[column]);
  if (a.tagName === "TH") return (rises ? 1 : -1) * a.textContent.trim().localeCompare(b.textContent.trim());
  const [x, y] = [read(a), read(b)];
  if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
  return rises ? x - y : y - x;
};
const next = { descending: "ascending", ascending: "none", none: "descending" };
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], given = [...body.rows], heads = [...table.tHead.rows[0].cells];
  if (given.length < 2) continue;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Sort by this column";
    button.append(...head.childNodes);
    head.append(button);
    head.ariaSort = "none";
    button.addEventListener("click", () => {
      const order = next[head.ariaSort];
      for (const other of heads) other.ariaSort = "none";
      head.ariaSort = order;
      body.append(...(order === "none" ? given : [...given].sort(compare(column, order === "ascending"))));
    });
  });
}

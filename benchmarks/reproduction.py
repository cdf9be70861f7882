"""The claims of the Veto paper and its neighbours, tried at the scale of two CPU cores.

    python benchmarks/reproduction.py            # all of it, in under three hours on two idle cores
    python benchmarks/reproduction.py --quick    # eight minutes: one size, two seeds, no search

A run that was stopped goes on where it stopped. What counts as holding was written before the runs: a difference counts
where its 95% interval over seeds excludes 0, and a claim holds where it does so in every study that it is tried in.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from reproduction_claims import CLAIMS, lead_map
from reproduction_plots import write_plots
from reproduction_studies import all_studies, quick_studies

from veto_pl.compare.results import Comparison

BEGIN, END = "<!-- results -->", "<!-- end of results -->"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the studies, prints the table of claims, and writes it into the documentation if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one size, four methods, two seeds, no search")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduction"), help="where the studies are kept")
    parser.add_argument("--workers", type=int, help="runs at a time (default: one per core)")
    parser.add_argument("--write", type=Path, help="the page whose results are replaced, docs/reproduction.md")
    given = parser.parse_args(arguments)
    out = given.out / "quick" if given.quick else given.out
    plans = quick_studies() if given.quick else all_studies()
    found = {planned.name: planned.run(out, given.workers) for planned in plans}
    text = report(found)
    print(text)
    if given.write is not None:
        page = given.write.read_text(encoding="utf-8")
        pictures = write_plots(found, given.write.parent / "images")
        text += "".join(f"\n\n![{file.stem}](images/{file.name})" for file in pictures)
        before, _, rest = page.partition(BEGIN)
        given.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def report(found: dict[str, Comparison]) -> str:
    """The table of claims, and the map of Veto's lead."""
    rows = [claim(found) for claim in CLAIMS]
    lines = ["| claim | what was found | verdict |", "| :--- | :--- | :--- |"]
    lines += [f"| {row.claim} | {'<br>'.join(row.found)} | **{row.verdict}** |" for row in rows]
    return "\n".join([*lines, "", *lead_map(found)])


if __name__ == "__main__":
    main()

"""Draw up tables from the classes themselves while mkdocs builds the pages; a comment marks where each one goes."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from veto_pl import seams
from veto_pl.objectives import Distill
from veto_pl.plugins import load_plugins, paper, summary
from veto_pl.rollouts import FromDataset
from veto_pl.testing.examples import examples_of, installed_classes

PARTS = (
    seams.RolloutSource, seams.TeacherContext, seams.Support, seams.Target, seams.Divergence, seams.TokenWeighting,
    seams.Advantage, seams.Schedule,
)  # fmt: skip
NEEDS = {
    "needs_teacher": "teacher",
    "needs_reference": "a reference",
    "needs_rewards": "rewards",
    "compares_completions": "several completions per prompt",
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the tables where a page asks for them; mkdocs calls this for each page."""
    for mark, table in {"<!-- objectives -->": objectives, "<!-- departures -->": departures}.items():
        if mark in markdown:
            markdown = markdown.replace(mark, table())
    return markdown


def objectives() -> str:
    """Return the table of all objectives: name, paper, summary, what each is made of, and what it needs."""
    head = "| objective | paper | what it is | made of | needs |\n|---|---|---|---|---|\n"
    return head + "\n".join(f"| {' | '.join(_row(cls, instance))} |" for cls, instance in _instances())


def departures() -> str:
    """Return what each objective does otherwise than its paper or code, as its docstring says."""
    told = {cls.__name__: _departures(cls) for cls, _ in _instances()}
    return "\n".join(f"- `{name}`: {text}" for name, text in told.items() if text)


def _instances() -> list[tuple[type[Any], Any]]:
    """Return each objective with the instance of its defaults, or its first example where these make none."""
    load_plugins()
    return [(cls, _instance(cls)) for cls in installed_classes(seams.Objective)]


def _instance(cls: type[Any]) -> Any:
    try:
        return cls()
    except TypeError:
        return examples_of(cls)[0]


def _row(cls: type[Any], instance: Any) -> tuple[str, ...]:
    number = paper(cls)
    needs = [word for need, word in NEEDS.items() if getattr(instance, need, False)]
    parts = [type(part) for part in _inside(instance)]
    needs += ["references"] if FromDataset in parts else []
    usual = {type(part) for part in _inside(Distill())} - {FromDataset, type(Distill().divergence)}
    made_of = [f"`{part.__name__}`" for part in dict.fromkeys(parts) if part not in usual]
    link = f"[{number}](https://arxiv.org/abs/{number})" if number else ""
    return f"`{cls.__name__}`", link, summary(cls), ", ".join(made_of), ", ".join(needs)


def _inside(part: Any) -> Iterator[Any]:
    """Yield the parts that fill a seam, at any depth, those that a class makes of its settings included."""
    if isinstance(part, PARTS):
        yield part
    values = part.values() if isinstance(part, dict) else ()
    if is_dataclass(part):
        values = (getattr(part, field.name) for field in fields(part))
    for value in values:
        yield from _inside(value)


def _departures(cls: type[Any]) -> str:
    found = re.search(r"^ *Departures[^:]*: (.+?)\n *\n", cls.__doc__ or "", re.DOTALL | re.MULTILINE)
    return re.sub(r":math:(?=`)", "", re.sub(r"\s+", " ", found[1])) if found else ""

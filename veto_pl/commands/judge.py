"""`veto-pl judge`: two files of answers to the same prompts, compared."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console
from rich.table import Table

from veto_pl.cli.parsing import strict_parsing
from veto_pl.data.jsonl import check_fields, shown
from veto_pl.data.row_file import read_examples
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.judging.rates import HeadToHead, win_rate
from veto_pl.judging.reference import ReferenceJudge
from veto_pl.pages.render import write_text
from veto_pl.seams import Example, Judge
from veto_pl.storage.config_files import check_files
from veto_pl.storage.going_on import data_error_if_unwritten
from veto_pl.storage.paths import local_path

_TEXT = str | None
_TEXTS = list[str | None] | None


def judge_files(arguments: Sequence[str]) -> None:
    """Compare the answers of two files, and print how often those of the first are preferred.

    Args:
        arguments: the command line behind `veto-pl judge`.

    Raises:
        ConfigurationError: an argument cannot be used.
        DataError: a file cannot be read, or the files do not answer the same prompts.
    """
    given, judge = _parsed(arguments)
    out = None if given.out is None else local_path(given.out)
    if out is not None:  # a judge may be dear: better to fail before it is asked
        with data_error_if_unwritten(f"`{out}`"):
            out.parent.mkdir(parents=True, exist_ok=True)
    first, second = read_answers(given.first), read_answers(given.second)
    rows, answers, others = matched(first, second, names=(given.first, given.second))
    found = win_rate(judge, rows, answers, others, seed=given.seed, both_orders=not given.one_order)
    content = as_json(found, judge, (given.first, given.second))
    if out is not None:
        write_text(json.dumps(content, indent=1) + "\n", out)
    if given.json:
        print(json.dumps(content))
    else:
        Console().print(table(found, judge, (given.first, given.second)))


def read_answers(path: str) -> list[Example]:
    """Read a file of rows with `prompt`, `completion`, and `reference` or `references` where there are any.

    The answer is the completion of the row.
    """
    return read_examples(path, prompt="prompt", completion="completion")


def matched(
    first: Sequence[Example], second: Sequence[Example], *, names: tuple[str, str]
) -> tuple[list[Example], list[str], list[str]]:
    """Return the rows that two files share, and the answers of each; answers to the same prompt match in order.

    Raises:
        DataError: a prompt is missing in one of them, stands there less often, or has another reference.
    """
    others = _numbered(second)
    ours = _numbered(first)
    for missing, name in ((ours.keys() - others.keys(), names[1]), (others.keys() - ours.keys(), names[0])):
        if missing:
            prompt, number = min(missing, key=lambda key: (key[1], key[0]))
            raise DataError(
                f"{name}: expected the prompts of the other file, lacks {len(missing)} rows, among them answer "
                f"{number + 1} to {shown(prompt)}. Let both runs answer the same rows, as often."
            )
    rows = []
    for (prompt, _), row in ours.items():
        references = _references(row.row, names[0])
        if references != _references(others[prompt, _].row, names[1]):
            raise DataError(f"{names[1]}: expected the references of {names[0]}, got others for {shown(prompt)}.")
        rows.append(Example(prompt, references[0] if references else None, row.row, references[1:]))
    return rows, [row.completion or "" for row in ours.values()], [others[key].completion or "" for key in ours]


def table(found: HeadToHead, judge: Judge, names: tuple[str, str]) -> Table:
    """Return the outcome as a table for the terminal."""
    lines = Table("", names[0], title=f"{names[0]} against {names[1]}, by {type(judge).__name__}", title_justify="left")
    lines.add_row("win rate", f"{100 * found.rate:.1f}% (95%: {100 * found.low:.1f} to {100 * found.high:.1f})")
    lines.add_row("wins, ties, losses", f"{found.wins}, {found.ties}, {found.losses}")
    lines.add_row("ties for want of a steady verdict", f"{found.disagreements} of {found.judged}")
    if not math.isnan(found.first_shown_wins):
        lines.add_row("wins of the answer shown first", f"{100 * found.first_shown_wins:.1f}%")
    for reason, count in found.unjudged.items():
        lines.add_row("not judged", f"{count}: {reason}")
    return lines


def as_json(found: HeadToHead, judge: Judge, names: tuple[str, str]) -> dict[str, Any]:
    """Return the outcome as values for JSON; NaN becomes None."""
    numbers: dict[str, Any] = {
        "first": names[0],
        "second": names[1],
        "judge": type(judge).__name__,
        "win_rate": found.rate,
        "low": found.low,
        "high": found.high,
        "wins": found.wins,
        "ties": found.ties,
        "losses": found.losses,
        "disagreements": found.disagreements,
        "first_shown_wins": found.first_shown_wins,
        "unjudged": dict(found.unjudged),
        "verdicts": list(found.verdicts),
    }
    return {name: None if isinstance(x, float) and math.isnan(x) else x for name, x in numbers.items()}


def _parsed(arguments: Sequence[str]) -> tuple[Any, Judge]:
    parser = ArgumentParser(
        "veto-pl judge", description="Say how often one file's answers are preferred to another's.", exit_on_error=False
    )
    parser.add_argument("first", type=str, help="predictions.jsonl or answers.jsonl of a run")
    parser.add_argument("second", type=str, help="that of another run on the same rows, in which references stand too")
    parser.add_argument(
        "--judge",
        type=Judge,
        default=ReferenceJudge(),
        help="the judge and its settings, such as --judge ChatJudge --judge.base_url http://localhost:8000/v1",
    )
    parser.add_argument("--config", action="config", help="a YAML file of these options")
    parser.add_argument("--seed", type=int, default=0, help="which answer is shown first, with --one_order")
    parser.add_argument("--one_order", action="store_true", help="ask each pair once instead of in both orders")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--out", type=str, help="write the JSON into this file as well")
    check_files(arguments)
    try:
        with strict_parsing():
            given = parser.instantiate_classes(parser.parse_args(list(arguments)))
    except ArgumentError as error:
        raise ConfigurationError(f"`veto-pl judge`: {' '.join(str(error).split())[:500]}") from error
    return given, given.judge


def _numbered(rows: Sequence[Example]) -> dict[tuple[str, int], Example]:
    """Return the rows by prompt and by the number of earlier answers to it."""
    seen: Counter[str] = Counter()
    numbered = {}
    for row in rows:
        numbered[row.prompt, seen[row.prompt]] = row
        seen[row.prompt] += 1
    return numbered


def _references(row: Any, name: str) -> tuple[str, ...]:
    several = row.get("references")
    check_fields({"reference": row.get("reference"), "references": several}, name, reference=_TEXT, references=_TEXTS)
    found = [row.get("reference")] if several is None else several
    return tuple(one for one in found if one is not None)

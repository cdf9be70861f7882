"""`veto-pl explain`: draws what an objective does."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from veto_pl.charts import standalone
from veto_pl.charts.text import for_terminal
from veto_pl.cli.compact_parser import CompactParser
from veto_pl.cli.parsing import strict_parsing
from veto_pl.core.mistakes import shorten
from veto_pl.exceptions import ConfigurationError
from veto_pl.explain.explanation_page import COLUMNS, charts, number_rows, write_explanation
from veto_pl.explain.response import Response, respond
from veto_pl.explain.scene import Scene
from veto_pl.pages.render import write_text
from veto_pl.plugins import load_plugins
from veto_pl.seams import Objective
from veto_pl.storage.config_files import load, reason
from veto_pl.storage.paths import local_path

OPTION, OBJECTIVE_KEY = "--objective", "model.objective"


def explain(arguments: Sequence[str]) -> None:
    """Draw the named objectives, and print a few numbers of each.

    Args:
        arguments: those of the command. `--objective NAME` and `--objective.FIELD VALUE` are written as in
            `veto-pl fit`, without `model.`; each `--objective` begins another one.

    Raises:
        ConfigurationError: there is nothing to draw, or it cannot be drawn.
    """
    given, named = _parser().parse_known_args(arguments)
    if not 0 <= given.at <= 1:
        raise ConfigurationError(f"`--at` must be a part of the run, in [0, 1], got {given.at:g}.")
    load_plugins()
    objectives = _by_name([*_from_arguments(named), *_from_files(given.config)])
    scene = Scene(given.teacher, given.outcomes)
    responses = {name: respond(objective, scene, given.at) for name, objective in objectives.items()}
    console = Console()
    for name, response in responses.items():
        console.print(_table(name, response, scene))
    described = {name: repr(objective) for name, objective in objectives.items()}
    written = [write_explanation(responses, scene, given.out, described=described, part=given.at)]
    if given.svg is not None:
        written += [
            write_text(standalone(svg), given.svg / f"{name}.svg") for name, svg in charts(responses, scene).items()
        ]
    for path in written:
        console.print(f"Wrote {path}", highlight=False, soft_wrap=True)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "veto-pl explain",
        description="Draw what objectives do to a token: loss, gradient and target against the student's probability. "
        "Name them by --objective NAME and --objective.FIELD VALUE, as often as you like.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", type=local_path, action="append", default=[], help="a YAML file with `model.objective`"
    )
    parser.add_argument("--out", type=local_path, default=Path("explain.html"), help="the page to write")
    parser.add_argument("--svg", type=local_path, help="a folder for the pictures alone")
    parser.add_argument("--teacher", type=float, default=0.9, help="the teacher's probability of its choice")
    parser.add_argument("--outcomes", type=int, default=6, help="ids of the vocabulary (default: 6)")
    parser.add_argument("--at", type=float, default=0.0, help="the part of the run that is done, for schedules")
    return parser


def _by_name(found: Sequence[tuple[str, Objective]]) -> dict[str, Objective]:
    names = [name for name, _ in found]
    if not names:
        raise ConfigurationError(
            "There is nothing to draw: name a class by `--objective Veto`, or files by `--config`."
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(f"Objectives to draw must differ, got {', '.join(twice)} twice.")
    return dict(found)


def _from_arguments(arguments: Sequence[str]) -> Iterator[tuple[str, Objective]]:
    groups: list[list[str]] = []
    for argument in arguments:
        if argument == OPTION or argument.startswith(f"{OPTION}="):
            groups.append([])
        if not groups:
            raise ConfigurationError(f"given `{shorten(argument)}`, expected `{OPTION} NAME` first.")
        groups[-1].append(argument)
    for group in groups:
        words = " ".join(group).replace("=", " ").replace(f"{OPTION}.", "").removeprefix(OPTION).split()
        name, settings = " ".join(words[:1]), " ".join(words[1:])
        built = _build_objective([argument.replace(OPTION, f"--{OBJECTIVE_KEY}", 1) for argument in group])
        yield f"{name} ({settings})" if settings else name, built


def _from_files(paths: Sequence[Path]) -> Iterator[tuple[str, Objective]]:
    for path in paths:
        try:
            content: Any = load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigurationError(f"`--config`: `{path}` cannot be read as YAML: {reason(error)}.") from error
        model = content.get("model") if isinstance(content, Mapping) else None
        if not isinstance(model, Mapping) or "objective" not in model:
            raise ConfigurationError(f"`--config`: `{path}` has no `{OBJECTIVE_KEY}`. Name the file that has it.")
        yield path.stem, _build_objective([f"--{OBJECTIVE_KEY}", yaml.safe_dump(model["objective"])])


def _build_objective(arguments: Sequence[str]) -> Objective:
    parser = CompactParser()
    parser.add_argument(f"--{OBJECTIVE_KEY}", type=Objective)
    with strict_parsing():
        parsed = parser.parse_args(list(arguments))
    objective = parser.instantiate_classes(parsed).model.objective
    if not isinstance(objective, Objective):
        raise ConfigurationError(f"`{OPTION}` needs the name of a class. `veto-pl list objectives` shows them.")
    return objective


def _table(name: str, response: Response, scene: Scene) -> Table:
    table = Table("student", *COLUMNS, title=name, title_justify="left")
    for label, cells in number_rows(response, scene):
        table.add_row(label, *map(for_terminal, cells))
    return table

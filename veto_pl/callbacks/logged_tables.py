"""Tables in the loggers that show some, such as Weights & Biases and MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.core.mistakes import shorten


def log_table(trainer: L.Trainer, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
    """Give a table to every logger that takes one; call it on the first rank.

    A logger takes one by a method `log_table(key, columns, data, step)`, where `columns` are the headings and `data` a
    list of rows, as Lightning's logger of Weights & Biases has it. Where instead its `experiment` has a
    `log_table(run_id, data, artifact_file)`, as the client of MLflow has it, the rows are added to one file of the run,
    with their step. An error of theirs is warned of, for the run has its own file.

    Args:
        trainer: with the loggers.
        name: of the table, such as `validation/samples`.
        rows: each with the same keys, which are the headings.
        step: optimizer steps done.
    """
    for logger in trainer.loggers if rows else ():
        _give(logger, name, rows, step)


def _give(logger: Logger, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
    try:
        if callable(own := getattr(logger, "log_table", None)):
            own(name, columns=list(rows[0]), data=[list(row.values()) for row in rows], step=step)
        elif callable(clients := getattr(getattr(logger, "experiment", None), "log_table", None)):
            table = {"step": [step] * len(rows), **{key: [row[key] for row in rows] for key in rows[0]}}
            clients(_run_id(logger), table, f"{name}.json")
    except Exception as error:
        kind = type(logger).__name__
        rank_zero_warn(f"`{kind}` did not take the table `{name}`: {type(error).__name__}: {shorten(error, 300)}")


def _run_id(logger: Logger) -> str:
    return str(getattr(logger, "run_id", None) or logger.version)

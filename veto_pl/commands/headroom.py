"""`veto-pl headroom`: whether the teacher of a run has something to teach, before the run is paid for."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from veto_pl.checks import RunSetup
from veto_pl.commands.prepared import Prepared
from veto_pl.compare.results import Estimate
from veto_pl.compare.statistics import estimate
from veto_pl.core.mistakes import report
from veto_pl.core.nested import setting, walk
from veto_pl.core.part import Part
from veto_pl.data.collate import Encoded
from veto_pl.data.splits import check_sizes
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.training.headroom_probe import WRITERS, Headroom, HeadroomProbe

STUDENT, TEACHER, BEHIND = WRITERS
MEANINGS = {
    "reverse_kl": "KL(student || teacher), nats per token",
    "forward_kl": "KL(teacher || student), nats per token",
    "entropy_gap": "teacher's entropy minus the student's, nats per token",
    "overlap_ratio": "share of the 16 likeliest ids that both have",
}


def headroom(config: Sequence[str], *, prompts: int, split: str, share: float, as_script: bool) -> None:
    """Let both models answer some prompts, and print who answers better and what follows.

    Args:
        config: the arguments of `veto-pl fit`; both answer as `model.evaluation` says.
        prompts: how many are asked, the first of the split.
        split: of the task.
        share: of each completion of the student's that the teacher goes on from; of its turns, in episodes.
        as_script: print JSON.

    Raises:
        ConfigurationError: there is no teacher, nobody scores answers, or a number is out of range.
        DataError: the split has no rows.
    """
    check_sizes("headroom", at_least=2, prompts=prompts)
    if not 0 <= share < 1:
        raise ConfigurationError(f"`--share` must lie in [0, 1), got {share}.")
    cli = Prepared(["fit", *config])
    if cli.model.teacher_source is None:
        raise ConfigurationError("`headroom` asks what the teacher can teach, but `model.teacher` is not set.")
    _check_rewards(cli)
    models = cli.loaded("headroom")
    rows = cli.datamodule.rows(split)
    asked = [rows[i] for i in range(min(prompts, len(rows)))]
    if len(asked) < 2:
        raise DataError(f"`headroom` needs two prompts at least, but the split `{split}` has {len(asked)}.")
    trainer = cli.trainer
    probe = HeadroomProbe(
        models=models,
        collator=cli.datamodule.collator,
        sampling=cli.model.evaluation.ending_with(cli.datamodule.task.stop),
        share=share,
        playing=cli.model.playing,
        device=trainer.strategy.root_device,
        precision=trainer.precision_plugin.forward_context,
    )
    found = probe.look(_batches(asked, cli.datamodule.batch_size))
    _print(found, as_script=as_script)


def gains(found: Headroom) -> dict[str, Estimate]:
    """Return by how much the teacher's answers are better than the student's, over prompts, with a 95% interval."""
    own = found.rewards[STUDENT]
    return {
        name: estimate([a - b for a, b in zip(found.rewards[name], own, strict=True)]) for name in (TEACHER, BEHIND)
    }


def verdict(found: Headroom) -> str:
    """Return what the rewards say, in one or two sentences. A difference counts where its interval excludes 0."""
    alone, behind = gains(found).values()
    count = len(found.rewards[STUDENT])
    if alone.high < 0:
        return "The teacher answers worse than the student: distilling from it would take something away."
    if not alone.low > 0:
        return (
            f"No difference is shown on {count} prompts: a teacher that is no better has nothing to teach. Ask more "
            "prompts (`--prompts`), or choose another teacher."
        )
    if behind.low > 0:
        return "The teacher helps: it answers better, also behind the student's own beginnings. Distil on-policy."
    if behind.high < 0:
        return (
            "The teacher answers better alone, but worse behind the student's own beginnings, which is where on-policy "
            "distillation asks it. Train on its texts first (`SeqKD`, `SupervisedKD`), or lower the temperature."
        )
    return (
        "The teacher answers better, but no gain is shown behind the student's own beginnings, which is where "
        "on-policy distillation asks it. Train on its texts first (`SeqKD`, `SupervisedKD`), or ask more prompts."
    )


class _Rewarded(RunSetup):
    """The run, if it learned from rewards: so the task says whether anybody gives them."""

    @property
    def rewards_for(self) -> str:
        """The command's name; empty where an environment gives the rewards."""
        playing = self.module.playing
        return "" if playing is not None and playing.brings_rewards else "veto-pl headroom"


def _check_rewards(cli: Prepared) -> None:
    setup = _Rewarded(cli.model, cli.datamodule, {}, "validate")
    report(
        mistake
        for path, part in walk(cli.datamodule.task)
        if isinstance(part, Part)
        for mistake in part.requirements(setup, setting(path, "data.task"))
    )


def _batches(rows: Sequence[Encoded], size: int) -> Iterator[Sequence[Encoded]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _print(found: Headroom, *, as_script: bool) -> None:
    distances = {name: found.mean(name) for name in MEANINGS}
    scores = {name: estimate(values) for name, values in found.rewards.items()}
    if as_script:
        print(json.dumps(_plain(found, scores, distances), allow_nan=False))
        return
    console = Console()
    table = Table("who answers", "mean reward", "minus the student's")
    differences = gains(found)
    for name, score in scores.items():
        difference = differences.get(name)
        table.add_row(name, f"{score.mean:.3f}", "" if difference is None else _with_interval(difference))
    console.print(table)
    for name, meaning in MEANINGS.items():
        console.print(f"{meaning}: {distances[name]:.3f}", highlight=False, soft_wrap=True)
    console.print(verdict(found), highlight=False, soft_wrap=True)


def _with_interval(of: Estimate) -> str:
    return f"{of.mean:+.3f} [{of.low:+.3f}, {of.high:+.3f}]"


def _plain(found: Headroom, scores: Mapping[str, Estimate], distances: Mapping[str, float]) -> dict[str, Any]:
    """Return JSON's values; numbers that are none become null."""

    def finite(values: Mapping[str, float]) -> dict[str, float | None]:
        return {name: value if math.isfinite(value) else None for name, value in values.items()}

    return {
        "prompts": len(found.rewards[STUDENT]),
        "rewards": {name: finite(asdict(score)) for name, score in scores.items()},
        "gains": {name: finite(asdict(gain)) for name, gain in gains(found).items()},
        "distances": finite(distances),
        "verdict": verdict(found),
    }

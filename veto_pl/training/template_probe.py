"""What a teacher's own chat template would change, seen on the first rows of a fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.core.nested import inside
from veto_pl.exceptions import VetoError
from veto_pl.functional.blocks import Block
from veto_pl.functional.diagnostics import entropy
from veto_pl.functional.divergences import reverse_kl
from veto_pl.models.readout import panel_scores
from veto_pl.objectives.voices import voices_of
from veto_pl.parts.contexts import SameText
from veto_pl.parts.own_template import OwnTemplate, writes_alike
from veto_pl.seams import Models, Objective, Rollouts, Sequences, Step, TeacherContext, reading
from veto_pl.seams.teacher_names import setting_of

ROWS = 8
"""Rows that are looked at."""


@dataclass(frozen=True)
class Renderings:
    """What a teacher says of the same tokens behind the student's prompts and behind its own, means in nats per token.

    Args:
        entropies: of the teacher, behind the student's prompts and behind its own.
        divergences: KL(student || teacher), likewise.
        rows: that were read.
    """

    entropies: tuple[float, float]
    divergences: tuple[float, float]
    rows: int


def warn_of_templates(objective: Objective, rollouts: Rollouts, models: Models, step: Step) -> None:
    """Warn of each teacher that would read prompts otherwise by its own chat template, and tell what that changes.

    Nothing is computed where teachers bring no template, or the student's, or where the objective says what they read.
    Collective where a model is sharded: call it on every rank.

    Args:
        objective: of the run.
        rollouts: of the first micro-batch.
        models: of the run.
        step: where training stands.
    """
    for name in _with_other_templates(objective, models):
        for rows in [*rollouts.values()][:1]:
            try:
                found = compared(rows.rows(torch.arange(min(ROWS, len(rows)))), name, models, step)
            except VetoError as error:
                rank_zero_warn(
                    f"`{setting_of(name)}` brings another chat template than the student's, by which it cannot read "
                    f"the rows of this run: {error} It reads the student's prompts."
                )
                continue
            if found is not None:
                rank_zero_warn(_message(name, found))


def compared(rows: Sequences, name: str, models: Models, step: Step) -> Renderings | None:
    """Return what a teacher says of some rows by either template; None where that is the same, or there is no token.

    Raises:
        ConfigurationError: its template refuses a row, or there is no room.
    """
    contexts: tuple[TeacherContext, ...] = (SameText(), OwnTemplate())
    readings = [reading(name, rows, context, models, step, weight=0.5) for context in contexts]
    if readings[1].sequences is rows and readings[1].ends is None:
        return None
    voices = voices_of(rows, readings, "OwnTemplate")

    def look(block: Block) -> tuple[dict[str, torch.Tensor], None]:
        assert block.teacher is not None, "both readings have a teacher"
        student, teacher = torch.log_softmax(block.student, -1), torch.log_softmax(block.teacher, -1)
        return {"entropy": entropy(teacher), "kl": reverse_kl(student, teacher)}, None

    asked = [(models.teacher_named(name), one.sequences) for one in readings]
    parts = panel_scores(
        look, [{}, {}], rows, models.student, asked, lambda hidden, heads: voices.readers(readings, hidden, heads, None)
    )
    if not voices.tokens:
        return None
    entropies, divergences = (tuple(float(part[of].mean()) for part in parts) for of in ("entropy", "kl"))
    return Renderings((entropies[0], entropies[1]), (divergences[0], divergences[1]), len(rows))


def _with_other_templates(objective: Objective, models: Models) -> Iterator[str]:
    """Yield the teachers that are asked as the student is, and bring a tokenizer that writes prompts otherwise."""
    contexts = inside(objective, TeacherContext)  # type: ignore[type-abstract]
    if not all(context.is_neutral for context in contexts):
        return
    named = models.teacher_names
    asked = dict.fromkeys(name for panel in objective.panels for name in panel.asks(named))
    for name in asked:
        if name in models.brought and not writes_alike(models.brought[name], models.tokenizer):
            yield name


def _message(name: str, found: Renderings) -> str:
    (plain, own), (apart, nearer) = found.entropies, found.divergences
    return (
        f"`{setting_of(name)}` writes prompts otherwise than the student, and reads the student's. On {found.rows} "
        f"rows its entropy is {plain:.3g} nats per token behind those and {own:.3g} behind its own, and the student's "
        f"KL to it {apart:.3g} and {nearer:.3g}. To let it read its own, set `context: OwnTemplate` in the objective."
    )

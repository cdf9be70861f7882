"""Objectives made of token losses: the road from hidden states to an undivided loss."""

import contextlib
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from veto_pl.core.bounds import AboveZero, Count, Positive
from veto_pl.core.scores import TopKScores
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.compilation import Compile
from veto_pl.functional.diagnostics import comparison, entropy
from veto_pl.functional.differentiation import differentiated
from veto_pl.functional.divergences import reverse_kl
from veto_pl.functional.panel_stream import PanelStream, Reader
from veto_pl.functional.reduction import Aggregation
from veto_pl.models.own_tokenizers import check_shared_ids
from veto_pl.models.readout import read_hidden, token_logp
from veto_pl.models.sharding import gathered
from veto_pl.models.vocabulary import ALIGNING
from veto_pl.objectives.heard import Heard
from veto_pl.objectives.scoring import Scoring, on_grid
from veto_pl.objectives.student_pass import read_by_student
from veto_pl.objectives.told_readings import with_answers
from veto_pl.objectives.unit_readings import check_plain
from veto_pl.objectives.voices import attended
from veto_pl.parts.contexts import SameText
from veto_pl.parts.panels import OneTeacher
from veto_pl.parts.supports import FullVocabulary
from veto_pl.rollouts import FromDataset
from veto_pl.seams import (
    LanguageModel,
    LossOutput,
    Models,
    Objective,
    Panel,
    Reading,
    Rollouts,
    RolloutSource,
    Sequences,
    Stat,
    Step,
    TeacherContext,
)
from veto_pl.seams.teacher_names import listed
from veto_pl.seams.tokens import TokenGrid, TokenRows

__all__ = ["ChunkRows", "Compile", "TokenObjective"]

ChunkRows = Count | Literal["auto"]
"""Rows of a chunk of logits, or as many as the device has room for."""


@dataclass(frozen=True, kw_only=True)
class TokenObjective(Objective):
    """A loss for every completion token; subclasses say which, in `per_token`.

    Args:
        rollout: who writes the completions.
        context: what the teacher reads.
        panel: which teachers read the completions, and how much each counts.
        temperature: divides the logits of student and teacher in the loss; it never shapes the rollout. The loss is not
            multiplied by its square.
        aggregation: `token` weighs every token alike, `sequence` every completion, `turn` every turn of the
            agent, `episode` every episode.
        chunk_rows: tokens whose vocabulary-sized rows are held at a time; `auto` takes 256 on a CPU, and what fits
            easily on an accelerator.
        compile: whether what happens between the matrix products of the head is compiled; `auto` compiles it on CUDA
            devices. If the compiler fails, it runs as it is written, with one warning.
        engine_cap: truncation of the weights trainer / engine that correct for an engine with another arithmetic, such
            as vLLM; rows that the trainer's own arithmetic has sampled have the weight 1. None switches them off.
    """

    rollout: RolloutSource = FromDataset()
    context: TeacherContext = SameText()
    temperature: Positive = 1.0
    aggregation: Aggregation = "token"
    chunk_rows: ChunkRows = "auto"
    compile: Compile = "auto"
    engine_cap: AboveZero | None = 2.0
    panel: Panel = OneTeacher()

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        if self.rollout.stored_teacher:
            if not self.panel.is_neutral:
                raise ConfigurationError(
                    f"`{name}.rollout` has a stored teacher, which is the one that speaks, but `{name}.panel` is "
                    f"`{type(self.panel).__name__}`. Use live teachers, or leave `panel` out."
                )
            object.__setattr__(self, "needs_teacher", False)
            for writing in self.rollout.writings():
                self.check_told(writing.stored, f"`{type(self.rollout).__name__}`")
        for need in ("needs_rewards", "compares_completions"):
            if any(getattr(context, need) for context in (self.context, *self.contrasts)):
                object.__setattr__(self, need, True)
        if self.contrasts and not self.panel.is_neutral:
            raise ConfigurationError(
                f"`{name}` contrasts what one teacher says in several contexts, but `{name}.panel` is "
                f"`{type(self.panel).__name__}`. Leave it out."
            )

    def check_told(self, scores: TopKScores | None, teacher: str) -> None:
        """Raise `ConfigurationError` where it reads more of a stored or served teacher than that tells, or otherwise.

        Args:
            scores: what the teacher says of no tokens, [0]; None where that is not known yet.
            teacher: what brings the scores, as the message calls it.
        """
        name = type(self).__name__
        if not self.context.is_neutral:
            raise ConfigurationError(
                f"{teacher} is a stored or served teacher, which has read the plain text, but `{name}.context` is "
                f"`{type(self.context).__name__}`. Use a live teacher, or the context `SameText`."
            )
        if self.contrasts:
            raise ConfigurationError(
                f"`{name}` contrasts what its teacher says in several contexts, but {teacher} has read the plain text. "
                "Use a live teacher."
            )
        if scores is not None:
            scores.check_temperature(name, self.temperature)

    @abstractmethod
    def per_token(self, rows: TokenRows) -> Tensor:
        """Compute the losses [n] of a few tokens, each a function of its own row."""

    def with_gradient(self, rows: TokenRows) -> tuple[Tensor, Tensor]:
        """Return the losses [n] and their gradient [n, V] in the student's logits; override it with a closed form.

        It is used as long as it belongs to `per_token`: a class or mixin that brings another `per_token` is
        differentiated by autograd.
        """
        return self.by_autograd(rows)

    def by_autograd(self, rows: TokenRows) -> tuple[Tensor, Tensor]:
        """Compute `per_token` and its gradient in the student's logits, with a graph of these few rows alone."""
        return differentiated(lambda logp: self.per_token(replace(rows, student_logp=logp)), rows.student_logp)

    @property
    def contrasts(self) -> tuple[TeacherContext, ...]:
        """Return further contexts in which the one teacher scores the tokens, for `TokenGrid.contrast_logp`.

        Each costs a pass of the teacher. An objective that has some names them in a field.
        """
        return ()

    @property
    def couples_tokens(self) -> bool:
        """Return whether `over_sequences` does something: then the tokens' gradients wait until all are scored."""
        return type(self).over_sequences is not TokenObjective.over_sequences

    @property
    def weighs_samples(self) -> bool:
        """Return whether the objective has importance weights of its own, which correct for the engine too."""
        return False

    @property
    def sampled_tokens_only(self) -> bool:
        """Return whether `per_token` is constantly 0.

        Then the gradient needs the student's log-probabilities only.
        """
        return False

    def select(self, sequences: Sequences, step: Step) -> Sequences:
        """Return the rollout with the tokens that are trained on: the same rows, perhaps fewer tokens in `loss_mask`.

        Their share is logged as `selected`.
        """
        return sequences

    def scores(self, rows: TokenRows) -> Mapping[str, Tensor]:
        """Return, by name, [n] numbers of a few tokens that `over_sequences` will find in `grid.scores`.

        It is called without gradients.
        """
        return {}

    @property
    def looks_ahead(self) -> bool:
        """Return whether `look_ahead` does something: then the tokens are read once before their losses are."""
        return type(self).look_ahead is not TokenObjective.look_ahead

    def look_ahead(self, grid: TokenGrid) -> Mapping[str, Tensor]:
        """Return, by name, [B, S] numbers of whole completions that `per_token` will find in `rows.ahead`.

        It is called without gradients.

        They cost one more pass through the heads, and none through the models.
        """
        return {}

    def over_sequences(self, losses: Tensor, grid: TokenGrid) -> Tensor:
        """Return the losses [B, S] once the whole micro-batch is known; by default the token losses as they are."""
        return losses

    def token_metrics(self, rows: TokenRows) -> dict[str, Tensor]:
        """Return [n] values to log beside the loss, by name; it is called without gradients."""
        if rows.stored is not None:
            student, teacher = rows.outcomes(FullVocabulary())
            tail = teacher[:, -1].exp()
            return {"entropy": entropy(rows.student_logp), "kl": reverse_kl(student, teacher), "stored_tail_mass": tail}
        if rows.teacher_logp is None:
            return {"entropy": entropy(rows.student_logp)}
        return comparison(rows.student_logp, rows.teacher_logp)

    @property
    def sources(self) -> tuple[RolloutSource, ...]:
        """Return the one rollout."""
        return (self.rollout,)

    def loss(self, rollouts: Rollouts, models: Models, step: Step) -> LossOutput:
        """Run teacher and student over the rollout and sum the losses of its completion tokens.

        Collective where a model is sharded: call it on every rank.
        """
        asked = self.panel.asks(models.teacher_names) if self.needs_teacher else ()
        apart = [name for name in asked if name in models.tokenizers]
        if not self.aligns_tokenizers:
            check_shared_ids(apart, f"`{type(self).__name__}`", f"{ALIGNING} or ")
        check_plain(self.context, apart, type(self).__name__)
        selected = self.select(rollouts[self.rollout], step)
        readings = self._readings(selected, models, step)
        sequences, voices = attended(selected, readings, type(self.panel).__name__, self.panel.pool)
        output = self.heard_loss(Heard(sequences, readings, voices), models, step)
        metrics = dict(output.metrics)
        if type(self).select is not TokenObjective.select:
            metrics["selected"] = _share(selected, rollouts[self.rollout])
        for one in readings:
            metrics |= {f"{one.teacher}/{name}": stat for name, stat in one.metrics.items()}
        if not self.panel.is_neutral:
            left = _share(sequences, selected)
            metrics["unread"] = Stat(left.weight - left.total, left.weight)
        return replace(output, metrics=metrics)

    def heard_loss(self, heard: Heard, models: Models, step: Step) -> LossOutput:
        """Sum the losses of the completion tokens, against teachers that read the student's ids.

        Collective where a model is sharded: call it on every rank.
        """
        teachers = [None if one.told is not None else models.teacher_named(one.teacher) for one in heard.readings]
        asked = zip(teachers, heard.readings, strict=True)
        hidden = [None if teacher is None else read_hidden(teacher, one.sequences) for teacher, one in asked]
        rows, reference_logp = heard.sequences, self._reference_logp(heard.sequences, models)
        contrasts = self._contrast_logp(rows, models, step)
        scoring = Scoring(self, rows, step, reference_logp, heard.voices, contrasts)

        def score(student_hidden: Tensor, student: LanguageModel) -> tuple[Tensor, LossOutput]:
            heads = [None if teacher is None else teacher.head() for teacher in teachers]
            readers = heard.voices.readers(heard.readings, hidden, heads, self.panel.pool)
            return scoring.run(self._stream(student_hidden, student, readers))

        with contextlib.ExitStack() as stack:
            for teacher in filter(None, dict.fromkeys(teachers)):
                stack.enter_context(gathered(teacher, head_only=True))
            return read_by_student(heard.sequences, models, score)

    def _readings(self, sequences: Sequences, models: Models, step: Step) -> tuple[Reading, ...]:
        """Return what each teacher reads, none where none is needed.

        Raises:
            ConfigurationError: the panel has not asked the teachers that it says, of which another rank may ask more.
        """
        if not self.needs_teacher:
            return ()
        readings = self.panel(sequences, self.context, models, step)
        asked, wanted = [one.teacher for one in readings], self.panel.asks(models.teacher_names)
        if tuple(dict.fromkeys(asked)) != wanted:
            raise ConfigurationError(
                f"`{type(self.panel).__name__}` gave readings of {listed(asked)}, but it `asks` {listed(wanted)}. Give "
                "one of each, in this order, without rows where a teacher has none."
            )
        return with_answers(readings, len(sequences.prediction_index), models)

    def _stream(self, hidden: Tensor, student: LanguageModel, readers: Sequence[Reader] = ()) -> PanelStream:
        """Return the student's rows on their way through the heads, alone or beside teachers."""
        sides = readers or [Reader()]
        return PanelStream(hidden, student.head(), sides, chunk_rows=self.chunk_rows, compiled=self.compile)

    def _reference_logp(self, sequences: Sequences, models: Models) -> Tensor | None:
        """Return the log-probabilities [N] of the tokens under the reference, None where none is needed."""
        return self._token_logp(models.required_reference(), sequences) if self.needs_reference else None

    def _contrast_logp(self, sequences: Sequences, models: Models, step: Step) -> Tensor | None:
        """Return the tokens' log-probabilities under the teacher in each further context, [K, B, S]; None without any.

        They are -inf on rows to which that context, or the objective's own, has nothing to tell.
        """
        if not self.contrasts:
            return None
        teacher, found = models.required_teacher(), []
        for context in self.contrasts:
            logp = on_grid(self._token_logp(teacher, context(sequences, models, step)), sequences.predictions)
            known = self.context.informed(sequences) & context.informed(sequences)
            found.append(logp.masked_fill(~known[:, None], -math.inf))
        return torch.stack(found)

    def _token_logp(self, model: LanguageModel, sequences: Sequences) -> Tensor:
        return token_logp(model, sequences, temperature=self.temperature, chunk_rows=self.chunk_rows)


def _share(counted: Sequences, of: Sequences) -> Stat:
    """Return how many tokens count in some rows, of those that count in the same rows before."""
    return Stat(counted.predictions.sum().float(), of.predictions.sum().float())

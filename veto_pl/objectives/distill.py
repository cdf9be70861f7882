"""`Distill`: a divergence to a target, a policy-gradient term, or both, composed from the seams."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from veto_pl.core.bounds import AboveZero, PositiveShare
from veto_pl.core.scores import TopKScores
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.diagnostics import sharpness
from veto_pl.functional.differentiation import closed_form
from veto_pl.functional.policy import clipped_surrogate, importance_weight
from veto_pl.functional.units import Units
from veto_pl.objectives.heard import Heard
from veto_pl.objectives.spread_scoring import SpreadScoring, Told
from veto_pl.objectives.student_pass import read_by_student
from veto_pl.objectives.token_objective import TokenObjective
from veto_pl.objectives.unit_readings import read_in_own_ids
from veto_pl.parts.divergences import ForwardKL, ReverseKL
from veto_pl.parts.supports import FullVocabulary, TopK
from veto_pl.parts.targets import GeometricBridge, Teacher
from veto_pl.parts.weightings import Uniform
from veto_pl.seams import (
    Advantage,
    Divergence,
    LanguageModel,
    LossOutput,
    Models,
    Reading,
    Step,
    Support,
    Target,
    TokenWeighting,
)
from veto_pl.seams.tokens import TokenGrid, TokenRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Distill"]


@dataclass(frozen=True, kw_only=True)
class Distill(TokenObjective):
    r"""Any composition of the seams.

    .. math:: w_t \left[ u_t\, D(p_S, Q)_t - A_t \log p_S(y_t) \right]

    with the target :math:`Q`, the token weights :math:`u`, the advantage :math:`A` and the importance weights :math:`w`
    all held fixed: this class detaches them. The policy-gradient term has the gradient that is written here; its
    reported value is :math:`-A_t`.

    Args:
        rollout: who writes the completions.
        context: what the teacher reads.
        temperature: divides the logits of student and teacher in the loss; it never shapes the rollout.
        aggregation: `token` weighs every token alike, `sequence` every completion, `turn` every turn of the
            agent, `episode` every episode.
        chunk_rows: tokens whose vocabulary-sized rows are held at a time, or `auto`.
        compile: whether what happens between the matrix products of the head is compiled, or `auto`.
        support: the outcomes that are compared.
        target: the distribution that the student is drawn to.
        divergence: the dissimilarity to the target; None leaves the policy-gradient term alone.
        weighting: how much each token counts.
        advantage: credit of the sampled tokens; None leaves the divergence alone.
        clip: clipping of the probability ratio in the policy-gradient term. There is one update per rollout, so the
            ratio is 1 and nothing is clipped; it is here for subclasses that look back.
        importance_cap: truncation of the weights student / sampler that correct for how tokens were sampled;
            None switches them off.
        engine_cap: as `importance_cap`, but for another arithmetic of the engine alone; not used beside it.
        staleness_decay: in (0, 1]; the loss of a row that was written `age` optimizer steps ago is multiplied by
            `staleness_decay ** age`. Fresh rows, and rollouts that tell no ages, are left alone.
    """

    support: Support = FullVocabulary()
    target: Target = Teacher()
    divergence: Divergence | None = ForwardKL()
    weighting: TokenWeighting = Uniform()
    advantage: Advantage | None = None
    clip: AboveZero = 0.2
    importance_cap: AboveZero | None = None
    staleness_decay: PositiveShare = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.divergence is None and self.advantage is None:
            raise ConfigurationError("`Distill` needs a `divergence`, an `advantage`, or both; got neither.")
        if self.advantage is not None:
            object.__setattr__(self, "laws", self.laws & self.advantage.laws)
            for need in ("needs_reference", "needs_rewards", "compares_completions"):
                object.__setattr__(self, need, getattr(self, need) or getattr(self.advantage, need))
        if self._aligns():
            for said in ("aligns_tokenizers", "aligns_named"):
                object.__setattr__(self, said, True)

    @classmethod
    def examples(cls) -> tuple["Distill", ...]:
        return (
            cls(),
            cls(aggregation="sequence", temperature=2.0),
            cls(support=TopK(k=3), divergence=ReverseKL(), target=GeometricBridge(0.5), importance_cap=2.0),
        )

    @property
    def couples_tokens(self) -> bool:
        """Return whether a policy-gradient term, or weights of importance or age, ask for all tokens first."""
        own = type(self).over_sequences is Distill.over_sequences
        weighed = self.importance_cap is not None or self.staleness_decay < 1
        return not own or self.advantage is not None or weighed

    @property
    def weighs_samples(self) -> bool:
        """Return whether the losses are weighted by student / sampler."""
        return self.importance_cap is not None

    @property
    def sampled_tokens_only(self) -> bool:
        """Return whether the loss is a policy-gradient term alone."""
        return self.divergence is None and type(self).per_token is Distill.per_token

    def credited(self, units: Units, token_ids: Tensor, tokenizer: "PreTrainedTokenizerBase | None") -> Units:
        """Return the units that have a log-ratio, where teachers read ids of their own; by default all of them.

        Args:
            units: on the host, of M tokens of the student and of a teacher's.
            token_ids: [M] int64, those of the student.
            tokenizer: of the student.
        """
        return units

    def heard_loss(self, heard: Heard, models: Models, step: Step) -> LossOutput:
        """Sum the losses of the completion tokens; a policy gradient spreads what teachers say in other ids.

        Collective where a model is sharded: call it on every rank.
        """
        return (self.spread_loss if heard.by_own_ids(models) else super().heard_loss)(heard, models, step)

    def spread_loss(self, heard: Heard, models: Models, step: Step) -> LossOutput:
        """Sum the policy-gradient terms, each teacher's log-probability of a unit spread over the student's tokens.

        Collective where a model is sharded: call it on every rank.

        Raises:
            ConfigurationError: the panel makes one teacher of several.
        """
        if self.panel.pool is not None:
            raise ConfigurationError(
                f"`{type(self).__name__}` spreads what each teacher says over units, but `{type(self.panel).__name__}` "
                "makes one teacher of several. Leave its pool out, so that their losses are averaged."
            )
        ids = heard.sequences.token_ids()
        voices = zip(heard.readings, heard.voices.voices, strict=True)
        told = [self._told(one, voice.of(ids), models) for one, voice in voices]
        scoring = SpreadScoring(self, heard, step, told, self._reference_logp(heard.sequences, models))

        def score(hidden: Tensor, student: LanguageModel) -> tuple[Tensor, LossOutput]:
            return scoring.run(self._stream(hidden, student))

        return read_by_student(heard.sequences, models, score)

    def _told(self, one: Reading, token_ids: Tensor, models: Models) -> Told:
        rows, units = read_in_own_ids(one, models, type(self).__name__)
        said = None if one.told is None else one.told.sampled_logp
        logp = self._token_logp(models.teacher_named(one.teacher), rows) if said is None else said
        return Told(logp, self.credited(units, token_ids, models.tokenizer).to(logp.device))

    @property
    def fixed_support(self) -> Support:
        """Return the outcomes that a teacher has to tell, whatever it knows; by default those of `support`."""
        return self.support

    def check_told(self, scores: TopKScores | None, teacher: str) -> None:
        """Raise `ConfigurationError` for a composition that needs more than a stored or served teacher tells."""
        super().check_told(scores, teacher)
        name = type(self).__name__
        needs_more = self.advantage is not None and self.advantage.needs_every_id
        if needs_more or not self.fixed_support.is_neutral:
            raise ConfigurationError(
                f"`{name}` reads more of its teacher than {teacher} tells, which knows its own likeliest ids and no "
                f"others. Leave out `{'advantage' if needs_more else 'support'}`, or use a live teacher."
            )
        if self.advantage is not None and scores is not None and scores.sampled_logp is None:
            raise ConfigurationError(
                f"`{name}.advantage` reads the teacher's log-probability of every token, but {teacher} has a store "
                "without them, of an earlier version. Write it again with `veto-pl cache-teacher`, or use a live "
                "teacher."
            )
        if not self.weighting.is_neutral:
            raise ConfigurationError(
                f"`{name}.weighting` reads the teacher's whole distribution, which {teacher} does not tell. Leave the "
                "weighting out, or use a live teacher."
            )

    def on_every_id(self, rows: TokenRows) -> bool:
        """Return whether student and target stand on the whole vocabulary, as this class composes them."""
        methods = ("_student_and_target", "_weight")
        own = all(getattr(type(self), name) is getattr(Distill, name) for name in methods)
        return own and rows.stored is None and self.support.is_neutral

    def per_token(self, rows: TokenRows) -> Tensor:
        """Compute the weighted divergence of each token, [n]."""
        if self.divergence is None:
            return 0.0 * rows.token_logp()
        student, target = self._student_and_target(rows)
        return self._weight(rows) * self.divergence(student, target)

    def with_gradient(self, rows: TokenRows) -> tuple[Tensor, Tensor]:
        """Compute the weighted divergence [n] and its gradient [n, V].

        The gradient is in closed form where student and target stand on the whole vocabulary; elsewhere autograd finds
        it.
        """
        if self.divergence is None or not self.on_every_id(rows):
            return self.by_autograd(rows)
        student, target = self._student_and_target(rows)
        losses, gradient = closed_form(self.divergence)(student, target)
        if self.weighting.is_neutral:
            return losses, gradient
        weight = self._weight(rows)
        return weight * losses, gradient.mul_(weight[:, None])

    def scores(self, rows: TokenRows) -> Mapping[str, Tensor]:
        """Return the numbers that the advantage asks for, [n] by name."""
        return {} if self.advantage is None else self.advantage.scores(rows)

    def over_sequences(self, losses: Tensor, grid: TokenGrid) -> Tensor:
        """Add the policy-gradient term and apply the weights of importance and age, [B, S]."""
        if self.advantage is not None:
            advantage = self.advantage(grid).detach()
            losses = losses + clipped_surrogate(grid.student_logp, grid.student_logp.detach(), advantage, self.clip)
        if self.importance_cap is not None:
            sampler = grid.required_sampler_logp()
            losses = losses * importance_weight(grid.student_logp.detach(), sampler, self.importance_cap)
        if self.staleness_decay < 1 and grid.age is not None:
            losses = losses * (self.staleness_decay**grid.age)[:, None]
        return losses

    def token_metrics(self, rows: TokenRows) -> dict[str, Tensor]:
        """Add how much sharper the target is than the teacher, where it is another distribution."""
        metrics = super().token_metrics(rows)
        if not self.target.is_neutral:
            _, target = self._student_and_target(rows)
            _, teacher = rows.outcomes(self.support)
            metrics["target_sharpness"] = sharpness(target, teacher)
        return metrics

    def _aligns(self) -> bool:
        """Return whether all that is read of a live teacher is its log-probability of the sampled tokens."""
        own = all(getattr(type(self), name) is getattr(Distill, name) for name in ("scores", "token_metrics", "loss"))
        sampled = self.sampled_tokens_only and self.advantage is not None and not self.advantage.needs_every_id
        plain = not self.contrasts and self.needs_teacher and not self.rollout.stored_teacher
        return own and sampled and plain

    def _student_and_target(self, rows: TokenRows) -> tuple[Tensor, Tensor]:
        def compare() -> tuple[Tensor, Tensor]:
            student, teacher = rows.outcomes(self.support)
            return student, self.target(teacher, student.detach(), rows.step).detach()

        return rows.once("student and target", compare)

    def _weight(self, rows: TokenRows) -> Tensor:
        return self.weighting(replace(rows, student_logp=rows.student_logp.detach())).detach()

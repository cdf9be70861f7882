"""Self-distillation: the teacher is the student itself, or was, and has been told more."""

import math
from dataclasses import dataclass, replace

from torch import Tensor

from veto_pl.exceptions import ConfigurationError
from veto_pl.objectives.distill import Distill
from veto_pl.parts.contexts import Peer, Privileged
from veto_pl.parts.divergences import ForwardKL, GeneralizedJSD
from veto_pl.parts.supports import TopK
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.seams import Divergence, RolloutSource, Sequences, Step, Support, TeacherContext
from veto_pl.seams.tokens import TokenRows


@dataclass(frozen=True, kw_only=True)
class OPSD(Distill):
    r"""On-policy self-distillation: a teacher that has been told the answer scores what the student writes.

    .. math:: L = \min\big(D\big(p_S(\cdot \mid x, y_{<t}),\; p_T(\cdot \mid x, y^*, y_{<t})\big),\; c\big)

    Give `model.teacher` the student's own source: it is then frozen at the start, as in the paper. The loss of a token
    beyond the cap c has no gradient, so that tokens of style, of which teacher and student disagree most, do not rule.
    The published code clips nothing; its rollouts and its divergence are the defaults here.

    Args:
        rollout: who writes the completions.
        context: what the teacher reads.
        divergence: the dissimilarity to the teacher, over the whole vocabulary; the paper found `ForwardKL` best.
        loss_cap: c, in nats; None for no limit.

    References:
        arXiv 2601.18734
    """

    rollout: RolloutSource = FromStudent(Sampling(temperature=1.1, top_p=0.95, top_k=20, max_new_tokens=1024))
    context: TeacherContext = Privileged()
    divergence: Divergence | None = GeneralizedJSD(0.5)
    loss_cap: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss_cap is not None and not 0 < self.loss_cap < math.inf:
            raise ConfigurationError(f"`OPSD.loss_cap` must be positive and finite, got {self.loss_cap}.")

    def per_token(self, rows: TokenRows) -> Tensor:
        """The divergence of each token, up to the cap."""
        losses = super().per_token(rows)
        return losses if self.loss_cap is None else losses.minimum(losses.new_tensor(self.loss_cap))

    def with_gradient(self, rows: TokenRows) -> tuple[Tensor, Tensor]:
        """That of the divergence, and 0 beyond the cap."""
        losses, gradient = super().with_gradient(rows)
        if self.loss_cap is None:
            return losses, gradient
        cap = losses.new_tensor(self.loss_cap)
        return losses.minimum(cap), gradient.masked_fill_((losses > cap)[:, None], 0.0)


@dataclass(frozen=True, kw_only=True)
class SDFT(Distill):
    r"""Self-distillation fine-tuning: a moving average of the student, shown a demonstration, is the teacher.

    .. math:: L = \mathrm{KL}\big(p_T(\cdot \mid x, d, y_{<t}) \,\Vert\, p_S(\cdot \mid x, y_{<t})\big), \qquad t > m

    on the student's own completions; the demonstration d is the task's reference. Give `model.teacher` a
    `MovingAverage` of the student's source. The first m tokens do not count: there the teacher talks about the
    demonstration. The paper writes the reverse KL, and its authors' errata say that the results are those of the
    forward KL, as here.

    Args:
        rollout: who writes the completions.
        context: what the teacher reads.
        skip_tokens: m.

    References:
        arXiv 2601.19897
    """

    rollout: RolloutSource = FromStudent(Sampling())
    context: TeacherContext = Privileged(
        "{prompt}\n\nThis is an example of a good answer:\n\n{completion}\n\nNow give an answer of your own."
    )
    divergence: Divergence | None = ForwardKL()
    skip_tokens: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.skip_tokens < 0:
            raise ConfigurationError(f"`SDFT.skip_tokens` must be at least 0, got {self.skip_tokens}.")

    def select(self, sequences: Sequences, step: Step) -> Sequences:
        """Without the first tokens of each completion."""
        written = sequences.completion_mask
        later = written.cumsum(1) > min(self.skip_tokens, written.shape[1])
        return replace(sequences, loss_mask=sequences.loss_mask & later)


@dataclass(frozen=True, kw_only=True)
class SDPO(Distill):
    r"""Self-distillation policy optimisation: the teacher reads another, successful completion, or feedback.

    .. math:: L = w_t\, \mathrm{JSD}\big(p_S(\cdot \mid x, y_{<t}),\; p_T(\cdot \mid x, f, y_{<t})\big)

    with truncated importance weights w, over the student's likeliest ids and one outcome for all others. Rows for which
    there is neither a peer nor feedback train on nothing. Give `model.teacher` a `MovingAverage` of the student's
    source (the paper's rate of 0.05 is a decay of 0.95), or with `decay: 0` the student of the last step.

    Args:
        rollout: who writes the completions, several of each prompt.
        context: what the teacher reads.
        support: the outcomes that are compared.
        divergence: the dissimilarity to the teacher.
        importance_cap: truncation of the weights student / sampler; None switches them off.

    References:
        arXiv 2601.20802
    """

    rollout: RolloutSource = FromStudent(Sampling(num_completions=8))
    context: TeacherContext = Peer()
    support: Support = TopK(100, of="student")
    divergence: Divergence | None = GeneralizedJSD(0.5)
    importance_cap: float | None = 2.0

    def select(self, sequences: Sequences, step: Step) -> Sequences:
        """Without the rows of which the context knows nothing to tell."""
        informed = self.context.informed(sequences)
        return replace(sequences, loss_mask=sequences.loss_mask & informed[:, None])

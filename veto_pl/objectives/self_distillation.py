"""Self-distillation: the teacher is the student itself, or was, and has been told more."""

from dataclasses import dataclass, field, replace

from torch import Tensor

from veto_pl.core.bounds import CountFromZero, NonNegative, Positive, UnitInterval
from veto_pl.objectives.distill import Distill
from veto_pl.parts.contexts import Peer, Privileged, SameText
from veto_pl.parts.divergences import ForwardKL, GeneralizedJSD, ReverseKL
from veto_pl.parts.supports import FullVocabulary, TopK
from veto_pl.parts.targets import DisagreementBridge
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.seams import Divergence, RolloutSource, Sequences, Step, Support, Target, TeacherContext
from veto_pl.seams.tokens import TokenRows

__all__ = ["OPSD", "SDFT", "SDPO", "DemoPSD"]


@dataclass(frozen=True, kw_only=True)
class OPSD(Distill):
    r"""On-policy self-distillation: a teacher that has been told the answer scores what the student writes.

    .. math:: L = \min\big(D\big(p_S(\cdot \mid x, y_{<t}),\; p_T(\cdot \mid x, y^*, y_{<t})\big),\; c\big)

    Give `model.teacher` the student's own source: it is then frozen at the start, as in the paper. The loss of a token
    beyond the cap c has no gradient, so that tokens of style, of which teacher and student disagree most, do not rule.

    Departures: the cap is on the loss of a token, and the published code has none; its rollouts and its divergence are
    the defaults. All weights are trained, where the paper trains an adapter.

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
    loss_cap: Positive | None = None

    @classmethod
    def examples(cls) -> tuple["OPSD", ...]:
        (told,) = Privileged.examples()
        return cls(context=told), cls(context=told, loss_cap=0.5)

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
    demonstration.

    Departures: the paper writes the reverse KL, and its authors' errata say that the results are those of the forward
    KL, as here; the number of tokens that do not count is that of public reimplementations.

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
    skip_tokens: CountFromZero = 3

    @classmethod
    def examples(cls) -> tuple["SDFT", ...]:
        (told,) = Privileged.examples()
        return cls(context=told), cls(context=told, skip_tokens=1)

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

    Departures: the peer is the first other success of the prompt, and feedback is a field of the row, not of the
    attempt.

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

    @classmethod
    def examples(cls) -> tuple["SDPO", ...]:
        return tuple(
            cls(context=context, support=TopK(3, of="student"), rollout=FromStudent(Sampling(num_completions=4)))
            for context in Peer.examples()
        )

    def select(self, sequences: Sequences, step: Step) -> Sequences:
        """Without the rows of which the context knows nothing to tell."""
        informed = self.context.informed(sequences)
        return replace(sequences, loss_mask=sequences.loss_mask & informed[:, None])


@dataclass(frozen=True, kw_only=True)
class DemoPSD(SDPO):
    r"""Disagreement-modulated self-distillation: where a told teacher says something else, the student keeps its own.

    .. math:: L = \mathrm{KL}(p_S \Vert \mathrm{sg}\, Q), \qquad Q \propto p_T^{1 - \alpha}\, p_S^{\alpha}, \qquad
        \alpha = 2 \alpha_{max} \left( \sigma(\beta\, \mathrm{JSD}(p_S, p_T)) - \tfrac12 \right)

    At each token the gradient is :math:`1 - \alpha` times that of the reverse KL to the teacher: what the teacher only
    says because it was told the answer counts less. It is Veto's bridge with an exponent for each token, and exponents
    that add up to 1. The teacher is the one of `SDPO`, which reads a successful completion of the prompt; with
    `context: SameText` and another model it is plain distillation.

    Departures: the student inside of Q and of the disagreement is the one that is trained, held fixed, where the paper
    keeps a moving average of it; the likeliest ids are the student's, with one outcome for all others. The paper
    chooses beta for each domain, between 15 and 100.

    Args:
        beta: how soon disagreement counts.
        alpha_max: the largest share of the student in the target.
        rollout: who writes the completions, several of each prompt.
        context: what the teacher reads.
        support: the outcomes that are compared.
        divergence: the dissimilarity to the target.
        importance_cap: truncation of the weights student / sampler; None switches them off.

    References:
        arXiv 2607.02502
    """

    beta: NonNegative = 50.0
    alpha_max: UnitInterval = 0.15
    divergence: Divergence | None = ReverseKL()
    importance_cap: float | None = None
    target: Target = field(init=False)

    def __post_init__(self) -> None:
        self.check_bounds()
        object.__setattr__(self, "target", DisagreementBridge(self.beta, self.alpha_max))
        super().__post_init__()

    @classmethod
    def examples(cls) -> tuple["DemoPSD", ...]:
        plain, several = (FromStudent(Sampling(num_completions=count)) for count in (1, 4))
        peer, few = Peer.examples()[0], TopK(3, of="student")
        return (
            cls(context=SameText(), support=FullVocabulary(), rollout=plain),
            cls(context=peer, support=few, rollout=several, beta=5.0),
        )

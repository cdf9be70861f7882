"""On-policy distillation from teachers that debate first."""

from dataclasses import dataclass, field

from veto_pl.core.bounds import UnitInterval
from veto_pl.functional.reduction import Aggregation
from veto_pl.objectives.distill import Distill
from veto_pl.objectives.gkd import jsd_or_its_limit
from veto_pl.rollouts import Debate, FromStudent, Sampling
from veto_pl.seams import Divergence, Panel, RolloutSource

__all__ = ["MADOPD"]


@dataclass(frozen=True, kw_only=True)
class MADOPD(Distill):
    r"""On-policy distillation from teachers that debate first, weighted by the confidence that they end with.

    .. math:: \sum_k w_k\, \frac{1}{|y|} \sum_t
        D\big(p_k(\cdot \mid x, H, y_{<t}),\, p_S(\cdot \mid x, y_{<t})\big), \qquad
        w = \operatorname{softmax}(c / \tau)

    The debate H is held without the student's answer, see `Debate`. For agents the rollout is `Played` and
    `aggregation: turn`: each turn has a debate of its own, behind the real observations before it.

    Departures: the published code debates in plain text without a chat template, about the decoded prompt, with up to
    4096 tokens a round (here 1024) and a repetition penalty of 1.1 (here none). It keeps texts without an end, takes
    confidences above 100, and drops rows with a loss of at most 1e-8. Its filter of repetitive completions replaces a
    text whose ids are trained on as they were, so it has no effect, and there is none here. Its single-teacher baseline
    divides logits by 0.7 in the loss, which it does not do with debates, nor is it done here.

    Args:
        rollout: who writes the completions.
        aggregation: `sequence` weighs every completion alike, `turn` every turn of the agent, `token` every token.
        panel: the debate.
        beta: weight of the teacher in the JSD: 0.5, as for agents, or 1, the reverse KL, as for code.

    References:
        arXiv 2605.01347
    """

    rollout: RolloutSource = FromStudent(Sampling(temperature=0.7, top_p=0.8, top_k=20))
    aggregation: Aggregation = "sequence"
    panel: Panel = Debate()
    beta: UnitInterval = 0.5
    divergence: Divergence | None = field(init=False)

    def __post_init__(self) -> None:
        self.check_bounds()
        object.__setattr__(self, "divergence", jsd_or_its_limit(self.beta))
        super().__post_init__()

    @classmethod
    def examples(cls) -> tuple["MADOPD", ...]:
        debate, *_ = Debate.examples()
        return cls(panel=debate), cls(panel=debate, beta=1.0)

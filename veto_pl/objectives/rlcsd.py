"""Self-distillation by the contrast of right and wrong hints, which sharpens the credit of outcomes."""

from dataclasses import dataclass

from veto_pl.core.bounds import AboveZero, NonNegative
from veto_pl.functional.reduction import Aggregation
from veto_pl.objectives.policy_gradient import PolicyGradient
from veto_pl.parts.contexts import Peer
from veto_pl.parts.credit import HintContrast
from veto_pl.parts.wrong_peer import WrongPeer
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.seams import Advantage, RolloutSource, TeacherContext

__all__ = ["RLCSD"]

HINT = "{prompt}{peer}\n\nHaving read it, solve the problem in your own words."
SHOWN = "\n\nHere is a reference solution:\n\n{completion}"


@dataclass(frozen=True, kw_only=True)
class RLCSD(PolicyGradient):
    r"""Reinforcement learning whose credit is stronger at tokens that a right hint makes likelier than wrong ones.

    .. math:: c_t = \log p_T(y_t \mid h^+) - \log \frac1K \sum_k p_T(y_t \mid h^-_k), \qquad
        A'_t = A + \mathrm{clip}\big(s \tanh(c_t / \tau), -2, 2\big)

    with GRPO's advantage A of the completion, whose sign A' keeps. Tokens whose shift is larger than :math:`\delta`
    have A', the others A; in each completion both kinds are means of their own, the first times :math:`\eta`. What any
    hint changes, such as style, falls out of the contrast. The hints are other completions of the prompt, right and
    wrong ones in the same words; a prompt that lacks either has A alone. At :math:`s = 0` it is GRPO. Give
    `model.teacher` a `MovingAverage` of the student's source.

    Departures: the first right and the first wrong completions of the prompt are shown, where the published code draws
    them; the teacher of the code is a copy of the student that is renewed every ten updates. There is one update per
    rollout, at which the clipping never binds. The defaults are those of the code's settings for Qwen3-4B.

    Args:
        rollout: who writes the completions, several of each prompt.
        context: tells the teacher a right completion.
        contrasts: each tells it another wrong one, in the same words; as many passes of the teacher.
        aggregation: `sequence` weighs every completion alike.
        importance_cap: truncation of the importance weights; None switches them off.
        strength: s, the product of the paper's beta and lambda.
        scale: tau, in nats.
        threshold: delta.
        selected_weight: eta.

    References:
        arXiv 2606.11709
    """

    rollout: RolloutSource = FromStudent(Sampling(temperature=1.0, top_p=0.95, top_k=20, num_completions=8))
    context: TeacherContext = Peer(HINT, SHOWN)
    contrasts: tuple[TeacherContext, ...] = tuple(WrongPeer(HINT, SHOWN, place=place) for place in range(4))
    aggregation: Aggregation = "sequence"
    importance_cap: float | None = 2.0
    strength: NonNegative = 0.5
    scale: AboveZero = 0.02
    threshold: NonNegative = 0.02
    selected_weight: NonNegative = 1.0

    @classmethod
    def examples(cls) -> tuple["RLCSD", ...]:
        texts = ("{peer}{prompt}", "{completion}>")
        rollout = FromStudent(Sampling(num_completions=4))
        wrong = tuple(WrongPeer(*texts, place=place) for place in range(2))
        return (
            cls(rollout=rollout, context=Peer(*texts), contrasts=wrong),
            cls(rollout=rollout, context=Peer(*texts), contrasts=wrong, strength=0.0),
        )

    def credit(self) -> Advantage:
        """Return the outcome, shifted by the contrast of hints."""
        return HintContrast(self.strength, self.scale, 2.0, self.threshold, self.selected_weight)

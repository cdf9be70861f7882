"""On-policy distillation of agents with tools, whose turns weigh by how well student and teacher agree."""

from dataclasses import dataclass

from veto_pl.core.bounds import NonNegative
from veto_pl.environments import TryAgain
from veto_pl.objectives.policy_gradient import PolicyGradient
from veto_pl.parts.advantages import LogRatio, WithReward
from veto_pl.parts.credit import StepWeighted
from veto_pl.rollouts import FromStudent, Played, Sampling
from veto_pl.seams import Advantage, RolloutSource

__all__ = ["SOD"]


@dataclass(frozen=True, kw_only=True)
class SOD(PolicyGradient):
    r"""Step-wise on-policy distillation: a teacher is trusted less where the student has gone astray.

    .. math:: A_{i,t} = \frac{r_i - \bar r}{\sigma + 10^{-6}}
        + w_{k(t)} \left( \log p_T(y_t) - \log p_S(y_t) \right), \qquad
        w_k = \min\left( \frac{d_1 + \epsilon}{d_k + \epsilon},\ 1 + \delta \right)

    with the mean size :math:`d_k` of the log-ratio over the agent's k-th turn, and the unbiased deviation of the
    rewards of a prompt's episodes. The rollout is `Played` with tools. With single turns all w are 1, and it is `OPD`
    with GRPO's reward.

    Departures: the published code makes four updates of each rollout, with PPO's clipping; here there is one, at which
    the clipping never binds. One completion of a prompt has the advantage 0, not its reward. The reward is the
    environment's or the task's; the code's pays turns with tools where the answer is wrong.

    Args:
        rollout: who writes the completions, several of each prompt.
        importance_cap: truncation of the importance weights; None, as in the paper, switches them off.
        cap: delta.
        reward_weight: how much the rewards count; 0 leaves them out.

    References:
        arXiv 2605.07725
    """

    rollout: RolloutSource = FromStudent(Sampling(temperature=1.0, num_completions=16))
    importance_cap: float | None = None
    cap: NonNegative = 0.2
    reward_weight: NonNegative = 1.0

    @classmethod
    def examples(cls) -> tuple["SOD", ...]:
        sampling = Sampling(max_new_tokens=6, num_completions=4, stop=tuple("aeio"))
        return (cls(rollout=Played(TryAgain(said="no>"), sampling, max_turns=3, max_tokens=64)), cls(reward_weight=0.0))

    def credit(self) -> Advantage:
        """Return the weighted log-ratio, with the standardised reward where it counts."""
        weighted = StepWeighted(LogRatio(), self.cap)
        return WithReward(weighted, self.reward_weight, scale="std") if self.reward_weight else weighted

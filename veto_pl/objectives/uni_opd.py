"""On-policy distillation that respects which completions are correct."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from veto_pl.core.bounds import NonNegative
from veto_pl.functional.order import balance_classes, first_of_group
from veto_pl.objectives.policy_gradient import PolicyGradient
from veto_pl.parts.advantages import OrderConsistent
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.seams import Advantage, RolloutSource, Sequences, Step

__all__ = ["UniOPD"]

PLACES = 1 << 20
"""More completions than any prompt has."""


@dataclass(frozen=True, kw_only=True)
class UniOPD(PolicyGradient):
    r"""On-policy distillation whose credit is consistent with the outcome: correct completions above wrong ones.

    .. math:: A_{i,t} = \log p_T(y_{i,t}) - \log p_S(y_{i,t}) \pm s / 2, \qquad
        s = \max\left(0,\ \delta - (\bar a_{correct} - \bar a_{wrong})\right)

    with the mean log-ratio :math:`a_i` of a completion, plus for the correct completions of a prompt and minus for the
    wrong ones. Where nothing is shifted and nothing left out, the gradient is that of `OPD`.

    Needs several completions of each prompt, and rewards; correct means a reward of 1. Several teachers, one for each
    prompt, are the panel `Routed`.

    Departures from the published code: rows that the balance leaves out and tokens that are outliers do not count in
    the means either. There is no `global` scope (over all prompts, on all ranks): only the completions of a prompt are
    compared. Prompts are not resampled by difficulty. The clipping of PPO (0.2 / 0.28 in the paper) never binds. Tokens
    weigh alike; `aggregation: sequence` is the mean over completions of the code. A completion that a served teacher
    has failed on leaves the step, where the code gives it a log-probability of -100 and then shifts it.

    Args:
        rollout: who writes the completions.
        importance_cap: truncation of the importance weights; None, as in the paper, switches them off.
        margin: delta, in nats per token.
        method: `shift` adds a constant to all tokens of a completion, `mask` leaves out whole completions.
        mode: `mean` compares the means of the two classes, `minmax` the worst correct completion with the best wrong
            one.
        direction: who is shifted: `both` by half, or one class by all of it.
        min_retain: the share of each class that `mask` keeps at least, in [0, 1].
        outlier: tokens whose log-ratio is at least as large in size get no credit, in nats; null keeps all.
        balance: correct completions for each wrong one; the surplus of a prompt, drawn at random, is not trained on. 0
            keeps wrong ones only, null keeps all.

    References:
        arXiv 2605.03677
    """

    rollout: RolloutSource = FromStudent(Sampling(temperature=1.0, num_completions=16))
    importance_cap: float | None = None
    margin: float = 0.4
    method: Literal["shift", "mask"] = "shift"
    mode: Literal["mean", "minmax"] = "mean"
    direction: Literal["both", "correct_up", "incorrect_down"] = "both"
    min_retain: float = 0.25
    outlier: float | None = 10.0
    balance: NonNegative | None = 1.0

    @classmethod
    def examples(cls) -> tuple["UniOPD", ...]:
        return (
            cls(rollout=FromStudent(Sampling(num_completions=4))),
            cls(method="mask", balance=None),
            cls(mode="minmax", direction="correct_up", balance=0.5),
        )

    def credit(self) -> Advantage:
        """Return the log-ratio, shifted or masked."""
        return OrderConsistent(self.margin, self.method, self.mode, self.direction, self.min_retain, self.outlier)

    def select(self, sequences: Sequences, step: Step) -> Sequences:
        """Return the rollout without the surplus of correct or wrong completions of each prompt."""
        if self.balance is None or sequences.rewards is None:
            return sequences
        rows = torch.arange(len(sequences), device=sequences.prompt_rows.device)
        # An episode of several rows is kept or left out as a whole, and counts once.
        first = rows if sequences.episodes is None else first_of_group(sequences.episodes, rows >= 0)
        draws = _balance_draws(sequences, first == rows, step)
        kept = balance_classes(sequences.rewards == 1, sequences.prompt_rows, draws, self.balance, first == rows)
        return replace(sequences, loss_mask=sequences.loss_mask & kept[first][:, None])


def _balance_draws(sequences: Sequences, counted: Tensor, step: Step) -> Tensor:
    """Return [B] random numbers, functions of the prompt's number and of the place in it of the rows that count."""
    groups, prompts = sequences.prompt_rows, sequences.prompts
    numbers = groups if prompts is None else prompts.numbers[groups]
    place = ((groups[:, None] == groups) & counted).tril(-1).sum(1)
    return step.uniform_by_key("balance", numbers * PLACES + place)

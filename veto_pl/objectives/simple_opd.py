"""Policy gradients on the log-probabilities of a teacher with another tokenizer."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from veto_pl.core.scores import TopKScores
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.units import Units
from veto_pl.objectives.heard import Heard
from veto_pl.objectives.policy_gradient import PolicyGradient
from veto_pl.parts.advantages import LogRatio
from veto_pl.seams import Advantage, LossOutput, Models, Step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["SimpleOPD"]


@dataclass(frozen=True, kw_only=True)
class SimpleOPD(PolicyGradient):
    r"""On-policy distillation from a teacher with another tokenizer, where both write the same token.

    .. math:: A_t = \log p_T(z_i) - \log p_S(y_t)

    where the teacher's token z and the student's y are the same text behind the same text, and 0 elsewhere. With
    `minimal` units the log-ratio of every unit u is spread evenly over its m tokens of the student:

    .. math:: A_t = \frac{1}{m_u} \Big( \sum_{j \in u} \log p_T(z_j) - \sum_{t \in u} \log p_S(y_t) \Big)

    The teacher reads the student's bytes in its own ids, behind the prompt as its own chat template writes it. With one
    tokenizer for both it is `OPD`, but for the silent tokens.

    Departures: the KL to the student's start, which the authors add, is left out. One update is made per rollout, so
    the clipping of the probability ratio never binds.

    Args:
        rollout: who writes the completions.
        units: those that are one token on both sides, or all `minimal` ones.
        silent: names of the student's tokens without a log-ratio: where models end their thoughts and turns is a habit.

    References:
        arXiv 2608.14277; arXiv 2606.09456 (spread over units)
    """

    units: Literal["one_to_one", "minimal"] = "one_to_one"
    silent: tuple[str, ...] = ("</think>", "<|im_end|>")

    @classmethod
    def examples(cls) -> tuple["SimpleOPD", ...]:
        return cls(), cls(units="minimal", silent=(), aggregation="sequence")

    def check_told(self, scores: TopKScores | None, teacher: str) -> None:
        """Refuse every stored or served teacher."""
        raise ConfigurationError(
            f"`SimpleOPD` needs a live teacher, which reads the text in its own ids, not {teacher}."
        )

    def credit(self) -> Advantage:
        """Return the log-ratio of the token."""
        return LogRatio()

    def heard_loss(self, heard: Heard, models: Models, step: Step) -> LossOutput:
        """Sum the losses of the student's tokens, with one tokenizer as well as with two.

        Collective where a model is sharded: call it on every rank.
        """
        return self.spread_loss(heard, models, step)

    def credited(self, units: Units, token_ids: Tensor, tokenizer: "PreTrainedTokenizerBase | None") -> Units:
        """Return the units that have a log-ratio: none with a silent token, and of one token where that is asked."""
        vocabulary = {} if tokenizer is None else tokenizer.get_vocab()  # pictures have ids without names
        silent = torch.tensor([vocabulary[name] for name in self.silent if name in vocabulary], dtype=torch.int64)
        heard = units.without(torch.isin(token_ids.cpu(), silent))
        return heard.only(heard.single) if self.units == "one_to_one" else heard

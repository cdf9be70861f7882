"""Credit of sampled tokens, for the policy-gradient term of an objective."""

from dataclasses import dataclass

from torch import Tensor

from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.advantages import future_mean, whiten
from veto_pl.ranks import sum_over_ranks
from veto_pl.seams import Advantage, Law
from veto_pl.tokens import TokenGrid


@dataclass(frozen=True)
class LogRatio(Advantage):
    r"""Credit of the token itself, :math:`\log p_T(y_t) - \log p_S(y_t)`.

    References:
        arXiv 2306.08543
    """

    def __call__(self, grid: TokenGrid) -> Tensor:
        return grid.log_ratio()


@dataclass(frozen=True)
class FutureLogRatio(Advantage):
    r"""MiniLLM's long-term return: the mean log-ratio of the tokens after this one.

    Args:
        scale: divides the log-ratio of each token.
        clip: bound of the scaled log-ratio of each token, in both directions.
        whitened: zero mean and unit variance over the tokens of the micro-batch, on all ranks.

    References:
        arXiv 2306.08543
    """

    scale: float = 0.5
    clip: float = 100.0
    whitened: bool = True

    def __post_init__(self) -> None:
        if not (self.scale > 0 and self.clip > 0):
            raise ConfigurationError(
                f"`FutureLogRatio.scale` and `.clip` must be positive, got {self.scale} and {self.clip}."
            )

    @property
    def laws(self) -> frozenset[Law]:
        """Whitening couples the rows of a micro-batch."""
        return frozenset() if self.whitened else super().laws

    def __call__(self, grid: TokenGrid) -> Tensor:
        rewards = (grid.log_ratio() / self.scale).clamp(-self.clip, self.clip)
        returns = future_mean(rewards, grid.mask)
        return whiten(returns, grid.mask, all_reduce=sum_over_ranks) if self.whitened else returns

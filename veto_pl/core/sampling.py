"""Settings of sampling, and the draw of the next token."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from veto_pl.core.bounds import Count, CountFromZero, FromZero, PositiveShare, check_bounds, declares_bounds
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.cumulative import cumulative_sum

BLOCK = 256
"""Ids whose probabilities are summed before any of them is looked at."""

PREFIXES = (64, 1024, 4096)
"""Likeliest ids that are looked at first; the whole vocabulary is sorted only where they hold less than `top_p`."""


@declares_bounds  # and has no parent that is no dataclass, for then a configuration would have to name the class
@dataclass(frozen=True)
class Sampling:
    """Settings of a rollout. They shape what is sampled and never the loss.

    Args:
        temperature: divides the log-probabilities; 0 is greedy.
        top_p: keep the smallest set of likeliest ids whose probability reaches this, in (0, 1].
        top_k: keep this many likeliest ids; 0 keeps all.
        max_new_tokens: the longest completion, EOS included.
        num_completions: completions per prompt.
        stop: a completion ends with the token that completes one of these strings, and is judged without it.
    """

    temperature: FromZero = 1.0
    top_p: PositiveShare = 1.0
    top_k: CountFromZero = 0
    max_new_tokens: Count = 256
    num_completions: Count = 1
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_bounds(self)
        if not all(self.stop):
            raise ConfigurationError(f"`Sampling.stop` must hold no empty string, got {self.stop}.")

    @property
    def is_greedy(self) -> bool:
        """Whether there is no choice: the likeliest id is always taken."""
        return self.temperature == 0 or self.top_k == 1

    def ending_with(self, stop: tuple[str, ...]) -> "Sampling":
        """Return the same settings with more stop strings."""
        return self if set(stop) <= set(self.stop) else replace(self, stop=(*self.stop, *stop))

    def shape(self, logp: Tensor, *, unread: bool = False) -> Tensor:
        """Return the distribution that is sampled from: temperature first, then top-k, then top-p, renormalised.

        Args:
            logp: [..., V] log-probabilities of the model, or its logits.
            unread: let the host look at no value: for top-p the whole vocabulary is sorted, not its likeliest ids.

        Returns:
            [..., V] log-probabilities, -inf on ids that are cut. The likeliest id always stays.
        """
        if self.temperature == 0:
            return torch.full_like(logp, -torch.inf).scatter(-1, logp.argmax(-1, keepdim=True), 0.0)
        scaled = self._scaled(logp)
        sizes = self._sizes(logp.shape[-1], unread)
        if not sizes:
            return torch.log_softmax(scaled, -1)
        for size in sizes:
            kept, ids, enough = self._likeliest(scaled, size)
            if size == sizes[-1] or bool(enough.all()):
                break
        return torch.full_like(logp, -torch.inf).scatter(-1, ids, kept)

    def draw(self, logits: Tensor, uniform: Tensor, *, unread: bool = False) -> tuple[Tensor, Tensor]:
        """Draw one id per row from the distribution `shape(logits)`, without writing that distribution down.

        Args:
            logits: [B, V] of the model, or its log-probabilities.
            uniform: [B] numbers in [0, 1).
            unread: let the host look at no value, as in `shape`.

        Returns:
            [B] ids, and [B] the log-probability of each under `shape(logits)`.
        """
        if self.temperature == 0:
            return logits.argmax(-1), logits.new_zeros(len(logits))
        scaled, sizes = self._scaled(logits), self._sizes(logits.shape[-1], unread)
        if not sizes:
            return draw_id(torch.softmax(scaled, -1), uniform)
        return self._draw_likeliest(scaled, uniform, sizes)

    def _scaled(self, logits: Tensor) -> Tensor:
        return logits if self.temperature == 1 else logits / self.temperature

    def _sizes(self, vocab_size: int, unread: bool) -> tuple[int, ...]:
        """Return how many likeliest ids to look at, and the numbers to go on with if those hold too little; () to look
        at all.
        """
        if 0 < self.top_k < vocab_size:
            return (self.top_k,)
        if self.top_p == 1:
            return ()
        return (vocab_size,) if unread else (*(size for size in PREFIXES if size < vocab_size), vocab_size)

    def _draw_likeliest(self, scaled: Tensor, uniform: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        kept, ids, enough = self._likeliest(scaled, sizes[0])
        place, logp = draw_id(kept.exp(), uniform)
        drawn = ids.gather(1, place[:, None])[:, 0]
        if len(sizes) > 1 and len(short := (~enough).nonzero()[:, 0]):
            drawn[short], logp[short] = self._draw_likeliest(scaled[short], uniform[short], sizes[1:])
        return drawn, logp

    def _likeliest(self, scaled: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the log-distribution over the `size` likeliest ids, -inf where top-p cuts.

        Returns:
            [..., K] log-probabilities and [..., K] ids; [...] bool, False where more ids are needed to reach `top_p`.
        """
        values, ids = scaled.topk(size, -1) if size < scaled.shape[-1] else scaled.sort(dim=-1, descending=True)
        logp = values - (values if size == self.top_k else scaled).logsumexp(-1, keepdim=True)
        reached = cumulative_sum(logp.exp())
        # An id survives if the likelier ids before it hold less than p; the first has none before it.
        cut = torch.cat([torch.zeros_like(ids[..., :1]).bool(), reached[..., :-1] >= self.top_p], -1)
        kept = torch.log_softmax(logp.masked_fill(cut, -torch.inf), -1) if self.top_p < 1 else logp
        return kept, ids, reached[..., -1] >= self.top_p


SEVERAL = Sampling(temperature=0.8, top_p=0.9, num_completions=2)
"""What examples of sources sample with, where one completion of each prompt would hide a mistake."""


def draw_id(probability: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    r"""Invert the cumulative distribution, by blocks: :math:`\min \{v : \sum_{u \le v} p_u > u_0 \sum_u p_u\}`.

    Args:
        probability: [B, V], not below 0; rows sum to 1 up to rounding.
        uniform: [B] numbers :math:`u_0` in [0, 1).

    Returns:
        [B] ids of positive probability, and [B] their log-probabilities.

    Numerics: the vocabulary is summed in its own type block by block; sums of blocks and of one block's ids are
        accumulated in float64, so that the last ids of a large vocabulary keep their probability.
    """
    size = probability.shape[-1]
    if size <= 2 * BLOCK:
        ids, _ = _pick(probability, uniform)
    else:
        whole = size // BLOCK * BLOCK
        sums = probability[:, :whole].reshape(len(probability), -1, BLOCK).sum(-1)
        if whole < size:
            sums = torch.cat([sums, probability[:, whole:].sum(-1, keepdim=True)], -1)
        block, rest = _pick(sums, uniform)
        ids = block[:, None] * BLOCK + torch.arange(BLOCK, device=block.device)
        inside = probability.gather(1, ids.clamp(max=size - 1)).masked_fill(ids >= size, 0.0)
        ids = block * BLOCK + _pick(inside, rest)[0]
    return ids, probability.gather(1, ids[:, None])[:, 0].log()


def _pick(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index that `uniform` falls on, never one of weight 0, and where in its share it falls, in [0, 1]."""
    reached = cumulative_sum(weights, dtype=uniform.dtype)
    total = reached[:, -1:]
    target = uniform[:, None] * total
    last = (reached < total).sum(-1, keepdim=True)
    index = torch.minimum((reached <= target).sum(-1, keepdim=True), last)
    share = weights.gather(1, index).to(uniform.dtype)
    rest = (target - reached.gather(1, index) + share) / share
    return index[:, 0], rest[:, 0].clamp(0, 1)


def uniform_type(device: torch.device) -> torch.dtype:
    """Return the dtype of random numbers and cumulative sums: float64, or float32 where the device lacks it."""
    return torch.float32 if device.type == "mps" else torch.float64

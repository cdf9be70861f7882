"""How the next token is drawn."""

from dataclasses import dataclass

import torch
from torch import Tensor

from veto_pl.exceptions import ConfigurationError


@dataclass(frozen=True)
class Sampling:
    """Settings of a rollout. They shape what is sampled and never the loss.

    Args:
        temperature: divides the log-probabilities; 0 is greedy.
        top_p: keep the smallest set of likeliest ids whose probability reaches this, in (0, 1].
        top_k: keep this many likeliest ids; 0 keeps all.
        max_new_tokens: the longest completion, EOS included.
        num_completions: completions per prompt.
        stop: a completion ends with the token that completes one of these strings.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256
    num_completions: int = 1
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks = {
            "temperature": (self.temperature >= 0, "be at least 0 (0 is greedy)"),
            "top_p": (0 < self.top_p <= 1, "lie in (0, 1]"),
            "top_k": (self.top_k >= 0, "be at least 0 (0 keeps every id)"),
            "max_new_tokens": (self.max_new_tokens >= 1, "be at least 1"),
            "num_completions": (self.num_completions >= 1, "be at least 1"),
            "stop": (all(self.stop), "hold no empty string"),
        }
        for name, (valid, expectation) in checks.items():
            if not valid:
                raise ConfigurationError(f"`Sampling.{name}` must {expectation}, got {getattr(self, name)}.")

    def shape(self, logp: Tensor) -> Tensor:
        """The distribution that is sampled from: temperature first, then top-k, then top-p, renormalised.

        Args:
            logp: [..., V] log-probabilities of the model.

        Returns:
            [..., V] log-probabilities, -inf on ids that are cut. The likeliest id always stays.
        """
        if self.temperature == 0:
            best = torch.zeros_like(logp, dtype=torch.bool).scatter(-1, logp.argmax(-1, keepdim=True), True)
            return torch.zeros_like(logp).masked_fill(~best, -torch.inf)
        shaped = torch.log_softmax(logp / self.temperature, -1)
        if self.top_k and self.top_k < logp.shape[-1]:
            shaped = _keep_top_k(shaped, self.top_k)
        return _keep_top_p(shaped, self.top_p) if self.top_p < 1 else shaped


def _keep_top_k(logp: Tensor, k: int) -> Tensor:
    """Exactly k ids survive, ties broken by `topk`."""
    ids = logp.topk(k, -1).indices
    kept = torch.zeros_like(logp, dtype=torch.bool).scatter(-1, ids, True)
    return torch.log_softmax(logp.masked_fill(~kept, -torch.inf), -1)


def _keep_top_p(logp: Tensor, p: float) -> Tensor:
    """An id survives if the likelier ids before it hold less than p."""
    ordered, ids = logp.sort(dim=-1, descending=True, stable=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    kept = torch.zeros_like(logp, dtype=torch.bool).scatter(-1, ids, before < p)
    return torch.log_softmax(logp.masked_fill(~kept, -torch.inf), -1)

"""Where a completion ends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from veto_pl.models.causal_lm import CausalLM
from veto_pl.rollouts.sampling import Sampling
from veto_pl.types import Models


class Endings:
    """Watches the tokens of a rollout for EOS and for stop strings.

    Args:
        models: names the ids that end a completion and decodes for stop strings.
        sampling: the stop strings.
        device: where the tokens are.
        writers: the models that take part; a text ends where any of them ends one.
    """

    def __init__(self, models: Models, sampling: Sampling, device: torch.device, writers: Sequence[CausalLM]) -> None:
        self.ends = torch.tensor(models.ends_of(*writers), dtype=torch.int64, device=device)
        self.stop = sampling.stop
        self.tokenizer = models.tokenizer
        # A token adds at least one byte, so only a short tail has to be decoded.
        self.tail = max((len(text.encode()) for text in self.stop), default=0) + 1
        self.written: dict[int, list[int]] = {}

    def __call__(self, rows: Tensor, drawn: Tensor, alive: Tensor) -> Tensor:
        """Which rows end with the tokens just drawn.

        Args:
            rows: [L] the number of each row in the rollout.
            drawn: [L] its new token.
            alive: [L] bool, False where the row ended before; such rows are not decoded.

        Returns:
            [L] bool.
        """
        ended = (drawn[:, None] == self.ends).any(-1)
        if self.stop:
            ended = ended | torch.tensor(self._stopped(rows, drawn, alive), device=drawn.device)
        return ended

    def _stopped(self, rows: Tensor, drawn: Tensor, alive: Tensor) -> list[bool]:
        live = alive.tolist()
        tails = []
        for row, token, lives in zip(rows.tolist(), drawn.tolist(), live, strict=True):
            if lives:
                tails.append([*self.written.get(row, []), token][-self.tail :])
                self.written[row] = tails[-1]
        found = iter([any(s in text for s in self.stop) for text in self.tokenizer.batch_decode(tails)])
        return [lives and next(found) for lives in live]

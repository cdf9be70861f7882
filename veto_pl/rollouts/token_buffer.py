"""What a rollout has written, and how it becomes sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from veto_pl.core.transfer import sent
from veto_pl.exceptions import DataError
from veto_pl.seams import PromptBatch, Sequences


class Drawn(NamedTuple):
    """One token of every row.

    Args:
        ids: [L] int64.
        logp: [L] their log-probabilities under the distribution that they were drawn from.
        by_teacher: [L] bool, whether the teacher wrote it; None where nobody takes turns.
    """

    ids: Tensor
    logp: Tensor
    by_teacher: Tensor | None = None


Draw = Callable[[Sequence[Tensor], Tensor, Tensor], Drawn]
"""Maps the logits of each writer, [L, V], random numbers [L] and the numbers [L] of the rows in the rollout to tokens.

A row keeps its number, while rows that have ended leave: what a draw remembers of a row it remembers by that number.
"""


@dataclass
class TokenBuffer:
    """What has been written: ids, log-probabilities, which of them count and who wrote them, each [R, C].

    Tokens are collected column by column, and entered where the rows change: one write instead of one per token.
    """

    ids: Tensor
    logp: Tensor
    lived: Tensor
    by_teacher: Tensor | None = None
    columns: int = 0
    pending: list[tuple[Drawn, Tensor]] = field(default_factory=list)

    @classmethod
    def empty(cls, rows: int, columns: int, device: torch.device) -> TokenBuffer:
        """Return a buffer of this size with nothing written yet."""
        ids = torch.zeros(rows, columns, dtype=torch.int64, device=device)
        return cls(ids, torch.zeros_like(ids, dtype=torch.float32), torch.zeros_like(ids, dtype=torch.bool))

    def flush(self, rows: Tensor) -> None:
        """Write the pending columns; `rows` ([L] int64) are those that were being written."""
        drawn, lived = zip(*self.pending, strict=True)
        ids, logp, by_teacher = zip(*drawn, strict=True)
        turns = None if by_teacher[0] is None else torch.stack(by_teacher, 1)
        self.enter(rows, Drawn(torch.stack(ids, 1), torch.stack(logp, 1), turns), torch.stack(lived, 1))
        self.pending.clear()

    def enter(self, rows: Tensor, written: Drawn, lived: Tensor) -> None:
        """Write the next n columns of the rows `rows` ([L] int64): what was drawn, and what of it counts, [L, n]."""
        span = slice(self.columns, self.columns + lived.shape[1])
        if written.by_teacher is not None and self.by_teacher is None:
            self.by_teacher = torch.zeros_like(self.lived)
        wholes = (self.ids, self.logp, self.lived, self.by_teacher)
        for whole, part in zip(wholes, (written.ids, written.logp, lived, written.by_teacher), strict=True):
            if whole is not None and part is not None:
                whole[rows, span] = part
        self.columns = span.stop


def assemble(
    prompts: PromptBatch,
    copies: int,
    ids: Tensor,
    lived: Tensor,
    logp: Tensor,
    by_teacher: Tensor | None = None,
    *,
    ended: tuple[Tensor, Tensor],
    on_policy: bool,
) -> Sequences:
    """Put completions behind their prompts; drop columns that no row uses, and set what is not `lived` to 0.

    Args:
        prompts: B prompts.
        copies: completions of each.
        ids: [B x copies, C] tokens.
        lived: [B x copies, C] bool, True up to where the completion ends.
        logp: [B x copies, C] the sampler's log-probability of each token.
        by_teacher: [B x copies, C] bool, or None.
        ended: [B x copies] why each completion ends, and [B x copies] the characters that are not judged for that.
        on_policy: how the rows are marked.

    Raises:
        DataError: a log-probability is NaN.
    """
    broken = (logp.isnan() & lived).any()
    known = torch.cat([lived.flatten(), broken[None]]).cpu()  # the host waits once
    host_lived = known[:-1].view(lived.shape)
    width = int(host_lived.sum(1).max()) if len(lived) else 0
    ids, lived, logp = ids[:, :width], lived[:, :width], logp[:, :width].float()
    ids, logp = ids.masked_fill(~lived, 0), logp.masked_fill(~lived, 0.0)
    if known[-1]:
        raise DataError(
            "A model gave NaN instead of probabilities while it was sampled from. Check its weights for overflow: "
            "a lower learning rate, gradient clipping or bfloat16 instead of float16 may help."
        )
    rows = torch.arange(len(prompts)).repeat_interleave(copies)
    repeated = prompts if copies == 1 else prompts.rows(rows)
    rows = sent(rows, ids.device)
    before = torch.zeros_like(repeated.attention_mask)
    return Sequences.join(
        repeated,
        ids,
        lived,
        host_mask=host_lived[:, :width],
        prompts=prompts,
        prompt_rows=rows,
        on_policy=torch.full_like(rows, on_policy, dtype=torch.bool),
        sampler_logp=torch.cat([before.to(logp.dtype), logp], 1),
        by_teacher=None if by_teacher is None else torch.cat([before, by_teacher[:, :width] & lived], 1),
        ending=ended[0],
        unjudged=ended[1],
    )

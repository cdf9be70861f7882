"""The ends of texts, where student and teacher write them by different ids of one vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ends:
    """By which ids two models end a text: to both the same outcome, whatever the id.

    Args:
        student: ids, the main one first.
        teacher: ids; of these the likeliest stands for the end, token by token.
    """

    student: tuple[int, ...]
    teacher: tuple[int, ...]

    def renamed(self, logits: Tensor, written: Tensor) -> Tensor:
        """Return the teacher's logits with its own likeliest end in the place of the student's, and the other way.

        Two columns of each row change places, so a row stays a distribution over the same outcomes. The student's end
        is the id that it has written where it has ended; elsewhere its main one, unless it may end as the teacher does.

        Args:
            logits: [n, V] of the teacher; they are left as they are.
            written: [n] int64, the student's tokens.

        Returns:
            [n, V].

        Example:
            >>> ends = Ends(student=(0,), teacher=(2,))
            >>> ends.renamed(torch.tensor([[-21.0, 1.0, 3.0]]), torch.tensor([0]))
            tensor([[  3.,   1., -21.]])
        """
        student, teacher = (_on(logits.device, ids) for ids in (self.student, self.teacher))
        own = teacher[logits[:, teacher].argmax(1)]
        ended, shared = torch.isin(written, student), torch.isin(own, student)
        named = torch.where(ended, written, torch.where(shared, own, student[0]))
        pair, swapped = torch.stack([named, own], 1), torch.stack([own, named], 1)
        return logits.scatter(1, pair, logits.gather(1, swapped))


@lru_cache(maxsize=64)
def _on(device: torch.device, ids: tuple[int, ...]) -> Tensor:
    """Return ids on a device, sent there once, so that no chunk waits for them."""
    return torch.tensor(ids, device=device)

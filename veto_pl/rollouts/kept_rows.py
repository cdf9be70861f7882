"""Keys and values of rows that are kept from call to call, so that only what is new is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from veto_pl.core.sampling import Sampling
from veto_pl.core.step import Step
from veto_pl.core.transfer import sent
from veto_pl.data.turns import common
from veto_pl.models.known_masks import known_rows
from veto_pl.rollouts.live_rows import LiveRows
from veto_pl.seams import LanguageModel, PromptBatch, Sequences, Session, pad_left
from veto_pl.seams.engine_sessions import Write

if TYPE_CHECKING:
    from veto_pl.rollouts.fixed_rows import FixedRows
    from veto_pl.rollouts.kv_cache import Held


class KeepingSession(Session):
    """Calls of the decode loop that keep what they have read of a row until the next call.

    A row is resumed as far as its ids begin as they did. Prompts with images are read from the start.

    Args:
        write: reads prompts from the start and completes them.
        resume: the same, with what is kept.
    """

    def __init__(self, write: Write, resume: Callable[[PromptBatch, Sampling, Step, KeptRows], Sequences]) -> None:
        super().__init__(write)
        self.resume, self.kept = resume, KeptRows()

    def generate(
        self, prompts: PromptBatch, sampling: Sampling, step: Step, names: Sequence[int], *, is_last: bool = False
    ) -> Sequences:
        if not len(prompts) or (prompts.media is not None and prompts.media.has_images):
            return self.write(prompts, sampling, step)
        self.kept.names, self.kept.is_last = names, is_last
        rows = self.resume(prompts, sampling, step, self.kept)
        if not is_last:
            self.kept.read = dict(zip(names, _read(rows), strict=True))
        return rows

    def close(self) -> None:
        self.kept = KeptRows()


@dataclass
class _Left:
    """Rows that have left a batch together.

    Args:
        names: of K rows.
        mask: [K, M] int64, 0 on columns that are hidden. Columns behind a row's end are not, but nobody asks for them.
        caches: what each writer's cache held of them. Layers leave as they are taken.
    """

    names: list[int]
    mask: Tensor
    caches: list[Held]


class KeptRows:
    """What the last call has read.

    Attributes:
        names: of the rows of the present call.
        is_last: nothing of the present call is kept.
        read: the ids whose keys and values are kept, by the name of the row.
    """

    def __init__(self) -> None:
        self.names: Sequence[int] = ()
        self.is_last = False
        self.read: dict[int, list[int]] = {}
        self._left: list[_Left] = []

    def leave(self, rows: LiveRows | FixedRows, survivors: Tensor) -> None:
        """Let all rows but the survivors ([K] int64) go, and keep what was read of them."""
        if self.is_last:
            rows.keep(survivors)
            return
        leaving = (~rows.alive).nonzero()[:, 0]
        names, mask = self._names(rows.rows[leaving]), rows.mask[leaving]
        self._left.append(_Left(names, mask, rows.keep(survivors, leaving)))

    def end(self, rows: LiveRows | FixedRows) -> None:
        """Keep what was read of the rows that are left."""
        if not self.is_last:
            held = [[(layer.keys, layer.values) for layer in cache.layers] for cache in rows.caches]
            self._left.append(_Left(self._names(rows.rows), rows.mask, held))

    def _names(self, rows: Tensor) -> list[int]:
        return [self.names[row] for row in rows.tolist()]

    def resumed(
        self, prompts: PromptBatch, writers: Sequence[LanguageModel], copies: int, new_tokens: int
    ) -> LiveRows | None:
        """Read what is new in every row, all rows in one pass; what was kept is used up.

        Returns:
            The rows, about to write `new_tokens`; None where nothing is kept, or where that pass, with its padding,
            would read as many tokens as the contexts have.
        """
        (left, self._left), (read, self.read) = (self._left, []), (self.read, {})
        contexts = [ids for ids in _prompt_ids(prompts) for _ in range(copies)]
        known = [
            min(common(read.get(name, ()), ids), len(ids) - 1) for name, ids in zip(self.names, contexts, strict=True)
        ]
        longest = max(len(ids) - count for ids, count in zip(contexts, known, strict=True))
        if longest * len(contexts) >= sum(map(len, contexts)):
            return None
        order, caches = _taken(left, dict(zip(self.names, known, strict=True)), writers)
        ids, there = pad_left([torch.tensor(contexts[row][known[row] :]) for row in order])
        width, counts = max(known), torch.tensor([known[row] for row in order])
        before = torch.arange(width) >= width - counts[:, None]
        return _read_on(writers, caches, order, ids, torch.cat([before, there], 1), new_tokens)


def _taken(
    left: Sequence[_Left], known: Mapping[int, int], writers: Sequence[LanguageModel]
) -> tuple[list[int], list[Any]]:
    """Return caches of rows, each of the width of the longest, layer by layer, so that one is there twice at a time.

    Args:
        left: what was kept.
        known: by the name of each row, in their order, how many of its first tokens are taken.
        writers: the models.

    Returns:
        The places of the rows in `known`, in the order of the caches, and a cache for each writer.
    """
    from veto_pl.rollouts.kv_cache import new_cache

    place, width, order, picked = {name: row for row, name in enumerate(known)}, max(known.values()), [], []
    for part in left:
        here = [i for i, name in enumerate(part.names) if known.get(name)]
        counts = torch.tensor([known[part.names[i]] for i in here], dtype=torch.int64)
        order += [place[part.names[i]] for i in here]
        rows = sent(torch.tensor(here, dtype=torch.int64), part.mask.device)
        picked.append((rows, _columns(part.mask[rows], sent(counts, part.mask.device), width)))
    fresh = [place[name] for name, count in known.items() if not count]
    caches = [new_cache(model) for model in writers]
    for writer, cache in enumerate(caches):
        for layer in cache.layers:
            held = [part.caches[writer].pop(0) for part in left]
            layer.update(*(_stacked([both[side] for both in held], picked, width, len(fresh)) for side in (0, 1)))
    return order + fresh, caches


def _columns(mask: Tensor, counts: Tensor, width: int) -> Tensor:
    """Return [K, width] int64: the first `counts` ([K]) columns in use of each row of `mask` ([K, M]), on the right.

    What stands in front of them is any column.
    """
    in_use_first = (mask == 0).argsort(stable=True, dim=1)
    nth = torch.arange(width, device=mask.device) - (width - counts)[:, None]
    return in_use_first.gather(1, nth.clamp_min(0))


def _stacked(held: Sequence[Tensor], picked: Sequence[tuple[Tensor, Tensor]], width: int, fresh: int) -> Tensor:
    """Return [R, H, width, D]: the rows and columns that are picked of each [B, H, M, D], and `fresh` rows of zeros."""
    parts = [one[rows[:, None], :, columns].transpose(1, 2) for one, (rows, columns) in zip(held, picked, strict=True)]
    heads, depth = held[0].shape[1], held[0].shape[-1]
    return torch.cat([*parts, held[0].new_zeros(fresh, heads, width, depth)])


def _read_on(
    writers: Sequence[LanguageModel],
    caches: list[Any],
    order: Sequence[int],
    ids: Tensor,
    there: Tensor,
    new_tokens: int,
) -> LiveRows:
    """Let the writers read what is new of rows that their caches hold.

    Args:
        writers: the models.
        caches: of each, with all but the last W columns.
        order: the number of each row in the rollout.
        ids: [L, W] int64 on the host, what is new, left-padded.
        there: [L, M] bool on the host, False on columns that are hidden.
        new_tokens: that are going to be written.
    """
    device, padded = writers[0].device, not bool(there.all())
    mask = sent(there.long(), device)
    position = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    with known_rows(packed=False, padded=padded):
        logits = [
            model.next_logits(sent(ids, device), mask if padded else None, cache, position)
            for model, cache in zip(writers, caches, strict=True)
        ]
    rows = sent(torch.tensor(order, dtype=torch.int64), device)
    return LiveRows(
        writers=writers, caches=caches, logits=logits, rows=rows,
        mask=torch.cat([mask, mask.new_ones(len(rows), new_tokens)], 1),
        positions=[mask.sum(1, keepdim=True) for _ in writers],
        alive=torch.ones_like(rows, dtype=torch.bool), width=mask.shape[1], padded=padded,
    )  # fmt: skip


def _prompt_ids(prompts: PromptBatch) -> list[list[int]]:
    known = prompts.on_host
    return [ids[mask].tolist() for ids, mask in zip(known.input_ids, known.attention_mask, strict=True)]


def _read(rows: Sequences) -> list[list[int]]:
    """Return the ids of each row but the last, which nobody has read."""
    there, ids = rows.host_masks[0], rows.input_ids.cpu()
    return [line[mask][:-1].tolist() for line, mask in zip(ids, there, strict=True)]

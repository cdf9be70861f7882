"""Where a completion ends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from veto_pl.core.sampling import Sampling
from veto_pl.core.transfer import sent
from veto_pl.seams import Ending, LanguageModel, Models, PromptBatch, Sequences


class Endings:
    """Watches the tokens of a rollout for EOS and for stop strings.

    Args:
        models: names the ids that end a completion and decodes for stop strings.
        sampling: the stop strings.
        device: where the tokens are.
        writers: the models that take part; a text ends where any of them ends one.
    """

    def __init__(
        self, models: Models, sampling: Sampling, device: torch.device, writers: Sequence[LanguageModel]
    ) -> None:
        self.ends = sent(torch.tensor(models.ends_of(*writers), dtype=torch.int64), device)
        self.stop = sampling.stop
        self.tokenizer = models.tokenizer
        # A token adds at least one byte, so only a short tail has to be decoded.
        self.tail = max((len(text.encode()) for text in self.stop), default=0) + 1
        self.written: dict[int, list[int]] = {}

    def __call__(self, rows: Tensor, drawn: Tensor, alive: Tensor) -> Tensor:
        """Find the rows that end with the tokens just drawn.

        Args:
            rows: [L] the number of each row in the rollout.
            drawn: [L] its new token.
            alive: [L] bool, False where the row ended before; such rows are not decoded.

        Returns:
            [L] bool.
        """
        ended = self.with_eos(drawn)
        if self.stop:
            numbers, tokens, lives = torch.stack([rows, drawn, alive.long()]).tolist()  # the host waits once
            ended = ended | sent(torch.tensor(self._stopped(numbers, tokens, lives)), drawn.device)
        return ended

    def with_eos(self, drawn: Tensor) -> Tensor:
        """Find the tokens ([L] ids) that end a text by themselves, [L] bool; the host does not wait."""
        return (drawn[:, None] == self.ends).any(-1)

    def behind_stops(self, rows: Tensor, drawn: Tensor, alive: Tensor) -> Tensor:
        """Find the tokens of the last columns that were written behind the end of a stop string. The host waits once.

        Args:
            rows: [L] the number of each row in the rollout.
            drawn: [n, L] its new tokens.
            alive: [n, L] bool, False where the row had ended before, stop strings in these columns aside.

        Returns:
            [n + 1, L] bool; the last line is that of the next column.
        """
        numbers, *block = torch.cat([rows[None], drawn, alive.long()]).tolist()
        behind = [[False] * len(numbers)]
        for tokens, lives in zip(block[: len(drawn)], block[len(drawn) :], strict=True):
            lives = [int(life and not over) for life, over in zip(lives, behind[-1], strict=True)]
            stopped = self._stopped(numbers, tokens, lives)
            behind.append([over or new for over, new in zip(behind[-1], stopped, strict=True)])
        return sent(torch.tensor(behind), drawn.device)

    def found(self, ids: Tensor, lived: Tensor) -> tuple[Tensor, Tensor]:
        """Find why completions end, and how much of their texts is not judged for that.

        Args:
            ids: [R, C] tokens.
            lived: [R, C] bool, True up to where each completion ends.

        Returns:
            [R] int64, an `Ending`; [R] int64, characters from the beginning of a stop string on.
        """
        lengths = lived.sum(1)
        last = ids.gather(1, (lengths - 1).clamp_min(0)[:, None]) if ids.shape[1] else lengths[:, None]
        with_eos = (last == self.ends).any(1) & (lengths > 0)
        ending = torch.where(with_eos, int(Ending.EOS), int(Ending.LIMIT))
        if not self.stop:
            return ending, torch.zeros_like(ending)
        told = self._behind_stops(torch.cat([lengths.masked_fill(with_eos, 0)[:, None], ids], 1).tolist())
        stopped, unjudged = sent(torch.tensor(told, dtype=torch.int64).view(-1, 2), ids.device).unbind(1)
        return torch.where(stopped > 0, int(Ending.STOP), ending), unjudged

    def _behind_stops(self, rows: list[list[int]]) -> list[tuple[int, int]]:
        """Return whether a stop string ends each text, and the characters from it on; a row is a length and ids."""
        told = []
        for length, *ids in rows:
            written = ids[:length]
            stopped = self._holds_stop(self.tokenizer.decode(written[-self.tail :]))
            told.append((int(stopped), self.unjudged(written) if stopped else 0))
        return told

    def unjudged(self, ids: list[int]) -> int:
        """Count the characters, in the text without special tokens, from the beginning of the first stop string on.

        A stop string may begin within a token, and may be or hold a special token.
        """

        def read(count: int, **how: bool) -> str:
            return str(self.tokenizer.decode(ids[:count], **how))

        whole = read(len(ids))
        places = [place for text in self.stop if (place := whole.find(text)) >= 0]
        start = min(places, default=len(whole))
        before = next(count for count in range(len(ids), -1, -1) if len(read(count)) <= start)
        judged = len(read(before, skip_special_tokens=True))
        if before < len(ids) and ids[before] not in self.tokenizer.all_special_ids:
            judged += start - len(read(before))
        return max(len(read(len(ids), skip_special_tokens=True)) - judged, 0)

    def _holds_stop(self, text: str) -> bool:
        return any(stop in text for stop in self.stop)

    def _stopped(self, rows: list[int], drawn: list[int], alive: list[int]) -> list[bool]:
        tails = []
        for row, token, lives in zip(rows, drawn, alive, strict=True):
            if lives:
                tails.append([*self.written.get(row, []), token][-self.tail :])
                self.written[row] = tails[-1]
        found = iter([self._holds_stop(text) for text in self.tokenizer.batch_decode(tails)])
        return [bool(lives) and next(found) for lives in alive]


def reference_completions(prompts: PromptBatch, models: Models) -> Sequences:
    """Put the reference completions behind their prompts; one that does not end with EOS counts as cut."""
    known = prompts.on_host.completion_mask
    rows = Sequences.join(prompts, prompts.completion_ids, prompts.completion_mask, host_mask=known)
    rows = rows.with_fields(ending=torch.where(rows.finished(models.eos_ids), int(Ending.EOS), int(Ending.LIMIT)))
    return rows if prompts.completion_turns is None else _only_turns(rows, prompts)


def _only_turns(rows: Sequences, prompts: PromptBatch) -> Sequences:
    """Let only the turns of each reference count, and none of what stands between them."""

    def counted(batch: PromptBatch) -> Tensor:
        turns = batch.completion_turns
        assert turns is not None, "the caller has asked for it"
        return torch.cat([torch.zeros_like(batch.attention_mask), turns > 0], 1)

    known = torch.stack([rows.host_masks[0], counted(prompts.on_host)])
    fewer = rows.with_fields(loss_mask=counted(prompts), turn_ids=_turn_ids(prompts))
    vars(fewer)["host_masks"] = known
    return fewer


def _turn_ids(prompts: PromptBatch) -> Tensor:
    """Return [B, T] int64: the turn of each token of a reference, what stands behind it up to the next one included."""
    assert prompts.completion_turns is not None, "the caller has asked for it"
    turns = prompts.completion_turns.cummax(1).values.clamp_min(1)
    return torch.cat([torch.zeros_like(prompts.input_ids), turns * prompts.completion_mask], 1)

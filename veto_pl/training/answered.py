"""The completions of an evaluation: single answers, or episodes that may lie in several rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from veto_pl.metrics.generations import Generations
from veto_pl.seams import Models, PromptBatch, Sequences


@dataclass(frozen=True)
class Completions:
    """A rollout by its C completions, in their order; the rows of an episode follow one another.

    Args:
        sequences: the rows.
    """

    sequences: Sequences

    @cached_property
    def last(self) -> list[int]:
        """The last row of each completion."""
        return sorted(set(self.sequences.last_rows()))

    @cached_property
    def of_rows(self) -> Tensor:
        """[B] int64 on the host: the completion that each row belongs to."""
        begins = torch.zeros(len(self.sequences), dtype=torch.int64)
        begins[[row + 1 for row in self.last[:-1]]] = 1
        return begins.cumsum(0)

    @property
    def prompts(self) -> list[int]:
        """The prompt of each completion."""
        rows = self.sequences.prompt_rows.tolist()
        return [rows[row] for row in self.last]

    @cached_property
    def turn_of_tokens(self) -> Tensor:
        """[N] int64: the turn of each token that counts."""
        if self.sequences.turn_ids is None:
            return torch.ones_like(self.sequences.prediction_index)
        return self.sequences.turn_ids[:, 1:].flatten()[self.sequences.prediction_index]

    def generations(self, batch: PromptBatch, models: Models, copies: int) -> Generations:
        """Return what metrics see of the completions.

        Args:
            batch: the G prompts.
            models: with the tokenizer.
            copies: K completions of each prompt; C is G times K.
        """
        rows, shape = self.sequences, (len(batch), copies)
        texts, rewards = rows.texts(models.tokenizer), rows.rewards
        assert rewards is not None, "an evaluation has scored its rows"
        turns = {} if rows.failed_turns is None else self._turn_counts()
        return Generations(
            texts=[texts[row] for row in self.last],
            tokens=self._own_tokens(),
            rewards=rewards.cpu()[self.last].reshape(shape),
            finished=rows.finished(models.eos_ids).cpu()[self.last].reshape(shape),
            examples=batch.examples,
            **{name: counts.reshape(shape) for name, counts in turns.items()},
        )

    def sums(self, per_token: Tensor) -> Tensor:
        """Sum [N] values over the tokens of each completion, to [C]."""
        sums = per_token.new_zeros(len(self.last))
        return sums.index_add_(0, self.of_rows.to(per_token.device)[self.sequences.tokens()[1]], per_token)

    def means(self, shares: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
        """Return for each completion the means of named numbers of its rows, weighed by the tokens that count."""
        counts = self.sequences.host_masks[1, :, 1:].sum(1).tolist()
        found: list[dict[str, float]] = [{} for _ in self.last]
        whole = [0] * len(self.last)
        for of, count in zip(self.of_rows.tolist(), counts, strict=True):
            whole[of] += count
        for of, count, numbers in zip(self.of_rows.tolist(), counts, shares, strict=True):
            for name, share in numbers.items():
                found[of][name] = round(found[of].get(name, 0.0) + share * count / whole[of], 6)
        return found

    def joined(self, said: Mapping[str, Sequence[Sequence[Any]]]) -> list[dict[str, list[Any]]]:
        """Return for each completion, by name, the entries of its rows, one after another."""
        found: list[dict[str, list[Any]]] = [{name: [] for name in said} for _ in self.last]
        for row, of in enumerate(self.of_rows.tolist()):
            for name, told in said.items():
                found[of][name] += told[row]
        return found

    def places(self, completion: int) -> slice:
        """Return where the tokens of a completion stand among all N that count."""
        ends = [0, *self.sequences.predictions.sum(1).cumsum(0).tolist()]
        first = self.last[completion - 1] + 1 if completion else 0
        return slice(ends[first], ends[self.last[completion] + 1])

    def turns(self, completion: int) -> list[int]:
        """Return the turn of each token of a completion."""
        return self.turn_of_tokens[self.places(completion)].tolist()

    def _own_tokens(self) -> list[list[int]]:
        """Return the ids that the student has written in each completion, without replies."""
        if self.sequences.turn_ids is None:
            return self.sequences.completion_ids()
        ids, counted = torch.stack([self.sequences.input_ids, self.sequences.loss_mask.long()]).cpu()
        found: list[list[int]] = [[] for _ in self.last]
        for of, row, there in zip(self.of_rows.tolist(), ids, counted.bool(), strict=True):
            found[of] += row[there].tolist()
        return found

    def _turn_counts(self) -> dict[str, Tensor]:
        """Return [C] int64 counts of turns of each completion by name: all, failed ones, and those without a reply."""
        assert self.sequences.turn_ids is not None, "rows with an environment have turns"
        of = self.of_rows
        counts = {"turns": self.sequences.turn_ids.amax(1).cpu()[self.last]}
        for name in ("failed_turns", "late_turns"):
            known = getattr(self.sequences, name).cpu()
            counts[name] = torch.zeros(len(self.last), dtype=torch.int64).index_add(0, of, known)
        return counts

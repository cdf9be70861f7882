"""The data module: one task, tokenised once, dealt out to the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from veto_pl.data.collate import Collator, Encoded
from veto_pl.data.sampler import RankSampler, even_batches
from veto_pl.data.templates import PlainTemplate
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.seams import Task, Template
from veto_pl.types import PromptBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Overlong = Literal["drop", "truncate_left", "error"]
Batches = DataLoader[PromptBatch]


class PromptDataModule(L.LightningDataModule):
    """Prompts of one task, templated and tokenised, with their reference completions.

    Args:
        task: the rows and how completions are judged.
        template: makes the text that the models read.
        batch_size: prompts per micro-batch and rank.
        validation_batch_size: prompts per batch and rank in validation, test and prediction; `batch_size` by default.
        max_prompt_tokens: longer prompts are treated as `overlong` says.
        max_completion_tokens: longer reference completions are cut, without EOS.
        overlong: leave such prompts out, cut them on the left, or stop. What happened is reported with a count.
        completion_prefix: text between prompt and reference completion, such as a space.
        train_limit: use so many training rows; None for all.
        validation_limit: use so many validation rows; None for all.
        shuffle: a new order of the training rows every epoch.
        seed: of the order.
        num_workers: loader processes.

    Raises:
        ConfigurationError: a size is below 1.
        DataError: no training row is left, or `overlong` is `error` and a prompt is too long.
    """

    def __init__(
        self,
        task: Task,
        template: Template = PlainTemplate(),
        batch_size: int = 8,
        validation_batch_size: int | None = None,
        max_prompt_tokens: int = 512,
        max_completion_tokens: int = 512,
        overlong: Overlong = "drop",
        completion_prefix: str = "",
        train_limit: int | None = None,
        validation_limit: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        sizes = {"batch_size": batch_size, "max_prompt_tokens": max_prompt_tokens, "train_limit": train_limit or 1}
        for name, value in sizes.items():
            if value < 1:
                raise ConfigurationError(f"`data.{name}` must be at least 1, got {value}.")
        self.task = task
        self.template = template
        self.batch_size = batch_size
        self.validation_batch_size = validation_batch_size or batch_size
        self.max_prompt_tokens = max_prompt_tokens
        self.max_completion_tokens = max_completion_tokens
        self.overlong = overlong
        self.completion_prefix = completion_prefix
        self.limits = {"train": train_limit, "validation": validation_limit, "test": None}
        self.shuffle = shuffle
        self.seed = seed
        self.num_workers = num_workers
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._rows: dict[str, list[Encoded]] = {}

    def connect(self, tokenizer: PreTrainedTokenizerBase) -> PromptDataModule:
        """Sets the tokenizer, for use without a trainer."""
        self._tokenizer = tokenizer
        return self

    def setup(self, stage: str) -> None:
        """Takes the module's tokenizer if none was set. Rows are tokenised when their loader is first asked for."""
        if self._tokenizer is None and self.trainer is not None:
            self._tokenizer = self.trainer.lightning_module.tokenizer  # type: ignore[assignment]

    def rows(self, split: str) -> list[Encoded]:
        """The tokenised rows of a split, after the limit and the policy for overlong prompts; computed once."""
        if split not in self._rows:
            examples = list(self.task.load(split))[: self.limits[split]]
            self._rows[split] = self._fitting(self._collator().encode(examples), split) if examples else []
        return self._rows[split]

    def train_dataloader(self) -> Batches:
        """The training rows in the order of the epoch; every rank gets equally many."""
        rows = self.rows("train")
        if not rows:
            raise DataError("The task has no training rows. Check its paths, sizes and `data.train_limit`.")
        sampler = RankSampler(len(rows), *self._place(), seed=self.seed, shuffle=self.shuffle, even=True)
        return self._loader(rows, batch_size=self.batch_size, sampler=sampler)

    def val_dataloader(self) -> Batches | list[Batches]:
        """The validation rows, each on exactly one rank; no loader where the task has none."""
        return self._evaluation(self.rows("validation"))

    def test_dataloader(self) -> Batches | list[Batches]:
        """The test rows, or the validation rows where the task has no test rows."""
        return self._evaluation(self.rows("test") or self.rows("validation"))

    def predict_dataloader(self) -> Batches | list[Batches]:
        """The rows of `test_dataloader`."""
        return self.test_dataloader()

    def _evaluation(self, rows: list[Encoded]) -> Batches | list[Batches]:
        if not rows:
            return []
        # The batches are the items: Lightning would rebuild a batch sampler for prediction, and lose whose rows they are.
        batches = even_batches(rows, *self._place(), self.validation_batch_size)
        return self._loader(batches, batch_size=None)

    def _loader(self, items: Sequence[object], **order: object) -> Batches:
        collate = self._collator().pad
        # Even without worker processes a loader draws from a generator, by default from the global one.
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(items, collate_fn=collate, num_workers=self.num_workers, generator=generator, **order)  # type: ignore[arg-type]

    def _place(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _collator(self) -> Collator:
        if self._tokenizer is None:
            raise ConfigurationError(
                "`PromptDataModule` has no tokenizer. Use it with a trainer, or call `connect(tokenizer)`."
            )
        return Collator(
            tokenizer=self._tokenizer,
            template=self.template,
            task=self.task,
            max_completion_tokens=self.max_completion_tokens,
            completion_prefix=self.completion_prefix,
        )

    def _fitting(self, rows: Sequence[Encoded], split: str) -> list[Encoded]:
        most = self.max_prompt_tokens
        fitting = [row for row in rows if len(row.prompt_ids) <= most]
        long = len(rows) - len(fitting)
        if not long:
            return fitting
        message = f"{long} of {len(rows)} {split} prompts exceed `data.max_prompt_tokens` = {most}"
        if self.overlong == "error" or (self.overlong == "drop" and not fitting):
            raise DataError(f"{message}. Raise it, shorten the prompts, or set `data.overlong` to another policy.")
        rank_zero_warn(f"{message}: {'left out' if self.overlong == 'drop' else 'cut on the left'}.")
        if self.overlong == "drop":
            return fitting
        return [Encoded(row.example, row.prompt_ids[-most:], row.completion_ids) for row in rows]

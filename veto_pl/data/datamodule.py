"""The batches of a run: which rows, in which order, on which rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from veto_pl.data.collate import Collator, Encoded
from veto_pl.data.control_words import ControlWords
from veto_pl.data.overlong import Overlong, OverlongCompletions, fit_completions, fit_prompts, report_remarks
from veto_pl.data.sampler import RankSampler, even_batches
from veto_pl.data.splits import check_sizes
from veto_pl.data.templates import PlainTemplate
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.seams import Task, Template
from veto_pl.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPLITS = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",), "predict": ("test",)}


class PromptDataModule(LightningDataModule):
    """Serves a task as `PromptBatch`es, tokenised once.

    Training rows are shuffled anew every epoch, in an order that does not depend on the number of ranks; up to
    world - 1 rows of an epoch are dropped so that all ranks get equally many. Evaluation reads every row exactly once,
    on one rank. The test and predict loaders read the test split, or the validation split of a task without test rows.

    The tokenizer is the Lightning module's (`tokenizer`, needed before its own `setup`), unless `connect` has set one.

    Args:
        task: the rows and how their completions are judged.
        template: how a row becomes the prompt's text.
        batch_size: prompts of a training batch, on each rank.
        validation_batch_size: prompts of an evaluation batch, on each rank; None for `batch_size`.
        max_prompt_tokens: tokens that a prompt may have.
        max_completion_tokens: tokens that a reference may have, EOS included.
        overlong: for prompts that are too long: `drop` them, `truncate_left` to keep their last tokens, or `error`.
        overlong_completions: for training references that are too long: `cut` them, which takes their EOS, `drop` their
            rows, or `error`.
        completion_prefix: text between prompt and reference, such as a space, that counts as completion.
        train_limit: use only the first so many training rows.
        validation_limit: use only the first so many validation rows.
        shuffle: shuffle the training rows.
        seed: the order's seed.
        num_workers: loader processes.

    Raises:
        ConfigurationError: for sizes out of range.
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
        overlong_completions: OverlongCompletions = "cut",
        completion_prefix: str = "",
        train_limit: int | None = None,
        validation_limit: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        check_sizes(
            "PromptDataModule",
            at_least=1,
            batch_size=batch_size,
            validation_batch_size=validation_batch_size,
            max_prompt_tokens=max_prompt_tokens,
            max_completion_tokens=max_completion_tokens,
            train_limit=train_limit,
        )
        check_sizes("PromptDataModule", validation_limit=validation_limit, num_workers=num_workers)
        self.task = task
        self.template = template
        self.batch_size = batch_size
        self.validation_batch_size = validation_batch_size or batch_size
        self.max_prompt_tokens = max_prompt_tokens
        self.max_completion_tokens = max_completion_tokens
        self.overlong = overlong
        self.overlong_completions = overlong_completions
        self.completion_prefix = completion_prefix
        self.limits = {"train": train_limit, "validation": validation_limit}
        self.shuffle = shuffle
        self.seed = seed
        self.num_workers = num_workers
        self.test_split = "test"  # or what stands in for it
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._rows: dict[str, list[Encoded]] = {}
        self._order = RankSampler(0)
        self._start = (0, 0, 0)

    def connect(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Sets the tokenizer, for use without a trainer or instead of the module's; rows are tokenised anew."""
        self._tokenizer = tokenizer
        self._rows.clear()

    @property
    def collator(self) -> Collator:
        """Makes batches of this module's kind; raises `ConfigurationError` while no tokenizer is known."""
        module = self.trainer.lightning_module if self.trainer is not None else None
        tokenizer = self._tokenizer if self._tokenizer is not None else getattr(module, "tokenizer", None)
        if tokenizer is None:
            raise ConfigurationError(
                "`PromptDataModule` expected a `tokenizer` on the Lightning module, got none. Set it or call `connect`."
            )
        return Collator(
            tokenizer=tokenizer,
            template=self.template,
            task=self.task,
            max_completion_tokens=self.max_completion_tokens,
            completion_prefix=self.completion_prefix,
            student=getattr(module, "student_source", None),
        )

    def setup(self, stage: str) -> None:
        """Loads and tokenises the splits of `stage` (fit, validate, test or predict) that are not there yet.

        Raises:
            ConfigurationError: without a tokenizer.
            DataError: where training, test or prediction has no rows, or a prompt is refused.
        """
        collator = self.collator
        for split in _SPLITS[stage]:
            if split not in self._rows:
                self._rows[split] = self._encode(split, collator)
            if split != "validation" and not self._rows[split]:
                raise DataError(
                    f"The task has no rows for the split `{split}`, expected at least one. Check its files."
                )

    def rows(self, split: str) -> list[Encoded]:
        """The encoded rows of `split` in the task's order, with the limits of training applied."""
        return self._encode(split, self.collator)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches; the last one of an epoch may be smaller."""
        rows = self._rows["train"]
        rank, world_size = self._place
        if len(rows) < world_size:
            raise DataError(
                f"{len(rows)} training rows, expected at least one for each of {world_size} ranks. Use fewer."
            )
        self._order = RankSampler(len(rows), rank, world_size, self.seed, self.shuffle, even=True)
        self._start = (0, 0, 0)
        return self._loader(rows, self._order, batch_size=self.batch_size)

    def row_after(self, epoch: int, batches: int) -> int:
        """The row of the epoch's global order that follows the first `batches` batches of all ranks."""
        _, row, before = self._start if self._start[0] == epoch else (epoch, 0, 0)
        return min(row + (batches - before) * self.batch_size * self._place[1], self._order.length)

    def start_at(self, epoch: int, row: int) -> int:
        """Lets the present training batches begin at a row of the epoch's global order.

        The row holds for any number of ranks and any batch size, so a run can be resumed on others.

        Returns:
            How many batches of the present size, over the present ranks, an epoch has before those that are left.
        """
        row = min(row, self._order.length)
        left = self._order.start_at(epoch, row)
        before = math.ceil(len(self._order) / self.batch_size) - math.ceil(left / self.batch_size)
        self._start = (epoch, row, before)
        return before

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Every validation row once; an empty list, which turns validation off, where there are none."""
        return self._evaluation("validation") if self._rows["validation"] else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Every test row once."""
        return self._evaluation("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Every test row once."""
        return self._evaluation("test")

    @property
    def _place(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _encode(self, split: str, collator: Collator) -> list[Encoded]:
        examples: Sequence[Example] = self.task.load(split)
        if split == "test" and not examples:
            split, examples = "validation", self.task.load("validation")
            self.test_split = split
        rows = collator.encode(examples[: self.limits.get(split)])
        report_remarks(rows, ControlWords(collator.tokenizer), split)
        if split == "train":  # those of other splits are judged by, not trained on
            limit, policy = self.max_completion_tokens, self.overlong_completions
            rows = fit_completions(rows, max_completion_tokens=limit, overlong=policy, split=split)
        return fit_prompts(rows, max_prompt_tokens=self.max_prompt_tokens, overlong=self.overlong, split=split)

    def _evaluation(self, split: str) -> DataLoader[Any]:
        # Whole batches are dealt here: a sampler of rows cannot give uneven ranks equally many batches.
        batches = even_batches(self._rows[split], *self._place, self.validation_batch_size)
        return self._loader(batches, RankSampler(len(batches), shuffle=False), batch_size=None)

    def _loader(self, rows: list[Any], sampler: RankSampler, batch_size: int | None) -> DataLoader[Any]:
        return DataLoader(
            rows,  # type: ignore[arg-type]  # a list is a map-style data set
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=self.collator.pad,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            # Without one, every epoch would draw its worker seed from the global generator.
            generator=torch.Generator().manual_seed(self.seed),
        )

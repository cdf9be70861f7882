"""The data module: which rows a run reads, in which order, on which rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from veto_pl.core.seeds import run_seed
from veto_pl.core.transfer import UNPINNED
from veto_pl.data.collate import Collator
from veto_pl.data.encoding import Batches, EncodedRows
from veto_pl.data.epoch import check_epoch
from veto_pl.data.fingerprints import fingerprint
from veto_pl.data.functions import as_reward, as_task, as_template
from veto_pl.data.image_reader import ImageReader
from veto_pl.data.overlong import Overlong, OverlongCompletions
from veto_pl.data.resumed_rows import ResumedRows
from veto_pl.data.sampler import RankSampler, even_batches
from veto_pl.data.split_rows import RowPolicy, report_no_rows
from veto_pl.data.splits import check_sizes, describe_change
from veto_pl.data.streaming import EncodedStream, StreamOrder
from veto_pl.data.tasks.judged import Judged
from veto_pl.data.templates import PlainTemplate
from veto_pl.data.window_loader import WindowLoader
from veto_pl.exceptions import ConfigurationError
from veto_pl.seams import Example, Reward, Task, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPLITS = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",), "predict": ("test",)}


class PromptDataModule(ResumedRows, LightningDataModule):
    """Serves a task as `PromptBatch`es, tokenised once.

    Training rows are shuffled anew every epoch, in an order that does not depend on the number of ranks; up to
    world - 1 rows of an epoch are dropped so that all ranks get equally many. Evaluation reads every row exactly once,
    on one rank. The test and predict loaders read the test split, or the validation split of a task without test rows.

    The tokenizer is the Lightning module's (`tokenizer`, needed before its own `setup`), unless `connect` has set one.

    Args:
        task: the rows and how their completions are judged.
        template: how a row becomes the prompt's text: a template, or a function of yours as `module.function`, which is
            given the prompt and the row.
        batch_size: prompts of a training batch, on each rank.
        validation_batch_size: prompts of an evaluation batch, on each rank; None for `batch_size`.
        max_prompt_tokens: tokens that a prompt may have.
        max_completion_tokens: tokens that a reference may have, EOS included.
        overlong: for prompts that are too long: `drop` them, `truncate_left` to keep their last tokens (prompts with
            images are dropped then), or `error`.
        overlong_completions: for training references that are too long: `cut` them, which takes their EOS, `drop` their
            rows, or `error`.
        completion_prefix: text between prompt and reference, such as a space, that counts as completion.
        train_limit: use only the first so many training rows.
        validation_limit: use only the first so many validation rows.
        shuffle: shuffle the training rows.
        seed: the order's seed; None is the seed that Lightning was given, or else 0.
        num_workers: loader processes, and processes that tokenise rows that are not in the cache.
        shuffle_buffer: rows of a stream among which the next one is drawn where it is shuffled.
        reward: judges completions in place of the task: a reward, or a function of yours as `module.function`, which is
            given the completion, the reference and the row.
        unknown: the share of a split's tokens that may stand for text that the tokenizer does not know; more is an
            error. Tokenizers that fall back on bytes know all.

    Raises:
        ConfigurationError: for sizes out of range.
    """

    def __init__(
        self,
        task: Task,
        template: Template | str = PlainTemplate(),
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
        seed: int | None = None,
        num_workers: int = 0,
        shuffle_buffer: int = 10_000,
        reward: Reward | str | None = None,
        unknown: float = 0.0,
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
            shuffle_buffer=shuffle_buffer,
        )
        check_sizes("PromptDataModule", validation_limit=validation_limit, num_workers=num_workers)
        if not 0 <= unknown <= 1:
            raise ConfigurationError(f"`PromptDataModule.unknown` must lie in [0, 1], got {unknown}.")
        self.task = as_task(task)
        self.template = as_template(template)
        self.reward = as_reward(reward)
        self.unknown = unknown
        self.batch_size = batch_size
        self.validation_batch_size = validation_batch_size or batch_size
        self.max_prompt_tokens = max_prompt_tokens
        self.max_completion_tokens = max_completion_tokens
        self.overlong = overlong
        self.overlong_completions = overlong_completions
        self.completion_prefix = completion_prefix
        self.limits = {"train": train_limit, "validation": validation_limit}
        self.shuffle = shuffle
        self.seed, self._seed_was_open = run_seed(seed), seed is None
        self.num_workers = num_workers
        self.shuffle_buffer = shuffle_buffer
        self.test_split = "test"  # or what stands in for it
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._images: ImageReader | None = None
        self._rows: dict[str, EncodedRows | EncodedStream] = {}
        self._built_from: dict[str, tuple[Any, ...]] = {}
        self._order: RankSampler | StreamOrder = RankSampler(0)

    def connect(self, tokenizer: PreTrainedTokenizerBase, processor: Any = None) -> None:
        """Set the tokenizer, for use without a trainer or instead of the module's; rows are tokenised anew.

        Args:
            tokenizer: of transformers.
            processor: of transformers, for rows with images.
        """
        self._tokenizer = tokenizer
        self._images = None if processor is None else ImageReader(tokenizer, given=processor)
        self._rows.clear()
        self._built_from.clear()

    @property
    def row_template(self) -> Template:
        """The template of the rows, which those of a mixture may bring with them."""
        return self.task.shown_by(self.template)

    @property
    def collator(self) -> Collator:
        """The collator that makes this module's batches; `ConfigurationError` is raised while no tokenizer is known."""
        module = self.trainer.lightning_module if self.trainer is not None else None
        tokenizer = self._tokenizer if self._tokenizer is not None else getattr(module, "tokenizer", None)
        if tokenizer is None:
            raise ConfigurationError(
                "`PromptDataModule` expected a `tokenizer` on the Lightning module, got none. Set it or call `connect`."
            )
        return Collator(
            tokenizer=tokenizer,
            template=self.row_template,
            task=self.task if self.reward is None else Judged(task=self.task, verifier=self.reward),
            max_completion_tokens=self.max_completion_tokens,
            completion_prefix=self.completion_prefix,
            student=getattr(module, "student_source", None),
            images=getattr(module, "images", None) if self._tokenizer is None else self._images,
        )

    def setup(self, stage: str) -> None:
        """Load and tokenise the splits of `stage` (fit, validate, test or predict) that are not there yet.

        Rows that were tokenised by another tokenizer, template, task or limit are tokenised anew.

        Raises:
            ConfigurationError: without a tokenizer.
            DataError: where training, test or prediction has no rows, or a row is refused.
        """
        name = self._collator_name()
        for split in _SPLITS[stage]:
            made_of = (self.task, name, self._policy, self.limits.get(split))
            if name is None or self._built_from.get(split) != made_of:
                self._rows[split] = self._encode(split, name)
                self._built_from[split] = made_of

    def rows(self, split: str) -> EncodedRows:
        """Return the encoded rows of `split` in the task's order, with the limits of training applied.

        Raises:
            DataError: they are a stream, or there are none.
        """
        return self._encode(split, self._collator_name()).listed(split)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint says about the rows, for `load_state_dict`."""
        return {"rows": {split: rows.summary for split, rows in self._rows.items()}, "seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the checkpoint's seed unless one was given, and warn of other rows than it was trained on."""
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        if self._seed_was_open:
            self.seed = self._order.seed = int(state_dict.get("seed", self.seed))
        now, before = self.state_dict()["rows"], state_dict.get("rows", {})
        changed = [describe_change(split, before[split], now[split]) for split in now if split in before]
        if told := "; ".join(change for change in changed if change):
            rank_zero_warn(f"The run goes on with other rows than before: {told}.")

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches; the last one of an epoch may be smaller."""
        rows = self._rows["train"]
        if self.trainer is not None:
            rows.check_trainer(self.trainer)
        shuffle = self.shuffle and not getattr(self.trainer, "overfit_batches", 0)
        self._order = rows.order(*self._place, seed=self.seed, shuffle=shuffle)
        self._start = (0, 0, 0)
        kind = partial(WindowLoader, window=self._left_in_window)
        loader = self._loader(rows.dataset, self._order, batch_size=self.batch_size, kind=kind)
        if self.trainer is not None and isinstance(rows, EncodedRows):
            check_epoch(self.trainer, len(loader))
        return loader

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return every validation row once; an empty list, which turns validation off, where there are none."""
        return self._evaluation("validation") if self._rows["validation"] else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Return every test row once."""
        return self._evaluation("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return every test row once."""
        return self._evaluation("test")

    def _collator_name(self) -> str | None:
        """Return a fingerprint of everything that decides how rows are encoded; None where it cannot be told."""
        collator = self.collator
        ends = [] if collator.student is None else list(collator.student.end_ids())
        return fingerprint([replace(collator, task=None, student=None, images=None), ends])

    def _encode(self, split: str, name: str | None) -> EncodedRows | EncodedStream:
        wanted, examples = split, self._load(split)
        if split == "test" and not examples:
            split, examples = "validation", self._load("validation")
            self.test_split = split
        if not isinstance(examples, Sized):
            stream = self._policy.streamed(examples, self.collator)
            return stream if split == "train" else stream.listed(split)
        examples = cast(Sequence[Example], examples)
        if not examples and self.limits.get(split) != 0:
            report_no_rows(wanted, examples)
        return self._policy.encoded(examples, self.collator, split, name=name, processes=self.num_workers)

    @property
    def _policy(self) -> RowPolicy:
        return RowPolicy(
            max_prompt_tokens=self.max_prompt_tokens,
            max_completion_tokens=self.max_completion_tokens,
            overlong=self.overlong,
            overlong_completions=self.overlong_completions,
            unknown=self.unknown,
            shuffle_buffer=self.shuffle_buffer,
        )

    def _load(self, split: str) -> Iterable[Example]:
        examples, limit = self.task.load(split), self.limits.get(split)
        if limit is None:
            return examples
        if isinstance(examples, Sized):
            return cast(Sequence[Example], examples)[:limit]
        return list(islice(examples, limit))

    def _evaluation(self, split: str) -> DataLoader[Any]:
        # Whole batches are dealt here: a sampler of rows cannot give uneven ranks equally many batches.
        rows = self._rows[split].listed(split)
        batches = Batches(rows, even_batches(rows.in_turn(), *self._place, self.validation_batch_size))
        return self._loader(batches, RankSampler(len(batches), shuffle=False), batch_size=None)

    def _left_in_window(self, read: int) -> int:
        """Return how many batches the accumulation window has left; one that a run goes on in has begun before."""
        size = getattr(self.trainer, "accumulate_grad_batches", 1)
        epoch, _, before = self._start
        begun = before if getattr(self.trainer, "current_epoch", 0) == epoch else 0
        return size - (begun + read) % size

    def _loader(
        self,
        rows: Dataset[Any],
        order: RankSampler | StreamOrder,
        batch_size: int | None,
        kind: Callable[..., DataLoader[Any]] = DataLoader,
    ) -> DataLoader[Any]:
        return kind(
            rows,
            batch_size=batch_size,
            sampler=order,
            collate_fn=self.collator.pad,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            # Without one, every epoch would draw its worker seed from the global generator.
            generator=torch.Generator().manual_seed(self.seed),
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type not in UNPINNED,
        )

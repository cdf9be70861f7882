"""Procedural tasks that check their own answers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.core.extras import require_extra
from veto_pl.data.splits import check_sizes, partition, pick
from veto_pl.exceptions import ConfigurationError, VetoError
from veto_pl.seams import Example, Task

# Found by generating every data set of reasoning-gym 0.1.25 under two hash seeds and two global random states.
_HASH_DEPENDENT = ("isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder")
_UNSEEDED = ("list_functions",)


@dataclass(frozen=True, kw_only=True)
class ReasoningGym(Task):
    """A data set of Reasoning Gym (Stojanovski et al. 2025, arXiv:2505.24760), scored by its own scorer.

    Items without an answer and repeated questions are left out. The first `validation_size` rows are validation, the
    next `test_size` test and the rest train. Only a full score is correct: scorers give partial credit to wrong text.

    Args:
        dataset: the data set's name, such as `spell_backward`.
        size: items to generate, before repeats are left out.
        seed: the generator's seed.
        validation_size: rows of the validation split.
        test_size: rows of the test split.
        train_size: rows of the training split, or None for all that are left.
        arguments: settings of the data set, such as `min_word_len`.

    Raises:
        ConfigurationError: for an unknown data set, or arguments that it refuses.
        DataError: where the distinct rows are too few.
    """

    dataset: str
    size: int = 1000
    seed: int = 0
    validation_size: int = 100
    test_size: int = 0
    train_size: int | None = None
    # Compared but not hashed: a task is then a key for the caches below although a dict has no hash.
    arguments: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_extra("reasoning_gym", extra="reasoning-gym", needed_by="`ReasoningGym`")
        from reasoning_gym.factory import DATASETS

        check_sizes(
            "ReasoningGym",
            size=self.size,
            validation_size=self.validation_size,
            test_size=self.test_size,
            train_size=self.train_size,
        )
        if self.dataset not in DATASETS:
            close = get_close_matches(str(self.dataset), DATASETS, n=5, cutoff=0.5) or [*sorted(DATASETS)[:10], "..."]
            raise ConfigurationError(
                f"`ReasoningGym.dataset` expected a data set of reasoning_gym, got {self.dataset!r:.80}. "
                f"Close: {', '.join(close)}."
            )
        if taken := {"size", "seed"} & self.arguments.keys():
            raise ConfigurationError(
                f"`ReasoningGym.arguments` must not set {', '.join(sorted(taken))}: use the fields."
            )

    @classmethod
    def examples(cls) -> tuple[ReasoningGym, ...]:
        if find_spec("reasoning_gym") is None:
            return ()
        return (cls(dataset="spell_backward", size=12, validation_size=2, test_size=2),)

    def load(self, split: str) -> Sequence[Example]:
        """Return the rows of the split; generated once per process."""
        return pick(_splits(self), split)

    def reward(self, example: Example, completion: str) -> float:
        """Return 1.0 for a full score of the data set's scorer, else 0.0, also where the scorer raises."""
        try:
            return float(_generator(self).score_answer(answer=completion.strip(), entry=example.row) >= 1.0)
        except Exception:
            return 0.0


@lru_cache(maxsize=8)
def _generator(task: ReasoningGym) -> Any:
    import reasoning_gym

    with _refusals(task):
        return reasoning_gym.create_dataset(task.dataset, size=task.size, seed=task.seed, **task.arguments)


@contextmanager
def _refusals(task: ReasoningGym) -> Iterator[None]:
    """Turn whatever a data set raises about its arguments, sometimes only when it makes an item, into one error."""
    try:
        yield
    except (VetoError, MemoryError):
        raise
    except Exception as error:
        given = str(task.arguments)
        raise ConfigurationError(
            f"`ReasoningGym.arguments` expected settings that {task.dataset} accepts, got {given:.200}: "
            f"{str(error) or type(error).__name__:.200}."
        ) from error


@lru_cache(maxsize=8)
def _splits(task: ReasoningGym) -> dict[str, list[Example]]:
    _report_unstable(task)
    with _refusals(task):
        items = [item for item in _generator(task) if item["answer"] is not None]
    return partition(
        (Example(item["question"], str(item["answer"]), item) for item in items),
        origin=f"reasoning_gym's {task.dataset} of size {task.size}",
        validation_size=task.validation_size,
        test_size=task.test_size,
        train_size=task.train_size,
    )


def _report_unstable(task: ReasoningGym) -> None:
    """Warn where another process would generate other rows, so that its training rows may be validation rows here."""
    if task.dataset in _UNSEEDED:
        remedy = "Use another data set, or write its rows to a file for `JsonLines`."
    elif task.dataset in _HASH_DEPENDENT and os.environ.get("PYTHONHASHSEED", "random") == "random":
        remedy = "Set the environment variable PYTHONHASHSEED=0."
    else:
        return
    rank_zero_warn(f"reasoning_gym's {task.dataset} differs between processes, and so do its splits. {remedy}")

"""The outcomes on which student and teacher are compared."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from veto_pl.core.bounds import Count
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.differentiation import belongs
from veto_pl.functional.supports import top_k_with_tail
from veto_pl.seams import Mistake, Setup, Support


@dataclass(frozen=True)
class FullVocabulary(Support):
    """Every id of the vocabulary."""

    def __call__(self, student_logp: Tensor, teacher_logp: Tensor) -> tuple[Tensor, Tensor]:
        return student_logp, teacher_logp

    @property
    def is_neutral(self) -> bool:
        """Whether the call is still that of this class."""
        return belongs(self, "is_neutral", "__call__")


@dataclass(frozen=True)
class TopK(Support):
    """The k likeliest ids of one model, and one outcome for all others together.

    Args:
        k: ids kept.
        of: the model whose likeliest ids are kept.
    """

    k: Count = 64
    of: Literal["teacher", "student"] = "teacher"

    @classmethod
    def examples(cls) -> tuple["TopK", ...]:
        return cls(k=1), cls(k=1, of="student")

    def __call__(self, student_logp: Tensor, teacher_logp: Tensor) -> tuple[Tensor, Tensor]:
        if self.k >= student_logp.shape[-1]:
            raise ConfigurationError(
                f"`TopK.k` must be below the vocabulary's {student_logp.shape[-1]} ids, got {self.k}. Use "
                "`FullVocabulary`."
            )
        chosen = teacher_logp if self.of == "teacher" else student_logp
        ids = chosen.topk(self.k, -1).indices
        return top_k_with_tail(student_logp, ids), top_k_with_tail(teacher_logp, ids)

    def kept_ids(self) -> int:
        return self.k

    def keeping(self, ids: int) -> "TopK":
        return replace(self, k=min(self.k, ids))

    def requirements(self, setup: Setup, path: str) -> Iterator[Mistake]:
        """Yield a k that leaves nothing for the last outcome."""
        yield from below_vocabulary(setup, f"{path}.init_args.k", self.k, "Lower it, or use `FullVocabulary`.")


def below_vocabulary(setup: Setup, path: str, kept: int, remedy: str) -> Iterator[Mistake]:
    """Yield the setting `path` if it keeps as many ids as there are, or more."""
    if setup.vocab_size is not None and kept >= setup.vocab_size:
        yield Mistake(path, str(kept), f"fewer than the vocabulary's {setup.vocab_size} ids", remedy)

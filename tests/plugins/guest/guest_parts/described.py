"""Parts that say more of themselves than the defaults do, and a command."""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from veto_pl.functional.divergences import log_mixture
from veto_pl.functional.supports import top_k_with_tail
from veto_pl.rollouts import DecodeLoop, FromStudent, FromTeacher, Sampling
from veto_pl.seams import (
    Engine,
    LanguageModel,
    Mistake,
    Models,
    PromptBatch,
    RolloutSource,
    Sequences,
    Setup,
    Step,
    Support,
    Writing,
)


@dataclass(frozen=True)
class GuestEngine(Engine):
    """The decode loop of the package, which is said to run elsewhere."""

    def generate(
        self,
        prompts: PromptBatch,
        model: LanguageModel,
        sampling: Sampling,
        models: Models,
        step: Step,
        *,
        on_policy: bool,
    ) -> Sequences:
        return DecodeLoop().generate(prompts, model, sampling, models, step, on_policy=on_policy)

    def new_cache(self, model: LanguageModel) -> None:
        return None


@dataclass(frozen=True)
class GuestRelay(RolloutSource):
    """The teacher writes some batches, the student the others.

    Args:
        sampling: how both sample.
        engine: what runs them.
        share: of the batches that the teacher writes.
    """

    sampling: Sampling = Sampling()
    engine: Engine = DecodeLoop()
    share: float = 0.25

    def __call__(self, prompts: PromptBatch, models: Models, step: Step) -> Sequences:
        by_teacher = step.index % round(1 / self.share) == 0
        source = FromTeacher if by_teacher else FromStudent
        return source(self.sampling, self.engine)(prompts, models, step)

    def writings(self) -> tuple[Writing, ...]:
        return tuple(Writing((model,), self.sampling, self.engine) for model in ("teacher", "student"))

    def token_distribution(self, student: Tensor, teacher: Tensor, step: Step) -> Tensor:
        return log_mixture(teacher, student, self.share)

    def requirements(self, setup: Setup, path: str) -> Iterable[Mistake]:
        if setup.trainer.get("max_steps", 0) == 1:
            yield Mistake(f"{path}.init_args.share", f"{self.share}, for one step", "more steps", "Raise `max_steps`.")


@dataclass(frozen=True)
class GuestSupport(Support):
    """The student's likeliest ids.

    Args:
        most: how many.
    """

    most: int = 20

    def __call__(self, student_logp: Tensor, teacher_logp: Tensor) -> tuple[Tensor, Tensor]:
        ids = student_logp.topk(self.most, -1).indices
        return top_k_with_tail(student_logp, ids), top_k_with_tail(teacher_logp, ids)

    def kept_ids(self) -> int:
        return self.most

    def keeping(self, ids: int) -> "GuestSupport":
        return replace(self, most=min(self.most, ids))

    def requirements(self, setup: Setup, path: str) -> Iterable[Mistake]:
        if setup.vocab_size is not None and self.most >= setup.vocab_size:
            yield Mistake(f"{path}.init_args.most", str(self.most), f"fewer than {setup.vocab_size} ids", "Lower it.")


def greet(arguments: Sequence[str]) -> None:
    """Say hello to somebody."""
    parser = argparse.ArgumentParser("veto-pl greet", description=greet.__doc__)
    parser.add_argument("name")
    print(f"Hello, {parser.parse_args(arguments).name}.")

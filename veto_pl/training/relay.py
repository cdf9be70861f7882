"""Episodes that one model begins and another goes on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from veto_pl.core.sampling import Sampling
from veto_pl.core.step import Step
from veto_pl.rollouts.engines import DecodeLoop
from veto_pl.seams import Engine, LanguageModel, Models, PromptBatch, Sequences, Session


def relay(turns: Mapping[int, int]) -> Engine:
    """Return what lets the student write the first turns of each episode, and the teacher all that follow.

    Args:
        turns: by the number of the episode, how many turns are the student's.
    """
    return _Relay(turns)


@dataclass(frozen=True)
class _Relay(Engine):
    """Lets the student write the first turns of each episode, and the teacher all that follow.

    With the step of an episode that the student has played alone, its turns here are the same: random numbers are
    functions of the step, the row and the turn.

    Args:
        turns: by the number of the episode, how many turns are the student's.
        engine: what runs both.
    """

    turns: Mapping[int, int] = field(default_factory=dict, hash=False)
    engine: Engine = DecodeLoop()

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
        return self.engine.generate(prompts, model, sampling, models, step, on_policy=on_policy)

    def session(self, model: LanguageModel, models: Models, *, on_policy: bool) -> Session:
        both = (model, models.required_teacher())
        sessions = [self.engine.session(one, models, on_policy=on_policy) for one in both]
        return _RelaySession(sessions[0], sessions[1], self.turns)


class _RelaySession(Session):
    """Asks one of two sessions for each row: the first one for its first turns.

    Args:
        first: writes them.
        then: writes the others.
        turns: by the name of a row, how many turns are the first one's.
    """

    def __init__(self, first: Session, then: Session, turns: Mapping[int, int]) -> None:
        super().__init__(first.write)
        self.both, self.turns, self.written = (first, then), turns, dict.fromkeys(turns, 0)

    def generate(
        self, prompts: PromptBatch, sampling: Sampling, step: Step, names: Sequence[int], *, is_last: bool = False
    ) -> Sequences:
        # Both write all rows, one of them in vain: rows of a prompt, which is read once, may be another's each.
        parts = [one.generate(prompts, sampling, step, names, is_last=is_last) for one in self.both]
        of = [int(self.written[name] >= self.turns[name]) for name in names]
        for name in names:
            self.written[name] += 1
        chosen = [row + len(of) * writer for row, writer in enumerate(of)]
        return Sequences.concatenate(parts).rows(torch.tensor(chosen))

    def close(self) -> None:
        for one in self.both:
            one.close()

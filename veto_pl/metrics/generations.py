"""What the student wrote in an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from veto_pl.seams import Example


@dataclass(frozen=True)
class Generations:
    """What one validation batch produced, for the metrics of whole completions.

    Args:
        texts: G x K decoded completions as they are judged, without a stop string at the end; the K samples of a prompt
            one after another.
        tokens: the ids of each completion, EOS included where it was reached.
        rewards: [G, K] float32; a completion is correct at 1.0 and only there.
        finished: [G, K] bool, True where the completion ended with EOS or a stop string.
        examples: the G rows of the task, with their references.
        logp: [G, K] float32, log-probability of each whole completion under the student itself (temperature 1, nothing
            cut off); None where no metric `needs_logp`.
        turns: [G, K] int64, turns of the student in each episode; None without an environment.
        failed_turns: [G, K] int64, those that could not be carried out; likewise.
        late_turns: [G, K] int64, how often the environment did not answer in time; likewise.
    """

    texts: list[str]
    tokens: list[list[int]]
    rewards: Tensor
    finished: Tensor
    examples: tuple[Example, ...] = ()
    logp: Tensor | None = None
    turns: Tensor | None = None
    failed_turns: Tensor | None = None
    late_turns: Tensor | None = None

    def groups(self) -> list[list[str]]:
        """Return the texts prompt by prompt."""
        size = self.rewards.shape[1]
        return [self.texts[i : i + size] for i in range(0, len(self.texts), size)]

    def of(self, source: str) -> Generations:
        """Return those of the rows of one data set of a mixture; all for an empty name."""
        if not source:
            return self
        rows = [i for i, example in enumerate(self.examples) if example.source == source]
        size = self.rewards.shape[1]
        places = [row * size + k for row in rows for k in range(size)]
        return replace(
            self,
            texts=[self.texts[i] for i in places],
            tokens=[self.tokens[i] for i in places],
            rewards=self.rewards[rows],
            finished=self.finished[rows],
            examples=tuple(self.examples[row] for row in rows),
            **{name: None if (of := getattr(self, name)) is None else of[rows] for name in _PERHAPS},
        )


_PERHAPS = ("logp", "turns", "failed_turns", "late_turns")
"""What not all evaluations know of each completion."""

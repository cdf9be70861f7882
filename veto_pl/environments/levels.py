"""Rows for environments that bring all that there is to say."""

from collections.abc import Sequence
from dataclasses import dataclass

from veto_pl.core.bounds import Count
from veto_pl.core.laws import Law
from veto_pl.data.rewards import NoReward
from veto_pl.seams import Example, Reward, Task

_STARTS = {"train": 0, "validation": 1 << 30, "test": 1 << 31}
"""Levels of different splits have different numbers."""


@dataclass(frozen=True)
class Levels(Task):
    """Numbered rows, without a text of their own: an environment makes of the field `level` what is to be done.

    Such an environment mostly rewards its episodes itself.

    Args:
        train: how many rows there are to train on.
        validation: how many to validate on.
        test: how many to test on.
        prompt: what each row says before the environment speaks, such as instructions.
        verifier: scores the last turn of an episode to which the environment gives no reward.
    """

    train: Count = 1000
    validation: Count = 100
    test: Count = 100
    prompt: str = "You are in a house."
    verifier: Reward = NoReward()

    laws = Task.laws - {Law.SPLITS_ARE_APART}  # their texts are alike, and their levels are not

    def load(self, split: str) -> Sequence[Example]:
        number, start = getattr(self, split), _STARTS[split]
        return [Example(self.prompt, row={"level": start + i}) for i in range(number)]

    def reward(self, example: Example, completion: str) -> float:
        """Return the verifier's score of a last turn."""
        return self.verifier(example, completion)

    @property
    def judges(self) -> bool:
        """Whether the verifier does."""
        return self.verifier.judges

"""The laws of metrics can fail: each is broken by somebody, who is reported."""

import pytest
import torch

from veto_pl.metrics import Accuracy, CompletionMetric, ForwardKL, MetricFamily, TokenMetric
from veto_pl.testing import test_metrics as laws


class _Nameless(CompletionMetric):
    def update(self, generations):
        self._add(generations.rewards)


class _Dotted(_Nameless):
    name = "mean.reward"


class _Named(_Nameless):
    name = "theirs"


class _NotANumber(_Named):
    def compute(self):
        return self.total / self.weight  # NaN before the first update


class _Pair(_Named):
    def compute(self):
        return torch.zeros(2)


class _Text(_Named):
    def compute(self):
        return "0"


class _MeanOfBatches(_Named):
    def update(self, generations):
        self._add(generations.rewards.max().reshape(1))


class _Last(_Named):
    """Remembers outside of its states."""

    last = 0.0

    def update(self, generations):
        self.last += float(generations.rewards.sum())
        self._add(generations.rewards)

    def compute(self):
        return torch.tensor(self.last)


class _Kept(_Named):
    """Has a state that is not joined."""

    def __init__(self):
        super().__init__()
        self.add_state("best", torch.zeros(()))


class _Spoiling(_Named):
    def update(self, generations):
        generations.rewards.zero_()
        self._add(generations.rewards)


class _OfGroups(_Named):
    """Compares two completions of a prompt, and does not say so by `needs_group`."""

    def update(self, generations):
        rewards = generations.rewards
        self._add(rewards.std(1) if rewards.numel() else rewards)


class _Surprise(TokenMetric):
    """Infinite where an id is excluded."""

    name = "surprise"

    def per_token(self, student_logp, teacher_logp, *more):
        return -student_logp.mean(-1)


class _Counting(TokenMetric):
    """Counts a batch without tokens."""

    name = "counting"

    def per_token(self, student_logp, teacher_logp, *more):
        return student_logp.new_ones(len(student_logp) + 1)


class _Family(MetricFamily):
    def __init__(self, *kinds):
        self.kinds = kinds

    def members(self, num_completions):
        return [kind() for kind in self.kinds]


NAME, FINITE = laws.test_a_metric_has_a_name, laws.test_a_value_is_a_finite_number
BATCHES, RANKS, RESET = (
    laws.test_batches_decide_nothing,
    laws.test_ranks_decide_nothing,
    laws.test_a_reset_metric_begins_anew,
)
LEFT, SINGLE = laws.test_what_is_measured_is_left_alone, laws.test_one_completion_of_each_prompt_will_do
TOKENS, FAMILY = laws.test_every_token_has_a_finite_value, laws.test_a_family_has_metrics_of_different_names
BROKEN = [
    (NAME, r"`_Nameless.name` must be a text without a dot", _Nameless, {}),
    (NAME, "got 'mean.reward'", _Dotted, {}),
    (FINITE, "must be finite, got nan of 0 batches", _NotANumber, {}),
    (FINITE, "a tensor of one number", _Pair, {}),
    (FINITE, "a tensor of one number, got '0'", _Text, {}),
    (BATCHES, "of the same in smaller batches", _MeanOfBatches, {}),
    (RANKS, "on two ranks. What is remembered must be states", _Last, {}),
    (RANKS, "The state `best` needs a `dist_reduce_fx`", _Kept, {}),
    (RESET, "after a reset", _Last, {}),
    (LEFT, "has changed in place", _Spoiling, {}),
    (SINGLE, "", _OfGroups, {}),
    (TOKENS, "Tokens of the kind excluded have no finite mean", _Surprise, {"kind": "excluded"}),
    (TOKENS, "must count for nothing, got a weight of 1.0", _Counting, {"kind": "ordinary"}),
    (FAMILY, "must differ", lambda: _Family(Accuracy, Accuracy), {"samples": 1}),
    (FAMILY, "Metrics, got", lambda: _Family(object), {"samples": 1}),
]
RIGHT = {TOKENS: ForwardKL, FAMILY: lambda: _Family(Accuracy, ForwardKL)}


@pytest.mark.parametrize(("law", "message", "make", "given"), BROKEN, ids=[law.__name__ for law, *_ in BROKEN])
def test_who_breaks_a_law_is_reported(law, message, make, given):
    with pytest.raises(AssertionError, match=message):
        law(make(), **given)


@pytest.mark.parametrize(("law", "given"), {law: given for law, _, _, given in BROKEN}.items())
def test_who_keeps_it_is_not(law, given):
    law(RIGHT.get(law, _Named)(), **given)


def test_each_law_is_broken_by_somebody():
    assert {law for law, *_ in BROKEN} == {law for name, law in vars(laws).items() if name.startswith("test_")}

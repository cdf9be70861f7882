import dataclasses
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_cases import generations

from veto_pl.exceptions import ConfigurationError
from veto_pl.metrics import Accuracy, CompletionLength, EosRate, MeanReward, ParseRate, PassAtK


def of_rewards(rows):
    return generations([[[] for _ in row] for row in rows], rows)


def computed(metric, batch):
    metric.update(batch)
    return float(metric.compute())


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_completion(data):
    count = data.draw(st.integers(1, 6))
    k = data.draw(st.integers(1, count))
    row = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=count, max_size=count)
    rows = data.draw(st.lists(row, min_size=1, max_size=4))
    shares = []
    for row in rows:
        subsets = list(combinations(row, k))
        shares.append(sum(1.0 in subset for subset in subsets) / len(subsets))
    assert computed(PassAtK(k), of_rewards(rows)) == pytest.approx(sum(shares) / len(shares), abs=1e-6)


def test_pass_at_k_stays_exact_where_binomials_are_huge():
    # One correct of n: it is among k with probability k / n.
    assert computed(PassAtK(100), of_rewards([[1.0] + [0.0] * 999])) == pytest.approx(0.1, rel=1e-6)


def test_pass_at_one_is_accuracy():
    batch = of_rewards([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    assert computed(PassAtK(1), batch) == pytest.approx(computed(Accuracy(), batch))


def test_pass_at_k_rejects_more_draws_than_completions():
    with pytest.raises(ConfigurationError, match=r"pass@4 needs at least 4 completions per prompt, got 2\. Raise"):
        PassAtK(4).update(of_rewards([[1.0, 0.0]]))


@pytest.mark.parametrize("k", [0, -1])
def test_pass_at_k_rejects_no_draws(k):
    with pytest.raises(ConfigurationError, match=rf"`PassAtK\.k` must be at least 1, got {k}"):
        PassAtK(k)


def test_only_a_reward_of_exactly_one_is_correct():
    batch = of_rewards([[1.0, 0.999999], [1.5, -1.0]])
    assert computed(Accuracy(), batch) == 0.25
    assert computed(PassAtK(2), batch) == 0.5
    assert computed(MeanReward(), batch) == pytest.approx((1.0 + 0.999999 + 1.5 - 1.0) / 4)


def test_length_counts_tokens_and_eos_rate_counts_endings():
    batch = generations([[[1, 2, 3], []], [[4], [5, 0]]], finished=[[True, False], [True, True]])
    assert computed(CompletionLength(), batch) == 6 / 4
    assert computed(EosRate(), batch) == 3 / 4


def test_sums_do_not_lose_small_addends():
    metric = MeanReward()
    metric.update(of_rewards([[2.0**24]]))
    for _ in range(4):
        metric.update(of_rewards([[1.0]]))
    assert metric.total.dtype == torch.float64
    assert float(metric.total) == 2.0**24 + 4


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("[1, 2]", {"any", "list"}),
        (' {"a": [NaN]}', set()),
        (' {"a": [1]}\n', {"any", "object"}),
        ("3", {"any"}),
        ("[1, 2", set()),
        ("[1] [2]", set()),
        ("['a']", set()),
        ("Infinity", set()),
        ("[" * 100_000, set()),
        ("", set()),
    ],
)
def test_only_json_of_the_kind_parses(text, kinds):
    batch = dataclasses.replace(generations([[[1]]]), texts=[text])
    assert {kind for kind in ("any", "list", "object") if computed(ParseRate(kind), batch)} == kinds

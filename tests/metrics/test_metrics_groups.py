"""Diversity and consensus of the completions of a prompt, against independent computations and by hand."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_cases import COMPLETIONS, generations, group_of

from veto_pl.exceptions import ConfigurationError
from veto_pl.metrics import Accuracy, CompletionEntropy, DistinctCorrect, MajorityVote, VendiScore
from veto_pl.metrics.generations import Generations


def computed(metric, batch):
    metric.update(batch)
    return float(metric.compute())


def of_texts(groups, rewards):
    """Generations with these texts."""
    made = generations([[[] for _ in group] for group in groups], rewards)
    return Generations([text for group in groups for text in group], made.tokens, made.rewards, made.finished)


@pytest.mark.parametrize("copies", [1, 2, 5, 8])
def test_vendi_of_copies_is_one_and_of_strangers_their_number(copies):
    assert computed(VendiScore(), generations([[[1, 2, 3]] * copies])) == pytest.approx(1)
    strangers = [[10 * i, 10 * i + 1, 10 * i + 2] for i in range(copies)]
    batch = Generations([""] * copies, strangers, *[generations([[[]] * copies]).rewards] * 2)
    assert computed(VendiScore(), batch) == pytest.approx(copies)


def test_vendi_of_two_families_is_two():
    assert computed(VendiScore(), generations([[[0, 1, 2], [3, 4, 5]] * 3])) == pytest.approx(2)


def test_vendi_of_two_follows_their_cosine():
    # Bigrams 01 12 against 01 14: cosine 1/2, so the eigenvalues of the halved kernel are 3/4 and 1/4.
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert computed(VendiScore(2), generations([[[0, 1, 2], [0, 1, 4]]])) == pytest.approx(expected)


def test_vendi_sees_completions_that_are_shorter_than_an_ngram():
    assert computed(VendiScore(3), generations([[[1], [1], [2], []]])) == pytest.approx(math.exp(1.5 * math.log(2)))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5).flatmap(lambda k: st.lists(group_of(COMPLETIONS, k), min_size=1, max_size=3)))
def test_vendi_matches_the_singular_values_of_the_counts(tokens):
    """The kernel is a Gram matrix: its eigenvalues are squared singular values, and the kernel is never formed here."""
    values = []
    for group in tokens:
        grams = [[str(ids[i : i + 2]) for i in range(len(ids) - 1)] or [f"whole {ids}"] for ids in group]
        columns = sorted({gram for found in grams for gram in found})
        counts = np.array([[found.count(column) for column in columns] for found in grams], float)
        counts /= np.sqrt((counts**2).sum(1, keepdims=True))
        weights = np.linalg.svd(counts / math.sqrt(len(group)), compute_uv=False) ** 2
        weights = weights[weights > 1e-14]
        values.append(math.exp(-(weights * np.log(weights)).sum()))
    value = computed(VendiScore(2), generations(tokens))
    assert value == pytest.approx(sum(values) / len(values), rel=1e-5)
    assert 1 - 1e-5 <= value <= len(tokens[0]) + 1e-5


def test_completion_entropy_by_hand():
    assert computed(CompletionEntropy(), generations([[[1, 2]] * 4])) == 0
    assert computed(CompletionEntropy(), generations([[[1], [2], [3], [4]]])) == pytest.approx(math.log(4))
    assert computed(CompletionEntropy(), generations([[[1], [1], [2], [2]], [[1]] * 4])) == pytest.approx(
        math.log(2) / 2
    )


def test_distinct_correct_counts_each_right_text_once():
    texts = [["a b", "a  b\n", "c", "d"], ["x", "x", "x", "x"]]
    assert (
        computed(DistinctCorrect(), of_texts(texts, [[1.0, 1.0, 1.0, 0.0], [0.0, 0.5, 1.0, 1.0]]))
        == (2 / 4 + 1 / 4) / 2
    )


def test_distinct_correct_reads_the_last_answer_by_its_pattern():
    texts = [["2 + 2 is #### 4", "so #### 5, no, it is #### 4", "#### 8 / 2", "no answer"]]
    right = of_texts(texts, [[1.0] * 4])
    assert computed(DistinctCorrect(), right) == 1.0  # reasoning makes all texts differ
    assert computed(DistinctCorrect(r"#### (\d+)"), right) == 2 / 4
    assert computed(DistinctCorrect(r"#### (\d+)"), of_texts(texts, [[1.0, 1.0, 0.0, 0.0]])) == 1 / 4
    assert computed(DistinctCorrect(r"#### (\d+)"), of_texts([["none", "here"]], [[1.0, 1.0]])) == 0.0


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_distinct_correct_lies_between_a_share_of_pass_at_n_and_accuracy(data):
    tokens = data.draw(st.lists(group_of(COMPLETIONS), min_size=1, max_size=4))
    rewards = [data.draw(group_of(st.sampled_from([0.0, 0.5, 1.0]))) for _ in tokens]
    batch = generations(tokens, rewards)
    value = computed(DistinctCorrect(), batch)
    assert value <= computed(Accuracy(), batch) + 1e-6
    assert value >= sum(1.0 in row for row in rewards) / len(rewards) / len(rewards[0]) - 1e-6


def test_majority_by_hand():
    assert computed(MajorityVote(), of_texts([["4", " 4\n", "5"]], [[1.0, 1.0, 0.0]])) == 1.0
    assert computed(MajorityVote(), of_texts([["5", "5", "4"]], [[0.0, 0.0, 1.0]])) == 0.0
    # A tie is drawn, and three answers once each leave one chance in three.
    assert computed(MajorityVote(), of_texts([["4", "5"]], [[1.0, 0.0]])) == 0.5
    assert computed(MajorityVote(), of_texts([["4", "5", "6"]], [[1.0, 0.0, 0.0]])) == pytest.approx(1 / 3)


def test_majority_reads_the_last_answer_by_its_pattern():
    texts = [["2 + 2 is #### 4", "so #### 5, no #### 4", "#### 5", "no answer"]]
    assert computed(MajorityVote(r"#### (\d+)"), of_texts(texts, [[1.0, 1.0, 0.0, 0.0]])) == 1.0
    assert computed(MajorityVote(r"#### (\d+)"), of_texts([["none", "here"]], [[1.0, 1.0]])) == 0.0


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from("ab"), min_size=3, max_size=3))
def test_majority_of_two_answers_is_the_larger_camp(answers):
    value = computed(MajorityVote(), of_texts([answers], [[float(answer == "a") for answer in answers]]))
    assert value == float(any(pair == ("a", "a") for pair in combinations(answers, 2)))


def test_bad_settings_are_refused():
    with pytest.raises(ConfigurationError, match=r"`MajorityVote\.pattern` must be a regular expression"):
        MajorityVote("(")
    with pytest.raises(ConfigurationError, match=r"`DistinctCorrect\.pattern` must be a regular expression"):
        DistinctCorrect("(")
    with pytest.raises(ConfigurationError, match=r"`VendiScore\.n` must be at least 1, got 0"):
        VendiScore(0)

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_cases import COMPLETIONS, generations, group_of

from veto_pl.exceptions import ConfigurationError
from veto_pl.metrics import DistinctN, RepetitionRate, SelfBLEU


def computed(metric, tokens):
    metric.update(generations(tokens))
    return float(metric.compute())


def test_distinct_by_hand():
    # Bigrams of the first prompt: 12 23 31 | 12, three kinds of four; of the second: 34, one of one.
    assert computed(DistinctN(2), [[[1, 2, 3, 1], [1, 2]], [[3, 4], [5]]]) == pytest.approx((3 / 4 + 1) / 2)
    assert computed(DistinctN(2), [[[1, 2, 1, 2], [1, 2]]]) == pytest.approx(2 / 4)
    assert computed(DistinctN(1), [[[1, 1], [1, 2]]]) == pytest.approx(2 / 4)


def test_distinct_does_not_compare_across_prompts():
    assert computed(DistinctN(1), [[[1]], [[1]], [[1]]]) == 1.0


def test_prompts_without_an_ngram_count_for_nothing():
    assert computed(DistinctN(2), [[[1], []], [[1, 1, 1], []]]) == pytest.approx(1 / 2)
    assert computed(DistinctN(2), [[[1], []]]) == 0.0


def test_no_ngram_spans_two_completions():
    assert computed(DistinctN(2), [[[1, 2], [3, 1], [1, 2]]]) == pytest.approx(2 / 3)


def test_repetition_by_hand():
    # 1212: 12 21 12, two kinds of three; 123: none repeated; [1] has no bigram.
    assert computed(RepetitionRate(2), [[[1, 2, 1, 2], [1, 2, 3]], [[1], []]]) == pytest.approx((1 / 3 + 0) / 2)
    assert computed(RepetitionRate(4), [[[1] * 10]]) == pytest.approx(6 / 7)


def test_repetition_looks_inside_one_completion():
    assert computed(RepetitionRate(1), [[[1, 2], [1, 2], [1, 2]]]) == 0.0


@settings(deadline=None, max_examples=40)
@given(st.lists(group_of(COMPLETIONS, 2), min_size=1, max_size=4), st.integers(1, 3))
def test_ngram_metrics_match_a_count(tokens, n):
    def share(completions):
        seen = []
        for ids in completions:
            seen += [str(ids[i : i + n]) for i in range(len(ids)) if i + n <= len(ids)]
        return [len(dict.fromkeys(seen)) / len(seen)] if seen else []

    groups = [s for group in tokens for s in share(group)]
    alone = [1 - s for group in tokens for ids in group for s in share([ids])]
    assert computed(DistinctN(n), tokens) == pytest.approx(sum(groups) / max(len(groups), 1))
    assert computed(RepetitionRate(n), tokens) == pytest.approx(sum(alone) / max(len(alone), 1), abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 4).flatmap(lambda k: st.lists(group_of(COMPLETIONS, k), min_size=1, max_size=3)))
def test_self_bleu_matches_sacrebleu_sentence_by_sentence(tokens):
    batch = generations(tokens)
    scores = []
    for group in batch.groups():
        for hypothesis in range(len(group)):
            others = [text for i, text in enumerate(group) if i != hypothesis]
            scores.append(sacrebleu.sentence_bleu(group[hypothesis], others).score)
    metric = SelfBLEU()
    metric.update(batch)
    assert float(metric.compute()) == pytest.approx(sum(scores) / len(scores), abs=1e-3)


def test_self_bleu_of_copies_is_100_and_of_strangers_0():
    assert computed(SelfBLEU(), [[[0, 1, 2, 3, 4]] * 3]) == pytest.approx(100, abs=1e-3)
    assert computed(SelfBLEU(), [[[0, 1, 2], [3, 4, 5]]]) == pytest.approx(0, abs=1e-3)


def test_self_bleu_of_single_completions_is_nothing():
    assert computed(SelfBLEU(), [[[0, 1, 2]], [[3, 4]]]) == 0.0


@pytest.mark.parametrize("cls", [DistinctN, RepetitionRate])
def test_ngrams_have_a_length(cls):
    with pytest.raises(ConfigurationError, match=rf"`{cls.__name__}\.n` must be at least 1, got 0"):
        cls(0)

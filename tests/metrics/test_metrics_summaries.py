import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from tiny_bert import tiny_bert
from transformers import AutoModel, AutoTokenizer

from veto_pl.data import RougeL, rouge
from veto_pl.exceptions import ConfigurationError
from veto_pl.judging import NoVerdictError, ReferenceJudge
from veto_pl.metrics import BERTScore, Rouge, WinRate
from veto_pl.metrics.generations import Generations
from veto_pl.seams import Example, Judge

WORDS = ["the", "cat", "sat", "on", "mat", "dog", "barked", "loudly", "today"]
SENTENCES = st.lists(st.sampled_from([*WORDS, "The", "cat,", "#Person1#", "don't", "—", "9:30"]), max_size=9).map(
    " ".join
)


def generations(texts, examples):
    """One or more completions of each row."""
    size = len(texts) // max(len(examples), 1)
    rewards = torch.zeros(len(examples), size)
    return Generations(texts, [[0]] * len(texts), rewards, rewards.bool(), examples=tuple(examples))


def value(metric, texts, *references):
    examples = [Example("p", one[0] if one else None, alternatives=tuple(one[1:])) for one in references]
    metric.update(generations(texts, examples))
    return float(metric.compute())


@settings(max_examples=150)
@given(SENTENCES, st.lists(SENTENCES, min_size=1, max_size=3), st.sampled_from(["rouge1", "rouge2", "rougeL"]))
def test_rouge_is_that_of_rouge_score(text, references, kind):
    expected = RougeScorer([kind]).score_multi(references, text)[kind].fmeasure
    assert rouge(text, references, kind) == pytest.approx(expected, abs=1e-6)
    assert value(Rouge(kind), [text], references) == pytest.approx(expected, abs=1e-6)


@given(SENTENCES, st.lists(SENTENCES, max_size=3))
def test_the_reward_is_1_only_for_the_words_of_a_reference(text, references):
    row = Example("p", references[0] if references else None, alternatives=tuple(references[1:]))
    words = [RougeScorer(["rougeL"])._tokenizer.tokenize(one) for one in (text, *references)]
    score = RougeL()(row, text)
    assert (score == 1.0) == (bool(words[0]) and words[0] in words[1:])
    assert 0.0 <= score <= 1.0


def test_rows_without_a_reference_count_for_nothing():
    assert value(Rouge(), ["the cat", "the cat", "a", "b"], ["the cat"], []) == 1.0
    assert value(Rouge(), ["the cat"], []) == 0.0
    assert value(WinRate(ReferenceJudge()), ["the cat"], []) == 0.0
    assert value(BERTScore(tiny_bert()), ["the cat"], []) == 0.0


@pytest.mark.parametrize("kind", ["rouge3", "rougeLsum", "L"])
def test_kinds_of_rouge(kind):
    with pytest.raises(ConfigurationError, match=r"`Rouge\.kind` expected rouge1, rouge2 or rougeL, got"):
        Rouge(kind)


def bert_score_by_hand(text, reference, layer=-1):
    """F of the greedy matching of hidden states, in float64, without the outer tokens."""
    tokenizer, model = (
        AutoTokenizer.from_pretrained(tiny_bert()),
        AutoModel.from_pretrained(tiny_bert()).double().eval(),
    )

    def states(sentence):
        ids = tokenizer(sentence, return_tensors="pt", truncation=True, max_length=30)["input_ids"]
        with torch.no_grad():
            hidden = model(ids, output_hidden_states=True).hidden_states[layer][0, 1:-1]
        return hidden / hidden.norm(dim=-1, keepdim=True)

    # The outer tokens match with cosine 0, as in the authors' code: it matters where no cosine is positive.
    cosines = (states(text) @ states(reference).T).clamp_min(0)
    precision, recall = cosines.max(1).values.mean(), cosines.max(0).values.mean()
    return float(2 * precision * recall / (precision + recall))


TEXTS = ["the cat sat on the mat", "a dog barked", "loudly", "the dog sat on a cat today and the river runs " * 5]
REFERENCES = [
    ["the cat sat"],
    ["the dog barked loudly today", "a dog"],
    ["a river of small stones runs"],
    ["the dog sat on a cat"],
]


@pytest.mark.parametrize("layer", [None, 1])
def test_bert_score_is_that_of_a_computation_by_hand(layer):
    expected = [
        max(bert_score_by_hand(text, one, -1 if layer is None else layer) for one in references)
        for text, references in zip(TEXTS, REFERENCES, strict=True)
    ]
    assert len({round(score, 3) for score in expected}) == 4
    for text, references, score in zip(TEXTS, REFERENCES, expected, strict=True):
        assert value(BERTScore(tiny_bert(), layer), [text], references) == pytest.approx(score, abs=1e-5)
    # Texts of different lengths in one batch keep their references.
    assert value(BERTScore(tiny_bert(), layer), TEXTS, *REFERENCES) == pytest.approx(sum(expected) / 4, abs=1e-5)


def test_bert_score_is_the_same_inside_a_validation():
    expected = value(BERTScore(tiny_bert()), TEXTS, *REFERENCES)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert value(BERTScore(tiny_bert()), TEXTS, *REFERENCES) == pytest.approx(expected, abs=1e-6)


def test_bert_score_of_equal_and_of_empty_texts():
    assert value(BERTScore(tiny_bert()), ["the cat sat"], ["The cat sat"]) == pytest.approx(1.0, abs=1e-5)
    assert value(BERTScore(tiny_bert()), ["  "], ["the cat"]) == 0.0


def test_the_encoder_is_in_no_checkpoint():
    metric = BERTScore(tiny_bert())
    assert value(metric, ["the cat"], ["the dog"]) > 0
    assert list(metric.parameters()) == []
    assert set(metric.state_dict()) == set()


def test_a_missing_encoder_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"`BERTScore\.model` expected a folder or a hub name"):
        value(BERTScore(str(tmp_path)), ["the cat"], ["the cat"])


class Picky(Judge):
    """Likes the longer text, shown anywhere; says nothing of a dog."""

    def __call__(self, example, first, second):
        if "dog" in first + second:
            raise NoVerdictError("a dog")
        return 0.5 if len(first) == len(second) else float(len(first) > len(second))


def test_two_judges_have_two_names():
    assert WinRate(Picky()).name == "win_rate"
    assert WinRate(Picky(), name="picky").name == "picky"


def test_win_rate_against_the_reference():
    metric = WinRate(Picky())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert value(metric, ["the cat sat", "cat", "mat"], ["the cat"], ["the cat"], ["cat"]) == pytest.approx(1.5 / 3)
    with pytest.warns(UserWarning, match="Picky did not decide 1 of 2 pairs; the first: a dog"):
        assert value(WinRate(Picky()), ["the cat sat", "dog"], ["the cat"], ["the cat"]) == 1.0


SUMMARIES = ["Ann greets Ben.", "Ann says hello to Ben.", "Ann meets Ben and says hello."]


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("Ann says hello to Ben!", 1.0),
        ("A perfect summary: Ann greets Ben and says hello to him.", 1.0),
        (SUMMARIES[0], 0.5),
        ("ANN greets Ben!", 0.5),
        ("Somebody greets somebody.", 0.0),
    ],
)
def test_a_completion_wins_ties_and_loses_by_the_references_that_it_is_not_compared_to(text, rate):
    assert value(WinRate(ReferenceJudge()), [text], SUMMARIES) == rate


@pytest.mark.parametrize("references", [SUMMARIES[:1], [SUMMARIES[0]] * 3])
def test_where_no_other_reference_is_left_there_is_no_verdict(references):
    metric = WinRate(ReferenceJudge())
    with pytest.warns(UserWarning, match="ReferenceJudge did not decide 1 of 1 pairs; the first: no reference to comp"):
        assert value(metric, ["Ann says hello."], references) == 0.0
    assert metric.weight == 0


def test_a_judge_is_shown_the_other_references_once_the_opponent_is_taken_out():
    class Seen(Judge):
        def __call__(self, example, first, second):
            seen.append((example.prompt, example.references))
            return 0.5

    seen = []
    assert value(WinRate(Seen(), both_orders=False), ["a", "b"], ["x", "y", "x", "z"], ["x"]) == 0.5
    assert seen == [("p", ("y", "z")), ("p", ())]


@pytest.mark.parametrize("both_orders", [True, False])
def test_a_judge_that_likes_the_first_place_gives_half_where_both_orders_are_asked(both_orders):
    class First(Judge):
        def __call__(self, example, first, second):
            return 1.0

    rate = value(WinRate(First(), both_orders), [f"cat {i}" for i in range(64)], *[["the cat"]] * 64)
    assert rate == 0.5 if both_orders else 0.2 < rate < 0.8

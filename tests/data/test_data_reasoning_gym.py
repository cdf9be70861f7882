from itertools import chain

import pytest
import reasoning_gym

from veto_pl.data import ReasoningGym
from veto_pl.data.tasks import reasoning_gym as module
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.seams import Example

SPELL = {"dataset": "spell_backward", "size": 300, "seed": 1, "arguments": {"min_word_len": 3, "max_word_len": 5}}


@pytest.fixture(autouse=True)
def _fresh_caches():
    module._generator.cache_clear()
    module._splits.cache_clear()


def test_splits_are_disjoint_and_cover_the_distinct_questions_in_order():
    task = ReasoningGym(**SPELL, validation_size=20, test_size=30)
    items = list(reasoning_gym.create_dataset("spell_backward", size=300, seed=1, min_word_len=3, max_word_len=5))
    distinct = list(dict.fromkeys(item["question"] for item in items))
    assert len(distinct) < len(items)
    parts = [[row.prompt for row in task.load(split)] for split in ("validation", "test", "train")]
    assert list(chain(*parts)) == distinct
    assert [len(part) for part in parts[:2]] == [20, 30]


def test_rows_are_the_items():
    row = ReasoningGym(**SPELL, validation_size=5).load("validation")[0]
    word = row.row["metadata"]["word"]
    assert row.completion == row.row["answer"] == word[::-1]
    assert row.prompt == row.row["question"]
    assert 3 <= len(word) <= 5


def test_train_is_cut_and_validation_does_not_move():
    whole, cut = (ReasoningGym(**SPELL, validation_size=9, train_size=size) for size in (None, 7))
    assert list(cut.load("train")) == list(whole.load("train"))[:7]
    assert cut.load("validation") == whole.load("validation")


def test_a_set_that_is_too_small_gives_the_numbers():
    task = ReasoningGym(dataset="spell_backward", size=10, seed=1, validation_size=6, test_size=3, train_size=5)
    with pytest.raises(DataError, match=r"size 10 has 10 distinct rows, expected at least 14 \(6 .*3 .*5 for train"):
        task.load("train")


def test_items_without_an_answer_and_repeats_are_left_out(monkeypatch):
    items = [{"question": q, "answer": a} for q, a in [("a", None), ("b", 1), ("b", 2), ("a", 3), ("c", 4)]]
    monkeypatch.setattr(reasoning_gym, "create_dataset", lambda *_, **__: items)
    rows = ReasoningGym(dataset="spell_backward", validation_size=0).load("train")
    assert [(row.prompt, row.completion) for row in rows] == [("b", "1"), ("a", "3"), ("c", "4")]


def test_equal_tasks_generate_once_and_arguments_tell_tasks_apart(monkeypatch):
    create, calls = reasoning_gym.create_dataset, []
    monkeypatch.setattr(reasoning_gym, "create_dataset", lambda *a, **k: calls.append(k) or create(*a, **k))
    for _ in range(2):
        task = ReasoningGym(**SPELL, validation_size=5)
        example = task.load("train")[0]
        task.load("validation")
        task.reward(example, "x")
    assert len(calls) == 1
    longer = ReasoningGym(**SPELL | {"arguments": {"min_word_len": 6}}, validation_size=5)
    assert min(row.row["metadata"]["word_len"] for row in longer.load("train")) == 6
    assert len(calls) == 2


def test_partial_credit_is_not_correct():
    task = ReasoningGym(**SPELL, validation_size=5)
    example = next(row for row in task.load("train") if len(set(row.completion)) > 1)
    almost = example.completion[:-1] + "?"
    scorer = reasoning_gym.get_score_answer_fn("spell_backward")
    assert 0 < scorer(answer=almost, entry=example.row) < 1
    assert task.reward(example, almost) == 0.0
    assert task.reward(example, "") == 0.0
    assert task.reward(example, f" {example.completion}\n") == 1.0


def test_a_scorer_that_raises_gives_zero():
    task = ReasoningGym(dataset="prime_factorization", size=20, seed=0, validation_size=2)
    example = task.load("train")[0]
    scorer = reasoning_gym.get_score_answer_fn("prime_factorization")
    with pytest.raises(ValueError, match="invalid literal for int"):
        scorer(answer="no number", entry=example.row)
    assert task.reward(example, "no number") == 0.0
    assert task.reward(example, example.completion) == 1.0
    assert task.reward(Example("not of this set"), "7") == 0.0


@pytest.mark.parametrize(
    ("dataset", "hash_seed", "remedy"),
    [
        ("ransom_note", "random", "Set the environment variable PYTHONHASHSEED=0"),
        ("ransom_note", "0", None),
        ("list_functions", "0", "Use another data set"),
        ("spell_backward", "random", None),
    ],
)
def test_sets_that_differ_between_processes_are_reported(monkeypatch, recwarn, dataset, hash_seed, remedy):
    monkeypatch.setenv("PYTHONHASHSEED", hash_seed)
    ReasoningGym(dataset=dataset, size=8, seed=0, validation_size=1).load("train")
    messages = [str(w.message) for w in recwarn if "differs between processes" in str(w.message)]
    assert len(messages) == (remedy is not None)
    assert all(f"{dataset} differs" in message and remedy in message for message in messages)


def test_an_unknown_data_set_lists_close_matches():
    with pytest.raises(ConfigurationError, match=r"got 'spel_backwards'\. Close: spell_backward"):
        ReasoningGym(dataset="spel_backwards")


@pytest.mark.parametrize("arguments", [{"bogus": 1}, {"min_word_len": -1}])
def test_arguments_that_the_set_refuses(arguments):
    with pytest.raises(ConfigurationError, match=r"`ReasoningGym.arguments` .* spell_backward accepts"):
        ReasoningGym(dataset="spell_backward", arguments=arguments).load("train")


@pytest.mark.parametrize(
    ("wrong", "match"), [({"arguments": {"seed": 3}}, "must not set seed"), ({"size": -1}, "ReasoningGym.size")]
)
def test_settings_that_cannot_work(wrong, match):
    with pytest.raises(ConfigurationError, match=match):
        ReasoningGym(dataset="spell_backward", **wrong)

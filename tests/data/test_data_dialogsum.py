import pytest
from rouge_score.rouge_scorer import RougeScorer

from veto_pl.data import DialogSum
from veto_pl.exceptions import ConfigurationError, DataError

TALK = "#Person1#: Hello, Ann.\n#Person2#: Hello, Ben."


def test_train_rows_have_one_summary(write_rows):
    path = write_rows("train.jsonl", {"dialogue": TALK, "summary": "They greet.", "topic": "greeting"})
    (row,) = DialogSum(train_path=path).load("train")
    assert (row.prompt, row.references, row.row["topic"]) == (TALK, ("They greet.",), "greeting")


def test_test_rows_have_three(write_rows):
    rows = {"dialogue": TALK, "summary1": "a", "topic1": "x", "summary2": "b", "summary3": "c"}
    (row,) = DialogSum(test_path=write_rows("test.jsonl", rows)).load("test")
    assert (row.completion, row.alternatives) == ("a", ("b", "c"))


def test_rows_of_one_dialogue_are_one_row(write_rows):
    rows = [{"dialogue": d, "summary": s} for d, s in [("p", "a"), ("p", "b"), ("q", "c"), ("q", "d"), ("p", "e")]]
    found = DialogSum(test_path=write_rows("test.jsonl.gz", *rows)).load("test")
    assert [(row.prompt, row.references) for row in found] == [("p", ("a", "b")), ("q", ("c", "d")), ("p", ("e",))]


def test_a_split_without_a_file_is_empty(write_rows):
    task = DialogSum(train_path=write_rows("train.jsonl", {"dialogue": TALK, "summary": "a"}))
    assert task.load("validation") == task.load("test") == []
    with pytest.raises(ConfigurationError, match="`split` must be one of train, validation, test, got 'dev'"):
        task.load("dev")


def test_long_dialogues_are_left_out(write_rows):
    rows = [{"dialogue": "x" * length, "summary": "a"} for length in (5, 6, 7)]
    path = write_rows("train.jsonl", *rows)
    assert [len(row.prompt) for row in DialogSum(train_path=path, max_dialogue_chars=6).load("train")] == [5, 6]
    with pytest.raises(ConfigurationError, match=r"`DialogSum\.max_dialogue_chars` must be 0 or more, got -1"):
        DialogSum(max_dialogue_chars=-1)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"summary": "a"}, r"train\.jsonl:2: field `dialogue` expected a string, got a row without it"),
        ({"dialogue": TALK}, "row 2: field `summary` expected a string, got a row without it"),
        ({"dialogue": TALK, "summary": 3}, "row 2: field `summary` expected a string, got int 3"),
        (
            {"dialogue": TALK, "summary1": "a", "summary2": None},
            "row 2: field `summary2` expected a string, got NoneType",
        ),
    ],
)
def test_bad_rows_are_named(write_rows, row, says):
    path = write_rows("train.jsonl", {"dialogue": "p", "summary": "a"}, row)
    with pytest.raises(DataError, match=says):
        DialogSum(train_path=path).load("train")


def test_without_a_path_the_hub_is_asked(monkeypatch):
    asked = []

    def load_dataset(name, config, *, split):
        asked.append((name, config, split))
        return [{"dialogue": TALK, "summary": "a"}, {"dialogue": TALK, "summary": "b"}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert [row.references for row in DialogSum(hub="someone/dialogues").load("test")] == [("a", "b")]
    assert asked == [("someone/dialogues", None, "test")]


def test_an_unreachable_hub_is_an_error_with_a_remedy(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"`DialogSum\.hub` expected .*no network.*or set `DialogSum\.train_path`"):
        DialogSum().load("train")


def test_the_reward_is_rouge_against_the_best_summary(write_rows):
    summaries = {"summary1": "Ann and Ben greet each other.", "summary2": "Two people say hello."}
    path = write_rows("test.jsonl", {"dialogue": TALK, **summaries})
    task = DialogSum(test_path=path)
    (row,) = task.load("test")
    for text in ("Two persons say hello", "Ann greets Ben", "", "TWO people, say hello!"):
        expected = RougeScorer(["rougeL"]).score_multi(list(summaries.values()), text)["rougeL"].fmeasure
        assert task.reward(row, text) == pytest.approx(expected, abs=1e-6)
    assert task.rewards([row, row], ["two people say hello", "no"]) == [1.0, 0.0]


@pytest.mark.published
@pytest.mark.parametrize(("name", "split", "references"), [("test", "test", 3), ("dev", "validation", 1)])
def test_the_published_files_can_be_read(name, split, references, published):
    path, rows = published(f"dialogsum_{name}.jsonl")
    found = DialogSum(**{f"{split}_path": path}).load(split)
    assert (len(found), {len(row.references) for row in found}) == (500, {references})
    assert found[0].completion == rows[0].get("summary", rows[0].get("summary1"))

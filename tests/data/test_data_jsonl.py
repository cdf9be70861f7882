import gzip
import json
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.cli.build import VetoCLI
from veto_pl.data import GSM8K, DialogSum, ExactMatch, JsonLines, read_examples
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.plugins import load_plugins
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.seams import Step
from veto_pl.testing.tiny import prompt_batch, tiny_models

GOOD = {"prompt": "2+2=", "completion": "4", "note": [1]}
BAD = {
    '{"prompt": "a", ': "expected a JSON object, got invalid JSON",
    "[1, 2]": r"expected a JSON object, got list \[1, 2\]",
    "null": "expected a JSON object, got NoneType None",
    '{"completion": "4"}': "field `prompt` expected a string, got a row without it; it has `completion`",
    '{"prompt": 5, "completion": "4"}': "field `prompt` expected a string, got int 5",
    '{"prompt": " ", "completion": "4"}': "field `prompt` expected a prompt that is not blank",
    '{"prompt": "a"}': "field `completion` expected a string, got a row without it; it has `prompt`",
    '{"prompt": "a", "completion": null}': "field `completion` expected a string, got NoneType None",
    '{"prompt": "\\ud800", "completion": "4"}': "field `prompt` expected valid Unicode",
    "[" * 100_000: "invalid JSON",
}


@given(rows=st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.text("ab\n\u2028"))))
def test_what_was_written_is_read_back(tmp_path_factory, rows):
    rows = [("p" + prompt, completion) for prompt, completion in rows]
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [json.dumps({"prompt": p, "completion": c}, ensure_ascii=False) for p, c in rows]
    path.write_bytes("\n".join(lines).encode())
    examples = read_examples(str(path), prompt="prompt", completion="completion")
    assert [(e.prompt, e.completion) for e in examples] == rows


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_plain_and_gzipped_files_with_blank_lines(write_rows, name):
    path = write_rows(name, "\ufeff" + json.dumps(GOOD), "", "  ", GOOD)
    first, second = JsonLines(train=path).load("train")
    assert first == second
    assert (first.prompt, first.completion, first.row) == ("2+2=", "4", GOOD)


@pytest.mark.parametrize("line", BAD, ids=range(len(BAD)))
def test_a_bad_row_is_named_by_file_line_and_field(write_rows, line):
    path = write_rows("rows.jsonl", GOOD, "", line, GOOD)
    with pytest.raises(DataError, match=rf"rows\.jsonl:3: {BAD[line]}" if line[0] != "[" else BAD[line]) as caught:
        JsonLines(train=path).load("train")
    assert str(caught.value).startswith(f"{path}:3: ")


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"prompt": "\xff"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:2: .*utf-8"):
        JsonLines(train=str(path)).load("train")


def test_skipping_counts_and_warns_once(write_rows):
    path = write_rows("rows.jsonl", GOOD, *BAD, GOOD)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        examples = JsonLines(train=path, on_bad_row="skip").load("train")
    assert len(examples) == 2
    (message,) = [str(w.message) for w in caught]
    assert f"skipped {len(BAD)} of {len(BAD) + 2} rows" in message
    assert f"{path}:2: " in message


def test_other_field_names_and_no_references(write_rows):
    path = write_rows("rows.jsonl", {"instruction": "do", "response": ""})
    assert JsonLines(train=path, prompt="instruction", completion="response").load("train")[0].completion == ""
    assert JsonLines(train=path, prompt="instruction", completion=None).load("train")[0].completion is None


def test_the_limit_counts_good_rows(write_rows):
    path = write_rows("rows.jsonl", GOOD, GOOD, "broken")
    assert len(JsonLines(train=path, limit=2).load("train")) == 2
    assert JsonLines(train=path, limit=0).load("train") == []
    with pytest.raises(ConfigurationError, match=r"`JsonLines.limit` must be 0 or more, got -1"):
        JsonLines(train=path, limit=-1)


def test_splits_are_files_and_missing_ones_are_empty(write_rows):
    train, test = write_rows("train.jsonl", GOOD), write_rows("test.jsonl", GOOD, GOOD)
    task = JsonLines(train=train, test=test)
    assert [len(task.load(split)) for split in ("train", "validation", "test")] == [1, 0, 2]
    with pytest.raises(ConfigurationError, match="one of train, validation, test, got 'dev'"):
        task.load("dev")


def test_unreadable_files_are_named(tmp_path):
    corrupt, cut = tmp_path / "corrupt.jsonl.gz", tmp_path / "cut.jsonl.gz"
    corrupt.write_bytes(b"not gzip")
    cut.write_bytes(gzip.compress(json.dumps(GOOD).encode())[:-12])
    for path in (tmp_path / "absent.jsonl", tmp_path, corrupt, cut):
        with pytest.raises(DataError, match=path.name):
            JsonLines(train=str(path)).load("train")


def test_the_verifier_scores(write_rows):
    path = write_rows("rows.jsonl", GOOD)
    task = JsonLines(train=path, verifier=ExactMatch())
    (example,) = task.load("train")
    assert (task.reward(example, " 4"), task.reward(example, "5")) == (1.0, 0.0)
    assert JsonLines(train=path).reward(example, "4") == 0.0


def questions(start, stop):
    return [{"question": f"What is {i} plus 0?", "answer": f"It is {i}.\n#### {i}"} for i in range(start, stop)]


def prompts(rows):
    return [row.prompt for row in rows]


def test_gsm8k_holds_out_validation_from_training(write_rows):
    path = write_rows("train.jsonl", *questions(0, 10), *questions(0, 3))
    task = GSM8K(train_path=path, validation_size=4)
    train, validation = prompts(task.load("train")), prompts(task.load("validation"))
    assert not set(train) & set(validation)
    assert validation + train == [row["question"] for row in questions(0, 10)]
    assert task.load("test") == []
    with pytest.raises(DataError, match=r"10 distinct rows, expected at least 11"):
        GSM8K(train_path=path, validation_size=10).load("train")


def test_gsm8k_with_a_file_for_each_split(write_rows):
    paths = {
        f"{s}_path": write_rows(f"{s}.jsonl", *questions(i, i + 2))
        for i, s in enumerate(("train", "validation", "test"))
    }
    task = GSM8K(**paths, validation_size=1)
    assert [len(task.load(s)) for s in ("train", "validation", "test")] == [2, 2, 2]
    example = task.load("test")[0]
    assert (task.reward(example, "so 2.0"), task.reward(example, "3")) == (1.0, 0.0)


def test_gsm8k_leaves_out_long_questions(write_rows):
    path = write_rows("train.jsonl", *questions(8, 12))
    length = len("What is 9 plus 0?")
    task = GSM8K(train_path=path, test_path=path, validation_size=1, max_question_chars=length)
    assert [len(task.load(s)) for s in ("train", "validation", "test")] == [1, 1, 2]


def test_gsm8k_names_the_line_of_a_bad_row(write_rows):
    path = write_rows("train.jsonl", *questions(0, 2), {"question": "?"})
    with pytest.raises(DataError, match=r"train\.jsonl:3: field `answer`"):
        GSM8K(train_path=path, validation_size=0).load("train")


def test_gsm8k_from_the_hub(monkeypatch):
    hub = {"train": questions(0, 6), "test": [*questions(6, 8), {"question": 3, "answer": ""}]}
    calls = []

    def load_dataset(name, config, split):
        calls.append((name, config, split))
        return hub[split]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    task = GSM8K(validation_size=2)
    assert (len(task.load("train")), len(task.load("validation"))) == (4, 2)
    assert set(calls) == {("openai/gsm8k", "main", "train")}
    with pytest.raises(DataError, match="openai/gsm8k/test:3: field `question`"):
        task.load("test")


def test_gsm8k_without_a_connection_says_what_to_set(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"no route.*GSM8K.test_path"):
        GSM8K().load("test")


TASKS = {"GSM8K": GSM8K, "DialogSum": DialogSum, "JsonLines": partial(JsonLines, train="rows.jsonl")}


@pytest.mark.parametrize("name", TASKS)
def test_a_rollout_ends_where_the_task_says(name):
    models, step = tiny_models(), Step(0, 1)
    batch = prompt_batch(models, ["ab", "cd", "ef", "gh"] * 4)
    source = FromStudent(Sampling(max_new_tokens=10))

    def texts(stop):
        rollouts = source(replace(batch, task=TASKS[name](stop=stop)), models, step)
        return models.tokenizer.batch_decode(rollouts.completions(), skip_special_tokens=True)

    free = texts(())
    stop = next(text[2:4] for text in free if len(text) > 6)
    cut = [text[: place + 2] if (place := text.find(stop)) >= 0 else text for text in free]
    assert texts((stop,)) == cut != free


@pytest.mark.parametrize("name", TASKS)
def test_an_empty_stop_string_is_refused(name):
    with pytest.raises(ConfigurationError, match=rf"`{name}\.stop` must hold no empty string, got \('a', ''\)"):
        TASKS[name](stop=("a", ""))


@pytest.mark.parametrize("name", TASKS)
def test_a_config_names_stop_strings(name):
    load_plugins()
    base = Path(__file__).parents[2] / "configs" / "quickstart" / "base.yaml"
    options = ["--data.task", name, "--data.task.stop", '["Question:", "\\n\\n"]', "--model.objective", "SFT"]
    options += ["--data.task.train", "rows.jsonl"] if name == "JsonLines" else []
    assert VetoCLI(["--config", str(base), *options], run=False).datamodule.task.stop == ("Question:", "\n\n")

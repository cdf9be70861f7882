"""Rows of every format are the same rows, and a bad one is named by its file and place."""

import gzip
import json

import pyarrow as pa
import pytest
from datasets import Dataset, IterableDataset
from pyarrow import feather, parquet

from veto_pl.data import GSM8K, Chat, JsonLines, Rows, source_key
from veto_pl.data.fingerprints import SMALL, brief_digest
from veto_pl.data.row_formats import files_of, read_rows
from veto_pl.exceptions import DataError

ROWS = [
    {"prompt": f"{i}+{i}=", "completion": str(2 * i), "note": 'a "quoted",\nbroken line' * (i % 2)} for i in range(7)
]


def write_stream(path, table):
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)


def write_text(path, text):
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def lines():
    return "".join(json.dumps(row) + "\n" for row in ROWS)


def table(delimiter):
    def quoted(cell):
        return '"' + cell.replace('"', '""') + '"'

    return "".join(delimiter.join(map(quoted, cells)) + "\n" for cells in [list(ROWS[0]), *(r.values() for r in ROWS)])


WRITERS = {
    "rows.jsonl": lambda path: write_text(path, lines()),
    "rows.jsonl.gz": lambda path: write_text(path, lines()),
    "rows.data": lambda path: write_text(path, lines()),
    "rows.json": lambda path: write_text(path, json.dumps(ROWS, indent=1)),
    "lines.json": lambda path: write_text(path, lines()),
    "rows.parquet": lambda path: parquet.write_table(pa.Table.from_pylist(ROWS), path),
    "rows.feather": lambda path: feather.write_feather(pa.Table.from_pylist(ROWS), path),
    "rows.arrow": lambda path: write_stream(path, pa.Table.from_pylist(ROWS)),
    "rows.csv": lambda path: write_text(path, "\ufeff" + table(",")),
    "rows.csv.gz": lambda path: write_text(path, table(",")),
    "rows.tsv": lambda path: write_text(path, table("\t")),
    "folder": lambda path: Dataset.from_list(ROWS).save_to_disk(path),
}
each = pytest.mark.parametrize("name", WRITERS)


def written(folder, name):
    WRITERS[name](folder / name)
    return str(folder / name)


@each
def test_every_format_gives_the_same_rows(tmp_path, name):
    path = written(tmp_path, name)
    examples = Rows(train=path).load("train")
    assert [example.row for example in examples] == ROWS
    assert [(e.prompt, e.completion) for e in examples] == [(row["prompt"], row["completion"]) for row in ROWS]
    streamed = Rows(train=path, streaming=True).load("train")
    assert list(streamed) == list(streamed) == list(examples)
    assert len(Rows(train=path, limit=3).load("train")) == 3


@each
def test_a_bad_row_has_the_name_of_its_place(tmp_path, name):
    path = written(tmp_path, name)
    with pytest.raises(DataError, match=r":\d+: field `question` expected a string, got a row without it; it has"):
        Rows(train=path, prompt="question").load("train")


def test_the_place_is_that_of_the_row_in_its_file(tmp_path):
    names = []
    for name in WRITERS:
        path = written(tmp_path, name)
        names.append([where.rpartition(":")[2] for where, _ in read_rows(path)])
    plain = [str(i) for i in range(1, 8)]
    assert [names[i] for i in (0, 1, 2, 3, 4, 5, 6, 7, 11)] == [plain] * 9
    assert names[8] == names[9] == names[10] == ["2", "3", "5", "6", "8", "9", "11"]  # lines of a text


def test_tasks_of_published_data_read_every_format_too(tmp_path):
    rows = [{"question": f"What is {i} plus 0?", "answer": f"#### {i}"} for i in range(4)]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    task = GSM8K(train_path=str(tmp_path / "rows.parquet"), validation_size=1)
    assert [len(task.load(split)) for split in ("train", "validation")] == [3, 1]
    assert len(JsonLines(train=str(tmp_path / "rows.parquet"), prompt="question", completion=None).load("train")) == 4


def test_conversations_in_a_table(tmp_path):
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    called = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]
    parquet.write_table(pa.Table.from_pylist([{"messages": said}, {"messages": called}]), tmp_path / "rows.parquet")
    first, second = Chat(train=str(tmp_path / "rows.parquet")).load("train")
    assert list(first.conversation.messages) == said
    assert second.conversation.messages[1]["tool_calls"][0]["function"]["name"] == "f"


def test_a_folder_has_the_rows_of_its_files_by_name(tmp_path):
    (tmp_path / "deep").mkdir()
    for name, place in (("b.jsonl", "."), ("a.parquet", "."), ("c.csv", "deep")):
        written(tmp_path / place, {"b.jsonl": "rows.jsonl", "a.parquet": "rows.parquet", "c.csv": "rows.csv"}[name])
    for name in ("README.md", "info.json", ".hidden.jsonl", "_metadata.parquet"):
        (tmp_path / name).write_text("{}")
    assert [file.rpartition("/")[2] for file in files_of(str(tmp_path))] == ["rows.csv", "rows.jsonl", "rows.parquet"]
    assert [e.row for e in Rows(train=str(tmp_path)).load("train")] == ROWS * 3
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"expected files of rows, got a folder with none.*`.parquet`"):
        Rows(train=str(tmp_path / "none")).load("train")


FAULTS = {
    "absent.parquet": (None, "expected a Parquet file"),
    "text.parquet": ("no", "expected a Parquet file"),
    "text.arrow": ("no", "expected an Arrow file"),
    "half.json": ("[{", "expected a JSON array of rows"),
    "absent.csv": (None, "expected a table"),
    "open.csv": ('a,b\n"x', "expected a table"),
    "absent.jsonl": (None, "expected a readable JSON Lines file"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    text, message = FAULTS[name]
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=rf"{name}.*{message}.*Check the path and the file"):
        Rows(train=str(tmp_path / name)).load("train")


def test_a_record_of_another_length_is_a_bad_row(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,completion\na,b\nc\nd,e\n")
    with pytest.raises(DataError, match=r"rows\.csv:3: expected 2 fields \(`prompt`, `completion`\), got 1"):
        Rows(train=str(tmp_path / "rows.csv")).load("train")
    with pytest.warns(UserWarning, match="skipped 1 of 3 rows"):
        assert len(Rows(train=str(tmp_path / "rows.csv"), on_bad_row="skip").load("train")) == 2


def test_messages_where_a_text_is_expected_name_the_way_out(write_rows):
    path = write_rows("rows.jsonl", {"prompt": [{"role": "user", "content": "a"}], "completion": "b"})
    with pytest.raises(DataError, match=r"got list .*Messages are read by `data.task: Chat`"):
        Rows(train=path).load("train")


def test_the_content_of_a_folder_is_its_key(tmp_path):
    def key():
        return source_key(str(tmp_path)), brief_digest(str(tmp_path))

    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": "x" * SMALL}) + "\n")
    first = key()
    assert all(first)
    assert key() == first
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": "y" * SMALL}) + "\n")
    assert key()[0] != first[0]
    assert key()[1] != first[1]


def test_rows_of_the_hub(monkeypatch):
    calls = []

    def load_dataset(name, config, split, streaming=False):
        calls.append((name, config, split, streaming))
        return IterableDataset.from_generator(lambda: iter(ROWS)) if streaming else Dataset.from_list(ROWS)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    task = Rows(hub="somebody/rows", hub_config="main", train="train_sft", validation="test_sft")
    assert [example.row for example in task.load("validation")] == ROWS
    streamed = Rows(hub="somebody/rows", train="train_sft", streaming=True).load("train")
    assert [example.row for example in streamed] == [example.row for example in streamed] == ROWS
    assert calls == [("somebody/rows", "main", "test_sft", False), ("somebody/rows", None, "train_sft", True)]
    with pytest.raises(DataError, match=r"somebody/rows/train_sft:1: field `x`"):
        Rows(hub="somebody/rows", train="train_sft", prompt="x").load("train")


def test_the_teacher_of_a_row(write_rows):
    path = write_rows("rows.jsonl", {**ROWS[0], "expert": "maths"}, {**ROWS[1], "expert": 5})
    task = Rows(train=path, teacher="expert", limit=1)
    assert task.load("train")[0].teacher == "maths"
    with pytest.raises(DataError, match=r"rows.jsonl:2: field `expert` expected a string, got int 5"):
        Rows(train=path, teacher="expert").load("train")

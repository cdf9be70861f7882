"""Rows in Arrow are the rows of a list; what is kept of them is theirs alone, whoever makes or damages it."""

import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from veto_pl.data import (
    GSM8K,
    Collator,
    DialogSum,
    JsonLines,
    PlainTemplate,
    PromptDataModule,
    RankSampler,
    fingerprints,
)
from veto_pl.data.encoding import encode_rows
from veto_pl.data.example_rows import stored
from veto_pl.data.overlong import REMARKS
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.seams import Example, Step, Task, Template

WORDS = st.sampled_from(["<eos>", "ab<eos>", "<bos>a<pad>b"])  # which the encoding reads in its own way
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | WORDS
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
EXAMPLES = st.builds(
    Example,
    TEXTS.map("p{}".format),
    st.none() | TEXTS,
    st.dictionaries(st.text(max_size=5), VALUES, max_size=4),
    st.lists(TEXTS, max_size=3).map(tuple),
)
ROWS = [{"prompt": f"p{i}", "completion": "x" * i, "note": [i, {"é": None}]} for i in range(12)]
QUICK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass(frozen=True)
class Given(Task):
    """Rows that the test has made."""

    examples: object = field(hash=False)

    def load(self, split):
        return self.examples if split == "train" else []

    def reward(self, example, completion):
        return 0.0


pytestmark = pytest.mark.filterwarnings("ignore:.*exceed max_completion_tokens")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, which keeps small files, too."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(fingerprints, "SMALL", 0)
    return tmp_path / "cache" / "veto_pl"


@pytest.fixture
def spoiled(monkeypatch):
    """Says after which point no row may be read or tokenised any more."""

    def spoil():
        monkeypatch.setattr("veto_pl.data.row_formats.parse", lambda *_: pytest.fail("read again"))
        monkeypatch.setattr(Collator, "encode", lambda *_: pytest.fail("tokenised again"))

    return spoil


def connected(task, tokenizer, **options):
    data = PromptDataModule(task, **{"batch_size": 3, "max_completion_tokens": 7, "unknown": 1.0} | options)
    data.connect(tokenizer)
    data.setup("fit")
    return data


def batches(data):
    def plain(batch):
        tensors = (batch.input_ids, batch.attention_mask, batch.completion_ids, batch.completion_mask, batch.numbers)
        return [tensor.tolist() for tensor in tensors], batch.examples

    return list(map(plain, data.train_dataloader()))


@QUICK
@given(examples=st.lists(EXAMPLES, min_size=1, max_size=8), places=st.slices(8))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_examples_are_those_of_a_list(tokenizer, examples, places):
    lazy = stored(lambda _: examples, origin="a test")
    assert lazy == examples
    assert lazy != [*examples, examples[0]]
    assert [lazy[i] for i in range(-len(lazy), len(lazy))] == examples * 2
    assert list(lazy[places]) == examples[places]
    assert list(pickle.loads(pickle.dumps(lazy))) == examples
    collator = Collator(tokenizer=tokenizer, max_completion_tokens=7, completion_prefix=" ")
    expected = collator.encode(examples)
    for rows in (encode_rows(lazy, collator), encode_rows(examples, collator)):
        assert list(rows) == rows[:] == expected
        assert rows[places] == expected[places]
        assert rows.prompt_lengths.tolist() == [len(row.prompt_ids) for row in expected]
        assert rows.cut_tokens.tolist() == [row.cut for row in expected]
        for remark in REMARKS:
            assert rows.remarked(remark).tolist() == [remark in row.remarks for row in expected]
    assert encode_rows(lazy, collator).summary == encode_rows(examples, collator).summary


@QUICK
@given(
    examples=st.lists(EXAMPLES, min_size=1, max_size=8),
    overlong=st.sampled_from(["drop", "truncate_left"]),
    most=st.integers(1, 13),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_reads_the_same_batches_from_arrow_and_from_a_list(tokenizer, examples, overlong, most):
    collator = Collator(tokenizer=tokenizer, max_completion_tokens=7)
    expected = [row for row in collator.encode(examples) if overlong != "drop" or len(row.prompt_ids) <= most]
    if not expected:
        return
    options = {"overlong": overlong, "max_prompt_tokens": most}
    lazy, listed = (
        connected(Given(rows), tokenizer, **options) for rows in (stored(lambda _: examples, origin="a test"), examples)
    )
    assert batches(lazy) == batches(listed)
    assert list(listed.rows("train")) == [replace(row, prompt_ids=row.prompt_ids[-most:]) for row in expected]


def test_what_was_kept_is_not_made_again(cache, tokenizer, write_rows, spoiled):
    path = write_rows("rows.jsonl", *ROWS)
    first = batches(connected(JsonLines(train=path), tokenizer))
    spoiled()
    assert batches(connected(JsonLines(train=path), tokenizer)) == first
    copy = Path(path).with_name("copy.jsonl")
    copy.write_bytes(Path(path).read_bytes())
    assert batches(connected(JsonLines(train=str(copy)), tokenizer)) == first
    assert not list(Path(path).parent.glob("rows.jsonl?*")), "nothing is written beside the data"


GSM = [{"question": f"What is {i % 9}?", "answer": f"#### {i}", "n": i} for i in range(12)]
TALKS = [{"dialogue": f"talk {i // 2}", "summary": f"{i}", "n": i} for i in range(12)]
HUB = {"main": GSM, None: TALKS}


def on_the_hub(monkeypatch):
    def load_dataset(name, config, split):
        return datasets.Dataset.from_list(HUB[config])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("veto_pl.data.hub._FEW", 0)


TASKS = {
    "GSM8K": lambda path: GSM8K(train_path=path("g.jsonl", *GSM), validation_size=2, max_question_chars=99),
    "GSM8K in files": lambda path: GSM8K(
        train_path=path("g.jsonl", *GSM), validation_path=path("v.jsonl", *GSM[:3]), test_path=path("t.jsonl", GSM[0])
    ),
    "DialogSum": lambda path: DialogSum(train_path=path("d.jsonl", *TALKS), max_dialogue_chars=99),
    "GSM8K of the hub": lambda path: GSM8K(validation_size=2),
    "DialogSum of the hub": lambda path: DialogSum(),
}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_keeps_its_rows(cache, write_rows, monkeypatch, name):
    on_the_hub(monkeypatch)
    task, splits = TASKS[name](write_rows), ("train", "validation", "test")
    with monkeypatch.context() as patch:
        patch.setattr(fingerprints, "SMALL", 2**20)
        patch.setattr("veto_pl.data.hub._FEW", 2**20)
        expected = {split: list(task.load(split)) for split in splits}
    assert not cache.exists()
    assert {split: list(task.load(split)) for split in splits} == expected
    tables = {*cache.glob("*/")}
    assert len(tables) >= 1
    monkeypatch.setattr("veto_pl.data.example_rows._batch", lambda *_: pytest.fail("written again"))
    assert {split: list(task.load(split)) for split in splits} == expected
    assert {*cache.glob("*/")} == tables


@dataclass(frozen=True)
class Opaque(Template):
    """Holds something that nobody can compare."""

    said: object

    def __call__(self, example, tokenizer):
        return self.said(example)


CHANGES = {
    "a template": {"template": PlainTemplate(format="{prompt}>")},
    "a flag of the template": {"template": PlainTemplate(add_bos=True)},
    "a prefix": {"completion_prefix": " "},
    "a limit of the completions": {"max_completion_tokens": 2},
    "fewer rows": {"train_limit": 5},
    "another field": {"prompt": "completion"},
    "a limit of the task": {"limit": 4},
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_settings_are_other_rows(cache, tokenizer, write_rows, change):
    path = write_rows("rows.jsonl", *ROWS[1:])
    before = batches(connected(JsonLines(train=path), tokenizer))
    of_task = {name: value for name, value in CHANGES[change].items() if name in ("prompt", "limit")}
    of_data = {name: value for name, value in CHANGES[change].items() if name not in of_task}
    task = JsonLines(train=path, **of_task)
    kept = batches(connected(task, tokenizer, **of_data))
    assert kept != before
    assert kept == batches(connected(Given(list(task.load("train"))), tokenizer, **of_data))


@pytest.mark.parametrize("change", ["eos", "normalizer", "bos text", "content"])
def test_another_tokenizer_or_file_is_not_mistaken_for_the_first(cache, make_tokenizer, write_rows, change):
    path, template = write_rows("rows.jsonl", *ROWS), PlainTemplate(add_bos=True)
    first = batches(connected(JsonLines(train=path), make_tokenizer(), template=template))
    other = make_tokenizer(**{"eos": {"eos_token": "z"}, "bos text": {"bos_token": "y"}}.get(change, {}))
    if change == "normalizer":
        other.backend_tokenizer.normalizer = normalizers.Replace("p", "q")
    if change == "content":
        write_rows("rows.jsonl", *[row | {"note": 0} for row in ROWS])
    again = batches(connected(JsonLines(train=path), other, template=template))
    assert again != first
    assert again == batches(connected(Given(list(JsonLines(train=path).load("train"))), other, template=template))


def test_settings_that_cannot_be_compared_are_never_taken_from_the_cache(cache, tokenizer, write_rows):
    path = write_rows("rows.jsonl", *ROWS)
    texts = [
        batches(connected(JsonLines(train=path), tokenizer, template=Opaque(lambda example, mark=mark: mark)))
        for mark in "ab"
    ]
    assert texts[0] != texts[1]
    assert len([*cache.glob("*/")]) == 1, "the examples are kept, their tokens are not"


def test_rows_that_were_left_out_are_told_each_time(cache, write_rows):
    path = write_rows("rows.jsonl", *ROWS, "broken")
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"rows\.jsonl: skipped 1 of 13 rows\. The first: .*rows\.jsonl:13"):
            assert len(JsonLines(train=path, on_bad_row="skip").load("train")) == 12
    with pytest.raises(DataError, match=r"rows\.jsonl:13: "):
        JsonLines(train=path).load("train")
    assert len([*cache.glob("*/")]) == 1, "nothing is left of a table that was not completed"


def damages(folder):
    """Ways to damage a table: single bits anywhere, missing ends, missing files."""
    draw = random.Random(0)
    for file in folder.iterdir():
        content = file.read_bytes()
        for _ in range(12):
            place = draw.randrange(len(content))
            flipped = bytes([content[place] ^ (1 << draw.randrange(8))])
            yield file, content[:place] + flipped + content[place + 1 :]
        yield file, content[: len(content) // 2]
        yield file, b""
        yield file, None


def test_a_damaged_table_is_made_anew(cache, tokenizer, write_rows):
    task = JsonLines(train=write_rows("rows.jsonl", *ROWS))
    whole = batches(connected(task, tokenizer))
    folders = [*cache.glob("*/")]
    assert len(folders) == 2
    tried = 0
    for folder in folders:
        for file, content in damages(folder):
            file.unlink() if content is None else file.write_bytes(content)
            assert batches(connected(task, tokenizer)) == whole
            tried += 1
    assert tried == 2 * 2 * 15


def in_child(work):
    """The exit code of a process that does the work."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def test_a_killed_maker_leaves_nothing_that_counts(cache, write_rows):
    path = write_rows("rows.jsonl", *ROWS)

    def die(_):
        yield Example("half")
        os._exit(9)

    name = fingerprints.source_key(path)
    process = in_child(lambda: stored(die, origin="a test", key=lambda: name))
    process.join(60)
    assert process.exitcode == 9
    assert len([*cache.iterdir()]) > 1, "the child has begun to write"
    assert stored(lambda _: [Example("whole")], origin="a test", key=lambda: name) == [Example("whole")]
    assert {path.name for path in cache.iterdir()} == {name, f"{name}.lock"}


def test_of_processes_that_come_at_once_one_makes_the_table(cache, tmp_path):
    log = tmp_path / "made"
    barrier = multiprocessing.get_context("fork").Barrier(4)
    examples = [Example(f"p{i}") for i in range(3000)]

    def read(_):
        with log.open("a") as file:
            file.write("made\n")
        return examples

    def work():
        barrier.wait(60)
        assert stored(read, origin="a test", key=lambda: "k") == examples

    processes = [in_child(work) for _ in range(4)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
    assert log.read_text() == "made\n"


def test_without_a_place_to_keep_them_rows_are_held_in_memory(tokenizer, write_rows, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "file")
    monkeypatch.setattr(fingerprints, "SMALL", 0)
    path = write_rows("rows.jsonl", *ROWS)
    with pytest.warns(UserWarning, match="cannot keep the rows .*held in memory.*HF_DATASETS_CACHE"):
        data = connected(JsonLines(train=path), tokenizer)
    assert sorted(example.prompt for _, examples in batches(data) for example in examples) == sorted(
        row["prompt"] for row in ROWS
    )


def test_a_file_that_changes_while_it_is_read_is_refused(cache, write_rows, monkeypatch):
    path = write_rows("rows.jsonl", *ROWS)
    names = iter(["before", "after"])
    with pytest.raises(DataError, match="a test: changed while it was read"):
        stored(lambda _: [Example("p")], origin="a test", key=lambda: next(names))
    assert [*cache.glob("*/")] == []
    assert JsonLines(train=path).load("train")[3].row == ROWS[3]


def test_small_files_leave_no_trace(tmp_path, monkeypatch, tokenizer, write_rows):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    connected(JsonLines(train=write_rows("rows.jsonl", *ROWS)), tokenizer)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("processes", [0, 2])
def test_any_number_of_processes_encodes_the_same_rows(cache, tokenizer, processes):
    examples = [Example(f"p{i}", "x" * (i % 5), {"i": i}) for i in range(2500)]
    rows = encode_rows(examples, Collator(tokenizer=tokenizer), processes=processes)
    assert list(rows) == Collator(tokenizer=tokenizer).encode(examples)
    assert rows.summary == encode_rows(examples[:], Collator(tokenizer=tokenizer)).summary


def test_a_fault_in_another_process_is_said_as_here(tokenizer):
    examples = [Example(f"p{i}") for i in range(1500)] + [Example("")]
    with pytest.raises(DataError, match="has no tokens, expected at least one"):
        encode_rows(examples, Collator(tokenizer=tokenizer), processes=2)


def test_a_second_tokenizer_tokenises_anew(make_tokenizer, write_rows):
    """As a notebook that compares students: one data module, one trainer's module after the other."""
    data = PromptDataModule(JsonLines(train=write_rows("rows.jsonl", {"prompt": "ab", "completion": "a"})))
    for special in ({}, {"eos_token": "z"}):
        tokenizer = make_tokenizer(**special)
        data.trainer = Trained(tokenizer)
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        assert batch.completion_ids.tolist() == [[tokenizer.convert_tokens_to_ids("a"), tokenizer.eos_token_id]]


class Trained:
    """What a data module asks a trainer."""

    global_rank, world_size = 0, 1
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    limit_train_batches, limit_val_batches, check_val_every_n_epoch = 1.0, 1.0, 1

    def __init__(self, tokenizer):
        self.lightning_module = type("Module", (), {"tokenizer": tokenizer})()


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("template", PlainTemplate(format="{prompt}>")), ("max_prompt_tokens", 1), ("completion_prefix", "b"),
     ("max_completion_tokens", 1), ("task", Given([Example("aa", "b")]))],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*exceed max_prompt_tokens")
def test_rows_of_other_settings_are_made_anew(tokenizer, attribute, value):
    data = connected(Given([Example("ab", "aa")]), tokenizer, overlong="truncate_left")
    before = batches(data)
    setattr(data, attribute, value)
    data.setup("fit")
    assert batches(data) != before


@pytest.mark.parametrize(
    ("content", "options", "why"),
    [
        ("", {}, "It is empty or blank"),
        ("\n \n", {}, "It is empty or blank"),
        ('{"prompt": "a", "completion": "b"}\n', {"limit": 0}, "a limit leaves nothing"),
        (
            '{"prompt": 5}\n[]\n',
            {"on_bad_row": "skip"},
            r"skipped 2 of 2 rows\. The first: .*rows\.jsonl:1: field `prompt`",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*skipped")
def test_a_file_without_rows_is_named(tmp_path, tokenizer, content, options, why):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(
        DataError, match=rf"rows\.jsonl: no rows for the split `train`, expected at least one\. .*{why}"
    ):
        connected(JsonLines(train=str(path), **options), tokenizer)


def test_a_validation_file_without_rows_is_named(tmp_path, tokenizer, write_rows):
    (tmp_path / "none.jsonl").touch()
    task = JsonLines(train=write_rows("rows.jsonl", *ROWS), validation=str(tmp_path / "none.jsonl"))
    with pytest.warns(UserWarning, match=r"none\.jsonl: no rows for the split `validation`"):
        assert connected(task, tokenizer).val_dataloader() == []


@pytest.mark.parametrize("name", ["train", "validation", "test"])
@pytest.mark.parametrize("path", ["", " "])
def test_a_path_without_a_name_is_refused(name, path):
    with pytest.raises(ConfigurationError, match=rf"`JsonLines\.{name}` expected the path of a file of rows, got"):
        JsonLines(**{"train": "rows.jsonl", name: path})


MEASURE = """
import json, sys
from pathlib import Path
from veto_pl.data import JsonLines, PromptDataModule
from veto_pl.models import CharacterTokenizer

def resident():
    return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

import datasets, torch
before = resident()
data = PromptDataModule(JsonLines(train=sys.argv[1]), batch_size=8)
data.connect(CharacterTokenizer("ab").load())
data.setup("fit")
for _, batch in zip(range(200), data.train_dataloader()):
    pass
print(json.dumps(resident() - before))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows_as_python_objects_do(tmp_path):
    """200,000 rows: about twice the file at most, cold and warm, where lists of ids and dicts took 65 times it."""
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": f"ab{'ab' * (i % 9)}", "completion": "ab", "i": i}) + "\n" for i in range(200_000)
        )
    )
    environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    for most in (120e6, 60e6):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(path)], env=environment, check=True, capture_output=True, text=True
        )
        assert json.loads(done.stdout) < most


def test_the_order_of_many_rows_is_the_same_as_ever():
    """The permutation of the epoch, dealt out: how it is held in memory must not change it."""
    sampler = RankSampler(10_001, 1, 3, seed=5, even=True)
    sampler.set_epoch(2)
    generator = Step(index=2, total=0, seed=5).generator("data order", shared=True)
    order = torch.randperm(10_001, generator=generator).tolist()
    assert list(sampler) == order[1 : 10_001 - 10_001 % 3 : 3]

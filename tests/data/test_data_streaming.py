"""Rows that are read as they are needed: the same rows, dealt out the same way, for as long as a run asks."""

import json
import os
from dataclasses import dataclass, field
from types import SimpleNamespace

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.data import ExampleStream, JsonLines, PromptDataModule
from veto_pl.data.streaming import shuffled
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.seams import Example, Task

ROWS = [{"prompt": "a" * (1 + i % 5), "completion": str(i), "note": i} for i in range(23)]


@dataclass(frozen=True)
class Given(Task):
    """A split for each entry."""

    splits: dict = field(hash=False)

    def load(self, split):
        return self.splits.get(split, [])

    def reward(self, example, completion):
        return 0.0


def trainer(rank=0, size=1, **settings):
    known = {"max_steps": 9, "limit_train_batches": 1.0, "val_check_interval": 2, "overfit_batches": 0.0}
    known |= {"limit_val_batches": 1.0, "check_val_every_n_epoch": None}
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(
        global_rank=rank, world_size=size, lightning_module=None, strategy=strategy, **known | settings
    )


def connected(tokenizer, task, world=(0, 1), stage="fit", **options):
    data = PromptDataModule(task, **{"batch_size": 2} | options)
    data.trainer = trainer(*world)
    data.connect(tokenizer)
    data.setup(stage)
    return data


def seen(loader):
    return [
        (example, int(number))
        for batch in loader
        for example, number in zip(batch.examples, batch.numbers, strict=True)
    ]


@pytest.fixture
def files(write_rows):
    path = write_rows("rows.jsonl", *ROWS)
    return JsonLines(train=path), JsonLines(train=path, streaming=True)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("overlong", ["drop", "truncate_left"])
@pytest.mark.filterwarnings("ignore:.*max_prompt_tokens")
def test_an_unshuffled_stream_is_the_file(tokenizer, files, size, overlong):
    options = {"shuffle": False, "max_prompt_tokens": 3, "overlong": overlong}
    for rank in range(size):
        stored, streamed = (connected(tokenizer, task, (rank, size), **options).train_dataloader() for task in files)
        for one, other in zip(stored, streamed, strict=True):
            assert one.input_ids.tolist() == other.input_ids.tolist()
            assert one.completion_ids.tolist() == other.completion_ids.tolist()
            assert (one.examples, one.numbers.tolist()) == (other.examples, other.numbers.tolist())


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_processes_see_the_same_stream_and_a_new_order_each_epoch(tokenizer, files, workers):
    loader = connected(tokenizer, files[1], num_workers=workers, shuffle_buffer=8).train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        epochs.append(seen(loader))
        assert sorted(number for _, number in epochs[-1]) == list(range(23))
        assert all(example.row["note"] == number for example, number in epochs[-1])
    assert epochs[0] != epochs[1]
    assert epochs[0] == seen(connected(tokenizer, files[1], shuffle_buffer=8).train_dataloader())


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("size", [1, 2])
def test_a_resumed_stream_goes_on_at_the_row(tokenizer, files, size, shuffle):
    options = {"shuffle": shuffle, "shuffle_buffer": 6}

    def ranks(**more):
        return [connected(tokenizer, files[1], (rank, size), **options | more) for rank in range(size)]

    whole = [seen(data.train_dataloader()) for data in ranks()]
    for done in range(5):
        resumed = ranks()
        loaders = [data.train_dataloader() for data in resumed]
        row = resumed[0].row_after(0, done)
        assert row == done * 2 * size
        assert {data.start_at(0, row) for data in resumed} == {done}
        rest = [seen(loader) for loader in loaders]
        assert rest == [rows[done * 2 :] for rows in whole]
        assert {data.row_after(0, done + 1) for data in resumed} == {row + 2 * size}
    other = ranks(batch_size=3)[0]
    loader = other.train_dataloader()
    assert other.start_at(0, 3 * size) == 1
    assert seen(loader) == whole[0][3:]


def test_a_data_set_of_the_datasets_library_is_a_stream(tokenizer):
    def rows():
        yield from ROWS

    source = datasets.IterableDataset.from_generator(rows)
    stream = ExampleStream(lambda: (Example(row["prompt"], row["completion"], row) for row in source))
    data = connected(tokenizer, Given({"train": stream}), shuffle=False)
    loader = data.train_dataloader()
    for _ in range(2):
        assert [example.row for example, _ in seen(loader)] == ROWS


@given(size=st.integers(0, 30), buffer=st.integers(1, 12), seed=st.integers(0, 9))
def test_shuffling_keeps_every_row_and_looks_no_further_than_its_buffer(size, buffer, seed):
    order = list(shuffled(range(size), buffer, torch.Generator().manual_seed(seed)))
    assert sorted(order) == list(range(size))
    assert all(item < place + buffer for place, item in enumerate(order))


def test_a_limit_gives_a_stream_a_length(tokenizer, files):
    data = connected(tokenizer, files[1], train_limit=7)
    assert len(data.train_dataloader()) == 4
    assert [row.example.row for row in data.rows("train")] == ROWS[:7]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_steps": -1}, r"rows\.jsonl: a stream has no length, .* Set `trainer\.max_steps`"),
        ({"limit_train_batches": 0.5}, r"`trainer\.limit_train_batches` expected a number of batches, got 0\.5"),
        ({"val_check_interval": 0.25}, r"`trainer\.val_check_interval` expected a number of batches, got 0\.25"),
        ({"overfit_batches": 0.1}, r"`trainer\.overfit_batches` cannot be used\. Set `data\.train_limit`"),
    ],
)
def test_settings_that_need_a_length_are_refused(tokenizer, files, settings, says):
    data = connected(tokenizer, files[1])
    data.trainer = trainer(**settings)
    with pytest.raises(ConfigurationError, match=says):
        data.train_dataloader()


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_needs_a_length(tokenizer, split):
    stream = ExampleStream(lambda: [Example("a")], origin="the crawl")
    task = Given({"train": [Example("a")], split: stream})
    stage = "fit" if split == "validation" else "test"
    with pytest.raises(
        DataError, match=f"the crawl: a stream has no length, which is needed for the rows of `{split}`"
    ):
        connected(tokenizer, task, stage=stage)
    if split == "validation":
        assert len(connected(tokenizer, task, validation_limit=1).val_dataloader()) == 1


def test_listing_the_rows_of_a_stream_needs_a_limit(tokenizer, files):
    with pytest.raises(
        DataError, match=r"rows\.jsonl: a stream has no length, which is needed for the rows of `train`"
    ):
        connected(tokenizer, files[1]).rows("train")


def test_a_generator_that_is_read_once_is_refused(tokenizer):
    with pytest.raises(
        ConfigurationError, match=r"a generator, which can be read once only.*`ExampleStream\(function\)`"
    ):
        connected(tokenizer, Given({"train": iter([Example("a")])}))
    with pytest.raises(ConfigurationError, match=r"`ExampleStream\.read` expected a function"):
        ExampleStream([Example("a")])


@pytest.mark.parametrize(("rows", "size"), [([], 1), (ROWS[:1], 2)])
def test_a_stream_without_rows_for_all_is_named(tokenizer, write_rows, rows, size):
    path = write_rows("none.jsonl", *rows)
    data = connected(tokenizer, JsonLines(train=path, streaming=True), (0, size))
    with pytest.raises(DataError, match=rf"none\.jsonl: no rows for the split `train`.* each of {size} ranks"):
        list(data.train_dataloader())


def test_a_stream_that_has_become_shorter_is_told(tokenizer, files):
    data = connected(tokenizer, files[1])
    loader = data.train_dataloader()
    data.start_at(0, 30)
    with pytest.warns(UserWarning, match=r"rows\.jsonl: ended before row 31, where the run was stopped"):
        assert list(loader) == []
    loader.sampler.set_epoch(1)
    assert len(seen(loader)) == 23


def test_a_pipe_is_no_stream(tokenizer, tmp_path):
    """Opened, it would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="it is a folder, a pipe or a device"):
        list(connected(tokenizer, JsonLines(train=str(tmp_path / "pipe"), streaming=True)).train_dataloader())


def test_bad_rows_of_a_stream_are_named_or_skipped(tokenizer, write_rows):
    path = write_rows("rows.jsonl", ROWS[0], "broken", ROWS[1])
    with pytest.raises(DataError, match=r"rows\.jsonl:2: expected a JSON object"):
        list(connected(tokenizer, JsonLines(train=path, streaming=True)).train_dataloader())
    data = connected(tokenizer, JsonLines(train=path, streaming=True, on_bad_row="skip"), shuffle=False)
    with pytest.warns(UserWarning, match=r"skipped 1 of 3 rows"):
        assert [example.row for example, _ in seen(data.train_dataloader())] == ROWS[:2]


def test_long_prompts_of_a_stream_are_told_once(tokenizer, files, recwarn):
    seen(connected(tokenizer, files[1], max_prompt_tokens=3, shuffle=False).train_dataloader())
    (message,) = [str(warning.message) for warning in recwarn if "max_prompt_tokens" in str(warning.message)]
    assert message.startswith("Prompt 4 (train) has 4 tokens and max_prompt_tokens=3")
    data = connected(tokenizer, files[1], max_prompt_tokens=3, overlong="error", shuffle=False)
    with pytest.raises(DataError, match=r"Prompt 4 .*may not be used"):
        list(data.train_dataloader())


def test_cut_references_of_a_stream_are_told_once(tokenizer, files, recwarn):
    def run(**options):
        data = connected(tokenizer, files[1], shuffle=False, max_completion_tokens=2, **options)
        return seen(data.train_dataloader())

    assert [number for _, number in run()] == list(range(23))
    (message,) = [str(warning.message) for warning in recwarn if "max_completion_tokens" in str(warning.message)]
    assert message.startswith("Reference 11 (train) has 3 tokens and max_completion_tokens=2: it and all such ")
    assert [number for _, number in run(overlong_completions="drop")] == list(range(10))
    with pytest.raises(DataError, match=r"Reference 11 .*may not be used"):
        run(overlong_completions="error")


def test_control_words_of_a_stream_are_told_once(tokenizer, recwarn):
    rows = [Example("a", "b"), *[Example("a<eos>a", "b")] * 3]
    data = connected(tokenizer, Given({"train": ExampleStream(lambda: rows)}), shuffle=False)
    assert len(seen(data.train_dataloader())) == 4
    (message,) = [str(warning.message) for warning in recwarn if "control words" in str(warning.message)]
    assert message.startswith("Row 2 and perhaps more prompts (train) hold control words such as `<eos>`")


def test_an_endless_stream_is_read_no_further_than_needed(tokenizer):
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield Example("a", row={"i": read})

    loader = connected(tokenizer, Given({"train": ExampleStream(endless)}), shuffle_buffer=10).train_dataloader()
    batches = [batch for _, batch in zip(range(5), loader, strict=False)]
    assert len(batches) == 5
    assert read < 200
    assert json.loads(json.dumps([example.row for example in batches[0].examples]))

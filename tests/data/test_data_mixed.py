"""A mixture has the shares of its weights, reads every row, and goes on where it was, on any number of ranks."""

from collections import Counter
from itertools import chain, islice
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.data.chat_tokenizers import chat_tokenizer
from veto_pl.data import Chat, ChatTemplate, DataSet, ExactMatch, Mixed, PlainTemplate, PromptDataModule, Rows
from veto_pl.data.mixtures import MixedOrder, in_turns, rows_of_an_epoch
from veto_pl.exceptions import ConfigurationError, DataError

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=3)


def order(sizes, weights, rank=0, world=1, **options):
    places = torch.arange(sum(sizes)).split(sizes)
    return MixedOrder({f"set{i}": p for i, p in enumerate(places)}, weights, rank, world, **options)


def sets_of(places, sizes):
    owner = [i for i, size in enumerate(sizes) for _ in range(size)]
    return [owner[place] for place in places]


@st.composite
def mixtures(draw):
    sizes = draw(SIZES)
    return sizes, [draw(st.floats(0.1, 5)) for _ in sizes]


@given(mixtures(), st.booleans())
def test_an_epoch_has_the_shares_of_the_weights_and_every_row(mixture, shuffle):
    sizes, weights = mixture
    places = list(order(sizes, weights, shuffle=shuffle))
    assert set(places) == set(range(sum(sizes)))
    counts = Counter(sets_of(places, sizes))
    longest = max(size / weight for size, weight in zip(sizes, weights, strict=True))
    for i, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        assert abs(counts[i] - longest * weight) <= 0.5 + 1e-6
        own = Counter(place for place in places if sets_of([place], sizes) == [i])
        assert max(own.values()) - min(own.values()) <= 1
        assert counts[i] >= size


@given(SIZES)
def test_their_own_sizes_as_weights_read_every_row_once(sizes):
    assert rows_of_an_epoch(sizes, sizes) == sizes
    assert sorted(order(sizes, sizes)) == list(range(sum(sizes)))


@given(mixtures(), st.integers(2, 4))
def test_over_many_epochs_no_row_of_a_set_is_read_more_often_than_another(mixture, epochs):
    sizes, weights = mixture
    sampler, seen = order(sizes, weights), Counter()
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        seen.update(sampler)
    for i in range(len(sizes)):
        own = [seen[place] for place in range(sum(sizes)) if sets_of([place], sizes) == [i]]
        assert max(own) - min(own) <= 1


@given(mixtures(), st.integers(1, 3), st.integers(0, 3), st.integers(0, 40))
def test_ranks_deal_out_one_order_and_a_run_goes_on_at_its_row(mixture, world, epoch, row):
    sizes, weights = mixture
    whole = order(sizes, weights, seed=3)
    whole.set_epoch(epoch)
    told = list(whole)
    row = min(row, len(told))
    left = len(told) - row
    parts = [order(sizes, weights, rank, world, seed=3) for rank in range(world)]
    for part in parts:
        part.start_at(epoch, row)
    dealt = [list(part) for part in parts]
    assert [place for turn in zip(*dealt, strict=True) for place in turn] == told[row : row + left - left % world]


@given(st.lists(st.floats(0.1, 5), min_size=1, max_size=4), st.integers(1, 60))
def test_sets_take_turns_with_their_shares_after_any_number(weights, number):
    counts = Counter(in_turns(weights, number))
    for i, weight in enumerate(weights):
        assert abs(counts[i] - number * weight / sum(weights)) < 1 + 1e-6


def test_shuffled_orders_differ_by_epoch_and_seed():
    sampler = order([6, 3], [1.0, 1.0])
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]
    assert list(order([6, 3], [1.0, 1.0], seed=1)) != orders[0]


@pytest.fixture
def files(write_rows):
    sums = [{"question": f"{i}+{i}=", "answer": str(2 * i), "level": i} for i in range(9)]
    said = [{"messages": [{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": str(i)}]}
            for i in range(3)]  # fmt: skip
    return {"sums": write_rows("sums.jsonl", *sums), "chat": write_rows("chat.jsonl", *said)}


def mixed(files, sums=1.0, chat=1.0, **options):
    rows = Rows(
        train=files["sums"], validation=files["sums"], prompt="question", completion="answer", verifier=ExactMatch(),
        **options,
    )  # fmt: skip
    talk = Chat(train=files["chat"], validation=files["chat"])
    return Mixed(sets={
        "sums": DataSet(task=rows, weight=sums, template=PlainTemplate(format="{question}({level})"), teacher="maths"),
        "chat": DataSet(task=talk, weight=chat, reward="veto_pl.testing.one_liners.share_of_words"),
    })  # fmt: skip


def connected(task, rank=0, world=1, **options):
    data = PromptDataModule(task, ChatTemplate(), batch_size=4, **options)
    settings = {"limit_train_batches": 1.0, "limit_val_batches": 1.0, "check_val_every_n_epoch": 1, "max_steps": 9}
    settings["val_check_interval"] = 1.0
    settings |= {"strategy": SimpleNamespace(root_device=torch.device("cpu")), "overfit_batches": 0}
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world, lightning_module=None, **settings)
    data.connect(chat_tokenizer("chatml"))
    data.setup("fit")
    return data


def examples(loader):
    return [example for batch in loader for example in batch.examples]


def test_each_set_has_its_own_template_reward_and_teacher(files):
    data = connected(mixed(files))
    batches = list(data.train_dataloader())
    counts = Counter(e.source for batch in batches for e in batch.examples)
    assert counts == {"sums": 9, "chat": 9}
    decode = chat_tokenizer("chatml").decode
    for batch in batches:
        scores = batch.score([str(e.completion) for e in batch.examples], range(len(batch)))
        assert scores == [1.0] * len(batch)
        for example, ids, mask in zip(batch.examples, batch.input_ids, batch.attention_mask, strict=True):
            shown = decode(ids[mask])
            if example.source == "sums":
                assert (shown, example.teacher) == (f"{example.prompt}({example.row['level']})", "maths")
            else:
                assert (shown.startswith("<|im_start|>user\nSay"), example.teacher) == (True, "")
    batch = next(batch for batch in batches if {e.source for e in batch.examples} == {"sums", "chat"})
    wrong = batch.score(["no"] * len(batch), range(len(batch)))
    assert wrong == [0.0] * len(batch)


def test_validation_reads_every_row_of_every_set_once(files):
    data = connected(mixed(files, sums=0.0))
    assert Counter(e.source for e in examples(data.val_dataloader())) == {"sums": 9, "chat": 3}
    assert Counter(e.source for e in next(iter(data.val_dataloader())).examples) == {"sums": 3, "chat": 1}
    assert Counter(e.source for e in examples(data.train_dataloader())) == {"chat": 3}


def test_without_weights_every_row_is_read_once(files):
    data = connected(mixed(files, sums=None, chat=None))
    assert Counter(e.source for e in examples(data.train_dataloader())) == {"sums": 9, "chat": 3}


def test_a_limit_keeps_the_shares(files):
    data = connected(mixed(files), train_limit=4, validation_limit=10)
    assert Counter(e.source for e in examples(data.train_dataloader())) == {"sums": 2, "chat": 2}
    assert Counter(e.source for e in examples(data.val_dataloader())) == {"sums": 7, "chat": 3}


def test_rows_that_are_dropped_leave_the_shares_alone(files):
    data = connected(mixed(files), max_prompt_tokens=34, overlong="drop")
    lengths = data._rows["train"].prompt_lengths
    assert lengths.max() <= 34
    counts = Counter(e.source for e in examples(data.train_dataloader()))
    assert counts["sums"] == counts["chat"]
    with pytest.raises(DataError, match="`chat` of the mixture has no training rows left"):
        connected(mixed(files), max_prompt_tokens=8, overlong="drop").train_dataloader()


def test_streams_take_turns_until_the_longest_has_ended(files):
    task = mixed(files, sums=2.0, chat=1.0, streaming=True)
    stream = task.load("train")
    rows = list(stream)
    assert [e.source for e in rows[:6]] == ["sums", "chat", "sums"] * 2
    assert Counter(e.source for e in rows)["sums"] == 9
    assert list(stream) == rows
    ranks = [connected(task, rank, 2, shuffle=False) for rank in range(2)]
    dealt = [examples(islice(iter(data.train_dataloader()), 3)) for data in ranks]
    assert list(chain(*zip(*dealt, strict=True)))[:8] == rows[:8]
    with pytest.raises(ConfigurationError, match="Set the `weight` of each set"):
        mixed(files, sums=None, chat=None, streaming=True).load("train")


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({}, "expected a weight for each set"),
        ({"a b": DataSet(task=Rows(train="x"))}, "expected names of letters"),
        ({"a": DataSet(task=Rows(train="x"), weight=1.0), "b": DataSet(task=Rows(train="x"))}, "or none at all"),
        ({"a": DataSet(task=Rows(train="x"), weight=0.0)}, "one of them above 0"),
        ({"a": DataSet(task=Rows(train="x", stop=("a",))), "b": DataSet(task=Rows(train="x"))}, "the same `stop`"),
        ({"a": DataSet(task=Mixed(sets={"b": DataSet(task=Rows(train="x"))}))}, "is a mixture itself"),
    ],
)
def test_what_cannot_be_mixed_is_refused(sets, message):
    with pytest.raises(ConfigurationError, match=message):
        Mixed(sets=sets)

"""Written and counted are two things: a mask over the completion changes what counts, and nothing else that is read."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veto_pl.core.memory import Memories
from veto_pl.data.rewards import ExactMatch
from veto_pl.metrics.rollout_numbers import rollout_numbers, rollout_sizes
from veto_pl.models.packing import Packing
from veto_pl.objectives import SDFT
from veto_pl.parts.contexts import Peer, Privileged
from veto_pl.rollouts import BestTeacher, FromStudent, Replay, Sampling, TeacherCorrected, cached
from veto_pl.rollouts.best_teacher import likeliest, overlaps
from veto_pl.rollouts.replay import ReplayBuffer
from veto_pl.seams import Sequences, Step
from veto_pl.testing.rows import tiny_prompts
from veto_pl.testing.tiny import tiny_models
from veto_pl.training.faulty_rows import row_reports
from veto_pl.training.window import Window

STEP = Step(3, 20)
SAMPLING = Sampling(max_new_tokens=6, num_completions=2, stop=("b",))
few = settings(max_examples=25)


@pytest.fixture(scope="module")
def models():
    return tiny_models()


@pytest.fixture(scope="module")
def full(models):
    """Rows of two writers with every field, all of whose tokens count; prompts of different lengths."""
    batch = tiny_prompts(models)
    rows = TeacherCorrected(2, SAMPLING)(batch, models, STEP)
    examples = tuple(replace(e, alternatives=("ab", f"{i}")) for i, e in enumerate(batch.examples))
    return batch.rewarded(replace(rows, prompts=replace(batch, examples=examples)), models.tokenizer)


@st.composite
def masks(draw, rows):
    """Any part of the completions, none and all of them included; another layout of the padding, too."""
    counted = [[draw(st.booleans()) for _ in range(rows.loss_mask.shape[1])] for _ in range(len(rows))]
    return torch.tensor(counted) & rows.loss_mask


def masked(full, data):
    return replace(full, loss_mask=data.draw(masks(full)))


def told(rows, tokenizer):
    """What a reader sees of each row, whatever counts."""
    before = rows.attention_mask & ~rows.completion_mask
    prompts = [ids[mask].tolist() for ids, mask in zip(rows.input_ids, before, strict=True)]
    written = [ids.tolist() for ids in rows.completions()]
    examples = [rows.prompts.examples[i] for i in rows.prompt_rows.tolist()]
    return list(zip(prompts, written, rows.texts(tokenizer), rows.ending.tolist(), examples, strict=True))


def counted(rows):
    """Which of its completion's tokens count, row by row."""
    return [mask[c].tolist() for mask, c in zip(rows.loss_mask, rows.completion_mask, strict=True)]


@given(data=st.data())
@few
def test_a_replayed_row_is_the_row(full, models, data):
    """Also from a checkpoint, with all that it carries."""
    rows = masked(full, data)
    first, second = ReplayBuffer(100), ReplayBuffer(100)
    first.add(rows, STEP)
    first.end_step(done=True)
    second.restore([first.state()], 0)
    for buffer in (first, second):
        drawn = buffer.draw(rows.prompts, Step(4, 20))
        order = torch.tensor([rows.prompts.numbers.tolist().index(n) for n in drawn.prompts.numbers.tolist()])
        drawn = drawn.continuing(rows.prompts, order).in_prompt_order()
        assert told(drawn, models.tokenizer) == told(rows, models.tokenizer)
        assert counted(drawn) == counted(rows)
        for name in ("sampler_logp", "by_teacher"):
            values = [getattr(r, name)[r.completion_mask].tolist() for r in (drawn, rows)]
            assert values[0] == values[1], name


def test_a_buffer_of_an_older_version_is_read(full, models):
    """Its rows hold what counted, and say nothing of their end."""
    buffer = ReplayBuffer(100)
    buffer.add(full, STEP)
    buffer.end_step(done=True)
    state = buffer.state()
    for group in state["groups"]:
        for row in group:
            for name in ("counted", "by_teacher", "ending", "unjudged", "alternatives"):
                del row[name]
    buffer.restore([state], 0)
    drawn = buffer.draw(full.prompts, Step(4, 20))
    assert drawn.ending.tolist() == [-1] * len(full)
    assert torch.equal(drawn.loss_mask, drawn.completion_mask)
    assert sorted(drawn.token_ids().tolist()) == sorted(full.token_ids().tolist())


def test_rows_that_are_skipped_are_replayed_in_their_order(models):
    """The fault that was met: nothing of a wrong answer counts, and it stood in front of its prompt."""
    source = Replay(BestTeacher(SAMPLING, FromStudent(SAMPLING), hint="{completion}>{prompt}", fallback="skip"), 1.0)
    models = replace(models, memories=Memories())
    models.memories.claim([source])
    batch = tiny_prompts(models)
    fresh = source(batch, models, Step(0, 20))
    models.memories.end_step()
    again = source(batch, models, Step(1, 20))
    assert not fresh.loss_mask.any(1).all()
    assert sorted(map(str, told(again, models.tokenizer))) == sorted(map(str, told(fresh, models.tokenizer)))


@given(data=st.data())
@few
def test_what_is_written_down_of_a_fault_is_the_row(full, models, data):
    rows = masked(full, data)
    expected, found = (row_reports(r.prompts, r, None, "rollout", models.tokenizer) for r in (full, rows))
    assert found == expected


@given(data=st.data())
@few
def test_the_numbers_of_a_rollout_are_those_of_its_texts(full, models, data):
    rows = masked(full, data)
    expected, found = (rollout_numbers([r], models.eos_ids) for r in (full, rows))
    assert {k: (float(v.total), float(v.weight)) for k, v in found.items()} == {
        k: (float(v.total), float(v.weight)) for k, v in expected.items()
    }


@given(data=st.data())
@few
def test_rewards_are_those_of_the_whole_text(full, models, data):
    rows = masked(full, data)
    assert torch.equal(rows.prompts.rewarded(rows, models.tokenizer).rewards, full.rewards)


@given(data=st.data())
@few
def test_the_teacher_reads_the_whole_text(full, models, data):
    rows = masked(full, data)
    for context in (Privileged("{completion}>{prompt}"), Peer("{peer}{prompt}", "{completion}>", threshold=0.0)):
        expected, found = (context(r, models, STEP) for r in (full, rows))
        assert torch.equal(found.input_ids, expected.input_ids)
        assert counted(found) == counted(rows)


@given(data=st.data())
@few
def test_a_packed_row_is_the_whole_row(full, data):
    rows = masked(full, data)
    expected, found = (Packing.of(r, 0.01) for r in (full, rows))
    for name in ("input_ids", "position_ids", "attention_mask"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert torch.equal(found.index, expected.index[rows.predictions[full.predictions]])


@given(data=st.data())
@few
def test_stored_scores_belong_to_the_whole_row(full, models, data):
    def find(prompt, completion, images):
        ids = torch.tensor([[token, len(prompt)] for token in completion])
        return SimpleNamespace(ids=ids, logp=torch.full((len(completion), 3), -1.0986), sampled_logp=None)

    known = {"k": 2, "temperature": 1.0, "sampled_logp": False, "check_tokenizer": lambda tokenizer: None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cached, "open_store", lambda path: SimpleNamespace(find=find, **known))
        rows = (full, masked(full, data))
        expected, found = (cached.stored_scores("", one, models.tokenizer) for one in rows)
    assert torch.equal(found.ids, expected.ids)


@given(data=st.data())
@few
def test_an_overlap_is_that_of_the_whole_texts(full, models, data):
    rows = masked(full, data)
    whole = replace(rows, loss_mask=rows.completion_mask)
    ids = likeliest(models.student, full, 3)
    assert torch.equal(overlaps(rows, whole, ids), overlaps(full, full, ids))


@given(data=st.data(), skip=st.integers(0, 4))
@few
def test_the_first_tokens_of_a_text_are_skipped(full, data, skip):
    rows = masked(full, data)
    expected = [[c and i >= skip for i, c in enumerate(row)] for row in counted(rows)]
    assert counted(SDFT(skip_tokens=skip).select(rows, STEP)) == expected


@given(data=st.data())
@few
def test_a_step_is_as_long_as_its_texts_and_trains_on_what_counts(full, data):
    rows = masked(full, data)
    trainer = SimpleNamespace(accumulate_grad_batches=1, world_size=1, precision="32")
    logged = {}
    for name, given_rows in (("full", full), ("masked", rows)):
        window = Window(trainer)
        window.add(SimpleNamespace(terms={"loss": _one()}, metrics=rollout_sizes([given_rows])))
        ((names, values),) = window._logged.items()
        logged[name] = {
            name: total / weight for name, (total, weight) in zip(names, values.tolist(), strict=True) if weight
        }
        logged[name]["tokens"] = values[names.index("tokens"), 0]
    assert logged["masked"]["completion_length"] == logged["full"]["completion_length"]
    assert logged["masked"]["tokens"] == rows.predictions.sum()


def _one():
    from veto_pl.seams import Stat

    return Stat(torch.tensor(1.0), torch.tensor(1.0))


def test_rows_without_prompts_begin_where_something_counts():
    """Nobody knows more of them."""
    ids = torch.tensor([[0, 5, 6, 7, 8, 9, 0]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 0]]).bool()
    counts = torch.tensor([[0, 0, 0, 1, 0, 1, 0]]).bool()
    rows = Sequences(ids, mask, counts, torch.tensor([0]), torch.tensor([True]))
    assert [ids.tolist() for ids in rows.completions()] == [[7, 8, 9]]


def test_replayed_rows_keep_all_references(full, models):
    """A reward that takes the best of several references is the same for the row once more."""
    buffer = ReplayBuffer(100)
    buffer.add(full, STEP)
    buffer.end_step(done=True)
    drawn = buffer.draw(full.prompts, Step(4, 20))
    assert {e.alternatives for e in drawn.prompts.examples} == {e.alternatives for e in full.prompts.examples}
    assert ExactMatch()(drawn.prompts.examples[0], "nothing") == 0.0

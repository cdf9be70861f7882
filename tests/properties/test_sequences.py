"""Which tokens count: masks say it, padding and ids do not."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.seams import Example, PromptBatch, Sequences, Step, pad_right
from veto_pl.seams.row_fields import PER_ROW, PER_TOKEN

PAD, EOS = 0, 1
ids = st.integers(0, 5)  # PAD and EOS included: text may hold either
texts = st.lists(ids, max_size=5)
dialogues = st.lists(st.tuples(st.lists(ids, min_size=1, max_size=5), texts), min_size=1, max_size=5)


def batch_of(rows):
    """Left-padded prompts and right-padded completions, by lengths."""
    width = max(len(prompt) for prompt, _ in rows)
    prompts = torch.tensor([[PAD] * (width - len(p)) + p for p, _ in rows])
    lengths = torch.tensor([len(p) for p, _ in rows])
    mask = torch.arange(width)[None] >= width - lengths[:, None]
    completions, kept = pad_right([torch.tensor(c, dtype=torch.int64) for _, c in rows], PAD)
    examples = tuple(Example(str(i)) for i in range(len(rows)))
    return PromptBatch(prompts, mask, completions, kept, examples)


def sequences_of(rows, **fields):
    batch = batch_of(rows)
    return Sequences.join(batch, batch.completion_ids, batch.completion_mask, **fields)


def sampled(rows, seed=0):
    """With every optional field filled."""
    plain = sequences_of(rows)
    generator = torch.Generator().manual_seed(seed)
    logp = -torch.rand(plain.loss_mask.shape, generator=generator).masked_fill(~plain.loss_mask, 0.0)
    return dataclasses.replace(plain, sampler_logp=logp, rewards=torch.rand(len(rows), generator=generator))


def content(sequences):
    """What the rows say, apart from how they are padded."""
    return [
        (
            sequences.input_ids[i][sequences.attention_mask[i]].tolist(),
            sequences.input_ids[i][sequences.loss_mask[i]].tolist(),
            sequences.sampler_logp[i][sequences.loss_mask[i]].tolist(),
            float(sequences.rewards[i]),
            int(sequences.prompt_rows[i]),
            bool(sequences.on_policy[i]),
        )
        for i in range(len(sequences))
    ]


@given(rows=dialogues)
def test_every_completion_token_counts_and_nothing_else_does(rows):
    """The first and EOS are among them, and so is the pad id where it is text."""
    sequences = sequences_of(rows)
    tokens, owners = sequences.tokens()
    assert tokens.tolist() == [token for _, completion in rows for token in completion]
    assert owners.tolist() == [i for i, (_, completion) in enumerate(rows) for _ in completion]
    assert [c.tolist() for c in sequences.completions()] == [completion for _, completion in rows]
    assert [sequences.input_ids[i][m].tolist() for i, m in enumerate(sequences.attention_mask)] == [
        prompt + completion for prompt, completion in rows
    ]


def test_the_last_prompt_position_predicts_and_the_last_token_does_not():
    sequences = sequences_of([([3, 4], [5, EOS]), ([2], [PAD, PAD, EOS])])
    assert sequences.predictions.int().tolist() == [[0, 1, 1, 0], [0, 1, 1, 1]]
    assert sequences.token_ids().tolist() == [5, EOS, PAD, PAD, EOS]


@given(rows=dialogues)
def test_positions_count_the_tokens_of_the_row(rows):
    sequences = sequences_of(rows)
    for i, (prompt, completion) in enumerate(rows):
        used = sequences.position_ids[i][sequences.attention_mask[i]]
        assert used.tolist() == list(range(len(prompt) + len(completion)))


@given(rows=dialogues, data=st.data())
def test_rows_are_taken_in_the_order_that_is_asked_for(rows, data):
    sequences = sampled(rows)
    index = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=6))
    taken = sequences.rows(torch.tensor(index, dtype=torch.int64))
    assert content(taken) == [content(sequences)[i] for i in index]
    assert taken.prompts is sequences.prompts


@given(rows=dialogues, data=st.data())
def test_a_mask_of_rows_is_the_index_of_its_true_entries(rows, data):
    sequences = sampled(rows)
    chosen = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))))
    assert content(sequences.rows(chosen)) == content(sequences.rows(chosen.nonzero()[:, 0]))


@given(first=dialogues, second=dialogues, third=dialogues)
def test_concatenation_keeps_the_rows_and_does_not_care_about_brackets(first, second, third):
    parts = [sampled(rows, seed) for seed, rows in enumerate((first, second, third))]
    whole = Sequences.concatenate(parts)
    assert content(whole) == [row for part in parts for row in content(part)]
    assert content(Sequences.concatenate([Sequences.concatenate(parts[:2]), parts[2]])) == content(whole)
    assert torch.equal(whole.token_ids(), torch.cat([part.token_ids() for part in parts]))


@given(rows=dialogues, cut=st.integers(0, 5))
def test_cutting_and_joining_changes_nothing(rows, cut):
    whole = sampled(rows)
    index = torch.arange(len(rows))
    joined = Sequences.concatenate([whole.rows(index[:cut]), whole.rows(index[cut:])])
    for field in ("input_ids", "attention_mask", "loss_mask", "prompt_rows", "on_policy", "sampler_logp", "rewards"):
        assert torch.equal(getattr(joined, field), getattr(whole, field))


def test_a_field_that_one_part_lacks_is_dropped():
    rows = [([2], [3])]
    joined = Sequences.concatenate([sampled(rows), sequences_of(rows)])
    assert joined.sampler_logp is None
    assert joined.sampled_logp() is None


def test_rows_that_nobody_has_scored_stay_open_beside_rows_with_a_reward():
    rows = [([2], [3])]
    joined = Sequences.concatenate([sampled(rows), sequences_of(rows)])
    assert joined.rewards.isnan().tolist() == [False, True]


@dataclasses.dataclass(frozen=True)
class Graded(Sequences):
    """Rows of another package, with a field of each kind."""

    grade: torch.Tensor | None = dataclasses.field(default=None, metadata=PER_ROW)
    pull: torch.Tensor | None = dataclasses.field(default=None, metadata=PER_TOKEN)


def test_a_field_of_another_package_goes_wherever_its_rows_go():
    plain = sequences_of([([2], [3, 4, 5]), ([2, 3], [4])])
    width = plain.input_ids.shape[1]
    grade, pull = torch.tensor([7, 8]), torch.arange(2 * width).view(2, width)
    rows = Graded(**vars(plain), grade=grade, pull=pull)
    order = torch.tensor([1, 0])
    assert rows.rows(order).grade.tolist() == [8, 7]
    torch.testing.assert_close(rows.rows(order).pull, pull[order])
    wide = Sequences.concatenate([rows.rows(order), Graded(**vars(sequences_of([([2], [3] * 6)])), grade=grade[:1])])
    assert (wide.grade.tolist(), wide.pull) == ([8, 7, 7], None)
    part = rows.of_part(1, rows.prompts.rows(torch.tensor([1])))
    assert part.grade.tolist() == [8]
    torch.testing.assert_close(part.pull, pull[1:, plain.attention_mask[1]])


def test_a_field_that_does_not_say_what_it_has_values_for_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Silent(Sequences):
        grade: torch.Tensor | None = None

    with pytest.raises(TypeError, match=r"`Silent\.grade` must say what it has a value for.*metadata=PER_ROW"):
        Silent(**vars(sequences_of([([2], [3])]))).rows(torch.tensor([0]))


@given(rows=dialogues, data=st.data())
def test_prompt_order_is_stable(rows, data):
    owners = data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
    shuffled = dataclasses.replace(sampled(rows), prompt_rows=torch.tensor(owners))
    expected = sorted(content(shuffled), key=lambda row: row[4])
    assert content(shuffled.in_prompt_order()) == expected


@given(rows=dialogues, data=st.data())
def test_a_part_of_a_batch_finds_its_prompts_again(rows, data):
    batch = batch_of(rows)
    index = torch.tensor(data.draw(st.permutations(range(len(rows)))))
    part = batch.rows(index)
    sequences = Sequences.join(part, part.completion_ids, part.completion_mask).continuing(batch, index)
    assert sequences.prompts is batch
    ordered = sequences.in_prompt_order()
    assert [c.tolist() for c in ordered.completions()] == [completion for _, completion in rows]
    assert [part.examples[i].prompt for i in range(len(part))] == [str(i) for i in index.tolist()]


@given(rows=st.lists(texts, min_size=1, max_size=5))
def test_padding_comes_from_lengths(rows):
    padded, mask = pad_right([torch.tensor(row, dtype=torch.int64) for row in rows], PAD)
    assert [ids[keep].tolist() for ids, keep in zip(padded, mask, strict=True)] == rows
    assert (padded[~mask] == PAD).all()


@given(rows=dialogues)
def test_sampled_log_probabilities_line_up_with_the_tokens(rows):
    sequences = sampled(rows)
    on_grid = sequences.sampled_logp()[sequences.predictions]
    assert torch.equal(on_grid, sequences.sampler_logp[sequences.loss_mask])


FIELDS = [{"seed": 1}, {"index": 4}, {"micro": 1}, {"rank": 1}]


@pytest.mark.parametrize("change", FIELDS, ids=str)
def test_draws_are_a_function_of_where_training_stands(change):
    """Each field but the length of the run makes other numbers; a shared draw does not know the place."""

    def draw(step, purpose="rollout", **how):
        return torch.rand(4, generator=step.generator(purpose, **how)).tolist()

    step = Step(3, 10)
    moved = dataclasses.replace(step, **change)
    assert draw(step) == draw(dataclasses.replace(step, total=99))
    assert draw(step) != draw(moved)
    assert draw(step) != draw(step, "mixture")
    assert (draw(step, shared=True) == draw(moved, shared=True)) == (change.keys() <= {"rank", "micro"})


def known(sequences):
    return torch.equal(sequences.host_masks, torch.stack([sequences.attention_mask, sequences.loss_mask]))


@given(rows=dialogues)
def test_what_the_host_knows_of_masks_follows_them(rows):
    batch = batch_of(rows)
    given_masks = {"host_mask": batch.completion_mask}
    sequences = Sequences.join(batch, batch.completion_ids, batch.completion_mask, **given_masks)
    assert known(sequences)
    none = torch.zeros_like(sequences.loss_mask)
    assert sequences.with_fields(rewards=torch.ones(len(rows))).host_masks is sequences.host_masks
    for changed in (
        sequences.with_fields(loss_mask=none),
        dataclasses.replace(sequences, loss_mask=none),
        sequences.rows(torch.tensor([0, 0])),
    ):
        assert known(changed)
    places = sequences.predictions.flatten().nonzero()[:, 0]
    assert torch.equal(sequences.prediction_index, places)

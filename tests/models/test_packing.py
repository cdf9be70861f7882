"""Several sequences in one row: none sees another, and nothing but padding is lost."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import masking_utils

from veto_pl.exceptions import ConfigurationError
from veto_pl.models.causal_lm import CausalLM
from veto_pl.models.known_masks import known_rows
from veto_pl.models.packing import Packing, pack, spread_evenly
from veto_pl.models.probes import check_head, keeps_sequences_apart
from veto_pl.seams import Sequences
from veto_pl.testing.tiny import prompt_batch, tiny_models


def ragged(models, lengths=((1, 1), (5, 2), (2, 9), (3, 0), (1, 4))):
    """Left-padded prompts with right-padded completions, padding holding ids that must not matter."""
    batch = prompt_batch(models, ["abcdefgh"[:prompt] + ">" for prompt, _ in lengths])
    width = max(completion for _, completion in lengths)
    ids = torch.randint(3, 18, (len(lengths), width), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(width) < torch.tensor([completion for _, completion in lengths])[:, None]
    return Sequences.join(batch, ids, mask)


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.sampled_from([0.0, 1e-4, 1e-3, 0.1]))
def test_every_sequence_is_in_one_row_and_no_layout_tried_is_cheaper(lengths, attention_cost):
    rows = pack(lengths, attention_cost)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))

    def cost(layout):
        width = max(sum(lengths[i] for i in row) for row in layout)
        return len(layout) * width * (1 + attention_cost * width)

    assert cost(rows) <= cost([[i] for i in range(len(lengths))]) + 1e-9
    assert cost(rows) <= cost(spread_evenly(lengths, -(-len(lengths) // 2))) + 1e-9
    if attention_cost == 0:
        assert len(rows) == 1


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 8))
def test_balanced_rows_differ_by_one_sequence_at_most(lengths, count):
    used = [sum(lengths[i] for i in row) for row in spread_evenly(lengths, count)]
    assert max(used) - min(used) <= max(lengths)


@pytest.mark.parametrize("attention_cost", [0.0, 0.01, 0.1, None])
def test_a_packing_holds_the_tokens_and_says_where_predictions_are(attention_cost):
    models = tiny_models()
    sequences = ragged(models)
    packing = Packing.of(sequences, attention_cost)
    assert int(packing.attention_mask.sum()) == int(sequences.attention_mask.sum())
    place = packing.index
    previous = sequences.input_ids[:, :-1][sequences.predictions]
    assert torch.equal(packing.input_ids.flatten()[place], previous)
    assert torch.equal(packing.position_ids.flatten()[place], sequences.position_ids[:, :-1][sequences.predictions])
    assert len(packing.input_ids) == {0.0: 1, 0.01: 2, 0.1: 3, None: 5}[attention_cost]


@given(
    lengths=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=6),
    attention_cost=st.sampled_from([0.0, 0.02, 0.2, None]),
)
def test_what_is_known_of_rows_is_what_transformers_would_find(lengths, attention_cost):
    attended = torch.tensor([[0] * (6 - p) + [1] * (p + c) + [0] * (6 - c) for p, c in lengths]).bool()
    rows = torch.arange(len(lengths))
    counted = attended & (torch.arange(12) >= 6)
    packing = Packing.of(Sequences(attended.long(), attended, counted, rows, rows < 0), attention_cost)
    positions, mask = packing.position_ids, packing.attention_mask
    with known_rows(packed=packing.packed, padded=packing.padded):  # the first of them replaces the functions
        told = masking_utils.find_packed_sequence_indices(positions)
        unpadded = masking_utils.fast_all(mask)
    found = masking_utils.find_packed_sequence_indices(positions)
    assert (told is None) == (found is None)
    assert told is None or torch.equal(told, found)
    assert bool(unpadded) == bool(masking_utils.fast_all(mask)) == bool(mask.all())


@pytest.mark.parametrize(
    ("model_type", "attention"),
    [*((kind, way) for kind in ("llama", "qwen2", "gpt2") for way in ("sdpa", "eager")), ("gemma2", "eager")],
)
@pytest.mark.parametrize("training", [True, False])
def test_packed_hidden_states_are_those_of_each_sequence_alone(model_type, attention, training):
    options = {"sliding_window": 4} if model_type == "gemma2" else {}
    if model_type == "gpt2":
        options = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0)
    models = tiny_models(model_type, **options)
    model = models.student.train(training)
    model.model.set_attn_implementation(attention)
    sequences = ragged(models)
    assert model.supports_packing
    assert model.training is training
    mine = model(sequences, lambda hidden, _: hidden)
    expected = []
    for ids, valid, predicted in zip(sequences.input_ids, sequences.attention_mask, sequences.predictions, strict=True):
        hidden = model.model.base_model(input_ids=ids[valid][None], use_cache=False).last_hidden_state[0]
        padding = int(valid.int().argmax())
        expected.append(hidden[predicted.nonzero()[:, 0] - padding])
    torch.testing.assert_close(mine, torch.cat(expected), rtol=1e-4, atol=1e-5)


class Leaky(nn.Module):
    """A backbone whose state runs through the row, as a recurrent model's does."""

    def __init__(self, embedding):
        super().__init__()
        self.embedding = embedding
        self.masks = []

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=False):
        self.masks.append(attention_mask)
        embedded = self.embedding(input_ids)
        if attention_mask is not None:
            embedded = embedded * attention_mask[..., None]
        return type("Output", (), {"last_hidden_state": embedded.cumsum(1)})()


def test_a_model_that_lets_state_pass_gets_one_row_per_sequence_and_a_mask():
    models = tiny_models()
    inner = models.student.model
    backbone = Leaky(inner.get_input_embeddings())
    model = CausalLM(inner, models.student.vocab_size)
    inner.base_model_prefix = "leaky"
    inner.leaky = backbone
    sequences = ragged(models)
    assert not keeps_sequences_apart(model)
    model._supports_packing = False
    mine = model(sequences, lambda hidden, _: hidden)
    assert backbone.masks[-1] is not None
    embedded = inner.get_input_embeddings()(sequences.input_ids) * sequences.attention_mask[..., None]
    expected = embedded.cumsum(1)[:, :-1][sequences.predictions]
    torch.testing.assert_close(mine, expected)


def test_packing_saves_the_padding():
    models = tiny_models()
    sequences = ragged(models)
    seen = []
    base = models.student.model.base_model
    models.student.supports_packing  # noqa: B018 (tried out before the hook counts)
    handle = base.register_forward_pre_hook(lambda _, __, given: seen.append(given["input_ids"]), with_kwargs=True)
    models.student(sequences, lambda hidden, _: hidden)
    handle.remove()
    assert seen[0].numel() < 0.6 * sequences.input_ids.numel()


def test_rows_without_a_completion_are_no_trouble():
    models = tiny_models()
    sequences = ragged(models, ((3, 0), (2, 0)))
    hidden = models.student(sequences, lambda hidden, _: hidden)
    assert hidden.shape == (0, 16)
    assert hidden.requires_grad
    only = replace(sequences, attention_mask=torch.zeros_like(sequences.attention_mask))
    assert models.student(only, lambda hidden, _: hidden).shape == (0, 16)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
def test_a_head_that_the_loss_reads_rightly_passes(model_type):
    check_head(tiny_models(model_type).student)


def test_a_model_with_something_else_before_its_logits_is_refused():
    models = tiny_models()
    inner = models.student.model
    forward = inner.forward

    def scaled(**given):
        output = forward(**given)
        output.logits = 0.5 * output.logits
        return output

    inner.forward = scaled
    with pytest.raises(ConfigurationError, match="LlamaForCausalLM does something between"):
        models.student(ragged(models), lambda hidden, _: hidden)


@pytest.mark.parametrize("max_row_tokens", [12, 15, 20])
def test_rows_of_several_sequences_are_no_wider_than_the_model_allows(max_row_tokens):
    lengths = [3, 8, 12, 4, 6]
    rows = pack(lengths, 1e-6, max_row_tokens)
    assert all(len(row) == 1 or sum(lengths[i] for i in row) <= max_row_tokens for row in rows)


def test_no_sequence_at_all_packs_to_nothing():
    assert pack([], 0.1) == []

"""Backbone, head and decoding step against the whole transformers model."""

import pytest
import torch

from veto_pl.models.assemble import load_models
from veto_pl.rollouts import FromDataset
from veto_pl.seams import Sequences, Step
from veto_pl.testing.tiny import ALPHABET, prompt_batch, tiny_models, tiny_source

TYPES = ["llama", "qwen2", "gpt2", "gemma2"]
STEP = Step(0, 1)


def sequences_of(models):
    batch = prompt_batch(models, ["abc>", "a>", "fedcba>"], ["cba", "a", "abcdef"])
    return FromDataset()(batch, models, STEP)


def logits_of(model, sequences):
    return model.eval()(sequences, lambda hidden, lm: lm.project(hidden)[0])


@pytest.mark.parametrize("model_type", TYPES)
def test_the_head_gives_the_models_own_logits_where_a_completion_token_is_predicted(model_type):
    models = tiny_models(model_type)
    sequences = sequences_of(models)
    with torch.no_grad():
        ours = logits_of(models.student, sequences)
        for row in range(3):
            ids = sequences.input_ids[row][sequences.attention_mask[row]][None]
            whole = models.student.model(ids).logits[0]
            prompt = int((sequences.attention_mask[row] & ~sequences.loss_mask[row]).sum())
            count = int(sequences.loss_mask[row].sum())
            start = int(sequences.predictions[:row].sum())
            assert torch.allclose(ours[start : start + count], whole[prompt - 1 : prompt - 1 + count], atol=1e-5)


@pytest.mark.parametrize("model_type", TYPES)
def test_left_and_right_padding_agree(model_type):
    models = tiny_models(model_type)
    left = sequences_of(models)
    lengths = left.attention_mask.sum(1)
    width = int(lengths.max()) + 3
    blank = torch.zeros(3, width, dtype=torch.int64)
    ids, attention, loss = blank.clone(), blank.bool(), blank.bool()
    for row, length in enumerate(lengths.tolist()):
        used = left.attention_mask[row]
        ids[row, :length] = left.input_ids[row][used]
        attention[row, :length] = True
        loss[row, :length] = left.loss_mask[row][used]
    right = Sequences(ids, attention, loss, left.prompt_rows, left.on_policy)
    with torch.no_grad():
        assert torch.equal(left.token_ids(), right.token_ids())
        assert torch.allclose(logits_of(models.student, left), logits_of(models.student, right), atol=1e-5)


@pytest.mark.parametrize("model_type", TYPES)
def test_decoding_with_a_cache_equals_one_pass(model_type):
    from transformers import DynamicCache

    models = tiny_models(model_type)
    batch = prompt_batch(models, ["abc>", "a>", "fedcba>"])
    model, mask, ids = models.student.eval(), batch.attention_mask, batch.input_ids
    cache = DynamicCache(config=model.model.config)
    with torch.no_grad():
        stepped, new = [], ids
        for token in (4, 5, 6):
            stepped.append(model.next_logits(new, mask, cache))
            new = torch.full((3, 1), token)
            ids, mask = torch.cat([ids, new], 1), torch.cat([mask, torch.ones(3, 1, dtype=torch.bool)], 1)
        for offset, logp in enumerate(stepped):
            end = batch.input_ids.shape[1] + offset
            fresh = model.next_logits(ids[:, :end], mask[:, :end], DynamicCache(config=model.model.config))
            assert torch.allclose(fresh, logp, atol=1e-4)


def test_padding_rows_of_the_vocabulary_get_no_probability_and_are_measured():
    models = load_models(tiny_source(vocab_size=40), None, tiny_models().tokenizer)
    sequences = sequences_of(models)
    model = models.student.eval()
    with torch.no_grad():
        logits, discarded = model(sequences, lambda hidden, lm: lm.project(hidden))
        everything = model(sequences, lambda hidden, lm: lm.model.lm_head(hidden)).double()
    assert logits.shape[-1] == len(ALPHABET) + 3
    assert torch.allclose(discarded.double(), everything.softmax(-1)[:, logits.shape[-1] :].sum(-1), atol=1e-6)


def test_the_teacher_is_frozen_and_the_student_trains():
    models = tiny_models()
    assert models.student.training
    assert not models.teacher.training
    assert all(p.requires_grad for p in models.student.parameters())
    assert not any(p.requires_grad for p in models.teacher.parameters())


def test_logits_are_float32_whatever_the_weights_are():
    models = tiny_models()
    models.student.bfloat16()
    assert logits_of(models.student, sequences_of(models)).dtype == torch.float32


def test_an_empty_batch_of_completions_keeps_the_graph():
    models = tiny_models()
    sequences = FromDataset()(prompt_batch(models, ["abc>", "a>"]), models, STEP)
    total = models.student(sequences, lambda hidden, lm: lm.project(hidden)[0]).sum()
    total.backward()
    assert total == 0
    assert all(p.grad is not None for p in models.student.model.base_model.parameters())

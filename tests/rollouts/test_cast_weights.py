"""A rollout in mixed precision casts each weight once, whatever its length, and keeps nothing afterwards."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from veto_pl.models.modes import sampling_mode
from veto_pl.rollouts import FromStudent, FromTeacher, Sampling
from veto_pl.rollouts.engines import Transformers
from veto_pl.seams import Step
from veto_pl.testing.tiny import prompt_batch, tiny_models

SAMPLING = Sampling(temperature=1.5, max_new_tokens=3)
LONGER = replace(SAMPLING, max_new_tokens=12)


class Casts(TorchDispatchMode):
    """Counts the casts of each weight."""

    def __init__(self, model):
        super().__init__()
        self.weights = {weight.data_ptr() for weight in model.parameters() if weight.dim() == 2}
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.weights:
            self.number += 1
        return func(*args, **(kwargs or {}))


def roll_out(models, source, writer=None):
    writer = writer or models.student
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), Casts(writer.model) as casts:
        rows = source(prompt_batch(models, ["abc>", "ba>"]), models, Step(0, 1))
    return rows, casts.number


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("engine", [{}, {"engine": Transformers()}], ids=["own", "transformers"])
def test_each_weight_is_cast_once(model_type, engine):
    models = tiny_models(model_type)
    for source in (FromStudent(SAMPLING, **engine), FromStudent(LONGER, **engine)):
        roll_out(models, source)  # what is found out about a model once, is found out
        linear = sum(weight.dim() == 2 for weight in models.student.model.parameters())
        assert 0 < roll_out(models, source)[1] <= linear


def test_a_frozen_writer_casts_once_and_stays_frozen():
    models = tiny_models()
    source = FromTeacher(LONGER)
    roll_out(models, source)
    linear = sum(weight.dim() == 2 for weight in models.teacher.model.parameters())
    assert 0 < roll_out(models, source, models.teacher)[1] <= linear
    assert not any(weight.requires_grad for weight in models.teacher.parameters())


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_the_tokens_are_those_of_weights_that_are_cast_anew(model_type, monkeypatch):
    models = tiny_models(model_type)
    rows, casts = roll_out(models, FromStudent(LONGER))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # what the casts are kept on
    anew, more = roll_out(models, FromStudent(LONGER))
    assert more > 3 * casts
    assert torch.equal(rows.input_ids, anew.input_ids)
    assert torch.equal(rows.sampler_logp, anew.sampler_logp)


def test_what_was_cast_is_forgotten():
    """A weight that a step has changed would be used as it was, and without a gradient."""
    student = tiny_models().student
    ids = torch.arange(3, 8)[None]
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        with sampling_mode(student):
            before = student.model(ids).logits
        with torch.no_grad():
            student.model.get_output_embeddings().weight.mul_(2)
        with sampling_mode(student):
            assert torch.equal(student.model(ids).logits, 2 * before)
        student.model(ids).logits.sum().backward()
    assert all(weight.grad is not None for weight in student.model.parameters())

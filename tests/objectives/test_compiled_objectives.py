"""Objectives through the compiler: same loss and gradients as on the dense road, and each kernel a single graph."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from test_scoring import COMPOSED, OVERRIDDEN, TOKEN_OBJECTIVES, assert_as_the_dense_road, models_of

from veto_pl.functional import compilation
from veto_pl.objectives import Distill, Veto
from veto_pl.parts.advantages import LogRatio
from veto_pl.parts.schedules import Cosine, Linear, StepWise, WarmUp
from veto_pl.seams import Step
from veto_pl.testing.test_objectives import name, written

FEW = [Veto(), Distill(divergence=None, advantage=LogRatio()), OVERRIDDEN[0]]
SCHEDULES = [Linear(0.8, 0.1), Cosine(0.8, 0.1), StepWise((0.8, 0.4, 0.0), (0.3, 0.6)), WarmUp(0.3)]


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    """Follow kernels as the compiler does, and run the operations that are left. No kernel may fall back."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(compilation, "OPTIONS", None)
    yield
    refused = set(compilation._uncompiled)
    compilation._compiled.cache_clear()
    compilation._uncompiled.clear()
    torch._dynamo.reset()
    assert not refused


@pytest.mark.parametrize("objective", FEW, ids=name)
def test_loss_and_gradients_are_those_of_the_dense_road(objective):
    assert_as_the_dense_road(replace(objective, chunk_rows=3, compile=True), models_of("gemma2"))


@pytest.mark.slow
@pytest.mark.parametrize("objective", TOKEN_OBJECTIVES + COMPOSED + OVERRIDDEN, ids=name)
def test_every_objective_is_followed_by_the_compiler(objective):
    assert_as_the_dense_road(replace(objective, chunk_rows=3, compile=True), models_of("gemma2"))


@pytest.mark.parametrize("schedule", [SCHEDULES[0], *(pytest.param(s, marks=pytest.mark.slow) for s in SCHEDULES[1:])])
def test_a_run_compiles_a_scheduled_target_once(schedule):
    torch._dynamo.utils.counters.clear()
    models, objective = models_of("llama"), Veto(beta=schedule, chunk_rows=3, compile=True)
    rollouts = {objective.rollout: written(models, 0)}
    for index in range(20):
        step = Step(index, 20)
        losses = [
            part.loss(rollouts, models, step).terms["loss"].total
            for part in (objective, replace(objective, compile=False))
        ]
        torch.testing.assert_close(*losses)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_chunk_rows_and_compile_reach_the_terms_of_a_composed_objective():
    from veto_pl.objectives import BRTS, DistiLLM2, MiniLLM

    for kind in (BRTS, DistiLLM2, MiniLLM):
        terms = kind(chunk_rows=7, compile=False).composition.terms.values()
        assert [(term.chunk_rows, term.compile) for term in terms] == [(7, False)] * 2

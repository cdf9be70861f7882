"""Several teachers on the pretended GPU: the CPU's losses and gradients, and a host that does not wait for places."""

from dataclasses import dataclass, replace

import pytest
import torch

from veto_pl.functional.own_ends import Ends
from veto_pl.objectives import OPD, Distill
from veto_pl.parts.contexts import SameText
from veto_pl.parts.panels import Routed, Shifted, Together
from veto_pl.rollouts import FromDataset
from veto_pl.seams import Step
from veto_pl.testing.pretended_gpu import counted
from veto_pl.testing.tiny import prompt_batch, tiny_models

DEVICE = "gpu:0"
STEP = Step(2, 10)
WORDS = ["abc", "d", "efghij", "ka"]


@dataclass(frozen=True)
class Ending(SameText):
    """A teacher that ends its texts by another id than the student."""

    def ends(self, models):
        return Ends((1,), (3, 4))


CASES = {
    "routed": (Distill(panel=Routed(otherwise="leave"), rollout=FromDataset()), 1),
    "routed policy gradient": (OPD(panel=Routed(), rollout=FromDataset(), importance_cap=None), 1),
    "together": (Distill(panel=Together({"teacher": 0.3, "other": 0.7}), rollout=FromDataset()), 0),
    "a mixture": (Distill(panel=Together({"teacher": 0.3, "other": 0.7}, combine="target"), rollout=FromDataset()), 0),
    "shifted": (Distill(panel=Shifted({"other": "teacher"}), rollout=FromDataset()), 0),
    "other ends": (Distill(panel=Together(), rollout=FromDataset(), context=Ending()), 0),
}
"""Objectives, and how often the host waits more than for one: which prompt a row continues is on the device."""


def update(objective, device):
    """Loss and gradient on a device, and how often the host has waited."""
    models = tiny_models()
    models = replace(models, teachers={"other": tiny_models(teacher_seed=5).teacher})
    for model in (models.student, *models.frozen):
        model.to(device)
    batch = prompt_batch(models, [f"{word}>" for word in WORDS], [word[::-1] for word in WORDS])
    names = ("teacher", "other", "other", "nobody" if objective.panel == Routed(otherwise="leave") else "teacher")
    examples = tuple(replace(one, teacher=name) for one, name in zip(batch.examples, names, strict=True))
    batch = replace(batch, examples=examples).to(device)
    sequences = FromDataset()(batch, models, STEP)
    _ = sequences.host_masks
    objective.loss({objective.rollout: sequences}, models, STEP)  # facts about the models are found out once
    with counted() as work:
        output = objective.loss({objective.rollout: sequences}, models, STEP)
    output.terms["loss"].total.backward()
    return output, torch.cat([p.grad.cpu().flatten() for p in models.student.parameters()]), work.waits


@pytest.mark.parametrize("case", CASES)
def test_several_teachers_do_what_they_do_on_the_cpu(case):
    objective, more = CASES[case]
    expected, there = update(objective, "cpu"), update(objective, DEVICE)
    torch.testing.assert_close(there[0].terms["loss"].total.cpu(), expected[0].terms["loss"].total)
    torch.testing.assert_close(there[1], expected[1], rtol=1e-4, atol=1e-4)
    for name, stat in expected[0].metrics.items():
        torch.testing.assert_close(there[0].metrics[name].total.cpu(), stat.total, rtol=1e-4, atol=1e-5)
    alone = update(replace(objective, panel=type(objective)().panel, context=SameText()), DEVICE)
    extra = there[2] - alone[2]
    assert sum(extra.values()) == more, extra

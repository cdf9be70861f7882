"""A plan counts an offloaded model where it is on the device, and refuses what cannot rest."""

import pytest

from veto_pl import DistillationModule
from veto_pl.checks import RunSetup
from veto_pl.data import JsonLines, PromptDataModule
from veto_pl.exceptions import ConfigurationError
from veto_pl.models import CharacterTokenizer, InMemory, MovingAverage, Offloaded, Pretrained
from veto_pl.objectives import OPD, Veto
from veto_pl.planning.devices import Device
from veto_pl.planning.placement import Placement
from veto_pl.planning.rollout import Lengths
from veto_pl.planning.run_plan import plan
from veto_pl.planning.simulation import Setting
from veto_pl.rollouts import FromStudent, FromTeacher, Sampling
from veto_pl.testing.tiny import ALPHABET, tiny_source

FOUR = Sampling(max_new_tokens=4)


def module_of(student, teacher, objective=None):
    objective = objective or Veto(rollout=FromStudent(FOUR))
    return DistillationModule(objective, student, teacher, CharacterTokenizer(ALPHABET), evaluation=FOUR)


def weights_by_phase(teacher, rollout):
    module = module_of(tiny_source(), teacher, OPD(rollout=rollout))
    setting = Setting(Lengths(8, 4, None), prompts=2, validation_prompts=2)
    planned = plan(module, setting, Placement(), Device("here", memory=10**9))
    return planned, {part.phase: part.weights for part in planned.memory}


@pytest.mark.parametrize("rollout", [FromStudent(FOUR), FromTeacher(FOUR)], ids=["reads", "writes"])
def test_a_plan_counts_it_where_it_is_present(rollout):
    usual, always = weights_by_phase(tiny_source(seed=1), rollout)
    planned, present = weights_by_phase(Offloaded(tiny_source(seed=1)), rollout)
    teacher = planned.simulated.frozen["teacher"]
    assert (planned.offloaded, usual.offloaded) == ({"teacher"}, set())
    for phase in ("backward", "optimizer step"):
        assert present[phase] == always[phase] - teacher.bytes
    for phase in ("teacher's scoring", "validation"):
        assert present[phase] == always[phase]
    assert present["loss head"] == always["loss head"] - teacher.bytes + teacher.outer
    assert present["rollout"] == always["rollout"] - (0 if rollout == FromTeacher(FOUR) else teacher.bytes)


def mistakes(student, teacher, **trainer):
    setup = RunSetup(module_of(student, teacher), PromptDataModule(JsonLines(train="x")), trainer)
    told = [("model.student", setup.module.student_source), ("model.teacher", setup.module.teacher_source)]
    return [str(mistake) for path, source in told for mistake in source.requirements(setup, path)]


def test_what_cannot_rest_is_refused_by_name(tmp_path):
    assert mistakes(tiny_source(), Offloaded(tiny_source(seed=1))) == []
    assert "`Offloaded` under `fsdp2`" in mistakes(tiny_source(), Offloaded(tiny_source(seed=1)), strategy="fsdp2")[0]
    assert "What is trained stays" in mistakes(Offloaded(tiny_source()), tiny_source(seed=1))[0]
    with pytest.raises(ConfigurationError, match="`MovingAverage`, whose weights change after every step"):
        Offloaded(MovingAverage(tiny_source()))
    tiny_source().load().save_pretrained(tmp_path)
    packed = Pretrained(str(tmp_path), quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert "quantised model" in mistakes(tiny_source(), Offloaded(packed))[0]


def test_it_is_the_model_of_its_source():
    given = InMemory(tiny_source().load())
    assert Offloaded(given).end_ids() == given.end_ids()
    assert Offloaded(given.model).source.copied, "the object of the user stays as it is"

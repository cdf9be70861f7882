"""Plans of students with an adapter: what is frozen has neither gradient nor state, and what is shared counts once."""

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from torch import nn

from veto_pl import DistillationModule
from veto_pl.models import CharacterTokenizer, Lora, Pretrained, StudentBase
from veto_pl.objectives import Veto
from veto_pl.planning.rollout import Lengths
from veto_pl.planning.simulation import Setting, simulate
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.testing.tiny import ALPHABET, tiny_source

SETTING = Setting(Lengths(8, 4, None), prompts=2, validation_prompts=0)


def planned(student, teacher):
    module = DistillationModule(
        Veto(rollout=FromStudent(Sampling(max_new_tokens=4))),
        student,
        teacher,
        tokenizer=CharacterTokenizer(ALPHABET),
        optimizer=lambda parameters: torch.optim.Adam(parameters),
    )
    return simulate(module, SETTING, module.objective)


@pytest.mark.parametrize("lora", [{}, {"dora": True, "modules_to_save": ("lm_head",)}])
def test_only_the_adapter_has_gradients_and_state(lora):
    source = Lora(tiny_source(), rank=2, **lora)
    model = source.load()
    trained = sum(4 * weight.numel() for weight in model.parameters() if weight.requires_grad)
    plan = planned(source, StudentBase())
    assert plan.student.trained == trained
    steps = sum(4 for weight in model.parameters() if weight.requires_grad)
    assert plan.state == 2 * trained + steps
    assert max(phase.gradients for phase in plan.phases.values()) == trained
    whole = planned(tiny_source(), tiny_source(seed=1))
    assert whole.student.trained == whole.student.bytes - 32, "all but the rotary frequencies"


def test_the_students_own_base_takes_no_memory():
    source = Lora(tiny_source(), rank=2)
    shared, apart = planned(source, StudentBase()), planned(source, tiny_source())
    assert shared.frozen["teacher"].bytes == 0
    assert shared.frozen["teacher"].parameters == apart.frozen["teacher"].parameters
    assert apart.frozen["teacher"].bytes > 0


@pytest.mark.parametrize("double", [False, True])
def test_quantised_weights_take_what_bitsandbytes_makes_of_them(double, tmp_path):
    tiny_source(hidden_size=64, intermediate_size=512).load().save_pretrained(tmp_path)
    CharacterTokenizer(ALPHABET).load().save_pretrained(tmp_path)
    settings = {"load_in_4bit": True, "bnb_4bit_use_double_quant": double}
    source = Pretrained(str(tmp_path), quantization_config=settings)
    plan = planned(Lora(source, rank=2), StudentBase())
    model = Lora(source, rank=2).load()
    taken = sum(weight.numel() * weight.element_size() for weight in [*model.parameters(), *model.buffers()])
    for module in (module for module in model.modules() if isinstance(module, Linear4bit)):
        state = module.weight.quant_state
        taken += state.absmax.numel() * state.absmax.element_size()
        if double:
            taken += state.state2.absmax.numel() * state.state2.absmax.element_size()
    assert not any(type(module) is nn.Linear and not module.weight.requires_grad for module in model.model.modules())
    assert plan.student.bytes == pytest.approx(taken, rel=0.02)

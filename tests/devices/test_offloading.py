"""A teacher that rests in the memory of the host is on the device only while it is used, and teaches the same."""

import json

import lightning as L
import pytest
import torch

from veto_pl import DistillationModule, PromptDataModule
from veto_pl.data import ExactMatch, JsonLines
from veto_pl.models import CharacterTokenizer, Offloaded
from veto_pl.models.offloading import OffloadedLM
from veto_pl.objectives import ListOPD, Veto
from veto_pl.rollouts import DecodeLoop, FromStudent, FromTeacher, Sampling
from veto_pl.testing.pretended_gpu import PRETENDED, counted
from veto_pl.testing.tiny import ALPHABET, tiny_source

FOUR = Sampling(max_new_tokens=4)
BY_TEACHER = Veto(rollout=FromTeacher(FOUR))
BY_STUDENT = Veto(rollout=FromStudent(FOUR))


class WhereItIs(L.Callback):
    """Notes which devices the frozen models are on when the student is trained, and when a batch begins and ends."""

    def __init__(self):
        self.seen = set()

    def look(self, trainer, module, *_):
        frozen = [model for model in (module.models.teacher, module.models.reference) if model is not None]
        self.seen |= {str(tensor.device) for model in frozen for tensor in (*model.parameters(), *model.buffers())}
        assert all(tensor.is_pinned() for model in frozen for tensor in model.parameters())

    on_train_batch_start = on_before_backward = on_after_backward = on_before_optimizer_step = look
    on_train_batch_end = on_validation_batch_start = on_validation_batch_end = look


def fit(folder, wrap, objective, callbacks=(), **settings):
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{a}>", "completion": a}) + "\n" for a in "abcdefgh"))
    reference = wrap(tiny_source(seed=2)) if objective.needs_reference else None
    module = DistillationModule(
        objective, tiny_source(), wrap(tiny_source(seed=1)), CharacterTokenizer(ALPHABET), reference=reference,
        optimizer=lambda weights: torch.optim.SGD(weights, lr=0.1), evaluation=FOUR,
    )  # fmt: skip
    task = JsonLines(train=str(rows), validation=str(rows), verifier=ExactMatch())
    data = PromptDataModule(task, batch_size=2, max_prompt_tokens=8, max_completion_tokens=8)
    given = {"max_steps": 2, "accumulate_grad_batches": 2} | settings
    trainer = L.Trainer(
        accelerator=PRETENDED, strategy=PRETENDED, default_root_dir=str(folder), callbacks=list(callbacks),
        use_distributed_sampler=False, num_sanity_val_steps=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **given,
    )  # fmt: skip
    trainer.fit(module, data)
    return module, {name: float(value) for name, value in trainer.callback_metrics.items() if "second" not in name}


OBJECTIVES = {
    "reads": (BY_STUDENT, {"whole": 2, "head": 2}),
    "writes": (BY_TEACHER, {"whole": 3, "head": 2}),
    "with a reference": (ListOPD(rollout=FromStudent(FOUR)), {"whole": 2, "head": 2}),
}


@pytest.mark.parametrize("case", OBJECTIVES)
def test_it_teaches_the_same_and_is_on_the_device_only_while_it_is_used(case, tmp_path):
    """Moves in a window of two micro-batches: each is scored once, and all prompts are written for at once."""
    objective, moves = OBJECTIVES[case]
    where = WhereItIs()
    usual, expected = fit(tmp_path, lambda source: source, objective)
    module, logged = fit(tmp_path, Offloaded, objective, [where])
    assert where.seen == {"cpu"}
    assert logged == expected
    for name, weight in usual.student.state_dict().items():
        assert torch.equal(weight.cpu(), module.student.state_dict()[name].cpu()), name
    longer, _ = fit(tmp_path, Offloaded, objective, max_steps=3, limit_val_batches=0)
    shorter, _ = fit(tmp_path, Offloaded, objective, limit_val_batches=0)
    seen = {
        what: longer.models.teacher.moves_of[what] - count for what, count in shorter.models.teacher.moves_of.items()
    }
    assert seen == moves


def test_weights_come_without_a_wait_and_go_without_a_copy():
    model = OffloadedLM(tiny_source().load(), 20).requires_grad_(False).to("gpu:0")
    places = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    with torch.inference_mode(), counted() as work, model.present():
        assert {str(tensor.device) for tensor in (*model.parameters(), *model.buffers())} == {"gpu:0"}
        with model.present(head_only=True), model.present():
            pass
        assert not any(weight.is_inference() for weight in model.parameters()), "a fit may follow the validation"
    assert not work.waits, work.table()
    assert {name: weight.data_ptr() for name, weight in model.named_parameters()} == places
    with model.present(head_only=True):
        assert [name for name, weight in model.named_parameters() if weight.device.type != "cpu"] == [
            "model.lm_head.weight"
        ]
    assert model.moves_of == {"whole": 1, "head": 1}


def test_its_steps_are_not_recorded():
    model = OffloadedLM(tiny_source().load(), 20).requires_grad_(False).to("gpu:0")
    assert "`Offloaded`" in DecodeLoop().obstacle(model)

"""Runs of denoising students: one update however a batch is split, resumed to the bit, teachers, exports."""

import json
import logging
from dataclasses import dataclass
from functools import partial

import lightning as L
import pytest
import torch
from PIL import Image

from tests.diffusion.tiny_denoisers import STRIPES, fit, module_of, rows, tiny, weights
from veto_pl.callbacks import Checkpoints
from veto_pl.diffusion import (
    DOPSD,
    AveragedDenoiser,
    DenoiserFiles,
    DenoisingModule,
    FewSteps,
    FlowMatching,
    LoraDenoiser,
    PretrainedDenoiser,
    picture,
)
from veto_pl.objectives import Phases, Sum
from veto_pl.parts.schedules import Linear

BOTH = Sum(terms={"on": DOPSD(rollout=FewSteps(samples=2)), "off": FlowMatching()}, weights={"off": Linear(1.0, 0.2)})
OBJECTIVES = {"D-OPSD": DOPSD(), "flow matching": FlowMatching(), "sum": BOTH}
ADAM = partial(torch.optim.AdamW, lr=0.01)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("size", [1, 3, 5])
def test_accumulated_micro_batches_give_the_update_of_the_whole_batch(name, size, tmp_path):
    """Five rows, five and two: a mean of means would be off."""
    whole, split = module_of(OBJECTIVES[name]), module_of(OBJECTIVES[name])
    start = torch.cat([p.detach().flatten() for p in tiny(0).load().parameters()])
    fit(whole, tmp_path)
    fit(split, tmp_path, batch_size=size, accumulate_grad_batches=-(-12 // size))
    assert (weights(whole) - start).abs().max() > 1e-3
    torch.testing.assert_close(weights(split), weights(whole), rtol=0, atol=2e-6)


class StopError(Exception):
    pass


class Stop(L.Callback):
    """Ends the run inside the second half of a window."""

    def __init__(self, step):
        self.step = step

    def on_before_backward(self, trainer, *args):
        if trainer.global_step == self.step and trainer.fit_loop.batch_idx % 2 == 1:
            raise StopError


@pytest.mark.parametrize("step", [1, 4, 5])
def test_a_run_that_is_resumed_is_the_run_that_was_not_stopped(step, tmp_path):
    """Windows of two micro-batches of two rows; twelve rows are three windows an epoch."""

    def run(name, stop=None, resume=None):
        module = module_of(BOTH, AveragedDenoiser(tiny(0), decay=0.8), optimizer=ADAM)
        saved = Checkpoints(dirpath=str(tmp_path / name), every_n_train_steps=1)
        settings = {"max_steps": 7, "accumulate_grad_batches": 2, "batch_size": 2, "enable_checkpointing": True}
        try:
            runner = fit(module, tmp_path, callbacks=[saved, Stop(stop)], ckpt_path=resume, **settings)
        except StopError:
            return None
        return runner.callback_metrics["train/loss"], weights(module), list(module.models.teacher.parameters())

    loss, student, teacher = run("whole")
    assert run("stopped", stop=step) is None
    again = run("resumed", resume=str(tmp_path / "stopped" / "last.ckpt"))
    assert (again[0], again[1].tolist()) == (loss, student.tolist())
    assert all(torch.equal(a, b) for a, b in zip(teacher, again[2], strict=True))


def test_an_average_moves_a_live_teacher_is_the_student_and_a_frozen_one_stays(tmp_path):
    teachers = {"frozen": tiny(0), "live": AveragedDenoiser(tiny(0), decay=0.0), "slow": AveragedDenoiser(tiny(0), 0.5)}
    ended = {}
    for name, teacher in teachers.items():
        module = module_of(DOPSD(), teacher, optimizer=ADAM)
        fit(module, tmp_path, max_steps=1)
        ended[name] = weights(module), torch.cat([p.flatten() for p in module.models.teacher.parameters()])
        assert any(key.startswith("teacher.") for key in module.state_dict()) == (name != "frozen")
        assert not any(p.requires_grad for p in module.models.teacher.parameters())
    start = torch.cat([p.detach().flatten() for p in tiny(0).load().parameters()])
    assert torch.equal(ended["frozen"][1], start)
    assert torch.equal(*ended["live"])
    torch.testing.assert_close(ended["slow"][1], (start + ended["slow"][0]) / 2)


@dataclass(frozen=True, kw_only=True)
class Broken(DOPSD):
    """Its loss is NaN at the second step."""

    def loss(self, rollouts, models, step):
        output = super().loss(rollouts, models, step)
        return type(output)({"loss": output.terms["loss"].scaled(float("nan") if step.index == 1 else 1.0)})


def test_a_step_that_is_not_finite_leaves_student_and_teacher_as_they_are(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "lightning.pytorch.utilities.rank_zero")
    states = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            teacher = torch.cat([p.flatten() for p in module.models.teacher.parameters()])
            states.append((weights(module), teacher.clone()))

    module = module_of(Broken(), AveragedDenoiser(tiny(0), decay=0.5), optimizer=ADAM)
    with pytest.warns(UserWarning, match="Step 2 was left out"):
        fit(module, tmp_path, max_steps=3, callbacks=[Watch()])
    assert all(torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True))
    assert not torch.equal(states[1][0], states[2][0])
    reported = [json.loads(line) for line in (tmp_path / "faults.jsonl").read_text().splitlines()]
    assert sorted(row["number"] for row in reported) == list(range(12))


def test_phases_and_schedules_run(tmp_path):
    phases = Phases(first=FlowMatching(), then=BOTH, switch=0.5)
    runner = fit(module_of(phases), tmp_path, max_steps=4)
    assert float(runner.callback_metrics["train/tokens"]) == 12 * (2 * 4 + 1)
    assert float(runner.callback_metrics["train/on/velocity_error"]) > 0


def test_a_checkpoint_makes_the_module_again(tmp_path):
    module = module_of(DOPSD(), AveragedDenoiser(tiny(0), decay=0.5))
    fit(module, tmp_path).save_checkpoint(tmp_path / "a.ckpt")
    again = DenoisingModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(weights(again), weights(module))
    assert (again.objective, again.teacher_source, again.seed) == (module.objective, module.teacher_source, 5)
    for one, other in zip(again.models.teacher.parameters(), module.models.teacher.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_validation_samples_draws_and_exports_what_diffusers_reads(tmp_path):
    module = module_of(FlowMatching(), None)
    runner = fit(module, tmp_path, limit_val_batches=1.0, callbacks=[DenoiserFiles(shown=4)], batch_size=5, max_steps=3)
    found = float(runner.callback_metrics["validation/energy_distance"])
    batch = STRIPES.load("validation")
    runner.validate(module, runner.datamodule, verbose=False)
    assert found > 0
    assert torch.isfinite(module.evaluation.sample(module.student, batch, module.step_of(0))).all()
    pictures = {path.name: Image.open(path) for path in (tmp_path / "samples").iterdir()}
    assert {name: drawn.size for name, drawn in pictures.items()} == {
        "step-000003.png": (4 * 5, 5), "targets.png": (4 * 5, 5),
    }  # fmt: skip
    read = PretrainedDenoiser(str(tmp_path / "export"), subfolder="transformer").load()
    assert all(torch.equal(a, b) for a, b in zip(read.parameters(), module.student.parameters(), strict=True))


def test_a_picture_has_the_images_in_reading_order():
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    drawn = picture(images, columns=2)
    assert drawn.size == (6, 6)
    assert [drawn.getpixel(place) for place in ((0, 0), (3, 0), (0, 3))] == [(v, v, v, 255) for v in (0, 128, 255)]
    assert {drawn.getpixel(place)[3] for place in ((3, 3), (2, 0), (0, 2))} == {0}, "gaps are transparent"
    within = picture(images, columns=2, bounds=(0.0, 1.0))
    assert [within.getpixel(place)[0] for place in ((3, 0), (0, 3))] == [255, 255]


def test_an_adapter_alone_is_trained_averaged_and_merged_into_the_export(tmp_path):
    adapted = LoraDenoiser(tiny(0), rank=2, alpha=4.0, seed=9)
    module = module_of(DOPSD(), AveragedDenoiser(adapted, decay=0.5), adapted, optimizer=ADAM)
    module.configure_model()
    names = {name for name, p in module.student.named_parameters() if p.requires_grad}
    assert names
    assert all("lora_" in name for name in names)
    fit(module, tmp_path)
    start = dict(tiny(0).load().named_parameters())
    kept = {name.replace(".base_layer", ""): p for name, p in module.student.named_parameters() if "lora_" not in name}
    assert all(torch.equal(kept[name], p) for name, p in start.items())
    module.export(tmp_path / "merged")
    read = PretrainedDenoiser(str(tmp_path / "merged"), subfolder="transformer").load().eval()
    at = torch.tensor([0.0, 0.3, 0.6])
    plain = rows()
    given = plain.targets, at, plain.conditions
    with torch.no_grad():
        expected, untrained = module.student.eval().velocity(*given), tiny(0).load().eval().velocity(*given)
        torch.testing.assert_close(read.velocity(*given), expected, rtol=1e-4, atol=1e-5)
    assert (expected - untrained).abs().max() > 1e-4

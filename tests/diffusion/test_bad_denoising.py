"""What cannot work is said by name, with what to do, before anything is lost."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.diffusion.tiny_denoisers import SIZES, fit, module_of, rows, tiny
from veto_pl import DistillationModule
from veto_pl.cli.denoising_cli import DenoisingCLI
from veto_pl.diffusion import (
    DOPSD,
    ArrayImages,
    AveragedDenoiser,
    Denoiser,
    DenoiserFiles,
    FewSteps,
    FlowMatching,
    Gratings,
    ImageCall,
    ImageDataModule,
    LoraDenoiser,
    PretrainedDenoiser,
    RandomDenoiser,
    export_denoiser,
    rows_of_arrays,
)
from veto_pl.diffusion.denoiser_sharding import shard_denoiser
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.objectives import SFT, Sum
from veto_pl.testing.tiny import tiny_source

DEBUG = str(Path(__file__).resolve().parents[2] / "configs/diffusion/debug.yaml")
MIXED = Sum(terms={"a": FlowMatching()})
IMAGES = np.zeros((3, 1, 4, 4), np.float32)

VALUES = np.zeros((3, 5))


def broken(value, row=1):
    images = IMAGES.copy()
    images[row] = value
    return images


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, "there is no `targets`, only images"),
        ({"targets": broken(np.nan)}, "`targets` has NaN or infinite numbers in 1 rows, first row 1"),
        ({"targets": broken(np.inf, 2)}, "first row 2"),
        ({"targets": IMAGES.astype(np.uint8)}, "floating-point numbers, such as pixels"),
        ({"targets": IMAGES, "conditions.a": np.zeros((2, 5))}, "`conditions.a` has 2 rows, and `targets` 3"),
        ({"targets": IMAGES, "a": np.zeros((3, 5))}, "Call it `conditions.a` or `stronger.a`"),
        ({"targets": IMAGES, "stronger.a": np.array(["x"] * 3)}, "`stronger.a` is <U1"),
        (
            {"targets": IMAGES, "conditions.a": VALUES, "conditions.b": VALUES, "stronger.a": VALUES},
            "`stronger.b` is missing. The teacher is told its own condition alone",
        ),
    ],
)
def test_arrays_that_are_no_rows_are_named(arrays, message):
    with pytest.raises(DataError, match=message):
        rows_of_arrays(arrays)


def test_files_of_arrays(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, **{"targets": IMAGES + 1, "conditions.a": np.arange(3), "stronger.a": np.arange(3.0)})
    batch = ArrayImages(str(path)).load("train")
    assert ArrayImages(str(path)).load("validation") is None
    assert (len(batch), batch.conditions["a"].dtype, batch.stronger["a"].dtype) == (3, torch.int64, torch.float32)
    assert batch.numbers.tolist() == [0, 1, 2]
    path.write_bytes(b"no archive")
    for place in (path, tmp_path / "none.npz"):
        with pytest.raises(DataError, match=r"is no `\.npz` file with arrays"):
            ArrayImages(str(place)).load("train")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FewSteps(grid=(0.1, 0.5)), "`FewSteps.grid` must rise from 0"),
        (lambda: FewSteps(grid=()), "`FewSteps.grid` must rise from 0"),
        (lambda: FewSteps(grid=(0.0, 0.5, 0.5)), "`FewSteps.grid` must rise from 0"),
        (lambda: FewSteps(grid=(0.0, 1.0)), "stay below 1"),
        (lambda: FewSteps(grid=(0.0, float("nan"))), "stay below 1"),
        (lambda: FewSteps(samples=0), "`FewSteps.samples` must be at least 1"),
        (lambda: AveragedDenoiser(tiny(), decay=1.5), "`AveragedDenoiser.decay` must lie in"),
        (lambda: Gratings(width=3), "`Gratings.width` must be at least 64"),
        (lambda: ImageDataModule([1]), "`data.images`: given"),
        (lambda: ImageDataModule(Gratings(), batch_size=0), "`ImageDataModule.batch_size` must be at least 1"),
        (lambda: module_of(DOPSD(), None), "`DOPSD` needs a teacher, but `model.teacher` is not set"),
        (lambda: module_of(DOPSD, None), "It is the class: make one"),
        (lambda: module_of(DOPSD(), student=tiny_source()), "`model.student`: given"),
        (lambda: module_of(DOPSD(), tiny_source()), "`model.teacher`: given"),
        (lambda: module_of(SFT()), "expected an objective of states of a denoising model"),
        (lambda: module_of(Sum(terms={"a": DOPSD(), "b": SFT()})), "an objective of states"),
        (lambda: DistillationModule(FlowMatching(), tiny_source()), "`model.objective`: given .*FlowMatching"),
        (
            lambda: DistillationModule(Sum(terms={"a": FlowMatching()}), tiny_source()),
            "given `Noised.*expected an objective of texts",
        ),
        (lambda: RandomDenoiser("Nothing").load(), "must name a model of diffusers, got 'Nothing'"),
        (lambda: RandomDenoiser(settings={"x": 1}).load(), "`SD3Transformer2DModel` refuses them"),
        (lambda: PretrainedDenoiser("/no/such").load(), "given `/no/such`, expected a transformer"),
        (lambda: PretrainedDenoiser("/no", dtype="seven").load(), "`PretrainedDenoiser.dtype` must name"),
        (lambda: LoraDenoiser(tiny(), targets=("nowhere",)).load(), "`LoraDenoiser.targets`: given"),
    ],
)
def test_settings_that_cannot_work_are_named(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_without_diffusers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for source in (tiny(), PretrainedDenoiser("x")):
        with pytest.raises(ConfigurationError, match=r'needs diffusers: pip install "veto_pl\[diffusion\]"'):
            source.load()


def test_images_and_conditions_that_do_not_suit_the_model_are_named():
    model, batch = tiny().load(), rows()
    at = torch.zeros(3)
    with pytest.raises(ConfigurationError, match=r"takes no `prompt`\. Name the conditions of `data\.images`"):
        model.velocity(batch.targets, at, {"prompt": at})
    twice = RandomDenoiser(settings=SIZES | {"out_channels": 2}).load()
    with pytest.raises(ConfigurationError, match=r"predicts \[3, 2, 4, 4\] for states \[3, 1, 4, 4\]"):
        twice.velocity(batch.targets, at, batch.conditions)


def test_a_teacher_that_follows_has_the_students_shape():
    other = RandomDenoiser(settings=SIZES | {"num_layers": 1})
    module = module_of(DOPSD(), AveragedDenoiser(other))
    with pytest.raises(ConfigurationError, match="must have its architecture"):
        module.configure_model()


def test_models_that_cannot_be_sharded_are_named():
    """Before any rank asks for another: no mesh is needed to see it."""
    mixed = LoraDenoiser(tiny(), rank=2, seed=1).load()
    for name, weight in mixed.model.named_parameters():
        if "lora_" not in name:
            weight.data = weight.data.bfloat16()
    with pytest.raises(ConfigurationError, match=r"has one dtype, got bfloat16 and float32\. Set `dtype: float32`"):
        shard_denoiser(mixed, None)
    with pytest.raises(ConfigurationError, match="diffusers names no blocks of `Linear`"):
        shard_denoiser(Denoiser(torch.nn.Linear(2, 2), ImageCall()), None)


@pytest.mark.parametrize("place", ["model.student.init_args.settings.x", "model.optimizer"])
def test_no_setting_runs_what_is_of_another_kind(place, tmp_path):
    marker = tmp_path / "PWNED"
    attack = {"class_path": "os.system", "init_args": {"command": f"touch {marker}"}}
    with pytest.raises(ConfigurationError, match=re.escape(place.rpartition(".")[0])):
        DenoisingCLI(["--config", DEBUG, f"--{place}={json.dumps(attack)}"], run=False)
    assert not marker.exists()


def test_an_export_replaces_no_other_files(tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "thesis.txt").touch()
    with pytest.raises(ConfigurationError, match=r"would replace `thesis.txt`"):
        fit(module_of(FlowMatching(), None), tmp_path, callbacks=[DenoiserFiles()])
    with pytest.raises(ConfigurationError, match="Name an empty folder"):
        export_denoiser(tiny().load(), tmp_path / "export")
    assert (tmp_path / "export" / "thesis.txt").exists()


def test_without_rows_nothing_is_trained(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, targets=IMAGES[:0])
    with pytest.raises(DataError, match="`ArrayImages` has no rows to train on"):
        fit(module_of(FlowMatching(), None), tmp_path, images=ArrayImages(str(path)))

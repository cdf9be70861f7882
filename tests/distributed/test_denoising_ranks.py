"""Two ranks train a denoising student as one process does, whatever the micro-batches, and wherever the weights lie."""

from pathlib import Path

import pytest
import torch
from denoising import SOURCES, both, sharded, train

from veto_pl.commands.export_denoiser import export_denoiser_checkpoint
from veto_pl.diffusion import PretrainedDenoiser
from veto_pl.testing.ranks import run_ranks

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("denoising"))
    return train(folder, batch_size=6), run_ranks(both, 2, folder)


@pytest.mark.parametrize("split", [0, 1])
def test_two_ranks_are_one_process(runs, split):
    one, (first, second) = runs
    assert one["log"].isfinite().all()
    for name, expected in one.items():
        assert torch.equal(first[split][name], second[split][name]), name
        torch.testing.assert_close(first[split][name], expected, rtol=1e-4, atol=1e-5)
    assert (first[split]["weights"] - first[split]["teacher"]).abs().max() > 1e-5


@pytest.mark.parametrize("source", SOURCES)
def test_sharded_weights_are_those_of_one_process_after_a_resume_too(source, tmp_path):
    one = train(str(tmp_path), source, batch_size=6)
    first, second = run_ranks(sharded, 2, str(tmp_path), source)
    assert torch.equal(first["whole"]["log"], second["whole"]["log"])
    for name, expected in one.items():
        torch.testing.assert_close(first["whole"][name], expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(first["resumed"][name], first["whole"][name]), name
    assert (first["whole"]["weights"] - first["whole"]["teacher"]).abs().max() > 1e-5
    assert (tmp_path / f"{source}-stopped" / "last.ckpt").is_dir(), "each rank has written its part"
    export = Path(tmp_path, f"{source}-{source}-whole", "export")
    read = PretrainedDenoiser(str(export), subfolder="transformer").load()
    if source == "whole":
        exported = dict(read.model.state_dict())
        flat = torch.cat([exported[name].flatten() for name in sorted(exported)])
        assert torch.equal(flat, first["whole"]["weights"])
        export_denoiser_checkpoint(tmp_path / f"{source}-whole" / "last.ckpt", tmp_path / "again")
        again = PretrainedDenoiser(str(tmp_path / "again"), subfolder="transformer").load().model.state_dict()
        assert all(torch.equal(again[name], value) for name, value in exported.items())
    else:
        assert (export / "lora" / "pytorch_lora_weights.safetensors").is_file()

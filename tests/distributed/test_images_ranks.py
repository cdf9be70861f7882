"""Two ranks, of which one has all images, do what one process does, and no rank waits for another one's images."""

import pytest
import torch
from image_runs import train, train_all

from veto_pl.testing.ranks import run_ranks

pytestmark = pytest.mark.xdist_group("ranks")
CASES = {
    "ddp": {"style": "llava", "objective": "sampled", "strategy": "ddp"},
    "fsdp2": {"style": "qwen3_vl", "objective": "sampled", "strategy": "fsdp2"},
    "fsdp2, layer by layer": {"style": "idefics3", "objective": "SFT", "strategy": "fsdp2", "gather": (False, False)},
    "ddp, no images": {"style": "qwen2_5_vl", "objective": "SFT", "strategy": "ddp", "images": False},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def both_ranks(folder):
    return run_ranks(train_all, 2, folder, [case | {"batch_size": 2} for case in CASES.values()])


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_do_what_one_process_does(name, folder, both_ranks):
    expected = train(folder, **(CASES[name] | {"strategy": "auto"}))
    first, second = (rank[list(CASES).index(name)] for rank in both_ranks)
    assert len(expected["curve"]) == 3
    assert (expected["curve"][:, 1] > 1e-3).all()
    assert torch.equal(first["curve"], second["curve"])
    torch.testing.assert_close(first["curve"], expected["curve"], rtol=1e-5, atol=1e-5)
    for weight, value in first["weights"].items():
        torch.testing.assert_close(value, expected["weights"][weight], rtol=0, atol=1e-5)
    validated = {key: value for key, value in expected["metrics"].items() if key.startswith("validation/")}
    assert {key: first["metrics"][key] for key in validated} == pytest.approx(validated, rel=1e-4, abs=1e-5)

"""Two ranks train a denoising student as one process does, whatever the micro-batches."""

import pytest
import torch
from denoising import both, train

from veto_pl.testing.ranks import run_ranks

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("denoising"))
    return train(folder, each=2, batch_size=6), run_ranks(both, 2, folder)


@pytest.mark.parametrize("split", [0, 1])
def test_two_ranks_are_one_process(runs, split):
    one, (first, second) = runs
    assert one["log"].isfinite().all()
    for name, expected in one.items():
        assert torch.equal(first[split][name], second[split][name]), name
        torch.testing.assert_close(first[split][name], expected, rtol=1e-4, atol=1e-5)
    assert (first[split]["weights"] - first[split]["teacher"]).abs().max() > 1e-5

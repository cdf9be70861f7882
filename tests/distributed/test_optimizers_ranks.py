"""Optimizers other than SGD on two ranks, whole and sharded, end where one process does."""

import pytest
import torch
from runs import prepare, train, train_all

from veto_pl.testing.ranks import run_ranks

pytestmark = pytest.mark.xdist_group("ranks")
ROUNDED = {"Muon and AdamW": 2e-3, "fused AdamW": 1e-4}
"""What the weights may differ by. Muon turns matrices in bfloat16, where the order of sums shows."""


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_two_ranks_end_where_one_process_does(strategy, tmp_path):
    prepare(str(tmp_path))
    cases = [{"objective": "SFT", "optimizer": name} for name in ROUNDED]
    ranks = run_ranks(train_all, 2, str(tmp_path), [{**case, "batch_size": 4, "strategy": strategy} for case in cases])
    for case, two in zip(cases, ranks[0], strict=True):
        one, before = train(str(tmp_path), **case), train(str(tmp_path), **case, max_steps=1)
        moved = max((one["weights"][name] - before["weights"][name]).abs().max() for name in one["weights"])
        assert moved > 10 * ROUNDED[case["optimizer"]], "or nothing is compared"
        for name, weight in one["weights"].items():
            torch.testing.assert_close(two["weights"][name], weight, rtol=0, atol=ROUNDED[case["optimizer"]])

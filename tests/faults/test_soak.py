"""Two thousand steps through the real command: nothing grows."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import soak


@pytest.mark.slow
def test_a_long_run_holds_what_it_held_after_its_warm_up(tmp_path):
    run = soak.run(tmp_path / "run", 2000)
    assert len(run.probes) == 200
    assert run.line()[0] < 1024, f"{run.line()[0]:.0f} KB per 1,000 steps"
    for column in ("files", "threads", "children", "tensors"):
        assert len(set(run.values(column))) == 1, column
    assert max(run.values("objects")) < 1.002 * min(run.values("objects"))


def test_the_line_finds_a_leak():
    probes = [{"step": step, "resident": 500_000 + 3 * step} for step in range(10, 2010, 10)]
    assert soak.Soak(probes).line() == pytest.approx((3000, 500_000))

"""The script for a GPU judges by its bounds, and says what has failed; `make gpu-smoke` runs all of it on the CPU."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu

    return gpu


@pytest.mark.parametrize(
    ("ratio", "bounds", "word"),
    [
        (1.9, {"most": 2.0}, "PASS"),
        (2.1, {"most": 2.0}, "FAIL"),
        (0.8, {"least": 0.85, "most": 1.15}, "FAIL"),
        (float("nan"), {"most": 2.0}, "FAIL"),
    ],
)
def test_a_ratio_is_judged_by_its_bounds_except_in_a_smoke_run(script, ratio, bounds, word):
    judged = script.Verdict.judged("case", ratio, smoke=False, seconds=0.5, **bounds)
    assert judged.word == word
    assert str(judged).startswith(f"{word} case ratio {ratio:.3g} (")
    assert str(judged).endswith('{"seconds": 0.5}')
    assert script.Verdict.judged("case", ratio, smoke=True, **bounds).word == "PASS"


def test_what_a_check_raises_is_its_failure(script, monkeypatch):
    def broken(place):
        raise ValueError("no such kernel")
        yield

    monkeypatch.setitem(script.CHECKS, "broken", broken)
    (verdict,) = script.run_check("broken", script.Place.find(smoke=True))
    assert str(verdict).startswith('FAIL broken {"error": "ValueError: no such kernel (test_gpu_checks.py:')


def test_the_smallest_checks_run(script, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpu.py", "--smoke", "--only", "environment,attention"])
    assert script.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line[0] != " "][:3] == ["PASS"] * 3
    assert lines[-1].startswith("3 PASS, 0 FAIL, 0 SKIP")

"""Runs of several processes each."""

from pathlib import Path

import pytest

from veto_pl.commands.compare import run_study

ROOT = Path(__file__).parents[2]
STUDY = f"""
title: two processes
config: [{ROOT}/configs/debug/base.yaml, {ROOT}/configs/debug/veto.yaml]
settings: {{data: {{task: {{init_args: {{test_size: 9}}}}}}}}
methods: {{Veto: {{settings: {{trainer: {{devices: 2, strategy: ddp}}}}}}}}
baseline: Veto
budget: {{steps: 2}}
seeds: [1]
"""


pytestmark = [pytest.mark.xdist_group("compare"), pytest.mark.usefixtures("local_ray")]


@pytest.mark.long
@pytest.mark.slow  # by Ray's workers, whose time is not counted
def test_a_run_of_two_processes_is_the_run_of_one(tmp_path):
    """With half of the batch each."""
    alone = STUDY.replace("devices: 2, strategy: ddp", "devices: 1")
    files = {"two": STUDY.replace("data: {", "data: {batch_size: 4, ") + "devices: 2\n", "one": alone}
    found = {}
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
        found[name] = run_study(tmp_path / f"{name}.yaml", tmp_path / "out" / name, workers=1)
        assert not found[name].failures
    two, one = (found[name].trials[0] for name in ("two", "one"))
    assert two.cost.steps == one.cost.steps == 2
    assert two.cost.tokens == one.cost.tokens
    assert two.values["greedy/forward_kl"] == pytest.approx(one.values["greedy/forward_kl"], rel=1e-5)
    assert [a.tokens for a in two.answers] == [a.tokens for a in one.answers]


def test_a_run_that_asks_for_more_processes_than_the_study_says_is_refused(tmp_path):
    (tmp_path / "s.yaml").write_text(STUDY)
    found = run_study(tmp_path / "s.yaml", tmp_path / "out" / "s", workers=1)
    assert "`devices` of a study: given 1, but the run's trainer asks for 2" in found.failures["Veto, seed 1"]

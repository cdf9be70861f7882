"""Runs of several processes each."""

from pathlib import Path

import pytest

from veto_pl.commands.compare import run_study
from veto_pl.compare.pool import Pool
from veto_pl.exceptions import ConfigurationError

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


@pytest.mark.xdist_group("ranks")
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


def test_places_follow_from_cores_and_accelerators(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert Pool.of_this_machine() == Pool(16, 1, 0)
    assert Pool.of_this_machine(devices=2) == Pool(8, 1, 0)
    assert Pool.of_this_machine(4) == Pool(4, 4, 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert Pool.of_this_machine() == Pool(8, 2, 1)
    assert Pool.of_this_machine(devices=2) == Pool(4, 2, 2)
    assert Pool.of_this_machine(2, devices=2) == Pool(2, 4, 2)
    assert Pool.of_this_machine(16) == Pool(16, 1, 0)  # more runs than accelerators: they share


def test_every_place_has_its_own_accelerators():
    seen = []

    class Context:
        def Process(self, target, args):  # noqa: N802
            seen.append(args[2])
            return self

        def start(self):
            pass

    for place in range(3):
        Pool(3, 1, 2)._start(Context(), None, place)
        Pool(3, 1, 0)._start(Context(), None, place)
    assert seen == ["0,1", None, "2,3", None, "4,5", None]


def test_a_study_without_devices_is_refused():
    from veto_pl.compare.study import EqualBudget, Method, Study

    with pytest.raises(ConfigurationError, match="devices"):
        Study(title="t", methods={"A": Method()}, baseline="A", budget=EqualBudget(steps=1), devices=0)

"""Runs on Ray: what each gets, and what is said of processes, workers and nodes that go."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.compare import cluster, node
from veto_pl.compare.cluster import Cluster, Share
from veto_pl.compare.jobs import Job
from veto_pl.compare.node import STOP_SECONDS, Origin, run_in_process
from veto_pl.exceptions import ConfigurationError, VetoError

pytestmark = pytest.mark.xdist_group("compare")

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("nodes", "devices", "workers", "share"),
    [
        ([(16, 0)], 1, None, Share(1, 0, 16)),
        ([(16, 0)], 2, None, Share(2, 0, 8)),
        ([(16, 0)], 1, 4, Share(4, 0, 4)),
        ([(2, 0)], 1, 3, Share(0.5, 0, 3)),
        ([(16, 8)], 1, None, Share(2, 1, 8)),
        ([(16, 8)], 2, None, Share(4, 2, 4)),
        ([(16, 8)], 2, 2, Share(8, 2, 2)),
        ([(16, 8)], 1, 16, Share(1, 0.5, 16)),  # more runs than GPUs: they share
        ([(16, 1)], 2, None, Share(2, 0, 8)),  # no run has room for two processes with a GPU each
        ([(64, 0), (8, 4), (16, 4)], 1, None, Share(2, 1, 8)),  # nodes without GPUs take no part
        ([(0, 0), (4, 0), (8, 0)], 1, 2, Share(4, 0, 2)),
    ],
)
def test_what_a_run_gets(nodes, devices, workers, share):
    assert Share.of(nodes, devices, workers) == share


@given(st.integers(1, 64), st.integers(0, 8), st.integers(1, 20))
def test_one_node_has_room_for_all_workers_at_once(cores, gpus, workers):
    share = Share.of([(cores, gpus)], 1, workers)
    for have, part in ((cores, share.cores), (gpus, share.gpus)):
        places = have // part if part >= 1 else have * int(1 / part) if part else workers
        assert places >= workers


@pytest.mark.parametrize(
    ("nodes", "devices", "workers", "words"),
    [
        ([(4, 0)], 1, 0, "`--workers` must be at least 1, got 0"),
        ([(4, 2)], 2, 2, "`--workers` 2 times `devices` 2 are more than there are GPUs"),
        ([(0, 0)], 1, None, "no node of the cluster has one"),
    ],
)
def test_nodes_that_cannot_do_it_are_named(nodes, devices, workers, words):
    with pytest.raises(ConfigurationError, match=words):
        Share.of(nodes, devices, workers)


@pytest.fixture
def origin(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/marker").touch()
    return Origin(tmp_path, Path("out/marker"))


def test_a_node_that_sees_another_folder_or_has_another_version_is_named(tmp_path, origin, monkeypatch):
    monkeypatch.chdir("/")
    origin.enter()
    assert Path.cwd() == tmp_path
    with pytest.raises(ConfigurationError, match=r"does not see `.*/elsewhere`. Set `--out`"):
        replace(origin, marker=Path("elsewhere/marker")).enter()
    with pytest.raises(ConfigurationError, match=r"has veto_pl .*, not 0\.0\.1"):
        replace(origin, package="0.0.1").enter()


def killed(job, *_):
    os.kill(os.getpid(), int(job.name))


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGABRT, "signal 6; see"), (signal.SIGKILL, r"signal 9 \(out of memory\?\); see")]
)
def test_a_process_that_dies_is_told_with_its_signal(tmp_path, origin, monkeypatch, number, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(node, "_run_forked", killed)
    reason, _ = run_in_process(Job(str(int(number)), tmp_path / "job", (), {}), origin, 1)
    assert re.search(f"was killed by {words}", reason)


def sleeping(job, *_):
    (job.folder.parent / "out/marker").unlink()
    time.sleep(STOP_SECONDS)


def test_a_run_ends_where_the_study_no_longer_wants_it(tmp_path, origin, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(node, "_run_forked", sleeping)
    reason, seconds = run_in_process(Job("unwanted", tmp_path / "job", (), {}), origin, 1)
    assert seconds < STOP_SECONDS / 2
    assert re.search("was killed by signal 15", reason)


def jobs(folder, *names):
    return [Job(name, folder / name, (), {}) for name in names]


def test_a_worker_that_dies_takes_no_other_along(tmp_path, local_ray, monkeypatch):
    def fate(job, *_):
        if job.name == "dying":
            os.kill(os.getpid(), signal.SIGKILL)
        return None, 1.0

    monkeypatch.setattr(cluster, "run_in_process", fate)
    ended = []
    with Cluster(tmp_path) as here:
        failed = here.run(
            jobs(tmp_path, "a", "dying", "b"), lambda job, reason, _: ended.append((job.name, reason is None))
        )
    assert sorted(ended) == [("a", True), ("b", True), ("dying", False)]
    ((folder, reason),) = failed.items()
    assert folder.name == "dying"
    assert reason.startswith("Ray lost its worker")
    assert local_ray.is_initialized()


def test_a_node_that_cannot_be_used_ends_the_study_with_its_reason(tmp_path, local_ray, monkeypatch):
    def fate(job, origin, _):
        if job.name == "lost":
            replace(origin, package="0.0.1").enter()
        while origin.marker.exists():  # as a cancellation that met a starting worker is lost
            time.sleep(0.1)

    monkeypatch.setattr(cluster, "run_in_process", fate)
    since = time.monotonic()
    with pytest.raises(ConfigurationError, match=r"not 0\.0\.1"), Cluster(tmp_path) as here:
        here.run(jobs(tmp_path, "waiting", "lost"), print)
    assert time.monotonic() - since < STOP_SECONDS
    assert not list(tmp_path.glob(".started-*"))


def test_a_cluster_without_a_node_for_a_run_ends_the_study(tmp_path, local_ray, monkeypatch):
    monkeypatch.setattr(cluster, "_POLL_SECONDS", 0.1)
    monkeypatch.setattr(Share, "of", lambda *_: Share(64, 0, 1))
    with pytest.raises(VetoError, match="No node is left with the 64 cores"), Cluster(tmp_path) as here:
        here.run(jobs(tmp_path, "a"), print)


def test_without_ray_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(ConfigurationError, match=r"A study needs ray: pip install .veto_pl\[compare\]"),
        Cluster(tmp_path) as here,
    ):
        here.share()


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere", "nowhere.invalid:6379"])
def test_an_address_where_nothing_answers_is_named(address):
    with pytest.raises(ConfigurationError, match=f"expected HOST:PORT of a Ray cluster, or auto, got `{address}`"):
        cluster._reachable(address)


STUDY = f"""
title: two nodes
config: [{ROOT}/configs/debug/base.yaml, {ROOT}/configs/debug/sft.yaml]
settings: {{data: {{task: {{init_args: {{test_size: 8}}}}}}}}
methods: {{SFT: {{}}}}
baseline: SFT
budget: {{steps: 300}}
seeds: [1, 2]
"""


@pytest.mark.slow
def test_a_run_whose_node_leaves_goes_on_at_another_one(tmp_path):
    from ray.cluster_utils import Cluster as Nodes

    (tmp_path / "study.yaml").write_text(STUDY)
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        leaving = nodes.add_node(num_cpus=1)
        command = [sys.executable, "-m", "veto_pl", "compare", "study.yaml", "--out=out", f"--address={nodes.address}"]
        study = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        deadline = time.monotonic() + 900
        while len(trained(tmp_path)) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        nodes.remove_node(leaving, allow_graceful=False)
        output, _ = study.communicate(timeout=600)
    finally:
        nodes.shutdown()
    assert study.returncode == 0, output
    assert "trials: 2 runs, 2 at a time" in output
    assert "2 of 2" in (tmp_path / "out/comparison.md").read_text()
    assert sorted("Restored all states" in log for log in trained(tmp_path)) == [False, True]


def trained(folder):
    """The logs of the runs that have made steps."""
    logs = [file.read_text(errors="replace") for file in folder.glob("out/trials/SFT/*/run.log")]
    return [log for log in logs if "step 30/" in log]

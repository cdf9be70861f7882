"""A run takes as many threads as cores are free, says so, and keeps to the number where it goes on."""

import math
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.callbacks import threads
from veto_pl.callbacks.threads import Threads
from veto_pl.core import cores
from veto_pl.core.cores import Usage, allowed_cores
from veto_pl.exceptions import ConfigurationError

SECONDS = st.floats(0, 1e6)


@given(SECONDS, SECONDS, SECONDS, st.floats(0.1, 1e3), st.floats(0, 64), st.floats(0, 64))
def test_what_others_compute_is_what_is_left_of_all(at, own, everybody, seconds, by_own, by_others):
    before = Usage(at, own, everybody)
    later = Usage(at + seconds, own + by_own * seconds, everybody + (by_own + by_others) * seconds)
    assert before.of_others(later) == pytest.approx(by_others, abs=1e-3)


def test_what_the_system_does_not_say_is_not_known():
    known, unknown = Usage(0.0, 0.0, 1.0), Usage(1.0, 0.0, None)
    assert known.of_others(unknown) is unknown.of_others(known) is None
    assert known.of_others(known) is None, "no time has passed"


def test_the_kernels_table_is_read_for_the_cores_that_may_be_used(tmp_path, monkeypatch):
    """Users, niced ones, kernel, idle, waiting, interrupts (2), other guests; guests are counted among the users."""
    (tmp_path / "stat").write_text(
        "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 1 2 4 800 800 8 16 32 5 5\ncpu7 99 0 0 0 0 0 0 0\nx 1\n"
    )
    monkeypatch.setattr(cores, "PROC", tmp_path / "stat")
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: {0})
    monkeypatch.setattr(cores.os, "sysconf", lambda name: 1)
    assert Usage.now().all == 1 + 2 + 4 + 8 + 16 + 32
    (tmp_path / "stat").write_text("no table")
    assert Usage.now().all is None


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({}, 4),
    ],
)
def test_the_quota_of_a_container_bounds_the_cores(files, limit, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cores, "CGROUP", tmp_path)
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert allowed_cores() == limit


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many cores, of which others keep some busy; gives back PyTorch's own number of threads."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()

    def of(number, busy, own=None):
        monkeypatch.setattr(threads, "LOOK", 0.0)
        monkeypatch.setattr(threads, "allowed_cores", lambda: number)
        monkeypatch.setattr(Usage, "of_others", lambda self, later: busy)
        torch.set_num_threads(own or number)

    yield of
    torch.set_num_threads(before)


def chosen(number="auto", processes=1, device="cpu", state=None):
    callback = Threads(number)
    trainer = Mock(world_size=processes)
    trainer.strategy.root_device = torch.device(device)
    callback.setup(trainer, Mock(), "fit")
    if state is not None:
        callback.load_state_dict(state)
    found = torch.get_num_threads(), callback.state_dict()
    callback.release()
    return found


@pytest.mark.parametrize(
    ("number", "busy", "own", "expected"),
    [(4, 0.0, 4, 4), (4, 2.6, 4, 1), (4, 1.4, 4, 3), (4, 9.0, 4, 1), (2, 0.0, 64, 2), (4, None, 4, 4), (8, 0.0, 2, 2)],
)
def test_there_are_as_many_threads_as_free_cores_and_never_more_than_pytorchs(number, busy, own, expected, machine):
    machine(number, busy, own)
    assert chosen() == (expected, {"threads": expected})
    assert torch.get_num_threads() == own, "it is given back"


def test_the_choice_is_said(machine, caplog):
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    machine(4, 3.0)
    chosen()
    assert "Computes with 1 thread, for other processes keep 3.0 of 4 cores busy. `--threads N`, or OMP" in caplog.text


def test_the_users_own_number_is_taken(machine, monkeypatch):
    machine(4, 4.0)
    assert chosen(3) == (3, {"threads": 3})
    assert chosen(3, state={"threads": 2})[0] == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert chosen() == (4, {}), "the environment decides"
    assert chosen(2)[0] == 2, "but for a setting"


@pytest.mark.parametrize("where", [{"processes": 2}, {"device": "cuda"}])
def test_nothing_is_chosen_where_others_share_the_cores(where, machine):
    machine(4, 4.0)
    assert chosen(**where) == (4, {})


def test_a_run_goes_on_with_the_threads_that_it_began_with(machine):
    """Sums over other parts round otherwise."""
    machine(4, 4.0)
    assert chosen(state={"threads": 3}) == (3, {"threads": 3})
    assert chosen(state={"threads": 64})[0] == 4, "there are no more cores"
    assert chosen(state={})[0] == 1


def test_no_thread_is_refused():
    with pytest.raises(ConfigurationError, match="`threads` must be at least 1, got 0"):
        Threads(0)


def test_a_quota_is_no_number_without_files(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "CGROUP", tmp_path)
    assert cores._quota() == math.inf

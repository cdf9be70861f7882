"""Formulas are compared in another process, which any of them may bring to its end."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from veto_pl.data import formulas
from veto_pl.data.formulas import same_formula

ASKING = f"""
import runpy
names = runpy.run_path({formulas.__file__!r})
names["same_formula"]("x+1", "1+x")
print(names["_idle"][0]._popen.pid, flush=True)"""
HOSTILE = ["9^{9^{9^{9}}}", "\ud800}{"]


@pytest.fixture(autouse=True)
def _anew():
    """Processes of its own for each test, and nothing remembered."""
    formulas._idle.clear()
    same_formula.cache_clear()
    yield
    formulas._idle.clear()


def process():
    (kept,) = formulas._idle
    return kept._popen


def children():
    """The processes below this one, those that have ended and wait to be counted too."""
    with open(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children") as file:
        return {int(number) for number in file.read().split()}


def test_formulas_are_compared_by_one_process():
    assert same_formula("2\\sqrt{3}", "\\sqrt{12}")
    first = process().pid
    assert not same_formula("x+1", "x+2")
    assert same_formula("x+1", "1+x")
    assert process().pid == first


@pytest.mark.parametrize("text", HOSTILE)
def test_a_formula_without_end_is_given_up_and_the_next_is_compared(text, monkeypatch):
    monkeypatch.setattr(formulas, "LIMIT", 0.5)
    assert same_formula("x+1", "1+x")
    start = time.monotonic()
    assert not same_formula(text, "x^2+1")
    assert time.monotonic() - start < 20
    assert same_formula("x+2", "2+x")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_dies_is_replaced(number):
    assert same_formula("x+1", "1+x")
    dead = process().pid
    os.kill(dead, number)
    assert same_formula("x+2", "2+x")
    assert process().pid != dead
    assert dead not in children()


def test_a_pair_that_kills_every_process_counts_as_different_and_is_told(monkeypatch, caplog):
    monkeypatch.setattr(formulas, "_START", "print('true', flush=True); input(); raise SystemExit(7)")
    assert not same_formula("x", "x")
    assert "code 7" in caplog.text


def test_what_cannot_be_started_is_no_verdict(monkeypatch):
    monkeypatch.setattr(formulas, "_START", "raise SystemExit(3)")
    with pytest.raises(RuntimeError, match=r"exit code 3.*pip install math-verify"):
        same_formula("x", "x")


def test_threads_compare_at_the_same_time():
    found = {}

    def work(n):
        found[n] = [same_formula(f"\\frac{{{n}}}{{3}}x", f"\\frac{{{2 * m}x}}{{6}}") for m in range(1, 4)]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [m == n for m in range(1, 4)] for n in range(1, 4)}
    assert 1 <= len(formulas._idle) <= 3


def compare_and_leave(queue):
    queue.put((same_formula("x+3", "3+x"), process().pid))


@pytest.mark.parametrize("daemon", [False, True])
def test_a_forked_process_has_its_own_and_leaves_none(daemon):
    """A loader's process is a daemon, which may have no children by `multiprocessing`."""
    assert same_formula("x+1", "1+x")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=compare_and_leave, args=(queue,), daemon=daemon)
    child.start()
    equal, other = queue.get(timeout=60)
    child.join()
    assert equal
    assert other != process().pid
    with pytest.raises(ProcessLookupError):
        os.kill(other, 0)
    assert same_formula("x+2", "2+x")


def test_nothing_is_left_when_python_ends():
    line = [sys.executable, "-W", "error", "-c", ASKING]
    ended = subprocess.run(line, capture_output=True, text=True, check=True)
    assert ended.stderr == ""
    with pytest.raises(ProcessLookupError):
        os.kill(int(ended.stdout), 0)


def test_it_ends_by_itself_when_who_asked_is_killed():
    asker = subprocess.Popen([sys.executable, "-c", f"{ASKING}; input()"], stdin=-1, stdout=-1, text=True)
    other = int(asker.stdout.readline())
    asker.kill()
    asker.communicate()
    deadline = time.monotonic() + 30
    while os.path.exists(f"/proc/{other}") and time.monotonic() < deadline:
        if " Z " in Path(f"/proc/{other}/stat").read_text():
            return  # it has ended, and nobody here adopts it
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{other}")

"""The folder of a program goes, however long that takes, and no verdict waits for it."""

import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from veto_pl.sandbox import Limits, Tests, judge, removal
from veto_pl.sandbox.commands import path_of

SLOWLY = 'while [ -e "$2/../gate" ]; do sleep 0.02; done; rm -rf "$2"'


@pytest.fixture
def gate(tmp_path, monkeypatch):
    """While this file exists, no removal goes on."""
    monkeypatch.setattr(removal, "_REMOVE", SLOWLY)
    path = tmp_path / "gate"
    path.touch()
    yield path
    path.unlink(missing_ok=True)
    removal.wait_for_removals()


def filled(folder):
    folder.mkdir()
    (folder / "file").touch()
    return folder


def test_a_verdict_does_not_wait_for_the_folder_of_its_program(gate, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tests = Tests(code="assert f() == 1", names=("f",))
    assert judge(tests, "def f(): open('a', 'w'); return 1", Limits(protection="limits")).passed
    (left,) = tmp_path.glob("veto-sandbox-*")
    assert stat.S_IMODE(left.stat().st_mode) == 0o700
    assert left.stat().st_uid == os.geteuid(), "no program that gets the same user may enter"
    gate.unlink()
    removal.wait_for_removals()
    assert list(tmp_path.iterdir()) == []


def test_no_more_than_so_many_removals_go_on(gate, tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(removal, "WAIT_SECONDS", 0.01)
    monkeypatch.setattr(removal, "MAX_PENDING", 2)
    monkeypatch.setattr(subprocess.Popen, "wait", opening(gate, waited, subprocess.Popen.wait))
    for number in range(3):
        removal.remove(str(filled(tmp_path / str(number))))
        assert waited == ([] if number < 2 else [None])
    assert not (tmp_path / "0").exists()


def opening(gate, waited, wait):
    """A `Popen.wait` that opens the gate where somebody waits without a bound."""

    def wait_for(process, timeout=None):
        if timeout is None:
            waited.append(timeout)
            gate.unlink(missing_ok=True)
        return wait(process, timeout)

    return wait_for


def test_a_removal_outlives_the_process_that_began_it(tmp_path):
    (tmp_path / "gate").touch()
    folder = filled(tmp_path / "folder")
    code = f"from veto_pl.sandbox import removal\nremoval._REMOVE = {SLOWLY!r}\nremoval.remove({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert folder.exists()
    (tmp_path / "gate").unlink()
    deadline = time.monotonic() + 60
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not folder.exists()


def test_a_folder_that_its_owner_may_not_read_goes_too():
    """By the hands of a user that is not root, who needs no rights."""
    user = 12345 if os.geteuid() == 0 else os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        outer = filled(Path(name) / "outer")
        inner = filled(outer / "inner")
        for path in (Path(name), outer, inner, inner / "file", outer / "file"):
            os.chown(path, user, -1)
        inner.chmod(0)
        outer.chmod(0o500)
        line = [path_of("sh"), "-c", removal._REMOVE, path_of("rm"), path_of("chmod"), str(outer)]
        subprocess.run(line, check=True, user=user if os.geteuid() == 0 else None, capture_output=True)
        assert os.listdir(name) == []

"""Which programs the sandbox starts, with which environment, and what a program still sees at each level."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.sandbox.test_sandbox_hostile import LEVELS_HERE
from veto_pl.sandbox import Limits, Tests, judge, protection
from veto_pl.sandbox import processes as processes_module
from veto_pl.sandbox.commands import LEVELS, missing_tool, path_of

TWICE = Tests(code="assert f(2) == 4", names=("f",))


@pytest.fixture
def fresh_probe():
    module = __import__("sys").modules["veto_pl.sandbox.protection"]
    module._first_working.cache_clear()
    yield
    module._first_working.cache_clear()


@pytest.fixture
def only(tmp_path, monkeypatch):
    """Makes `PATH` a folder of these programs only."""

    def choose(*names):
        for name in names:
            (tmp_path / name).symlink_to(shutil.which(name))
        monkeypatch.setenv("PATH", str(tmp_path))

    return choose


@pytest.mark.parametrize("level", LEVELS_HERE)
def test_no_program_gets_the_environment_of_this_process(level, monkeypatch):
    """One variable of so many characters is more than the kernel passes to a new program."""
    monkeypatch.setenv("VETO_TEST_LONG", "(" * 300_000)
    assert judge(TWICE, "open('a', 'w').write('b')\ndef f(x): return 2 * x", Limits(protection=level)).passed


def test_a_program_of_a_level_is_started_from_where_it_was_found(only, fresh_probe, monkeypatch, tmp_path):
    needed = {"bubblewrap": ["bwrap"], "unshare": ["unshare", "setpriv", "mount", "sh"], "limits": []}
    only("rm", "chmod", *{"sh", *(name for level in LEVELS_HERE for name in needed[level])})
    started = []
    spawn = processes_module._spawn
    monkeypatch.setattr(processes_module, "_spawn", lambda line, *rest: started.append(line[0]) or spawn(line, *rest))
    for level in LEVELS_HERE:
        assert judge(TWICE, "def f(x): return 2 * x", Limits(protection=level)).passed
    outermost = {Path(path).name for path in started if Path(path).parent == tmp_path}
    assert outermost == {{"bubblewrap": "bwrap", "unshare": "setpriv"}[level] for level in {*LEVELS_HERE} - {"limits"}}


def test_what_is_not_in_the_path_is_not_used(only, fresh_probe):
    only("sh", "rm", "chmod")
    assert [missing_tool(level) for level in LEVELS] == ["bwrap", "unshare", None]
    assert protection().level == "limits"
    with pytest.raises(FileNotFoundError, match="`bwrap` is not installed"):
        path_of("bwrap")


SIGHT = """
import os
def f(x):
    actions = {
        "read": lambda: open(FILE).read(), "list": lambda: os.listdir(FOLDER), "size": lambda: os.stat(FILE),
        "target": lambda: os.readlink(FOLDER + "/link"), "enter": lambda: os.chdir(FOLDER),
        "process": lambda: os.stat(f"/proc/{PARENT}"), "command": lambda: open(f"/proc/{PARENT}/cmdline").read(),
    }
    seen = []
    for name, action in actions.items():
        try:
            action()
            seen.append(name)
        except OSError:
            pass
    return seen"""
SEEN = {
    "bubblewrap": [],
    "unshare": ["size", "target", "enter"],
    "limits": ["size", "target", "enter", "process"],
}


@pytest.mark.parametrize("level", LEVELS_HERE)
def test_what_a_program_still_sees_is_what_the_docs_say(level):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "file").write_text("secret")
        (folder / "link").symlink_to("file")
        header = f"FOLDER, FILE, PARENT = {name!r}, {str(folder / 'file')!r}, {os.getpid()}\n"
        tests = Tests(code="assert f(0) == SEEN", names=("f",), values={"SEEN": SEEN[level]})
        assert judge(tests, header + SIGHT, Limits(protection=level)).passed


@pytest.mark.parametrize("level", LEVELS_HERE)
def test_a_program_holds_its_pipes_and_nothing_else(level):
    """But for folders of the standard library, where the interpreter lies in a folder that only root may enter."""
    program = """
import os, stat
def f():
    kinds = []
    for number in range(3, 128):
        try: kinds.append(stat.S_IFMT(os.fstat(number).st_mode))
        except OSError: pass
    return [kind for kind in kinds if kind != stat.S_IFDIR] == [stat.S_IFIFO] * 2"""
    assert judge(Tests(code="assert f()", names=("f",)), program, Limits(protection=level)).passed

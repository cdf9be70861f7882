"""A checkpoint is there whole or not at all: processes killed while writing, full disks, files that are none."""

import errno
import os
import pickle
import random
import resource
import signal
import time
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from veto_pl.exceptions import ConfigurationError
from veto_pl.storage import atomic
from veto_pl.storage.atomic import recover, replacing, swap_in
from veto_pl.storage.checkpoint_io import AtomicCheckpointIO, read_checkpoint


def checkpoint(mark: int, size: int = 1000) -> dict:
    return {"state_dict": {"w": torch.full((size,), float(mark))}, "pytorch-lightning_version": "2.6.0", "mark": mark}


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_was_saved_is_read(tmp_path):
    AtomicCheckpointIO().save_checkpoint(checkpoint(1), tmp_path / "deep" / "a.ckpt")
    assert torch.equal(read_checkpoint(tmp_path / "deep" / "a.ckpt")["state_dict"]["w"], torch.ones(1000))
    assert files(tmp_path / "deep") == {"a.ckpt"}


def in_a_child(action) -> int:
    """Runs something in a process of its own, which ends without any clean-up; its process id."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(0)
    return child


def test_a_process_killed_while_writing_leaves_the_old_or_the_new_one(tmp_path):
    """12 MB, written over and over, killed at random moments."""
    path, clock = tmp_path / "last.ckpt", random.Random(0)

    def keep_saving():
        for mark in range(1, 1000):
            AtomicCheckpointIO().save_checkpoint(checkpoint(mark, 3_000_000), path)

    AtomicCheckpointIO().save_checkpoint(checkpoint(0, 3_000_000), path)
    halves = kills = 0
    while kills < 12 or (halves < 3 and kills < 200):  # on a busy machine few of them hit a write
        kills += 1
        child = in_a_child(keep_saving)
        time.sleep(clock.uniform(0.02, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        read = read_checkpoint(path)
        assert (read["state_dict"]["w"] == read["mark"]).all()
        halves += len(files(tmp_path)) - 1
    assert halves >= 3, "no kill has hit a write"
    AtomicCheckpointIO().save_checkpoint(checkpoint(7), tmp_path / "other.ckpt")
    assert files(tmp_path) == {"last.ckpt", "other.ckpt"}, "leftovers are removed at the next save"


def test_a_full_disk_keeps_the_old_one_and_lets_the_run_go_on(tmp_path):
    """The operating system refuses to let a file grow beyond a megabyte; PyTorch's own error would not say so."""
    writer, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    writer.save_checkpoint(checkpoint(1), path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.warns(UserWarning, match=r"last\.ckpt could not be written: .*File too large.* The run goes on"):
            writer.save_checkpoint(checkpoint(2, 3_000_000), path)
        assert writer.failure.errno == errno.EFBIG
        writer.remove_checkpoint(path)  # it was to be replaced by the one that failed
        stopping = AtomicCheckpointIO(on_failed_save="stop")
        with pytest.raises(OSError, match="File too large"):
            stopping.save_checkpoint(checkpoint(2, 3_000_000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert files(tmp_path) == {"last.ckpt"}
    assert read_checkpoint(path)["mark"] == 1
    writer.save_checkpoint(checkpoint(3), path)
    assert read_checkpoint(path)["mark"] == 3
    assert writer.failure is None
    writer.remove_checkpoint(path)
    assert files(tmp_path) == set()


class Payload:
    """Would make a file if anything unpickled it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def damaged(folder: Path) -> dict:
    whole = folder / "whole.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(1), whole)
    data = whole.read_bytes()
    torch.save({"weights": torch.zeros(3)}, folder / "weights.pt")
    torch.save({"state_dict": {}, "pytorch-lightning_version": Payload(folder / "run")}, folder / "code.pt")
    return {
        "cut": data[: len(data) // 2],
        "empty": b"",
        "text": b"not a checkpoint\n",
        "pickle": pickle.dumps(Payload(folder / "run")),
        "code": (folder / "code.pt").read_bytes(),
        "weights": (folder / "weights.pt").read_bytes(),
    }


@pytest.mark.parametrize("kind", ["cut", "empty", "text", "pickle", "code", "weights", "missing", "folder"])
def test_what_is_no_checkpoint_is_named_and_the_others_are_too(kind, tmp_path):
    contents = damaged(tmp_path)
    path = tmp_path / "last.ckpt"
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(contents[kind])
    with pytest.raises(ConfigurationError, match=r"last\.ckpt` (cannot be read|is no checkpoint of a run)") as caught:
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert "Beside it there are: whole.ckpt." in str(caught.value)
    assert not (tmp_path / "run").exists(), "code in the file was run"


def make_folder(path: Path, mark: str) -> Path:
    path.mkdir()
    (path / "part").write_text(mark)
    return path


@pytest.mark.parametrize("moves", range(6))
def test_a_swap_of_folders_that_is_cut_anywhere_is_finished_by_the_next_reader(moves, tmp_path):
    """The process dies before its n-th move; what is read afterwards is the old folder or the new one.

    So on systems that cannot exchange two names.
    """
    final = make_folder(tmp_path / "last.ckpt", "old")
    done = []

    def dying_before(name):
        original = getattr(Path, name)

        def move(self, *rest):
            if len(done) == moves:
                os._exit(0)
            done.append(name)
            return original(self, *rest)

        return move

    def swap():
        with (
            patch.object(Path, "replace", dying_before("replace")),
            patch.object(atomic, "exchange", lambda *_: False),
        ):
            swap_in(make_folder(tmp_path / "written", "new"), final)

    os.waitpid(in_a_child(swap), 0)
    assert recover(final)
    assert (final / "part").read_text() == ("old" if moves == 0 else "new")
    assert files(tmp_path) - {"written"} == {"last.ckpt"}


def test_a_file_and_a_folder_replace_each_other(tmp_path):
    final = tmp_path / "last.ckpt"
    final.write_text("file")
    with replacing(final) as temporary:
        make_folder(temporary, "folder")
    assert (final / "part").read_text() == "folder"
    with replacing(final) as temporary:
        temporary.write_text("file")
    assert final.read_text() == "file"
    assert files(tmp_path) == {"last.ckpt"}
    assert not recover(tmp_path / "nothing")


def test_data_reach_the_disk_before_they_are_moved(tmp_path):
    """A power cut must not find a name that points to blocks that were never written."""
    events = []
    synced, replaced = os.fsync, Path.replace

    def sync(descriptor):
        events.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        synced(descriptor)

    def replace(self, target):
        events.append(("move", self.name))
        return replaced(self, target)

    with patch.object(atomic.os, "fsync", sync), patch.object(Path, "replace", replace):
        AtomicCheckpointIO().save_checkpoint(checkpoint(1), tmp_path / "a.ckpt")
    assert events == [("sync", ".a.ckpt.writing"), ("move", ".a.ckpt.writing"), ("sync", tmp_path.name)]

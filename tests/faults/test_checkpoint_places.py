"""What is given as a checkpoint and is none: a sentence, at once, and no waiting."""

import os

import pytest
import torch

from tests.marks import fast
from veto_pl.commands.main import main
from veto_pl.storage.resume import warn_of_differences

LAUGHS = "a: &a {x: 1, y: 2}\n" + "\n".join(
    f"{b}: &{b} {{{', '.join(f'k{i}: *{a}' for i in range(9))}}}" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)

LISTS = "a: &a [x, y]\n" + "\n".join(
    f"{b}: &{b} [{', '.join(f'*{a}' for _ in range(9))}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
LISTS = "model:\n" + "\n".join(f"  {line}" for line in LISTS.splitlines())


def text(path):
    path.write_text("no checkpoint")


def cut(path):
    torch.save({"state_dict": {"w": torch.ones(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])


PLACES = {
    "a pipe": (os.mkfifo, "is a pipe or a device"),
    "a folder": (os.mkdir, "is a folder, and not that of a sharded run"),
    "a text": (text, "cannot be read: it is cut short, or another kind of file"),
    "half": (cut, "cannot be read: it is cut short, or another kind of file"),
    "nothing": (lambda path: None, "does not exist"),
}
NAMES = {"best": "does not exist", "hpc": "does not exist", "": "is no path", "/dev/zero": "is a pipe or a device",
         "a\0b": "does not exist", "x" * 5000: "does not exist", "registry:mine": "does not exist"}  # fmt: skip


def commands(config_file, given, folder):
    yield ["export", given, str(folder / "out")]
    for name in ("fit", "validate", "test", "predict"):
        yield [name, "--config", config_file, "--run_dir", str(folder / "run"), f"--ckpt_path={given}"]


def refused(arguments, *messages):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert str(end.value.code).startswith("veto-pl: The checkpoint `")
    assert all(message in str(end.value.code) for message in messages)


@pytest.mark.parametrize("kind", fast(PLACES, "nothing", "half"))
def test_a_path_that_leads_to_no_checkpoint(kind, config_file, tmp_path):
    make, message = PLACES[kind]
    make(tmp_path / "a.ckpt")
    (tmp_path / "other.ckpt").touch()
    for arguments in commands(config_file, str(tmp_path / "a.ckpt"), tmp_path):
        refused(arguments, message, f"There are: {tmp_path / 'other.ckpt'}.")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", fast(NAMES, "best", "/dev/zero"), ids=lambda name: repr(name[:12]))
def test_a_word_that_is_no_checkpoint(name, config_file, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "kept.ckpt").touch()
    _, *fits = commands(config_file, name, tmp_path)
    expected = f"expected `last` or a checkpoint that a run has written. There are: {tmp_path / 'run'}"
    for arguments in fits[:2]:
        refused(arguments, NAMES[name], *([] if "/" in name else [expected]))


@pytest.mark.parametrize(
    "told", ["{", "&a {k: *a}", "- 1", "7", b"x", 7, LAUGHS, LISTS], ids=lambda told: str(told)[:12]
)
def test_a_configuration_in_a_checkpoint_that_is_none_is_not_compared_for_ever(told):
    """A warning, for the run goes on with its own."""
    with pytest.warns(UserWarning, match=r"cannot be compared|The run goes on with other settings"):
        warn_of_differences(told, "seed_everything: 1\nmodel: {x: 2}")

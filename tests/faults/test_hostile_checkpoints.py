"""A checkpoint of plain values runs nothing, whatever its strings name, and whichever command reads it."""

import os
import pickle
import shutil
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from veto_pl.commands.export import export_checkpoint
from veto_pl.commands.main import main
from veto_pl.exceptions import ConfigurationError
from veto_pl.storage import sharded_checkpoint
from veto_pl.storage.checksums import read_sums, sha256_of, write_sums
from veto_pl.storage.sharded_checkpoint import PLAIN, TABLE, read_whole, save_sharded
from veto_pl.testing.ranks import run_ranks

from .bad_inputs import MARKER, Bomb
from .faults import fit
from .hostile_values import Tripwire, payloads, replaced, strings, structures

BEST = ("--checkpoint.monitor=validation/accuracy", "--checkpoint.mode=max", "--checkpoint.save_top_k=1")
COMMANDS = ("fit", "validate", "test", "predict")


@pytest.fixture(scope="module")
def wire(tmp_path_factory):
    return Tripwire(str(tmp_path_factory.mktemp("wire") / "PWNED"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, config_file):
    """A file that a run has written."""
    run = tmp_path_factory.mktemp("trained")
    fit(config_file, run, "--trainer.max_steps=1", "--validate_first=false")
    return run / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def sharded(trained, tmp_path_factory):
    """The same as the folder of a sharded run."""
    content, path = torch.load(trained, weights_only=True), tmp_path_factory.mktemp("sharded") / "last.ckpt"
    with one_rank():
        save_sharded(path, {"state_dict": content.pop("state_dict")}, content)
    return path


class one_rank:  # noqa: N801  # reads as a context
    def __enter__(self):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    def __exit__(self, *_):
        dist.destroy_process_group()


def command(name, config_file, checkpoint, run, *options):
    arguments = ["--trainer.max_steps=2", "--trainer.limit_val_batches=1"] if name == "fit" else []
    main([name, "--config", config_file, "--run_dir", str(run), "--ckpt_path", str(checkpoint), *arguments, *options])


def outcome(wire, act, *arguments):
    """The error in a sentence, or None; anything else is a fault."""
    with wire.set():
        try:
            act(*arguments)
        except SystemExit as end:
            return str(end.code)
        except ConfigurationError as error:
            return str(error)
    return None


def variants(content, marker):
    """Every string replaced, one at a time, by one name after another; then entries that libraries look for."""
    names = cycle(payloads(marker))
    yield from (replaced(content, place, next(names)) for place in strings(content))
    yield from ({**content, **entries} for entries in structures(marker))


def rewritten(folder, plain):
    """What somebody who attacks would do: the checksums fit."""
    torch.save(plain, folder / PLAIN)
    write_sums(folder, {**read_sums(folder), PLAIN: sha256_of(folder / PLAIN)})
    return folder


def test_no_string_of_a_file_runs_anything_in_an_export(trained, wire, tmp_path):
    content = torch.load(trained, weights_only=True)
    told = []
    for variant in variants(content, wire.marker):
        torch.save(variant, tmp_path / "evil.ckpt")
        told.append(outcome(wire, export_checkpoint, tmp_path / "evil.ckpt", tmp_path / "out"))
    assert len(told) > 90
    assert None in told, "what no export reads may say what it likes"
    assert sum(told is not None for told in told) > 10


def test_no_string_of_a_folder_runs_anything_in_an_export(sharded, wire, tmp_path):
    folder = tmp_path / "evil.ckpt"
    shutil.copytree(sharded, folder)
    content = torch.load(folder / PLAIN, weights_only=True)
    told = {
        outcome(wire, export_checkpoint, rewritten(folder, v), tmp_path / "out") for v in variants(content, wire.marker)
    }
    assert None in told
    assert len(told) > 3


@pytest.mark.parametrize("name", COMMANDS)
def test_no_entry_of_a_file_runs_anything_in_a_command(name, trained, config_file, wire, tmp_path):
    content = torch.load(trained, weights_only=True)
    for entries in list(structures(wire.marker))[::6]:
        torch.save({**content, **entries}, tmp_path / "evil.ckpt")
        assert outcome(wire, command, name, config_file, tmp_path / "evil.ckpt", tmp_path / "run") is None


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_whose_every_string_names_code_runs_none_of_it_in_a_command(name, trained, config_file, wire, tmp_path):
    """What Lightning makes of such a file may be any error, but not a program."""
    content = torch.load(trained, weights_only=True)
    for payload in payloads(wire.marker)[::3]:
        torch.save(replaced(content, None, payload), tmp_path / "evil.ckpt")
        with wire.set(), suppress(Exception, SystemExit):
            command(name, config_file, tmp_path / "evil.ckpt", tmp_path / "run")


def read_hostile_folders(folder, config_file, checkpoint, marker):
    """One rank of a sharded run, which goes on with folders whose plain values name code."""
    wire, told = Tripwire(marker), []
    command("fit", config_file, checkpoint, Path(folder, "run"), "--trainer.strategy=fsdp2")
    written = Path(folder, "run", "checkpoints", "last.ckpt")
    told.append(outcome(wire, export_checkpoint, written, Path(folder, "out")))
    content = torch.load(written / PLAIN, weights_only=True)
    for name in ("fit", "validate"):
        for entries in list(structures(marker))[::4]:
            evil = Path(folder, "evil.ckpt")
            shutil.rmtree(evil, ignore_errors=True)
            shutil.copytree(written, evil)
            rewritten(evil, {**content, **entries})
            told.append(
                outcome(wire, command, name, config_file, evil, Path(folder, "run"), "--trainer.strategy=fsdp2")
            )
    return told


@pytest.mark.slow
def test_no_entry_of_a_folder_runs_anything_in_a_sharded_run(trained, config_file, wire, tmp_path):
    (told,) = run_ranks(read_hostile_folders, 1, str(tmp_path), config_file, str(trained), wire.marker)
    assert told == [None] * len(told)
    assert len(told) == 11


def test_a_path_in_a_file_cannot_have_anything_else_removed(trained, config_file, tmp_path):
    """Lightning removes what the file calls the worst of the best checkpoints, if the path begins with the folder."""
    (tmp_path / "thesis").mkdir()
    fit(config_file, tmp_path / "run", "--trainer.max_steps=1", *BEST)
    content = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    (state,) = (state for name, state in content["callbacks"].items() if "best_k_models" in state)
    evil = str(tmp_path / "run" / "checkpoints" / ".." / ".." / "thesis")
    worst = torch.tensor(-1.0)
    state |= {"kth_best_model_path": evil, "best_k_models": {evil: worst}, "kth_value": worst, "best_model_path": evil}
    torch.save(content, tmp_path / "evil.ckpt")
    command("fit", config_file, tmp_path / "evil.ckpt", tmp_path / "run", *BEST)
    found = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    assert evil not in str(found), "it was to be removed"
    assert (tmp_path / "thesis").is_dir()


def test_a_table_of_contents_is_read_once(sharded, monkeypatch, tmp_path):
    """A file that is exchanged after the first look is not looked at."""
    shutil.copytree(sharded, tmp_path / "a.ckpt")
    table, looks = tmp_path / "a.ckpt" / TABLE, []
    load = sharded_checkpoint._TableUnpickler.load

    def exchanging(self):
        found = load(self)
        table.write_bytes(pickle.dumps(Bomb(tmp_path / "a.ckpt")))
        looks.append(table)
        return found

    monkeypatch.setattr(sharded_checkpoint._TableUnpickler, "load", exchanging)
    assert sharded_checkpoint._Reader(tmp_path / "a.ckpt").read_metadata().state_dict_metadata
    assert len(looks) == 1
    assert not (tmp_path / MARKER).exists()


@pytest.mark.parametrize("name", ["/dev/zero", "../elsewhere", "pipe", "not there"])
def test_a_table_of_contents_names_files_of_its_folder_only(name, sharded, tmp_path):
    shutil.copytree(sharded, tmp_path / "a.ckpt")
    (tmp_path / "elsewhere").write_bytes(b"")
    os.mkfifo(tmp_path / "a.ckpt" / "pipe")
    reader = sharded_checkpoint._Reader(tmp_path / "a.ckpt")
    table = reader.read_metadata()
    for part in table.storage_data.values():
        part.relative_path = name
    (tmp_path / "a.ckpt" / TABLE).write_bytes(pickle.dumps(table))
    with pytest.raises(ConfigurationError, match="which is no file of its folder"):
        read_whole(tmp_path / "a.ckpt", "state_dict.")

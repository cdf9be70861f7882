"""Ranks that are gone in the middle of a window go on as if they had not been, on as many or other numbers of ranks."""

import io
import pathlib
import pickle
import sys
from enum import Enum
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from resumes import run, run_all
from runs import prepare
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, TensorProperties

from veto_pl.exceptions import ConfigurationError
from veto_pl.storage import sharded_checkpoint
from veto_pl.storage.sharded_checkpoint import TABLE, plain_values, read_whole, save_sharded
from veto_pl.testing.ranks import run_ranks

pytestmark = pytest.mark.xdist_group("ranks")
STRATEGIES = ("ddp", "fsdp2")
KILLED = {"stopped by": "KilledError"}


def case(name, strategy, **settings):
    return {"name": f"{strategy} {name}", "strategy": strategy, "ranks": 2, **settings}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("resumes"))
    prepare(path)
    return path


@pytest.fixture(scope="module")
def both_ranks(folder):
    """Runs on two ranks, by name; before them one of a single process, for two to go on with."""
    run(folder, "alone", kill=4, objective="Veto")
    cases = [
        case(name, strategy, **settings, **more)
        for strategy in STRATEGIES
        for name, settings in {
            "AdamW": {},
            "SGD": {"optimizer": "SGD", "objective": "Veto"},
            "adapter": {"adapter": True},
            "routed": {"objective": "routed"},
            "spread": {"objective": "spread, adapter", "stranger": True, "adapter": True},
        }.items()
        for name, more in {
            f"{name} whole": {},
            f"{name} killed": {"kill": 4},
            f"{name} resumed": {"resume": f"{strategy} {name} killed"},
        }.items()
    ]
    cases += [case("NaN", strategy, objective="NaN") for strategy in STRATEGIES]
    cases.append(case("Veto whole", "fsdp2", objective="Veto"))
    cases.append(case("Veto killed", "fsdp2", objective="Veto", kill=4))
    cases.append(case("after one", "fsdp2", objective="Veto", resume="alone"))
    first, second = run_ranks(run_all, 2, folder, cases)
    return {one["name"]: (a, b) for one, a, b in zip(cases, first, second, strict=True)}


def close(outcome, expected, tolerance):
    torch.testing.assert_close(outcome["curve"], expected["curve"], rtol=tolerance, atol=tolerance)
    assert len(outcome["weights"]) > 10
    for name, value in outcome["weights"].items():
        torch.testing.assert_close(value, expected["weights"][name], rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "adapter", "routed", "spread"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_resumed_ranks_end_where_they_would_have(strategy, optimizer, both_ranks):
    """AdamW's run replays rollouts and follows the student with its teacher; both are in the checkpoint.

    In the routed run a teacher with a name does so, beside one that does not.
    """
    whole, resumed = (both_ranks[f"{strategy} {optimizer} {kind}"][0] for kind in ("whole", "resumed"))
    assert both_ranks[f"{strategy} {optimizer} killed"] == 2 * (KILLED,)
    assert ("teacher.model.norm.weight" in whole["weights"]) == (optimizer in ("AdamW", "adapter"))
    assert ("other.model.norm.weight" in whole["weights"]) == (optimizer == "routed")
    close(resumed, whole, 1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ranks_that_stop_together_because_of_nan_save_a_checkpoint(strategy, folder, both_ranks):
    assert both_ranks[f"{strategy} NaN"] == 2 * ({"stopped by": "NonFiniteError"},)
    path = Path(folder, f"{strategy} NaN", "last.ckpt")
    saved = plain_values(path) if strategy == "fsdp2" else torch.load(path, weights_only=True)
    assert saved["global_step"] == 5, "the periodic one is that of step 3"


def test_one_process_goes_on_with_the_folder_of_two(folder, both_ranks):
    """AdamW divides what two ranks and one sum in another order by its own size: on some processors up to 6e-5."""
    killed = both_ranks["fsdp2 Veto killed"]
    assert killed == 2 * (KILLED,)
    (alone,) = run_ranks(run_all, 1, folder, [
        {"name": "one after two", "strategy": "fsdp2", "objective": "Veto", "resume": "fsdp2 Veto killed"}
    ])  # fmt: skip
    close(alone[0], both_ranks["fsdp2 Veto whole"][0], 1e-4)


def test_two_go_on_with_the_file_of_one_process(folder, both_ranks):
    """As above, the other way round."""
    close(both_ranks["fsdp2 after one"][0], run(folder, "never stopped", objective="Veto"), 1e-4)


def test_the_frozen_teacher_is_not_in_the_folder_and_the_student_can_be_read_without_ranks(folder, both_ranks):
    path = Path(folder, "fsdp2 Veto killed", "last.ckpt")
    names = set(read_whole(path, "state_dict."))
    assert names
    assert all(name.startswith("student.") for name in names)
    moved = set(read_whole(Path(folder, "fsdp2 AdamW killed", "last.ckpt"), "state_dict."))
    assert {name.split(".")[0] for name in moved} == {"student", "teacher"}
    assert plain_values(path)["global_step"] == 3


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_of_adapters_the_folder_has_no_base(strategy, folder, both_ranks):
    path = Path(folder, f"{strategy} adapter killed", "last.ckpt")
    sharded = strategy == "fsdp2"
    names = read_whole(path, "state_dict.") if sharded else torch.load(path, weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in names} == {"student", "teacher"}
    assert {name for name in names if "lora_" not in name} == {
        f"{role}.model.lm_head.modules_to_save.default.weight" for role in ("student", "teacher")
    }
    moments = read_whole(path, "optimizer_0.") if sharded else {}
    assert not any("base_layer" in name or "embed" in name for name in moments)


def test_a_table_that_names_other_code_is_refused_before_it_runs(tmp_path):
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return Path.touch, (marker,)

    for payload in (Bomb(), {"state_dict_metadata": Bomb()}):
        (tmp_path / TABLE).write_bytes(pickle.dumps(payload))
        with pytest.raises(ConfigurationError, match="does not belong"):
            read_whole(tmp_path, "")
    assert not marker.exists()


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"], ids=["others", "3.13"])
def test_a_table_is_read_whatever_module_a_python_keeps_its_paths_in(module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, pathlib)
    monkeypatch.setattr(pathlib.PosixPath, "__module__", module)
    torch.distributed.checkpoint.save({"model.a": torch.ones(3)}, checkpoint_id=tmp_path, no_dist=True)
    assert f"{module}\x94".encode("latin1") in (tmp_path / TABLE).read_bytes(), "the name of a pickle's class"
    assert torch.equal(read_whole(tmp_path, "model.")["a"], torch.ones(3))


class ByName(pickle.Pickler):
    """Writes a member of an Enum as Python 3.11.0 to 3.11.3 do (CPython gh-103479), which Debian 12 has."""

    def reducer_override(self, value):
        return (getattr, (type(value), value.name)) if isinstance(value, Enum) else NotImplemented


def rewritten(value):
    file = io.BytesIO()
    ByName(file).dump(value)
    return file.getvalue()


def test_a_table_is_read_however_a_python_writes_members_of_an_enum(tmp_path):
    torch.distributed.checkpoint.save({"model.a": torch.ones(3)}, checkpoint_id=tmp_path, no_dist=True)
    table = sharded_checkpoint._Reader(tmp_path).read_metadata()
    (tmp_path / TABLE).write_bytes(rewritten(table))
    assert b"getattr" in (tmp_path / TABLE).read_bytes()
    assert torch.equal(read_whole(tmp_path, "model.")["a"], torch.ones(3))


@pytest.mark.parametrize("name", ["__init__", "__class__", "mro", "no member"])
@pytest.mark.parametrize("kind", [_MEM_FORMAT_ENCODING, TensorProperties], ids=["enum", "class"])
def test_a_table_reaches_members_of_an_enum_and_nothing_else(kind, name, tmp_path):
    class Reach:
        def __reduce__(self):
            return getattr, (kind, name)

    (tmp_path / TABLE).write_bytes(pickle.dumps(Reach()))
    with pytest.raises(ConfigurationError, match="does not belong"):
        read_whole(tmp_path, "")


def fail_to_save(folder, where):
    """Both ranks save; the first one's disk is full in the end, or something is in the way in the beginning."""
    dist.init_process_group("gloo")
    path = Path(folder, where, "last.ckpt")
    outcomes = []
    with pytest.MonkeyPatch.context() as patched:
        if where == "full" and dist.get_rank() == 0:
            patched.setattr(sharded_checkpoint.torch, "save", full_disk)
        for _ in range(2):
            try:
                save_sharded(path, {"state_dict": {"a": torch.ones(3)}}, {"b": 1})
                outcomes.append("saved")
            except OSError as error:
                outcomes.append(f"OSError: {error}")
            patched.undo()
            if dist.get_rank() == 0 and Path(folder, where).is_file():
                Path(folder, where).unlink()
            dist.barrier()
    dist.destroy_process_group()
    return outcomes


def full_disk(*args):
    raise RuntimeError("write failed: no space left")


@pytest.mark.parametrize(("where", "reason"), [("full", "no space left"), ("blocked", "Error: ")])
def test_all_ranks_hear_of_a_save_that_fails_on_one_and_the_next_one_works(where, reason, tmp_path):
    if where == "blocked":
        (tmp_path / where).write_text("a file where the folder belongs")
    first, second = run_ranks(fail_to_save, 2, str(tmp_path), where, timeout=60)
    assert first == second
    assert first[0].startswith("OSError")
    assert reason in first[0]
    assert first[1] == "saved"
    assert sorted(file.name for file in (tmp_path / where).iterdir()) == ["last.ckpt"]
    assert plain_values(tmp_path / where / "last.ckpt") == {"b": 1}

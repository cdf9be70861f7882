"""A full or read-only disk: every writer of a run says so once, the run goes on, and nothing later is lost."""

import json
import os
import resource
import signal
import subprocess
import warnings
from contextlib import contextmanager
from unittest.mock import patch

import lightning as L
import pytest

from veto_pl import DistillationModule
from veto_pl.callbacks import Checkpoints, Diagnostics, Export
from veto_pl.commands.main import main
from veto_pl.exceptions import VetoError
from veto_pl.storage.going_on import system_error, warn_if_unwritten, warn_on_errors, warn_on_write_errors
from veto_pl.storage.waiting_lines import WaitingLines

from .conftest import assert_equal_runs, state
from .faults import StopError, fault, fit, raising

LOGGERS = "[veto_pl.storage.journals.MetricsFile, lightning.pytorch.loggers.TensorBoardLogger]"


class Full:
    """Lets no file grow, as a full disk does; the system itself refuses, whoever writes, standard output as well."""

    refused = ("metrics.csv", "samples.jsonl")

    def __init__(self) -> None:
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, self.limits[1]))

    def free(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)

    def close(self) -> None:
        self.free()
        signal.signal(signal.SIGXFSZ, self.handler)


class Tmpfs:
    """A real file system of 2 MB. Short rows still fit into the last block of their file."""

    refused = ()

    def __init__(self, folder) -> None:
        self.folder = folder
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True, capture_output=True)

    def fill(self) -> None:
        with (self.folder / "filler").open("wb", buffering=0) as file:
            while file.write(bytes(4096)) == 4096:
                if os.statvfs(self.folder).f_bavail == 0:
                    break

    def free(self) -> None:
        (self.folder / "filler").unlink()

    def close(self) -> None:
        subprocess.run(["umount", "-l", self.folder], check=True)


@pytest.fixture(params=["limit", "tmpfs"])
def disk(request, tmp_path):
    (tmp_path / "run").mkdir()
    try:
        made = Full() if request.param == "limit" else Tmpfs(tmp_path / "run" / "small")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount a file system")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=pytest.PytestUnhandledThreadExceptionWarning)  # TensorBoard's
        yield made
    made.close()


@pytest.fixture(scope="module")
def reference(tmp_path_factory, config_file):
    run = tmp_path_factory.mktemp("reference")
    fit(config_file, run)
    return run


def test_a_disk_that_is_full_for_a_while_changes_nothing(disk, config_file, reference, tmp_path):
    """From inside the third window to the sixth: two checkpoints, three validations, and every file of the run."""
    run = tmp_path / "run" / "small"
    with (
        fault(DistillationModule, "training_step", 5, disk.fill),
        fault(DistillationModule, "on_before_optimizer_step", 7, disk.free),
        warnings.catch_warnings(record=True) as said,
    ):
        warnings.simplefilter("always")
        fit(config_file, run)
    assert_equal_runs(run, reference)
    others = [str(warning.message) for warning in said if "could not be written" in str(warning.message)]
    names = {text.split(" could")[0].rpartition("/")[2] for text in others}
    assert {"What `Events` records", *disk.refused} <= names
    assert json.loads((run / "summary.json").read_text())["steps"] == 8
    files = list((run / "tensorboard").iterdir())
    assert len(files) <= 4, "one file of events before, one after"


def test_a_disk_that_stays_full_ends_no_run(disk, config_file, tmp_path):
    """It has no results after that, and says so, once for each file."""
    run = tmp_path / "run" / "small"
    with (
        fault(DistillationModule, "training_step", 5, disk.fill),
        warnings.catch_warnings(record=True) as said,
    ):
        warnings.simplefilter("always")
        fit(config_file, run, "--export.folder=export")
    assert state(run)["global_step"] == 2
    names = [str(w.message).split(" could not be written")[0] for w in said if "not be written" in str(w.message)]
    assert len(names) == len(set(names))
    assert {*(f"{run}/{name}" for name in disk.refused), f"{run}/summary.json", f"The export {run}/export"} <= {*names}
    assert f"The checkpoint {run}/checkpoints/last.ckpt" in names


def test_a_full_disk_keeps_no_exception_from_the_last_save(disk, config_file, reference, tmp_path):
    """The disk has room again between the exception and the save."""
    run = tmp_path / "run" / "small"

    def stop():
        disk.fill()
        raise StopError

    original = Checkpoints.on_exception

    def freeing(self, *arguments):
        disk.free()
        original(self, *arguments)

    with (
        fault(DistillationModule, "training_step", 7, stop),
        patch.object(Checkpoints, "on_exception", freeing),
        pytest.warns(UserWarning, match=r"summary\.json could not be written"),
        pytest.raises(StopError),
    ):
        fit(config_file, run)
    assert state(run)["global_step"] == 3
    fit(config_file, run)
    assert_equal_runs(run, reference)


def test_a_callback_that_fails_at_the_end_keeps_none_from_its_last_save(config_file, reference, tmp_path):
    def broken(*_):
        raise RuntimeError("its own mistake")

    with (
        patch.object(Diagnostics, "on_exception", broken),
        fault(DistillationModule, "training_step", 8, raising),
        pytest.warns(UserWarning, match="`Diagnostics` failed while the run ended: RuntimeError: its own mistake"),
        pytest.raises(StopError),
    ):
        fit(config_file, tmp_path)
    assert state(tmp_path)["global_step"] == 4
    fit(config_file, tmp_path)
    assert_equal_runs(tmp_path, reference)


@pytest.mark.parametrize("command", ["predict", "test"])
def test_answers_that_cannot_be_written_are_an_error_at_the_end(command, config_file, tmp_path):
    """For they are all that the command is there for; what the disk takes again in time is written."""
    full = Full()
    arguments = [command, "--config", config_file, "--run_dir", str(tmp_path / "run")]
    try:
        with (
            fault(DistillationModule, f"{command}_step", 2, full.fill),
            pytest.raises(SystemExit, match=r"rows are lost\. Make room"),
        ):
            main(arguments)
        full.free()
        with (
            fault(DistillationModule, f"{command}_step", 2, full.fill),
            fault(DistillationModule, f"on_{command}_epoch_end", 1, full.free),
            pytest.warns(UserWarning, match="could not be written"),
        ):
            main(arguments)
    finally:
        full.close()
    name = {"predict": "predictions.jsonl", "test": "answers.jsonl"}[command]
    assert len((tmp_path / "run" / name).read_text().splitlines()) == 10


@contextmanager
def refused():
    full = Full()
    full.fill()
    try:
        yield
    finally:
        full.close()


def test_lines_wait_until_the_disk_takes_them(tmp_path):
    lines = WaitingLines(tmp_path / "deep" / "rows.jsonl")
    with refused(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        lines.add([{"a": 1}])
        lines.add([{"a": 2}])
        with pytest.raises(VetoError, match="2 rows are lost"):
            lines.finish()
    assert len(said) == 1
    lines.add([{"a": 3}])
    assert [json.loads(line)["a"] for line in lines.path.read_text().splitlines()] == [1, 2, 3]
    with refused(), pytest.warns(UserWarning, match="File too large"):  # one warning for each time that it begins
        lines.add([{"a": 4}])


def test_what_is_no_refusal_of_the_system_is_raised(tmp_path):
    with pytest.raises(KeyError), warn_if_unwritten("a file"):
        raise KeyError("mistake")
    assert system_error(None) is None
    assert system_error(RuntimeError("I/O error: No space left on device (os error 28)")).errno == 28
    wrapped = RuntimeError("a library")
    wrapped.__cause__ = OSError(30, "Read-only file system")
    assert system_error(wrapped).errno == 30


@pytest.mark.parametrize("wrapped", [True, False])
def test_methods_of_others_are_guarded_once(wrapped):
    """Loggers and callbacks are set up before every stage."""

    class Recorder(L.Callback):
        def save(self, value):
            if isinstance(value, Exception):
                raise value
            return value

    part = Recorder()
    for _ in range(3):
        (warn_on_errors if wrapped else warn_on_write_errors)(part, "save")
    assert part.save(3) == 3
    with pytest.warns(UserWarning, match="No space left") as said:
        assert part.save(OSError(28, "No space left on device")) is None
    assert len(said) == 1
    if not wrapped:
        with pytest.raises(KeyError):
            part.save(KeyError())


def test_an_export_that_fails_keeps_no_one_from_the_summary(config_file, tmp_path):
    error = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    with (
        patch("veto_pl.callbacks.export_at_end.export_student", side_effect=error),
        pytest.warns(UserWarning, match=r"The export .*No space left.*`veto-pl export CHECKPOINT .*` can make"),
    ):
        fit(config_file, tmp_path, "--export.folder=export", "--trainer.max_steps=1", "--trainer.limit_val_batches=0")
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 1
    assert Export().folder == "export"
    assert os.listdir(tmp_path / "checkpoints") == ["last.ckpt"]

"""The run folder has all files of a run whatever its loggers, is refused in a sentence, and belongs to one run."""

import errno
import fcntl
import os
import signal
import time
from pathlib import Path
from unittest.mock import patch

import lightning as L
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from veto_pl import DistillationModule
from veto_pl.callbacks import RunFolder
from veto_pl.commands.main import main
from veto_pl.exceptions import ConfigurationError
from veto_pl.storage.run_folder import LOCK, METRICS, QUANTITIES, run_folder
from veto_pl.storage.run_loggers import RunLoggers

from .faults import StopError, fault, fit, raising

FILES = {"checkpoints", "config.yaml", "samples.jsonl", "summary.json", METRICS, QUANTITIES, LOCK}


class Elsewhere(Logger):
    """As those of services are: a name, a number that is drawn anew each time, and the present folder by default."""

    def __init__(self, save_dir: str = ".") -> None:
        super().__init__()
        self._folder = save_dir

    @property
    def name(self):
        return "mine"

    @property
    def version(self):
        return f"{time.time_ns()}"

    @property
    def save_dir(self):
        return self._folder

    def log_metrics(self, metrics, step=None):
        Path(self._folder, "service").touch()

    def log_hyperparams(self, params, *args, **kwargs):
        """Nothing."""


def named(path, **settings):
    return f"--trainer.logger={[{'class_path': path, 'init_args': settings}]!r}"


LOGGERS = {
    "none": "--trainer.logger=false",
    "a service": named(f"{__name__}.Elsewhere"),
    "elsewhere": named("lightning.pytorch.loggers.TensorBoardLogger", save_dir="other"),
    "versions": named("lightning.pytorch.loggers.CSVLogger", save_dir="other"),
}


@pytest.mark.parametrize("logger", LOGGERS)
def test_whatever_the_logger_a_run_is_in_its_folder_and_goes_on_there(logger, config_file, tmp_path, monkeypatch):
    """The same command twice; the second goes on from what the first has left."""
    monkeypatch.chdir(tmp_path)
    with fault(DistillationModule, "training_step", 8, raising), pytest.raises(StopError):
        fit(config_file, "run", LOGGERS[logger])
    with fault(DistillationModule, "training_step", 1, lambda: None) as calls:
        fit(config_file, "run", LOGGERS[logger], "--export.folder=export")
    assert calls() < 14, "the run has begun anew"
    assert set(os.listdir("run")) - {"service"} == FILES | {"export"}
    assert set(os.listdir()) <= {"run", "other"}
    assert ("service" in os.listdir("run")) == (logger == "a service")


def test_no_file_that_was_given_is_overwritten(config_file, tmp_path, monkeypatch):
    """The current folder as run folder, a link to the file, and the command by which the README goes on."""
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(given := f"# mine\n{Path(config_file).read_text()}")
    short = ("--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--trainer.logger=false")
    main(["fit", "--config", "config.yaml", "--run_dir", ".", *short])
    assert Path("config.yaml").read_text() == given
    assert yaml.safe_load(Path("config-2.yaml").read_text())["trainer"]["max_steps"] == 1
    Path("run").mkdir()
    Path("run/config.yaml").symlink_to("../config.yaml")
    main(["fit", "--config", "run/config.yaml", "--config", "config-2.yaml", "--run_dir", "run", *short])
    assert Path("config.yaml").read_text() == given
    before = Path("run/config-2.yaml").read_bytes()
    main(["fit", "--config=run/config-2.yaml", "--run_dir=run", "--ckpt_path=last", "--trainer.max_steps=2"])
    assert Path("run/config-2.yaml").read_bytes() == before
    assert yaml.safe_load(Path("run/config.yaml").read_text())["trainer"]["max_steps"] == 2
    assert Path("config.yaml").read_text() == given, "the link is replaced, not what it points to"


def refused(config_file, *options, run_dir):
    """What is said; nothing is loaded by then."""
    loading = patch.object(DistillationModule, "configure_model", side_effect=AssertionError("models are loaded"))
    with loading, pytest.raises(SystemExit) as ended:
        main(["fit", "--config", config_file, f"--run_dir={run_dir}", *options])
    said = str(ended.value.code)
    assert "\n" not in said
    assert len(said) < 400
    return said


@pytest.mark.parametrize(
    ("run_dir", "reason"),
    [
        ("", "given an empty name"),
        (" ", "given an empty name"),
        ("a file", "File exists"),
        ("a file/run", "Not a directory"),
        ("/dev/null", "File exists"),
        ("/proc/run", "No such file"),
        ("nul\0run", "null"),
        ("x" * 400, "File name too long"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_before_anything_is_loaded(
    run_dir, reason, config_file, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("a file").touch()
    said = refused(config_file, run_dir=run_dir)
    assert said.startswith("veto-pl: `run_dir`: given ")
    assert reason in said


@pytest.mark.parametrize(("call", "number"), [("write", errno.ENOSPC), ("open", errno.EROFS), ("open", errno.EACCES)])
def test_a_folder_on_a_full_or_read_only_disk_is_refused(call, number, config_file, tmp_path):
    original = getattr(os, call)

    def system(path, *rest):
        if call == "write" or str(path).endswith(LOCK):
            raise OSError(number, os.strerror(number))
        return original(path, *rest)

    with patch.object(os, call, system):
        assert os.strerror(number) in refused(config_file, run_dir=tmp_path / "run")


def test_the_home_of_the_user_is_expanded(config_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    fit(config_file, "~/run", "--trainer.max_steps=1", "--trainer.limit_val_batches=0")
    assert {"metrics.csv", "tensorboard", "checkpoints"} <= set(os.listdir("home/run"))
    assert os.listdir() == ["home"]


def test_another_root_folder_is_refused(config_file, tmp_path):
    said = refused(config_file, "--trainer.default_root_dir=x", run_dir=tmp_path / "run")
    assert "`trainer.default_root_dir`: given `x`" in said


def holder(folder, worker=False):
    """A process that has the folder, and perhaps a worker of its own that outlives it; its id once it has it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        RunFolder(folder).claim()
        if worker and os.fork() == 0:
            os.close(writing)
            time.sleep(30)
            os._exit(0)
        os.write(writing, b"!")
        signal.pause()
    os.close(writing)
    assert os.read(reading, 1) == b"!"
    os.close(reading)
    return child


@pytest.mark.parametrize("command", ["fit", "test"])
def test_two_runs_cannot_have_one_folder(command, config_file, tmp_path):
    """The other one is named; nothing of it is touched."""
    child = holder(tmp_path)
    try:
        (tmp_path / "metrics.csv").write_text("theirs")
        with pytest.raises(SystemExit, match=rf"belongs to another run, process {child} on \S+ since 20\d\d-"):
            main([command, "--config", config_file, "--run_dir", str(tmp_path)])
        assert set(os.listdir(tmp_path)) == {LOCK, "metrics.csv"}
        assert (tmp_path / "metrics.csv").read_text() == "theirs"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_the_lock_dies_with_its_process_though_its_workers_live_on(tmp_path):
    child = holder(tmp_path, worker=True)
    with pytest.raises(ConfigurationError, match="belongs to another run"):
        RunFolder(tmp_path).claim()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    folder = RunFolder(tmp_path)
    folder.claim()
    folder.claim()  # a run that validates first is set up twice
    assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    folder.release()
    os.kill(other := holder(tmp_path), signal.SIGKILL)
    os.waitpid(other, 0)


def test_a_command_that_ends_lets_go_of_its_folder(config_file, tmp_path):
    with fault(DistillationModule, "training_step", 1, raising), pytest.raises(StopError):
        fit(config_file, tmp_path, "--trainer.limit_val_batches=0")
    other = holder(tmp_path)
    os.kill(other, signal.SIGKILL)
    os.waitpid(other, 0)


def test_a_file_system_without_locks_is_warned_of(tmp_path):
    folder = RunFolder(tmp_path)
    with (
        patch.object(fcntl, "flock", side_effect=OSError(errno.ENOLCK, "No locks available")),
        pytest.warns(UserWarning, match="cannot be locked: .*No locks available.*Take care that no other run"),
    ):
        folder.claim()
    folder.release()


def trainer(logger, folder, callbacks=()):
    return L.Trainer(logger=logger, default_root_dir=folder, accelerator="cpu", enable_checkpointing=False,
                     enable_progress_bar=False, callbacks=list(callbacks))  # fmt: skip


def test_a_trainer_of_ones_own_keeps_its_files_where_its_logger_does(tmp_path):
    root = tmp_path / "root"
    assert run_folder(trainer(False, root)) == root
    for kind in (CSVLogger, TensorBoardLogger):
        logger = kind(tmp_path, name="n", version=3)
        assert run_folder(trainer(logger, root)) == Path(logger.log_dir) == tmp_path / "n" / "version_3"
    service = Elsewhere(str(tmp_path))
    with patch.object(Elsewhere, "version", "id"):
        assert run_folder(trainer(service, root)) == tmp_path / "mine" / "id"
    named_one = trainer(service, root, [RunFolder(tmp_path / "chosen")])
    assert run_folder(named_one) == tmp_path / "chosen"


@given(given=st.sampled_from([".", "./runs", "", "mine"]), default=st.sampled_from([".", "./runs", None]))
def test_only_a_folder_that_nobody_chose_lies_in_the_run_folder(given, default):
    def logger(save_dir=default):
        return save_dir

    loggers = RunLoggers(Path("run"), continued=False)
    assert loggers.make(logger, save_dir=given) == (str(Path("run", given)) if given == default else given)
    assert loggers.make(lambda x: x, x=given) == given


def test_the_folder_for_which_other_peoples_callbacks_ask_is_the_run_folder(config_file, tmp_path):
    asked = []
    original = DistillationModule.on_train_start

    def asking(self):
        asked.append(self.trainer.log_dir)
        original(self)

    with patch.object(DistillationModule, "on_train_start", asking):
        for logger in LOGGERS.values():
            fit(config_file, tmp_path, logger, "--trainer.max_steps=1", "--ckpt_path=null")
    assert asked == [str(tmp_path)] * len(LOGGERS)

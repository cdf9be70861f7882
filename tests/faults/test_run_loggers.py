"""Loggers beside `metrics.csv`: they get configuration and samples, and go on with their run at a service."""

import csv
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import ClassVar

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, Logger

from veto_pl import DistillationModule
from veto_pl.storage.journals import ContinuedCSV, MetricsFile
from veto_pl.storage.run_folder import METRICS, SAMPLES
from veto_pl.storage.run_loggers import IDS, RunLoggers

from .faults import StopError, fault, fit, raising
from .test_run_folder import FILES, named

NUMBERS = itertools.count(1)
SERVED = []
"""What the stand-in was told, run by run."""


class Service(Logger):
    """As that of a service: it draws an id, or goes on with the one that it is given; and it shows tables."""

    def __init__(self, project: str = "mine", id: str | None = None, save_dir: str = ".") -> None:  # noqa: A002
        super().__init__()
        self.told = {"id": id, "config": None, "tables": [], "metrics": [], "save_dir": save_dir}
        SERVED.append(self.told)
        self._id = id

    @property
    def experiment(self):
        self._id = self._id or f"id-{next(NUMBERS)}"
        return self

    @property
    def name(self):
        return "mine"

    @property
    def version(self):
        return self._id

    def log_metrics(self, metrics, step=None):
        self.told["metrics"].append((step, dict(metrics)))

    def log_hyperparams(self, params, *args, **kwargs):
        self.told["config"] = params

    def log_table(self, key, columns=None, data=None, step=None):
        self.told["tables"].append((key, columns, data, step))


class Client:
    """As MLflow's: its tables are files of a run, and it changes no parameter."""

    tables: ClassVar[list] = []

    def log_table(self, run_id, data, artifact_file):
        self.tables.append((run_id, data, artifact_file))


class ClientService(Service):
    log_table = None

    def __init__(self, run_id: str | None = None) -> None:
        super().__init__(id=run_id)
        self.client = Client()

    @property
    def experiment(self):
        self._id = self._id or f"id-{next(NUMBERS)}"
        return self.client

    def log_hyperparams(self, params, *args, **kwargs):
        raise RuntimeError("Changing param values is not allowed")


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def served(config_file, tmp_path_factory):
    """The same command twice, stopped in between; then a run that starts afresh, and one with an id of its own."""
    SERVED.clear()
    folder = tmp_path_factory.mktemp("served")
    service = named(f"{__name__}.Service", project="p")
    with fault(DistillationModule, "training_step", 8, raising), pytest.raises(StopError):
        fit(config_file, folder / "run", service)
    fit(config_file, folder / "run", service)
    for name in (METRICS, SAMPLES, IDS):
        shutil.copy(folder / "run" / name, folder)
    short = ("--trainer.max_steps=1", "--trainer.limit_val_batches=0")
    fit(config_file, folder / "run", service, "--ckpt_path=null", *short)
    fit(config_file, folder / "run", named(f"{__name__}.Service", id="mine"), *short)
    return folder / "run"


def test_a_resumed_run_continues_that_of_the_service_and_an_explicit_id_wins(served):
    first = json.loads(served.with_name(IDS).read_text())[f"{__name__}.Service"]
    assert [told["id"] for told in SERVED[:4]] == [None, first, None, "mine"]
    assert {told["save_dir"] for told in SERVED[:4]} == {str(served)}
    assert list(json.loads((served / IDS).read_text()).values()) == ["mine"]


def test_a_logger_gets_the_whole_configuration(served):
    for told in SERVED[:2]:
        assert told["config"]["model"]["student"]["init_args"]["model_type"] == "gpt2"
        assert told["config"]["trainer"]["max_steps"] == 8
        assert "ckpt_path" not in told["config"], "which changes whenever a run goes on, and MLflow allows no change"


def test_a_logger_gets_the_samples_of_each_validation_as_a_table(served):
    tables = SERVED[0]["tables"]
    assert {key for key, *_ in tables} == {"validation/samples"}
    assert [step for *_, step in tables] == [0, 2], "before the first step, and after two"
    _, columns, data, _ = tables[0]
    assert columns == ["prompt", "completion", "reference", "reward"]
    assert [row[0] for row in data] == ["abc>", "bca>", "cab>"]


def test_a_validation_has_the_same_step_in_every_record(served):
    first = [step for step, metrics in SERVED[0]["metrics"] if any("validation/" in name for name in metrics)]
    assert first == [0, 2]
    assert [step for step, metrics in SERVED[0]["metrics"] if "train/loss" in metrics] == [1, 2, 3, 4]
    logged = [int(row["step"]) for row in rows(served.with_name(METRICS)) if row["validation/accuracy"]]
    lines = map(json.loads, served.with_name(SAMPLES).read_text().splitlines())
    assert logged == list(dict.fromkeys(line["step"] for line in lines))


def test_metrics_csv_is_whole_beside_a_service(served):
    logged = rows(served.with_name(METRICS))
    assert [int(row["step"]) for row in logged if row["train/loss"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [int(row["step"]) for row in logged if row["validation/accuracy"]] == [0, 2, 4, 7]


def test_a_service_that_takes_neither_configuration_nor_table_ends_no_run(config_file, tmp_path):
    Client.tables.clear()
    options = ("--trainer.max_steps=1", "--trainer.limit_val_batches=1")
    with (
        pytest.warns(UserWarning, match="`ClientService` did not take the configuration: Changing param values"),
    ):
        fit(config_file, tmp_path, named(f"{__name__}.ClientService"), *options)
    (run, table, file), *_ = Client.tables
    assert run == json.loads((tmp_path / IDS).read_text())[f"{__name__}.ClientService"]
    assert file == "validation/samples.json"
    assert table["step"] == [0, 0, 0]
    assert len(table["completion"]) == 3


def test_a_logger_that_cannot_be_made_is_told_in_a_sentence(config_file, tmp_path, monkeypatch):
    class Broken(Service):
        def __init__(self, project: str = "mine") -> None:
            raise ModuleNotFoundError("No module named 'service'. Install it.")

    monkeypatch.setitem(globals(), "Broken", Broken)
    Broken.__qualname__ = "Broken"
    with pytest.raises(
        SystemExit, match=r"`trainer\.logger`: `Broken` refuses its settings\. .*No module named 'service'"
    ):
        fit(config_file, tmp_path, named(f"{__name__}.Broken"))


def test_a_file_of_ids_that_cannot_be_read_begins_new_runs(tmp_path):
    (tmp_path / IDS).write_text("[")
    with pytest.warns(UserWarning, match="so services begin new runs"):
        assert RunLoggers(tmp_path, continued=True).make(Service).told["id"] is None


def test_two_loggers_of_one_class_keep_an_id_each(tmp_path):
    loggers = RunLoggers(tmp_path, continued=False)
    made = [loggers.make(Service) for _ in range(2)]
    loggers.begin(made, {})
    again = RunLoggers(tmp_path, continued=True)
    assert [again.make(Service).version for _ in range(2)] == [one.version for one in made]
    assert made[0].version != made[1].version


@pytest.mark.parametrize("continued", [False, True])
def test_one_logger_alone_writes_metrics_csv(continued, tmp_path):
    loggers = RunLoggers(tmp_path, continued=continued)
    here = {"save_dir": str(tmp_path), "name": "", "version": ""}
    assert [type(one) for one in loggers.with_metrics([])] == [MetricsFile]
    assert [type(one) for one in loggers.with_metrics([loggers.make(CSVLogger, **here)])] == [ContinuedCSV]
    assert len(loggers.with_metrics([loggers.make(MetricsFile, folder=str(tmp_path))])) == 1
    numbered = loggers.make(CSVLogger, save_dir=str(tmp_path / "other"))
    assert [type(one) for one in loggers.with_metrics([numbered])] == [CSVLogger, MetricsFile]
    own = loggers.make(CSVLogger, save_dir=str(tmp_path / "other"), name="n", version="v")
    first, second = loggers.with_metrics([own])
    assert first.journal != second.journal == METRICS, "a checkpoint counts the rows of each"


@pytest.mark.slow
def test_weights_and_biases_itself_goes_on_with_its_run(config_file, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = named("lightning.pytorch.loggers.WandbLogger", project="mine", offline=True)
    for steps in (2, 4):
        with fault(DistillationModule, "training_step", 1, lambda: None) as calls:
            fit(config_file, "run", logger, f"--trainer.max_steps={steps}")
        wandb.finish()
    assert calls() < 7, "the run has begun anew"
    assert set(os.listdir("run")) == FILES | {"wandb", IDS}
    assert os.listdir() == ["run"]
    (run,) = json.loads(Path("run", IDS).read_text()).values()
    folders = [path for path in Path("run/wandb").iterdir() if path.name.startswith("offline-run")]
    assert {path.name.rpartition("-")[2] for path in folders} == {run}
    assert any(path.rglob("samples*.table.json") for path in folders)
    logged = b"".join(path.read_bytes() for folder in folders for path in folder.glob("*.wandb"))
    assert b"gpt2" in logged, "the configuration"
    assert b"validation/accuracy" in logged


@pytest.mark.slow
def test_mlflow_itself_goes_on_with_its_run(config_file, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    logger = named("lightning.pytorch.loggers.MLFlowLogger", experiment_name="mine")
    fit(config_file, "run", logger, "--trainer.max_steps=2")
    with pytest.warns(UserWarning, match="`MLFlowLogger` did not take the configuration: .*trainer/max_steps"):
        fit(config_file, "run", logger, "--trainer.max_steps=4")
    assert set(os.listdir("run")) == FILES | {"mlruns", IDS}
    assert os.listdir() == ["run"]
    (run,) = json.loads(Path("run", IDS).read_text()).values()
    (folder,) = Path("run/mlruns").glob("*/*/params")
    assert folder.parent.name == run, "there is one run"
    assert (folder / "model/objective/class_path").read_text().endswith("GKD")
    steps = [int(line.split()[2]) for line in (folder.parent / "metrics/train/loss").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    table = json.loads((folder.parent / "artifacts/validation/samples.json").read_text())
    assert {row[0] for row in table["data"]} == {0, 2}


def test_the_config_of_a_run_lists_the_loggers_that_were_named(served):
    kept = yaml.safe_load((served / "config.yaml").read_text())["trainer"]["logger"]
    assert [one["class_path"] for one in kept] == [f"{__name__}.Service"]

"""The two commands as a user runs them: score once, train without the teacher."""

import csv
import os
from pathlib import Path

import pytest
import yaml

from veto_pl.cli.listing import imported_rows
from veto_pl.commands.main import main
from veto_pl.offline import ScoreStore
from veto_pl.offline.manifest import Manifest

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "debug"
RUN = [f"--config={CONFIGS / f'{name}.yaml'}" for name in ("base", "supervised_kd")]
QUIET = ["--trainer.limit_val_batches=0", "--validate_first=false", "--export.folder=null"]
VOCABULARY = 56


def losses(folder, column="train/loss"):
    with (folder / "metrics.csv").open() as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A run with the teacher in memory."""
    folder = tmp_path_factory.mktemp("live")
    main(["fit", *RUN, *QUIET, f"--run_dir={folder}"])
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of one's own, because stores and runs are named relative to the working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("k", "tolerance"), [(VOCABULARY - 1, 1e-5), (VOCABULARY - 2, 1e-4), (32, 1e-2)])
def test_training_from_the_store_is_training_with_the_teacher(live, here, capsys, k, tolerance):
    main(["cache-teacher", *RUN, "--out=scores", f"--k={k}", "--rows_per_shard=100"])
    printed = capsys.readouterr().out
    (here / "cached.yaml").write_text(printed[printed.index("model:\n") :])
    assert sorted(os.listdir(here)) == ["cached.yaml", "scores"], "the run itself writes nothing"

    main(["fit", *RUN, "--config=cached.yaml", *QUIET, "--run_dir=run"])
    saved = yaml.safe_load((here / "run" / "config.yaml").read_text())["model"]
    assert saved["teacher"] is None
    assert saved["objective"]["class_path"] == "veto_pl.objectives.SupervisedKD"
    assert saved["objective"]["init_args"]["rollout"]["init_args"] == {"path": "scores"}
    cached, exact = losses(here / "run"), losses(live)
    assert cached == pytest.approx(exact, rel=tolerance)
    assert cached[0] <= exact[0] + 1e-6, "pooling ids loses a little and gains nothing"
    assert 0 < max(losses(here / "run", "train/stored_tail_mass")) < 0.2


def test_options_of_fit_and_a_saved_config_are_understood(live, here, capsys):
    options = ["--data.train_limit=9", "--model.objective.temperature=2.0", "--data.batch_size=4"]
    main(["cache-teacher", f"--config={live / 'config.yaml'}", *options, "--out=one", "--k=3"])
    assert "what the truncation costs" in capsys.readouterr().out
    main(["cache-teacher", *RUN, *options, "--out=two", "--k=3"])
    one, two = Manifest.read("one"), Manifest.read("two")
    assert one.identity == two.identity
    assert (one.identity.k, one.identity.temperature) == (3, 2.0)
    assert sum(shard.rows for shard in one.shards) == 9

    main(["cache-teacher", *RUN, *options, "--out=one", "--k=3", "--split=validation"])
    assert len(ScoreStore("one")) == 9 + 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.teacher=null", "--model.objective=SFT"], "needs the teacher to be scored"),
        ([f"--config={CONFIGS / 'sum.yaml'}"], "`Sum` has no `temperature` of its own"),
        (["--k=3", "--split=dev"], "`split` must be one of"),
        (["--k=56"], "`--k` must lie between 1 and 55"),
        (["--rows_per_shard=0"], "`cache-teacher.rows_per_shard` must be 1 or more"),
    ],
)
def test_mistakes_of_the_command_are_named(here, arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(["cache-teacher", *RUN, "--out=scores", *arguments])
    assert not (here / "scores").exists()


def test_a_store_that_does_not_exist_stops_the_run_before_it_starts(here, capsys):
    chosen = ["--model.teacher=null", "--model.objective.rollout=FromCache", "--model.objective.rollout.path=nowhere"]
    with pytest.raises(SystemExit):
        main(["fit", *RUN, *chosen, "--run_dir=run"])
    assert not (here / "run").exists()


def test_rows_that_were_left_out_stop_the_run_with_what_to_do(here):
    main(["cache-teacher", *RUN, "--data.train_limit=9", "--out=scores", "--k=3"])
    chosen = ["--model.teacher=null", "--model.objective.rollout=FromCache", "--model.objective.rollout.path=scores"]
    with pytest.raises(SystemExit, match=r"\(9 rows\) has no scores for the row with the prompt '\w+>'"):
        main(["fit", *RUN, *chosen, *QUIET, "--run_dir=run"])


def test_a_checkpoint_is_exported_where_the_store_is_not(here):
    main(["cache-teacher", *RUN, "--data.train_limit=9", "--out=scores", "--k=3"])
    chosen = ["--model.teacher=null", "--model.objective.rollout=FromCache", "--model.objective.rollout.path=scores"]
    main(["fit", *RUN, *chosen, *QUIET, "--data.train_limit=9", "--run_dir=run"])
    (here / "scores").rename(here / "elsewhere")
    main(["export", "run/checkpoints/last.ckpt", "exported"])
    assert (here / "exported" / "model.safetensors").is_file()


def test_the_rollout_is_listed():
    assert "FromCache" in {name for name, *_ in imported_rows("rollouts")}

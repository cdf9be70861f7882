import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import CSVLogger

from veto_pl.charts import Curve
from veto_pl.commands.main import main
from veto_pl.exceptions import DataError
from veto_pl.report import Run
from veto_pl.report.run import Sample, distinct_names

ROW = {"step": 3, "prompt": "1+1", "completion": "2\u2028", "reference": None, "reward": 1}


def test_reads_what_lightning_logs(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    logger.log_metrics({"train/loss": 2.5, "epoch": 0}, step=0)
    logger.log_metrics({"train/loss": 1.5, "epoch": 0}, step=5)
    logger.log_metrics({"validation/accuracy": 0.25, "epoch": 0}, step=5)
    logger.log_metrics({"train/loss": math.nan}, step=7)
    logger.save()
    (path,) = tmp_path.rglob("metrics.csv")
    curves = Run.read(path.parent).curves()
    assert curves.keys() == {"train/loss", "validation/accuracy"}
    assert curves["train/loss"].steps == (0, 5, 7)
    assert curves["train/loss"].values[:2] == (2.5, 1.5)
    assert curves["validation/accuracy"] == Curve((5,), (0.25,))


def test_a_resumed_run_keeps_the_later_value(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,train/loss\n1,1\n2,2\n3,3\n2,20\n3,\n")
    assert Run.read(tmp_path).curves()["train/loss"] == Curve((1, 2, 3), (1.0, 20.0, 3.0))


def test_reads_samples_and_config(tmp_path):
    later = ROW | {"step": 9, "reference": "2", "reward": 0.5}
    lines = [json.dumps(row, ensure_ascii=False) for row in (ROW, later)]
    (tmp_path / "samples.jsonl").write_text("\n".join([lines[0], "", lines[1], ""]), encoding="utf-8")
    (tmp_path / "config.yaml").write_text("a: ß\n", encoding="utf-8")
    run = Run.read(str(tmp_path), "mine")
    assert run.samples == (Sample(**ROW), Sample(**later))
    assert run.last_samples == (Sample(**later),)
    assert [sample.is_correct for sample in run.samples] == [True, False]
    assert (run.name, run.config) == ("mine", "a: ß\n")
    assert run.missing("metrics.csv")
    assert not run.missing("config.yaml")


def test_an_empty_folder_is_an_empty_run_named_after_it(tmp_path):
    run = Run.read(tmp_path)
    assert (run.name, run.curves(), run.samples, run.config) == (tmp_path.name, {}, (), "")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="absent"):
        Run.read(tmp_path / "absent")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("epoch,train/loss\n", 1, "column `step`"),
        ("step,x,x\n", 1, "distinct names"),
        ("step,train/loss\n1,2\n3\n", 3, "expected 2 cells"),
        ("step,train/loss\n1,2\n3,4,5\n", 3, "expected 2 cells"),
        ("step,train/loss\n1,2\n2,low\n", 3, "`train/loss` must be a number or empty, got 'low'"),
        ("step,train/loss\n,2\n", 2, "`step` must be a whole number, got ''"),
        ('step,train/loss\n1,"2"3\n', 2, "expected after"),
    ],
)
def test_malformed_metrics_name_file_and_line(tmp_path, text, line, message):
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(DataError) as raised:
        Run.read(tmp_path)
    assert f"metrics.csv:{line}: " in str(raised.value)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("{", ""),
        ("[1]", ""),
        (json.dumps(ROW | {"step": "3"}), "step"),
        (json.dumps(ROW | {"step": True}), "step"),
        (json.dumps(ROW | {"reference": 2}), "reference"),
        (json.dumps({"step": 3, "prompt": ""}), "completion"),
        (json.dumps(ROW | {"reward": None}), "reward"),
    ],
)
def test_malformed_samples_name_file_line_and_field(tmp_path, text, field):
    (tmp_path / "samples.jsonl").write_text(f"{json.dumps(ROW)}\n{text}\n")
    with pytest.raises(DataError) as raised:
        Run.read(tmp_path)
    assert f"samples.jsonl:2: {f'`{field}`: ' if field else ''}" in str(raised.value)
    assert ", got " in str(raised.value)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"accuracy": {"unit": "%"}}', '{"accuracy": {"title": "a", "higher_is_better": 1}}']
)
def test_a_malformed_description_of_metrics_is_named(tmp_path, text):
    (tmp_path / "quantities.json").write_text(text)
    with pytest.raises(DataError, match=r"quantities\.json: "):
        Run.read(tmp_path)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(DataError, match=r"config\.yaml:2: .*0xff"):
        Run.read(tmp_path)


@given(
    st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map("/".join), min_size=1, max_size=6, unique=True)
)
def test_every_folder_of_a_report_has_a_name_of_its_own(paths):
    """The end of its path; no longer than it has to be."""
    folders = [Path("/", path) for path in paths]
    names = distinct_names(folders)
    assert len(set(names)) == len(names)
    for folder, name in zip(folders, names, strict=True):
        assert f"/{folder}".endswith(f"/{name}")
        shorter = name.partition("/")[2]
        alike = [other for other in folders if f"/{other}".endswith(f"/{shorter}")]
        assert not shorter or len(alike) > 1


def folders_of_one_name(root):
    folders = [root / method / "version_1" for method in ("SFT", "KD")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text("step,validation/kl\n0,1\n")
    return [str(folder) for folder in folders]


@pytest.mark.parametrize(
    ("options", "shown"),
    [((), ["SFT/version_1", "KD/version_1"]), (("--names", "one", "the other"), ["one", "the other"])],
)
def test_runs_of_folders_with_one_name_are_told_apart(options, shown, tmp_path):
    main(["report", *folders_of_one_name(tmp_path), "--out", str(tmp_path / "page.html"), *options])
    page = (tmp_path / "page.html").read_text()
    assert all(f'<th scope="row">{name}</th>' in page for name in shown)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--names", "one"), "`--names`: given 1, expected 2"),
        (("--names", "one", "one"), "got `one` more than once"),
    ],
)
def test_names_that_tell_nothing_apart_are_refused(options, said, tmp_path):
    with pytest.raises(SystemExit, match=said):
        main(["report", *folders_of_one_name(tmp_path), "--out", str(tmp_path / "page.html"), *options])
    assert not (tmp_path / "page.html").exists()

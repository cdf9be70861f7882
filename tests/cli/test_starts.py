"""What is told before anything runs is told at once, and Lightning's noise is not told at all."""

import io
import logging
import os
import subprocess
import sys
import warnings

import pytest

from veto_pl.cli.class_index import LISTED, ClassIndex
from veto_pl.cli.listing import imported_rows, source_rows
from veto_pl.cli.streams import hide_noise
from veto_pl.cli.training_commands import SUMMARIES
from veto_pl.commands.main import main
from veto_pl.commands.parsers import OWN

HEAVY = {"torch", "transformers", "lightning", "numpy", "datasets", "torchmetrics", "jsonargparse", "scipy", "jinja2"}
IMPORTS = f"""
import sys
from veto_pl.__main__ import main
try:
    main()
finally:
    print("heavy:", sorted({HEAVY!r} & sys.modules.keys()))
"""


@pytest.mark.parametrize("arguments", [["--help"], ["list", "objectives"], ["report", "--help"]])
def test_help_and_lists_import_nothing_heavy(arguments):
    command = [sys.executable, "-c", IMPORTS, *arguments]  # a process without what the tests have imported
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "heavy: []" in done.stdout, done.stdout[-500:] + done.stderr[-2000:]


def test_the_help_names_every_command(capsys):
    main(["--help"])
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in (*SUMMARIES, *OWN))


@pytest.mark.parametrize("seam", LISTED)
def test_the_source_tells_of_each_seam_what_its_imported_classes_do(seam):
    """Names, papers, summaries and modules, of the classes that are no plug-in's."""
    own = [row for row in imported_rows(seam) if row[3].startswith("veto_pl.") and ".testing" not in row[3]]
    assert source_rows(INDEX)(seam) == own


INDEX = ClassIndex()


def test_an_advertisement_is_hidden_and_a_warning_is_seen(caplog):
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    hide_noise()
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    for line in ("TPU available: False, using: 0 TPU cores", "💡 Tip: For seamless cloud uploads and versioning, try"):
        log.info(line)
    log.warning("TPU available but not used.")
    log.warning("GPU available: False, used: False")
    assert [record.getMessage()[:14] for record in caplog.records] == ["TPU available ", "GPU available:"]


def test_a_log_file_has_no_bars_and_no_warning_of_weights_that_mixed_precision_keeps(monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "")
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS")
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with warnings.catch_warnings(record=True) as seen:
        hide_noise()
        warnings.warn("Precision bf16-mixed is not supported by the model summary.", stacklevel=1)
        warnings.warn("Precision bf16-mixed is slow here.", stacklevel=1)
    assert [str(warning.message)[-13:] for warning in seen] == ["is slow here."]
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"


def test_a_run_says_nothing_of_operations_that_nobody_counts(config, write, capsys):
    config["trainer"] |= {"max_steps": 1, "limit_val_batches": 0}
    main(["fit", "--config", write(config), "--export.folder=null"])
    said = "".join(capsys.readouterr())
    assert "FLOPs" not in said
    assert "TPU" not in said
    assert "parameters are trained" in said

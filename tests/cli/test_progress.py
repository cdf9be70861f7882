"""What a run shows while it trains: a bar on a terminal, a few whole lines in a file."""

import re

import pytest

from veto_pl.commands.main import main

from .conftest import changed

RUN = {"export.folder": None, "validate_first": False, "trainer.enable_model_summary": False, "trainer.max_steps": 7}


@pytest.mark.parametrize(("lines", "steps"), [(3, [2, 4, 6, 7]), (100, [1, 2, 3, 4, 5, 6, 7]), (0, [])])
def test_a_file_gets_a_few_lines(lines, steps, config, write, capsys):
    main(["fit", "--config", write(changed(config, {**RUN, "progress.lines": lines}))])
    said = capsys.readouterr().out
    assert [int(step) for step in re.findall(r"^step (\d+)/7  loss [\d.]+ .*tokens/s", said, re.MULTILINE)] == steps
    assert "\x1b" not in said


def test_a_terminal_gets_a_bar_of_the_whole_run(config, write, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    main(["fit", "--config", write(changed(config, RUN))])
    said = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", capsys.readouterr().out)
    assert re.search(r"train .* 7/7 .*loss: [\d.]+", said)
    assert "step 7/7" not in said


def test_nothing_is_shown_where_nothing_is_wanted(config, write, capsys):
    main(["fit", "--config", write(changed(config, {**RUN, "trainer.enable_progress_bar": False}))])
    assert "step" not in capsys.readouterr().out


def test_a_file_is_told_what_the_last_validation_has_found(config, write, capsys):
    """It comes behind the line of the last step, which has the value of the validation before."""
    validated = {"trainer.val_check_interval": 7, "trainer.check_val_every_n_epoch": None}
    main(["fit", "--config", write(changed(config, {**RUN, **validated, "progress.lines": 1}))])
    *_, before, last = re.findall(r"^step 7/7  .*", capsys.readouterr().out, re.MULTILINE)
    assert "accuracy" not in before
    assert "accuracy" in last

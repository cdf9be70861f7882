"""The road of docs/turns.md from nothing is walked: each of its commands, in a folder with its files."""

import re
import shlex
import shutil

import pytest

from tests.marks import fast
from tests.processes import ROOT, python

PAGE = (ROOT / "docs" / "turns.md").read_text().partition("## From nothing")[2].partition("\n## ")[0]
FILES = dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL))
BASH = "".join(re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
COMMANDS = [shlex.split(line) for line in BASH.splitlines()]
RUNS = {"House": 0, "Tools": 1, "Countdown": 2, "TCOD": 3}


def test_the_page_has_these_commands():
    assert len(COMMANDS) == len(RUNS)
    assert [*FILES] == ["agent.yaml", "dice.py", "countdown.py"]


@pytest.mark.parametrize("name", fast(RUNS, "TCOD"))
def test_a_command_runs(name, tmp_path):
    for title, text in FILES.items():
        (tmp_path / title).write_text(text)
    shutil.copytree(ROOT / "configs" / "debug", tmp_path / "configs" / "debug")
    program, *arguments = COMMANDS[RUNS[name]]
    assert program == "veto-pl"
    run = python("-m", "veto_pl", *arguments, "--run_dir", tmp_path / "run", cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    logged = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "train/turns" in logged
    assert name in (tmp_path / "run" / "config.yaml").read_text()

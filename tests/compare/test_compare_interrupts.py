"""What an interrupt from a terminal, which goes to all processes, does to a study that is only starting."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.xdist_group("compare"),
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]

ROOT = Path(__file__).parents[2]
STUDY = f"""
title: a study
config: [{ROOT}/configs/debug/base.yaml, {ROOT}/configs/debug/sft.yaml]
settings: {{data: {{task: {{init_args: {{test_size: 8}}}}}}}}
methods: {{SFT: {{}}}}
baseline: SFT
budget: {{steps: 3}}
seeds: [1]
"""
COMMAND = [str(Path(sys.executable).with_name("veto-pl")), "compare", "study.yaml", "--out=out"]


def interrupted(folder, sign, later=0.0, **environment):
    """Interrupts the command, in a group of its own, when it has printed `sign`. Returns its status and its streams."""
    (folder / "study.yaml").write_text(STUDY)
    files = folder / "stdout", folder / "stderr"
    with files[0].open("w") as out, files[1].open("w") as err:
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        process = subprocess.Popen(
            COMMAND, cwd=folder, env=variables, stdout=out, stderr=err, start_new_session=True, preexec_fn=heed
        )
        assert eventually(lambda: any(sign in file.read_text() for file in files) or process.poll() is not None)
        time.sleep(later)
        os.killpg(process.pid, signal.SIGINT)
        code = process.wait(120)
    assert eventually(lambda: not living(process.pid))
    return code, *(file.read_text() for file in files)


def heed():
    """Interrupts count in the command, also where the tests run in the background of a shell, which ignores them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def eventually(is_so):
    deadline = time.monotonic() + 120
    while not (so := is_so()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return so


def living(group):
    """Processes of a group that have not ended."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = file.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it ended meanwhile
            continue
        if int(of) == group and state != "Z":
            found.append(file.parent.name)
    return found


@pytest.mark.parametrize("later", [pytest.param(0.0, marks=pytest.mark.slow), 1.5])
def test_an_interrupt_while_the_first_run_starts_stops_it_in_good_order(tmp_path, later):
    """The libraries are imported once more then, by the process that the runs are forked from."""
    code, out, err = interrupted(tmp_path, "trials: 1 run", later)
    assert code == 130
    assert err.splitlines()[-1] == "veto-pl: stopped. The same command goes on from here."
    assert "Traceback" not in out + err


@pytest.mark.parametrize("module", ["torch.nn.modules.module", "lightning.pytorch.trainer.states"])
def test_an_interrupt_while_the_libraries_are_imported_leaves_no_traceback(tmp_path, module):
    code, out, err = interrupted(tmp_path, f" {module}\n", PYTHONPROFILEIMPORTTIME="1")
    assert (code, out) == (130, "")
    assert [line for line in err.splitlines() if not line.startswith("import time:")] == ["veto-pl: stopped."]

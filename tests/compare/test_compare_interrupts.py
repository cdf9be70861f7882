"""What an interrupt from a terminal, which goes to a group of processes, does to a study that is only starting."""

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


def interrupted(folder, when, **environment):
    """Interrupts the command, in a session of its own, as soon as `when` holds. Returns its status and its streams."""
    (folder / "study.yaml").write_text(STUDY)
    files = folder / "stdout", folder / "stderr"
    with files[0].open("w") as out, files[1].open("w") as err:
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        process = subprocess.Popen(
            COMMAND, cwd=folder, env=variables, stdout=out, stderr=err, start_new_session=True, preexec_fn=heed
        )
        assert eventually(lambda: when(process, folder) or process.poll() is not None)
        os.killpg(process.pid, signal.SIGINT)
        code = process.wait(900)
    assert eventually(lambda: not living(process.pid))  # nothing of Ray either
    return code, *(file.read_text() for file in files)


def heed():
    """Interrupts count in the command, also where the tests run in the background of a shell, which ignores them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def eventually(is_so):
    deadline = time.monotonic() + 900
    while not (so := is_so()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return so


def living(session):
    """Processes of a session that have not ended."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = file.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it ended meanwhile
            continue
        if int(of) == session and state != "Z":
            found.append(file.parent.name)
    return found


@pytest.mark.parametrize(
    "when",
    [
        pytest.param(lambda process, _: len(living(process.pid)) > 1, id="Ray starts", marks=pytest.mark.slow),
        pytest.param(lambda _, folder: "trials: 1 run" in printed(folder), id="imports", marks=pytest.mark.slow),
        pytest.param(lambda _, folder: list(folder.glob("out/trials/SFT/*/run.log")), id="training"),
    ],
)
def test_an_interrupt_stops_it_in_good_order(tmp_path, when):
    code, out, err = interrupted(tmp_path, when)
    assert code == 130
    assert err.splitlines()[-1] == "veto-pl: stopped. The same command goes on from here."
    assert "Traceback" not in out + err
    assert not list(tmp_path.glob("out/.started-*"))


@pytest.mark.parametrize("module", ["torch.nn.modules.module", "lightning.pytorch.trainer.states"])
def test_an_interrupt_while_the_libraries_are_imported_leaves_no_traceback(tmp_path, module):
    sign = f" {module}\n"
    code, out, err = interrupted(tmp_path, lambda _, folder: sign in printed(folder), PYTHONPROFILEIMPORTTIME="1")
    assert (code, out) == (130, "")
    said = [line for line in err.splitlines() if not line.startswith("import time:")]
    assert said == ["veto-pl: stopped. The same command goes on from here."]


def printed(folder):
    return (folder / "stdout").read_text() + (folder / "stderr").read_text()

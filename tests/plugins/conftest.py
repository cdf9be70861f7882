"""An installed package of somebody else's, and what the commands say of its parts."""

import json
from pathlib import Path

import pytest

from tests.processes import python

HERE = Path(__file__).parent
GUEST = HERE / "guest"
collect_ignore = ["guest"]  # its classes join the seams where they are imported


def installed(folder, entries=None):
    """The folder as one of installed packages: what pip makes of the guest, with other entry points perhaps."""
    entries = entries or (GUEST / "pyproject.toml").read_text().partition("\n\n")[2]
    metadata = folder / "guest_parts-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: guest-parts\nVersion: 1.0\n")
    text = entries.replace("project.entry-points.", "").replace('"', "")
    (metadata / "entry_points.txt").write_text(text)
    return folder


def guested(site, *arguments, cwd):
    """A Python that has the guest installed."""
    return python(*arguments, cwd=cwd, path=[site, GUEST, HERE], timeout=900)


@pytest.fixture(scope="session")
def said(tmp_path_factory):
    """By the name of a case: what a command printed, and how it ended. All of them run in one process."""
    folder = tmp_path_factory.mktemp("guest")
    done = guested(installed(folder / "site"), "-m", "commands_of_a_guest", cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "said.json").read_text())

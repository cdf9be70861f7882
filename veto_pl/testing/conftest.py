"""Settings of the conformance suite."""

from importlib.util import find_spec

import pytest
import torch

# Threads of tiny products wait for each other longer than they work.
torch.set_num_threads(1)

WITHOUT = find_spec("hypothesis") is None
collect_ignore_glob = ["test_*.py"] if WITHOUT else []


def pytest_collection_modifyitems() -> None:
    """Say what to install where hypothesis is missing, in place of an error of each file that imports it."""
    if WITHOUT:
        raise pytest.UsageError('The conformance suite needs hypothesis: pip install "veto_pl[testing]"')

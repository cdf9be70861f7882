"""Settings of the conformance suite."""

from importlib.util import find_spec

import pytest
import torch

# Threads of tiny products wait for each other longer than they work.
torch.set_num_threads(1)

if find_spec("hypothesis") is None:
    collect_ignore_glob = ["test_*.py"]


def pytest_configure() -> None:
    """Say what to install where hypothesis is missing, before a file of the suite fails to import it."""
    if find_spec("hypothesis") is None:
        raise pytest.UsageError('The conformance suite needs hypothesis: pip install "veto_pl[testing]"')

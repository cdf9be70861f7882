"""Settings of the whole suite."""

import json
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from tests.cpu_budget import MEASURED, Times, mark_beyond_budget

hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("suite")
torch.set_num_threads(1)

HERE = Path(__file__).parent
CORE = (
    "cli/test_commands.py",
    "data/test_data_module.py",
    "distributed/test_ranks.py",
    "distributed/test_resume_ranks.py",
    "faults/test_checkpoint_io.py",
    "faults/test_resume.py",
    "faults/test_signals.py",
    "models/test_causal_lm.py",
    "offline/test_offline_store.py",
    "rollouts/test_engines.py",
    "rollouts/test_rollouts.py",
    "sandbox/test_sandbox_programs.py",
    "training/test_module.py",
    "objectives/test_objectives.py",
    "commands/test_quickstart.py",
)
"""What another version of Python or of a library is most likely to break. They get the mark `core`."""


@pytest.fixture(autouse=True)
def deterministic_as_before() -> Iterator[None]:
    """Restores what a run sets for its whole process, so that no other test decodes in another way after it."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def pytest_addoption(parser: pytest.Parser) -> None:
    """Lets the golden losses, and what the tests take, be rewritten."""
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden losses of the debug configs")
    parser.addoption("--update-times", action="store_true", help="rewrite the CPU seconds of each test")


def pytest_configure(config: pytest.Config) -> None:
    """Measures, where that is asked for."""
    if config.getoption("--update-times"):
        config.pluginmanager.register(Times(config))


LONGEST_ID = 200
"""Characters of a test's id, which becomes an environment variable of every program that the test starts."""


def pytest_make_parametrize_id(val: object) -> str | None:
    """Returns the beginning of a long text; where two begin alike, pytest numbers them."""
    return f"{val[:40]}..." if isinstance(val, str) and len(val) > 50 else None


@pytest.hookimpl(tryfirst=True)  # before tests are deselected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Raises for ids that are too long, marks the core, and cases beyond the CPU time of their test as slow."""
    long = [item.nodeid for item in items if len(item.nodeid) > LONGEST_ID]
    if long:
        raise pytest.UsageError(f"Ids of tests have at most {LONGEST_ID} characters, got: {long[0][:300]}.")
    core = {HERE / name for name in CORE}
    if missing := [str(path) for path in core if not path.is_file()]:
        raise pytest.UsageError(f"CORE in tests/conftest.py names files that are not there: {', '.join(missing)}")
    for item in items:
        if item.path in core:
            item.add_marker(pytest.mark.core)
    if not any(item.config.getoption("--update-times") for item in items[:1]):
        mark_beyond_budget(items, json.loads(MEASURED.read_text()))

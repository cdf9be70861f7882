"""Settings of the whole suite."""

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("suite")
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Lets the golden losses be rewritten."""
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden losses of the debug configs")


LONGEST_ID = 200
"""Characters of a test's id, which becomes an environment variable of every program that the test starts."""


def pytest_make_parametrize_id(val: object) -> str | None:
    """Returns the beginning of a long text; where two begin alike, pytest numbers them."""
    return f"{val[:40]}..." if isinstance(val, str) and len(val) > 50 else None


@pytest.hookimpl(tryfirst=True)  # before tests are deselected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Raises for ids that are too long."""
    long = [item.nodeid for item in items if len(item.nodeid) > LONGEST_ID]
    if long:
        raise pytest.UsageError(f"Ids of tests have at most {LONGEST_ID} characters, got: {long[0][:300]}.")

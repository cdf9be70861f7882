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

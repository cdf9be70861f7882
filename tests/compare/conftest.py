import pytest

from compare.comparisons import Maker


@pytest.fixture
def make(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    return Maker(folder)

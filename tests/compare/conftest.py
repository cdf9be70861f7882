import signal

import pytest

from compare.comparisons import Maker


@pytest.fixture
def make(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    return Maker(folder)


@pytest.fixture(scope="session")
def local_ray():
    """One Ray for all tests of this process: studies use the one that there is."""
    import ray

    from veto_pl.compare.cluster import connected

    before = signal.getsignal(signal.SIGTERM)
    with connected(None):
        signal.signal(signal.SIGTERM, before)  # other tests of this process expect it so
        yield ray

"""The tests of this folder run in a process that has the pretended GPU; their arguments travel there by pickling."""

from pathlib import Path

import pytest
from device_process import call, device_process


def pytest_collection_modifyitems(items):
    """Keeps the tests of this folder, of all that pytest hands over, on one worker, which then has one such process."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("devices"))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Calls a test there, and raises here what it raises."""
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    name = pyfuncitem.originalname
    device_process().submit(call, pyfuncitem.module.__name__, name, arguments).result(timeout=300)
    return True

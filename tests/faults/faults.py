"""Ways to stop a run at a chosen place."""

import os
from contextlib import contextmanager, suppress
from unittest.mock import patch

from veto_pl.commands.main import main


class StopError(Exception):
    """What goes wrong."""


def raising():
    raise StopError


def dying():
    """As SIGKILL: nothing is flushed, no handler and no `finally` runs."""
    os._exit(9)


@contextmanager
def fault(owner, where, count, action):
    """Does `action` at the start of the `count`-th call of a method; gives the number of calls so far."""
    original = getattr(owner, where)
    calls = 0

    def counting(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == count:
            action()
        return original(self, *args, **kwargs)

    with patch.object(owner, where, counting):
        yield lambda: calls


def fit(config_file, run, *options):
    """The command, in this process; it goes on where there is a checkpoint."""
    main(["fit", "--config", config_file, "--run_dir", str(run), "--ckpt_path", "last", *options])


def die_in(owner, where, count, config_file, run, *options):
    """The command in a child process that dies at the given place; returns whether it got there."""
    child = os.fork()
    if child == 0:
        with suppress(BaseException), fault(owner, where, count, dying):
            fit(config_file, run, *options)
            os._exit(0)
        os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9

"""Removes the folders of programs under test, without holding up their verdicts."""

from __future__ import annotations

import os
import subprocess
import threading
from collections import deque

from veto_pl.sandbox.commands import PROGRAMS_SEE, path_of

PATIENCE = 0.25
"""Seconds that a verdict waits for a folder to go; what takes longer goes on beside."""
MOST = 8
"""Removals that go on beside; where programs fill folders faster than this, verdicts wait for the oldest."""

# A program may have made a folder unreadable, or deeper than Python can recurse.
_REMOVE = '"$0" -rf "$2" || { "$1" -R u+rwX "$2"; "$0" -rf "$2"; }'

_going_on: deque[subprocess.Popen[bytes]] = deque()
_lock = threading.Lock()


def remove(folder: str) -> None:
    """Remove a folder whose program has ended, and wait for no more than `PATIENCE` seconds.

    A removal that takes longer goes on in a process of its own, which outlives this one and ends when all is gone.
    """
    try:
        os.rmdir(folder)
        return
    except OSError:  # not empty
        if os.geteuid() == 0:
            os.chown(folder, 0, 0)  # so that nobody can add to it any more
    remover = subprocess.Popen(
        [path_of("sh"), "-c", _REMOVE, path_of("rm"), path_of("chmod"), folder],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=PROGRAMS_SEE,
    )
    if not _ends(remover, PATIENCE):
        with _lock:
            _going_on.append(remover)
    finish(MOST)


def finish(most: int = 0) -> None:
    """Wait until no more than so many removals go on."""
    with _lock:
        rest = [remover for remover in _going_on if remover.poll() is None]
        _going_on.clear()
        _going_on.extend(rest)
        waited = [_going_on.popleft() for _ in range(len(rest) - most)]
    for remover in waited:
        remover.wait()


def _ends(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True

"""Removes the folders of programs under test, without holding up their verdicts."""

from __future__ import annotations

import os
import subprocess
import threading
from collections import deque

from veto_pl.sandbox.commands import CHILD_ENVIRONMENT, path_of

WAIT_SECONDS = 0.25
"""Seconds that a verdict waits for a folder to go; what takes longer goes on beside."""
MAX_PENDING = 8
"""Removals that go on beside; where programs fill folders faster than this, verdicts wait for the oldest."""

# A program may have made a folder unreadable, or deeper than Python can recurse.
_REMOVE = '"$0" -rf "$2" || { "$1" -R u+rwX "$2"; "$0" -rf "$2"; }'

_pending: deque[subprocess.Popen[bytes]] = deque()
_lock = threading.Lock()


def remove(folder: str) -> None:
    """Remove a folder whose program has ended, and wait for no more than `WAIT_SECONDS` seconds.

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
        env=CHILD_ENVIRONMENT,
    )
    if not _ends(remover, WAIT_SECONDS):
        with _lock:
            _pending.append(remover)
    wait_for_removals(MAX_PENDING)


def wait_for_removals(most: int = 0) -> None:
    """Wait until no more than so many removals go on."""
    with _lock:
        rest = [remover for remover in _pending if remover.poll() is None]
        _pending.clear()
        _pending.extend(rest)
        waited = [_pending.popleft() for _ in range(len(rest) - most)]
    for remover in waited:
        remover.wait()


def _ends(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True

"""Starts a child program behind a level of protection, and ends it with all that it has started."""

from __future__ import annotations

import errno
import itertools
import marshal
import os
import select
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import CodeType
from typing import Any

from veto_pl.sandbox.commands import CHILD_ENVIRONMENT, command, devices, interpreter, readable
from veto_pl.sandbox.limits import Level, Limits
from veto_pl.sandbox.removal import remove

_BOOT = """import marshal, sys
modules, entry, job = marshal.load(sys.stdin.buffer)
for name, code in modules:
    sys.modules[name] = module = type(sys)(name)
    exec(code, module.__dict__)
sys.modules[entry].main(job)
"""
_MODULES = ("codec", "calls", "kernel", "fence", "candidate", "examiner", "interpreter")
_RUNS = itertools.count()


class SandboxError(RuntimeError):
    """The sandbox itself does not work; no program can be the cause."""


@dataclass(frozen=True)
class Child:
    """A running child program.

    Args:
        process: the outermost process, leader of its group.
        leftover_user: a user whose processes may have left the group, or None where a namespace holds them.
        errors: a file with what a trusted program wrote to its standard error, or None.
        cleanup: gives back, once the program has ended, what was taken for it: folder, user and files.
    """

    process: subprocess.Popen[bytes]
    leftover_user: int | None
    errors: int | None
    cleanup: ExitStack

    def wait(self, seconds: float = 0.2) -> None:
        """Wait for the program to end by itself, which leaves no zombies where nobody reaps orphans."""
        handle = os.pidfd_open(self.process.pid)
        try:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            poll.poll(seconds * 1000)
        finally:
            os.close(handle)

    def succeeded(self) -> bool:
        """Return whether the program, which has ended, has ended with the status 0; it is not reaped by that."""
        end = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return end is not None and (end.si_code, end.si_status) == (os.CLD_EXITED, 0)

    def end(self) -> None:
        """Kill the process group, and what may have left it, and remove the folder."""
        with self.cleanup:
            os.killpg(self.process.pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
            self.process.wait()
            if self.leftover_user is not None:
                _kill_user(self.leftover_user)

    def stderr_tail(self) -> str:
        """Return the last 500 characters that the program wrote to its standard error."""
        return "" if self.errors is None else os.pread(self.errors, 2**16, 0).decode(errors="replace")[-500:].strip()


def start(
    entry: str,
    job: Mapping[str, Any],
    pipes: Sequence[int],
    limits: Limits,
    level: Level,
    *,
    packages: Sequence[str] = (),
    trusted: bool = False,
) -> Child:
    """Start a child program.

    Args:
        entry: the module of this package whose `main` gets the job.
        job: plain values.
        pipes: file descriptors that the program inherits; it gets no others.
        limits: what it may use.
        level: how it is shut in.
        packages: folders to import from, beside the standard library.
        trusted: keep what it writes to its standard error; that of other programs is thrown away.
    """
    with ExitStack() as stack:
        user = claim_user(stack)
        folder = None if level == "bubblewrap" else tempfile.mkdtemp(prefix="veto-sandbox-")
        if folder is not None:
            stack.callback(remove, folder)
            if user is not None:
                os.chown(folder, user, user)
        inside = folder or "/sandbox"  # not /tmp, where an interpreter that has to be seen may lie
        fence = {
            "limits": limits.resources, "user": user, "packages": list(packages),
            "readable": [*readable(), *packages], "writable": [inside, *devices()],
        }  # fmt: skip
        packed = marshal.dumps((_compiled(), f"veto_pl.sandbox.{entry}", {**job, "fence": fence}))
        before = command(level, inside, limits.folder_bytes, packages, unprivileged=user is None)
        errors = os.memfd_create("errors") if trusted else None
        if errors is not None:
            stack.callback(os.close, errors)
        process = _spawn([*before, interpreter(), "-S", "-s", "-c", _BOOT], packed, pipes, inside, folder, errors)
        return Child(process, user if folder is not None and not trusted else None, errors, stack.pop_all())


def _spawn(
    line: list[str], packed: bytes, pipes: Sequence[int], inside: str, folder: str | None, errors: int | None
) -> subprocess.Popen[bytes]:
    with open(os.memfd_create("job"), "w+b") as work:
        work.write(packed)
        work.seek(0)
        return subprocess.Popen(
            line,
            stdin=work,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if errors is None else errors,
            pass_fds=pipes,
            start_new_session=True,
            cwd=folder or "/",
            env=_environment(inside),
        )


def claim_user(claims: ExitStack) -> int | None:
    """Return, for root, a user id that nobody else has, so that the count of its processes is its own; None for others.

    It stays taken, for all processes of this machine, until the claims are closed. Of a user namespace with few users,
    such as that of a rootless container, one of those is taken.
    """
    if os.geteuid() != 0:
        return None
    first, _, count = max(_user_map(), key=lambda row: row[2])
    reserved = 2**30 if count >= 2**31 else 20_000
    first, count = first + reserved, min(count - reserved, 2**30)
    if count < 256:
        return None
    begin = (os.getpid() << 8) + next(_RUNS)  # far from those of other processes
    users = (first + (begin + place) % count for place in range(count))
    user = next((user for user in users if _try_claim(user, claims)), None)
    if user is None:
        raise SandboxError(f"All of {count} users are taken by programs under test.")
    return user


def _try_claim(user: int, claims: ExitStack) -> bool:
    """Claim a user id and return whether it was free.

    The claim is a bound socket address: it has one owner, and is free again when its owner has gone, however.
    """
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0veto-sandbox-user-{user}")
    except OSError as error:
        claim.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    claims.enter_context(claim)
    return True


def _user_map() -> list[tuple[int, int, int]]:
    rows = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return [(int(first), int(outside), int(count)) for first, outside, count in rows]


@lru_cache(maxsize=1)
def _compiled() -> tuple[tuple[str, CodeType], ...]:
    """Compile the modules of the child programs, which cannot import this package: it is not theirs to read."""
    here = Path(__file__).parent
    sources = {name: (here / f"{name}.py").read_text(encoding="utf-8") for name in _MODULES}
    names = {name: f"veto_pl.sandbox.{name}" for name in _MODULES}
    return tuple((names[name], compile(text, f"<{name}>", "exec", optimize=2)) for name, text in sources.items())


def _environment(folder: str) -> dict[str, str]:
    """Return the environment of a program; equal hashes, so that a verdict does not depend on the run."""
    return {
        **CHILD_ENVIRONMENT, "HOME": folder, "TMPDIR": folder,
        "PYTHONHASHSEED": "0", "PYTHONINTMAXSTRDIGITS": "0", "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
    }  # fmt: skip


def _kill_user(user: int) -> None:
    """Kill every process of the user at once, also those that have left the process group."""
    become = f"import os; os.setgroups([]); os.setresgid(*[{user}] * 3); os.setresuid(*[{user}] * 3); os.kill(-1, 9)"
    subprocess.run([interpreter(), "-I", "-S", "-c", become], capture_output=True, check=False, env=CHILD_ENVIRONMENT)

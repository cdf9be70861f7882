"""Gives up the rights of a child program before it runs anything else."""

from __future__ import annotations

import os
import resource
import sys

from veto_pl.sandbox.codec import encode, send
from veto_pl.sandbox.kernel import die_with_parent, renounce_privileges, restrict_calls, restrict_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def enter(rules: dict[str, Any]) -> dict[str, bool]:
    """Apply every protection that the kernel offers, and return which those are.

    Args:
        rules: `limits` (values of `RLIMIT_*` by name), `user` (an unprivileged user to become, or None), `packages`
            (folders to import from, beside the standard library), `readable` and `writable` paths.

    Raises:
        OSError: for a protection that the kernel has and refuses.
    """
    sys.path[:] = [path for path in sys.path if path] + rules["packages"]
    _close_input()
    _prefer_in_oom_kill()
    for name, most in rules["limits"].items():
        kind = getattr(resource, f"RLIMIT_{name}")
        ceiling = resource.getrlimit(kind)[1]
        most = most if ceiling == resource.RLIM_INFINITY else min(most, ceiling)
        resource.setrlimit(kind, (most, most))
    renounce_privileges()
    files = restrict_files(rules["readable"], rules["writable"])
    if rules["user"] is not None:
        _switch_user(rules["user"])
    die_with_parent()
    calls = restrict_calls()
    return {"landlock": files, "seccomp": calls, "own_user": rules["user"] is not None}


def main(job: dict[str, Any]) -> None:
    """Report which protections are active: this is the entry of the probe."""
    active = enter(job["fence"])
    os.listdir(".")
    import decimal  # noqa: F401  # the standard library has to stay in reach

    send(job["report"], encode(active, lambda _: (0, False)))


def _close_input() -> None:
    """Replace the standard input, which held the job and perhaps the tests, by an empty one."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.close(nothing)


def _prefer_in_oom_kill() -> None:
    """Ask the kernel to kill this process, and not the one that trains, where memory runs out."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass


def _switch_user(user: int) -> None:
    """Change to an unprivileged user; what was importable stays importable.

    The interpreter may live where only root can go, such as root's home. Its folders are then reached through
    descriptors that were opened before.
    """
    folders = {path: os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in sys.path if os.path.isdir(path)}
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    moved: dict[str, str] = {}
    for path, folder in folders.items():
        if os.access(path, os.R_OK | os.X_OK):
            os.close(folder)
        else:
            moved[path] = f"/proc/self/fd/{folder}"
    sys.path[:] = [moved.get(path, path) for path in sys.path]
    sys.path_importer_cache.clear()
    for module in list(sys.modules.values()):
        for path in list(getattr(module, "__path__", []))[:1]:
            parent, _, name = str(path).rpartition("/")
            module.__path__ = [f"{moved.get(parent, parent)}/{name}"]

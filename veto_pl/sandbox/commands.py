"""The command line that shuts a child program in, for each level of protection."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from veto_pl.sandbox.limits import Level

LEVELS: tuple[Level, ...] = ("bubblewrap", "unshare", "limits")

# The mount needs the shell, and the shell has to stay: as first process of its namespace it takes the others along.
_MOUNT = 'mount -t tmpfs -o size="$1",mode=1777,nosuid,nodev tmpfs "$2" && cd "$2" && shift 2 && "$@"; exit $?'


def tool(level: Level) -> str | None:
    """The program that a level needs, None for the level that needs none."""
    return {"bubblewrap": "bwrap", "unshare": "unshare", "limits": None}[level]


@lru_cache(maxsize=1)
def interpreter() -> str:
    """The Python that runs the child programs: this one, outside of any virtual environment."""
    return os.path.realpath(sys.executable)


def readable() -> list[str]:
    """What a program may read: the system's libraries, the standard library, and devices that hold nothing."""
    system = ["/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/localtime"]
    python = [sys.base_prefix, sys.base_exec_prefix, str(Path(interpreter()).parent)]
    return list(dict.fromkeys(system + python))


def devices() -> list[str]:
    """What a program may write to without effect."""
    return ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"]


def command(level: Level, folder: str, size: int, packages: Sequence[str], *, unprivileged: bool) -> list[str]:
    """What to put before the interpreter.

    Args:
        level: the level.
        folder: the temporary folder, as the program sees it.
        size: bytes of the folder.
        packages: folders to import from.
        unprivileged: whether this process lacks the rights of root, and so needs a user namespace.
    """
    if level == "bubblewrap":
        return _bubblewrap(folder, size, packages, unprivileged)
    if level == "unshare":
        return _unshare(folder, size, unprivileged)
    return []


def _bubblewrap(folder: str, size: int, packages: Sequence[str], unprivileged: bool) -> list[str]:
    spaces = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    # Root becomes a user without rights in the child program itself, which needs these three until then.
    kept = ["SETUID", "SETGID", "SETPCAP"]
    rights = ["--unshare-user"] if unprivileged else [x for name in kept for x in ("--cap-add", f"CAP_{name}")]
    line = ["bwrap", *spaces, "--die-with-parent", "--cap-drop", "ALL", *rights]
    line += ["--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--size", str(size), "--tmpfs", folder]
    for path in [*readable(), *packages]:
        if os.path.islink(path):
            line += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path) and not path.startswith("/usr/"):
            line += ["--ro-bind", path, path]
    return [*line, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", folder, "--"]


def _unshare(folder: str, size: int, unprivileged: bool) -> list[str]:
    line = ["setpriv", "--pdeathsig", "KILL", "--", "unshare", *(["--user", "--map-root-user"] if unprivileged else [])]
    line += ["--net", "--pid", "--ipc", "--uts", "--mount", "--mount-proc", "--fork", "--kill-child", "--"]
    line += ["sh", "-c", _MOUNT, "sh", str(size), folder]
    return [*line, *(["setpriv", "--inh-caps=-all", "--bounding-set=-all", "--"] if unprivileged else [])]


def missing(level: Level) -> str | None:
    """The program of a level that is not installed, or None."""
    name = tool(level)
    return name if name is not None and shutil.which(name) is None else None

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

_TOOLS: dict[Level, tuple[str, ...]] = {
    "bubblewrap": ("bwrap",),
    "unshare": ("unshare", "setpriv", "mount"),
    "limits": (),
}

CHILD_ENVIRONMENT = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}
"""The environment of whatever is started here: nothing of this process's own, which may be secret, or too long."""

# The mount needs the shell, and the shell has to stay: as first process of its namespace it takes the others along.
# A folder and an empty file take no room in it, so they are counted.
_MOUNT = """"$1" -t tmpfs -o size="$2",nr_inodes=65536,mode=1777,nosuid,nodev tmpfs "$3" && cd "$3" && shift 3 && "$@"
exit $?"""


def path_of(name: str) -> str:
    """Return where a program lies by this process's `PATH`, which alone decides about all programs that are started.

    Raises:
        FileNotFoundError: it is not installed.
    """
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"`{name}` is not installed")
    return os.path.abspath(found)


@lru_cache(maxsize=1)
def interpreter() -> str:
    """Return the Python that runs the child programs: this one, outside of any virtual environment."""
    return os.path.realpath(sys.executable)


def readable() -> list[str]:
    """Return what a program may read: the system's libraries, the standard library, and devices that hold nothing."""
    system = ["/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/localtime"]
    python = [sys.base_prefix, sys.base_exec_prefix, str(Path(interpreter()).parent)]
    return list(dict.fromkeys(system + python))


def devices() -> list[str]:
    """Return the devices that a program may write to without effect."""
    return ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"]


def command(level: Level, folder: str, size: int, packages: Sequence[str], *, unprivileged: bool) -> list[str]:
    """Return the command line to put before the interpreter.

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
    line = [path_of("bwrap"), *spaces, "--die-with-parent", "--cap-drop", "ALL", *rights]
    line += ["--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--size", str(size), "--tmpfs", folder]
    for path in [*readable(), *packages]:
        if os.path.islink(path):
            line += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path) and not path.startswith("/usr/"):
            line += ["--ro-bind", path, path]
    return [*line, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", folder, "--"]


def _unshare(folder: str, size: int, unprivileged: bool) -> list[str]:
    unshare, setpriv, shell, mount = map(path_of, ("unshare", "setpriv", "sh", "mount"))
    line = [setpriv, "--pdeathsig", "KILL", "--", unshare, *(["--user", "--map-root-user"] if unprivileged else [])]
    line += ["--net", "--pid", "--ipc", "--uts", "--mount", "--mount-proc", "--fork", "--kill-child", "--"]
    line += [shell, "-c", _MOUNT, "sh", mount, str(size), folder]
    return [*line, *([setpriv, "--inh-caps=-all", "--bounding-set=-all", "--"] if unprivileged else [])]


def missing_tool(level: Level) -> str | None:
    """Return the first program of a level that is not installed, or None."""
    return next((name for name in _TOOLS[level] if shutil.which(name) is None), None)

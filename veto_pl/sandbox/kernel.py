"""Restrictions that a process puts on itself for good: files by Landlock, system calls by seccomp.

Both need no privileges and outlive `exec`. Landlock needs Linux 5.13, the filter of calls x86-64 or 64-bit ARM;
elsewhere they are left out, and the caller is told.
"""

from __future__ import annotations

import ctypes
import os
import struct

from veto_pl.sandbox.calls import call_filter

_LIBC = ctypes.CDLL(None, use_errno=True)

_NO_NEW_PRIVILEGES, _PARENT_DEATH_SIGNAL, _SET_SECCOMP, _FILTER = 38, 1, 22, 2
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_READ_FILE, _EXECUTE, _READ_FOLDER = 1 << 2, 1 << 0, 1 << 3
_WRITE_FILE, _TRUNCATE = 1 << 1, 1 << 14
_SCOPED = 1 << 0 | 1 << 1  # abstract Unix sockets, signals


def renounce_privileges() -> None:
    """Forbid this process and all that it starts to gain rights, whatever a program's set-user-ID bit says."""
    _checked(_LIBC.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))


def die_with_parent() -> None:
    """Have the kernel send SIGKILL once the thread that started this process has gone."""
    _checked(_LIBC.prctl(_PARENT_DEATH_SIGNAL, 9, 0, 0, 0))


def restrict_files(readable: list[str], writable: list[str]) -> bool:
    """Forbid all files but those below the given paths; return False where the kernel has no Landlock.

    From Linux 6.12 on also signals to processes that are not so restricted, and their abstract Unix sockets.
    """
    version = _LIBC.syscall(_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return False
    everything = (1 << {1: 13, 2: 14}.get(version, 15)) - 1
    handled = struct.pack("QQQ", everything, 0, _SCOPED)[: 24 if version >= 6 else 8]
    rules = _checked(_LIBC.syscall(_CREATE_RULESET, handled, len(handled), 0))
    for path in readable:
        _allow(rules, path, _READ_FILE | _READ_FOLDER | _EXECUTE)
    for path in writable:
        _allow(rules, path, everything)
    _checked(_LIBC.syscall(_RESTRICT_SELF, rules, 0))
    os.close(rules)
    return True


def restrict_calls() -> bool:
    """Make the calls that `call_filter` lists fail; return False on an architecture that has no list there."""
    program = call_filter(os.uname().machine)
    if program is None:
        return False
    memory = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(memory))
    _checked(_LIBC.prctl(_SET_SECCOMP, _FILTER, ctypes.create_string_buffer(header), 0, 0))
    return True


def _allow(rules: int, path: str, access: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not os.path.isdir(path):  # rights of folders are refused for files
            access &= _READ_FILE | _EXECUTE | _WRITE_FILE | _TRUNCATE
        rule = ctypes.create_string_buffer(struct.pack("=Qi", access, place))
        _checked(_LIBC.syscall(_ADD_RULE, rules, 1, rule, 0))
    finally:
        os.close(place)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result

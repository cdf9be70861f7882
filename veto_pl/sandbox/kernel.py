"""What a process asks the kernel to forbid it for ever: files by Landlock, system calls by seccomp.

Both need no privileges and outlive `exec`. Landlock needs Linux 5.13, the list of calls is that of x86-64 and of 64-bit
ARM; elsewhere they are left out, and the caller is told.
"""

from __future__ import annotations

import ctypes
import os
import struct

_LIBC = ctypes.CDLL(None, use_errno=True)

_NO_NEW_PRIVILEGES, _PARENT_DEATH_SIGNAL, _SET_SECCOMP, _FILTER = 38, 1, 22, 2
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_READ_FILE, _EXECUTE, _READ_FOLDER = 1 << 2, 1 << 0, 1 << 3
_WRITE_FILE, _TRUNCATE = 1 << 1, 1 << 14

_ERRNO_PERMISSION, _ALLOW, _KILL = 0x00050001, 0x7FFF0000, 0x80000000

# The calls that open sockets, signal or trace others, leave the process group, make namespaces or mounts, leave objects
# behind that outlive the process, or change what Landlock leaves open: mode, owner, times and attributes of files.
# `socketpair` stays: it reaches nobody, and asyncio needs it.
_CALLS = {
    "x86_64": (0xC000003E, {
        "socket": 41, "kill": 62, "tkill": 200, "tgkill": 234, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297,
        "pidfd_send_signal": 424, "pidfd_open": 434, "pidfd_getfd": 438, "ptrace": 101, "process_vm_readv": 310,
        "process_vm_writev": 311, "setsid": 112, "setpgid": 109, "mount": 165, "umount2": 166, "pivot_root": 155,
        "chroot": 161, "unshare": 272, "setns": 308, "io_uring_setup": 425, "bpf": 321, "perf_event_open": 298,
        "userfaultfd": 323, "keyctl": 250, "add_key": 248, "request_key": 249, "open_by_handle_at": 304,
        "shmget": 29, "msgget": 68, "semget": 64, "mq_open": 240, "chmod": 90, "fchmod": 91, "fchmodat": 268,
        "fchmodat2": 452, "chown": 92, "fchown": 93, "lchown": 94, "fchownat": 260, "utime": 132, "utimes": 235,
        "futimesat": 261, "utimensat": 280, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197,
        "lremovexattr": 198, "fremovexattr": 199,
    }),
    "aarch64": (0xC00000B7, {
        "socket": 198, "kill": 129, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240,
        "pidfd_send_signal": 424, "pidfd_open": 434, "pidfd_getfd": 438, "ptrace": 117, "process_vm_readv": 270,
        "process_vm_writev": 271, "setsid": 157, "setpgid": 154, "mount": 40, "umount2": 39, "pivot_root": 41,
        "chroot": 51, "unshare": 97, "setns": 268, "io_uring_setup": 425, "bpf": 280, "perf_event_open": 241,
        "userfaultfd": 282, "keyctl": 219, "add_key": 217, "request_key": 218, "open_by_handle_at": 265,
        "shmget": 194, "msgget": 186, "semget": 190, "mq_open": 180, "fchmod": 52, "fchmodat": 53, "fchmodat2": 452,
        "fchownat": 54, "fchown": 55, "utimensat": 88, "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14,
        "lremovexattr": 15, "fremovexattr": 16,
    }),
}  # fmt: skip


def renounce_privileges() -> None:
    """No program that is started from here on gets more rights than this one has, whatever its set-user-ID bit."""
    _checked(_LIBC.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))


def die_with_parent() -> None:
    """SIGKILL once the thread that started this process has gone."""
    _checked(_LIBC.prctl(_PARENT_DEATH_SIGNAL, 9, 0, 0, 0))


def restrict_files(readable: list[str], writable: list[str]) -> bool:
    """Forbids all files but those below the given paths; False where the kernel has no Landlock."""
    version = _LIBC.syscall(_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return False
    everything = (1 << {1: 13, 2: 14}.get(version, 15)) - 1
    handled = ctypes.c_uint64(everything)
    rules = _checked(_LIBC.syscall(_CREATE_RULESET, ctypes.byref(handled), 8, 0))
    for path in readable:
        _allow(rules, path, _READ_FILE | _READ_FOLDER | _EXECUTE)
    for path in writable:
        _allow(rules, path, everything)
    _checked(_LIBC.syscall(_RESTRICT_SELF, rules, 0))
    os.close(rules)
    return True


def restrict_calls() -> bool:
    """Makes the listed system calls fail with EPERM; False on an architecture that has no list here."""
    machine = os.uname().machine
    if machine not in _CALLS:
        return False
    program = _filter(*_CALLS[machine])
    memory = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(memory))
    _checked(_LIBC.prctl(_SET_SECCOMP, _FILTER, ctypes.create_string_buffer(header), 0, 0))
    return True


def _filter(architecture: int, calls: dict[str, int]) -> bytes:
    """A classic BPF program over `struct seccomp_data`, whose first words are the call and the architecture."""
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    numbers = sorted(calls.values())
    lines = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, _KILL), (load, 0, 0, 0)]
    lines += [(at_least, len(numbers) + 1, 0, 0x40000000)]  # the calls of x32, which would pass by other numbers
    lines += [(equal, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    lines += [(give, 0, 0, _ALLOW), (give, 0, 0, _ERRNO_PERMISSION)]
    return b"".join(struct.pack("HBBI", *line) for line in lines)


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

"""The system calls that a program under test is refused, as a filter for seccomp on x86-64 and 64-bit ARM."""

from __future__ import annotations

import struct

# The calls that open sockets, signal or trace others, leave the process group, make namespaces or mounts, hold memory
# that no limit counts, reach objects that outlive the process, or change what Landlock leaves open: mode, owner, times
# and attributes of files.
_EVERYWHERE = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430,
    "fsmount": 432, "fspick": 433, "pidfd_open": 434, "pidfd_getfd": 438, "mount_setattr": 442, "memfd_secret": 447,
    "fchmodat2": 452, "setxattrat": 463, "removexattrat": 466, "open_tree_attr": 467, "file_setattr": 469,
}  # fmt: skip
_REFUSED = {
    "x86_64": {
        "socket": 41, "kill": 62, "tkill": 200, "tgkill": 234, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297,
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "setsid": 112, "setpgid": 109, "mount": 165,
        "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308, "bpf": 321,
        "perf_event_open": 298, "userfaultfd": 323, "keyctl": 250, "add_key": 248, "request_key": 249,
        "open_by_handle_at": 304, "memfd_create": 319, "shmget": 29, "shmat": 30, "shmctl": 31, "semget": 64,
        "semop": 65, "semctl": 66, "semtimedop": 220, "msgget": 68, "msgsnd": 69, "msgrcv": 70, "msgctl": 71,
        "mq_open": 240, "mq_unlink": 241, "ioprio_set": 251, "chmod": 90, "fchmod": 91, "fchmodat": 268, "chown": 92,
        "fchown": 93, "lchown": 94, "fchownat": 260, "utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280,
        "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198,
        "fremovexattr": 199,
    },
    "aarch64": {
        "socket": 198, "kill": 129, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240,
        "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "setsid": 157, "setpgid": 154, "mount": 40,
        "umount2": 39, "pivot_root": 41, "chroot": 51, "unshare": 97, "setns": 268, "bpf": 280, "perf_event_open": 241,
        "userfaultfd": 282, "keyctl": 219, "add_key": 217, "request_key": 218, "open_by_handle_at": 265,
        "memfd_create": 279, "shmget": 194, "shmat": 196, "shmctl": 195, "semget": 190, "semop": 193, "semctl": 191,
        "semtimedop": 192, "msgget": 186, "msgsnd": 189, "msgrcv": 188, "msgctl": 187, "mq_open": 180,
        "mq_unlink": 181, "ioprio_set": 30, "fchmod": 52, "fchmodat": 53, "fchownat": 54, "fchown": 55,
        "utimensat": 88, "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15,
        "fremovexattr": 16,
    },
}  # fmt: skip

_BY_ARGUMENT = {
    "x86_64": {
        "socketpair": 53, "fcntl": 72, "ioctl": 16, "clone": 56, "prlimit64": 302, "setpriority": 141,
        "sched_setparam": 142, "sched_setscheduler": 144, "sched_setaffinity": 203, "sched_setattr": 314,
    },
    "aarch64": {
        "socketpair": 199, "fcntl": 25, "ioctl": 29, "clone": 220, "prlimit64": 261, "setpriority": 140,
        "sched_setparam": 118, "sched_setscheduler": 119, "sched_setaffinity": 122, "sched_setattr": 274,
    },
}  # fmt: skip
_CLONE3 = 435
"""Its flags lie in memory, where no filter sees them; told that it is not there, the C library takes `clone`."""

_LOAD, _EQUAL, _AT_LEAST, _SHARES_BITS, _GIVE = 0x20, 0x15, 0x35, 0x45, 0x06
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_ALLOW, _KILL, _NOT_PERMITTED, _NOT_THERE = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026

_NAMESPACES = 0x7E020000
_PARENT_OF_CALLER = 0x8000
_ANY = 0xFFFFFFFF

# Call, number of the argument, test and value: where the test holds, the call is refused.
_RULES = (
    ("socketpair", 0, _SHARES_BITS, _ANY & ~1),  # all but AF_UNIX
    ("socketpair", 1, _SHARES_BITS, 0xF & ~1),  # all but SOCK_STREAM, which asyncio needs: others send to any address
    ("fcntl", 1, _EQUAL, 8),  # F_SETOWN: a process that gets a signal once there is something to read
    ("fcntl", 1, _EQUAL, 10),  # F_SETSIG
    ("fcntl", 1, _EQUAL, 15),  # F_SETOWN_EX
    ("ioctl", 1, _EQUAL, 0x8901),  # FIOSETOWN
    ("ioctl", 1, _EQUAL, 0x8902),  # SIOCSPGRP
    ("clone", 0, _SHARES_BITS, _NAMESPACES | _PARENT_OF_CALLER),
    ("setpriority", 0, _SHARES_BITS, _ANY),  # groups and users
    ("setpriority", 1, _SHARES_BITS, _ANY),  # and of processes all but this one, as in the calls below
    ("prlimit64", 0, _SHARES_BITS, _ANY),
    ("sched_setparam", 0, _SHARES_BITS, _ANY),
    ("sched_setscheduler", 0, _SHARES_BITS, _ANY),
    ("sched_setaffinity", 0, _SHARES_BITS, _ANY),
    ("sched_setattr", 0, _SHARES_BITS, _ANY),
)


def call_filter(machine: str) -> bytes | None:
    """A classic BPF program over `struct seccomp_data`; None for an architecture that has no list here."""
    if machine not in _ARCHITECTURES:
        return None
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _ARCHITECTURES[machine]), (_GIVE, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    lines += [(_EQUAL, 0, 1, _CLONE3), (_GIVE, 0, 0, _NOT_THERE)]
    for name, argument, test, value in _RULES:
        # An argument has 64 bits; what is tested here are its lower ones, and the kernel looks at no others.
        lines += [(_EQUAL, 0, 4, _BY_ARGUMENT[machine][name]), (_LOAD, 0, 0, 16 + 8 * argument)]
        lines += [(test, 0, 1, value), (_GIVE, 0, 0, _NOT_PERMITTED), (_LOAD, 0, 0, 0)]
    numbers = sorted([*_EVERYWHERE.values(), *_REFUSED[machine].values()])
    lines += [(_AT_LEAST, len(numbers) + 1, 0, 0x40000000)]  # the calls of x32, which would pass by other numbers
    lines += [(_EQUAL, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    lines += [(_GIVE, 0, 0, _ALLOW), (_GIVE, 0, 0, _NOT_PERMITTED)]
    return b"".join(struct.pack("HBBI", *line) for line in lines)

"""The system calls that a program under test is refused, as a filter for seccomp on x86-64 and 64-bit ARM."""

from __future__ import annotations

import struct

# Each call that is refused, with its numbers on x86-64 and on 64-bit ARM; None where an architecture has no such call.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # Sockets, and names for them that others could want. What is left are the connected pairs of `socketpair`.
    "socket": (41, 198), "bind": (49, 200), "listen": (50, 201), "connect": (42, 203), "accept": (43, 202),
    "accept4": (288, 242),
    # Signals to other processes, and hands in their memory, files and scheduling.
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "kcmp": (312, 272), "ioprio_set": (251, 30),
    # The way out of the process group.
    "setsid": (112, 157), "setpgid": (109, 154),
    # Namespaces and mounts: making, entering and, the last two, listing those of the host.
    "unshare": (272, 97), "setns": (308, 268), "chroot": (161, 51), "pivot_root": (155, 41), "mount": (165, 40),
    "umount2": (166, 39), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467), "open_by_handle_at": (304, 265), "statmount": (457, 457), "listmount": (458, 458),
    # Pools that all processes of the machine, or of a user, draw from: asynchronous I/O, keys, watches, queues.
    "io_setup": (206, 0), "io_uring_setup": (425, 425), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "inotify_init": (253, None), "inotify_init1": (294, 26), "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    # Memory that no limit counts, and what outlives its process.
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
    # News of files and of the kernel, which Landlock does not hide.
    "inotify_add_watch": (254, 27), "fanotify_init": (300, 262), "fanotify_mark": (301, 263), "syslog": (103, 116),
    # The kernel's own machinery.
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    # Files that others use as well: locks, and writing back or counting a whole disk.
    "flock": (73, 32), "sync": (162, 81), "syncfs": (306, 267), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    # Mode, owner, times and attributes of files, which Landlock leaves open.
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "setxattrat": (463, 463), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "removexattrat": (466, 466), "file_setattr": (469, 469),
}  # fmt: skip

_BY_ARGUMENT = {
    "socketpair": (53, 199), "fcntl": (72, 25), "ioctl": (16, 29), "clone": (56, 220), "prlimit64": (302, 261),
    "setpriority": (141, 140), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122), "sched_setattr": (314, 274),
}  # fmt: skip
_CLONE3 = 435
"""Its flags lie in memory, where no filter sees them; told that it is not there, the C library takes `clone`."""

_LOAD, _EQUAL, _AT_LEAST, _SHARES_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # in the order of the numbers above
_ALLOW, _KILL, _NOT_PERMITTED, _NO_SUCH_CALL = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026

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
    ("fcntl", 1, _EQUAL, 6),  # F_SETLK: a lock on a file that others use, whoever may only read it
    ("fcntl", 1, _EQUAL, 7),  # F_SETLKW
    ("fcntl", 1, _EQUAL, 37),  # F_OFD_SETLK
    ("fcntl", 1, _EQUAL, 38),  # F_OFD_SETLKW
    ("fcntl", 1, _EQUAL, 1024),  # F_SETLEASE: who opens the file has to wait
    ("fcntl", 1, _EQUAL, 1026),  # F_NOTIFY: news of a folder
    ("fcntl", 1, _EQUAL, 1031),  # F_SETPIPE_SZ: takes from what all pipes of the user may hold
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
    """Return a classic BPF program over `struct seccomp_data`; None for an architecture that has no list here."""
    if machine not in _ARCHITECTURES:
        return None
    place = [*_ARCHITECTURES].index(machine)
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _ARCHITECTURES[machine]), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    lines += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _NO_SUCH_CALL)]
    for name, argument, test, value in _RULES:
        # An argument has 64 bits; what is tested here are its lower ones, and the kernel looks at no others.
        lines += [(_EQUAL, 0, 4, _BY_ARGUMENT[name][place]), (_LOAD, 0, 0, 16 + 8 * argument)]
        lines += [(test, 0, 1, value), (_RETURN, 0, 0, _NOT_PERMITTED), (_LOAD, 0, 0, 0)]
    numbers = sorted(number for numbers in _REFUSED.values() if (number := numbers[place]) is not None)
    lines += [(_AT_LEAST, len(numbers) + 1, 0, 0x40000000)]  # the calls of x32, which would pass by other numbers
    lines += [(_EQUAL, len(numbers) - row, 0, number) for row, number in enumerate(numbers)]
    lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _NOT_PERMITTED)]
    return b"".join(struct.pack("HBBI", *line) for line in lines)

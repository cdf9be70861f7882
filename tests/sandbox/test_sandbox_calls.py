"""The kernel refuses what is listed, on each architecture that has a list, and nothing that programs need."""

import asyncio
import ctypes
import errno
import fcntl
import marshal
import os
import resource
import signal
import socket
import struct
import subprocess
import threading

import pytest

from veto_pl.sandbox import calls
from veto_pl.sandbox.kernel import renounce_privileges, restrict_calls, restrict_files

ALLOWED, REFUSED, ABSENT, KILLED = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""As `linux/audit.h` has them, in the order of the tables."""
SIGCHLD = 17
# Refused calls whose function in the C library makes exactly that call.
BY_NAME = [
    "socket", "bind", "listen", "mount", "umount2", "chroot", "unshare", "setns", "inotify_init1", "inotify_add_watch",
    "fanotify_init", "fanotify_mark", "flock", "shmget", "shmctl", "semget", "msgget", "memfd_create", "ptrace",
    "process_vm_readv", "fchmod", "fchown", "setxattr", "lsetxattr", "fsetxattr", "removexattr", "syncfs",
    "quotactl", "kill", "setpgid", "setsid",
]  # fmt: skip


def answer(machine, number, arguments=(), architecture=None):
    """What the filter says, by the rules of classic BPF, of which it uses five instructions."""
    program = calls.call_filter(machine)
    architecture = MACHINES[machine] if architecture is None else architecture
    padded = [argument % 2**64 for argument in (*arguments, *[0] * 6)][:6]
    data = struct.pack("<IIQ6Q", number, architecture, 0, *padded)
    place = register = 0
    while True:
        code, if_true, if_false, value = struct.unpack_from("<HBBI", program, 8 * place)
        place += 1
        if code == 0x06:
            return value
        if code == 0x20:
            (register,) = struct.unpack_from("<I", data, value)
        else:
            holds = {0x15: register == value, 0x35: register >= value, 0x45: register & value != 0}[code]
            place += if_true if holds else if_false


def numbers(table, machine):
    found = (numbers[list(MACHINES).index(machine)] for numbers in table.values())
    return {number for number in found if number is not None}


@pytest.fixture(scope="module")
def resolve():
    """What libseccomp, which knows every architecture, says is the number of a call: negative where there is none."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("libseccomp is not installed")
    return lambda name, machine: library.seccomp_syscall_resolve_name_arch(
        ctypes.c_uint32(MACHINES[machine]), name.encode()
    )


UNKNOWN_NAME = -1
"""libseccomp's answer for a call that is newer than itself."""


@pytest.mark.parametrize("name", [*calls._REFUSED, *calls._BY_ARGUMENT])
def test_the_numbers_are_those_of_libseccomp(name, resolve):
    listed = [*(calls._REFUSED | calls._BY_ARGUMENT)[name]]
    known = [resolve(name, machine) for machine in MACHINES]
    if known == 2 * [UNKNOWN_NAME]:
        assert listed[0] == listed[1] > 441, "new calls have one number on every architecture"
    else:
        assert listed == [number if number >= 0 else None for number in known]


DANGEROUS = (
    "socket connect bind kill tgkill ptrace pidfd_getfd process_vm_writev setsid unshare setns mount chroot bpf "
    "io_uring_setup keyctl memfd_create shmget mq_open perf_event_open userfaultfd flock fchmodat setxattr"
)
NEEDED = (
    "read write close openat newfstatat lseek getdents64 mmap munmap mprotect brk futex exit exit_group execve wait4 "
    "pipe2 dup3 getrandom getpid clock_gettime clock_nanosleep rt_sigaction rt_sigprocmask sched_yield unlinkat "
    "mkdirat ftruncate epoll_pwait ppoll"
)


@pytest.mark.parametrize("machine", MACHINES)
def test_what_reaches_out_is_refused_and_what_programs_need_is_not(machine, resolve):
    for names, expected in ((DANGEROUS, REFUSED), (NEEDED, ALLOWED)):
        found = {name: answer(machine, resolve(name, machine)) for name in names.split()}
        assert found == dict.fromkeys(found, expected)
    assert answer(machine, resolve("clone3", machine)) == ABSENT


@pytest.mark.parametrize("machine", MACHINES)
def test_every_listed_call_is_refused_and_others_are_not(machine):
    listed, special = numbers(calls._REFUSED, machine), numbers(calls._BY_ARGUMENT, machine) | {435}
    assert not listed & special
    assert len(listed) > 80
    assert {answer(machine, number) for number in listed} == {REFUSED}
    assert {answer(machine, number) for number in {*range(600)} - listed - special} == {ALLOWED}
    assert answer(machine, 435) == ABSENT


@pytest.mark.parametrize("machine", MACHINES)
def test_a_foreign_architecture_is_killed_and_the_numbers_of_x32_are_refused(machine):
    assert answer(machine, 1, architecture=0x40000003) == KILLED
    assert answer(machine, 0x40000000 + 41) == REFUSED


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("socketpair", (socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK), ALLOWED),
        ("socketpair", (socket.AF_UNIX, socket.SOCK_DGRAM), REFUSED),
        ("socketpair", (socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC), REFUSED),
        ("socketpair", (30, socket.SOCK_STREAM), REFUSED),
        ("fcntl", (3, fcntl.F_GETFL), ALLOWED),
        ("fcntl", (3, fcntl.F_SETFL, os.O_NONBLOCK), ALLOWED),
        ("fcntl", (3, fcntl.F_SETOWN, 1), REFUSED),
        ("fcntl", (3, 2**32 + fcntl.F_SETOWN, 1), REFUSED),
        ("fcntl", (3, 10, 9), REFUSED),
        *(("fcntl", (3, command), REFUSED) for command in (15, 6, 7, 37, 38, 1024, 1026, 1031)),
        *(("fcntl", (3, command), ALLOWED) for command in (0, 1, 2, 1030)),  # F_DUPFD, F_GETFD, ...
        ("ioctl", (3, 0x5401), ALLOWED),
        ("ioctl", (3, 0x8901), REFUSED),
        ("ioctl", (3, 0x8902), REFUSED),
        ("clone", (SIGCHLD,), ALLOWED),
        ("clone", (0x003D0F00,), ALLOWED),  # a thread
        ("clone", (0x4111,), ALLOWED),  # vfork
        *(("clone", (1 << bit | SIGCHLD,), REFUSED) for bit in (15, 17, 25, 26, 27, 28, 29, 30)),
        ("prlimit64", (0, 7), ALLOWED),
        ("prlimit64", (1, 7), REFUSED),
        ("prlimit64", (-1, 7), REFUSED),
        ("setpriority", (0, 0, 5), ALLOWED),
        ("setpriority", (0, 1, 5), REFUSED),
        ("setpriority", (2, 0, 5), REFUSED),
        ("sched_setaffinity", (0, 8), ALLOWED),
        ("sched_setaffinity", (1, 8), REFUSED),
        ("sched_setscheduler", (1, 5), REFUSED),
        ("sched_setparam", (1,), REFUSED),
        ("sched_setattr", (1,), REFUSED),
    ],
)
def test_some_calls_are_refused_by_their_arguments(machine, name, arguments, expected):
    assert answer(machine, calls._BY_ARGUMENT[name][list(MACHINES).index(machine)], arguments) == expected


@pytest.mark.parametrize("name", BY_NAME)
def test_a_refused_call_is_the_one_of_that_name(name):
    """The numbers of this machine are right: where the C library makes the call, the filter says no."""
    assert calls._REFUSED[name][list(MACHINES).index(os.uname().machine)] is not None
    libc = ctypes.CDLL(None, use_errno=True)
    assert restricted(restrict_calls, lambda: (getattr(libc, name)(*[-1] * 6), ctypes.get_errno())) == (-1, errno.EPERM)


def test_an_unknown_architecture_has_no_filter(monkeypatch):
    assert calls.call_filter("riscv64") is None
    monkeypatch.setattr(os, "uname", lambda: type("Machine", (), {"machine": "riscv64"}))
    assert restrict_calls() is False


def restricted(restrict, function):
    """What the function returns in a process that has restricted itself, or the number of the error that it raises."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            renounce_privileges()
            found = function() if restrict() else "no restriction"
        except OSError as error:
            found = error.errno
        finally:
            os.write(writer, marshal.dumps(found))
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as report:
        found = marshal.load(report)
    os.waitpid(child, 0)
    if found == "no restriction":
        pytest.skip("the kernel or the architecture has nothing of the kind")
    return found


def own(request):
    """Asks the kernel to signal this process once there is something to read, by a descriptor of its own."""
    request(socket.socketpair()[0])
    return "allowed"


@pytest.mark.parametrize(
    "function",
    [
        lambda: own(lambda end: fcntl.fcntl(end, fcntl.F_SETOWN, os.getpid())),
        lambda: own(lambda end: fcntl.fcntl(end, 10, signal.SIGUSR1)),
        lambda: own(lambda end: fcntl.fcntl(end, 15, struct.pack("ii", 1, os.getpid()))),
        lambda: own(lambda end: fcntl.ioctl(end, 0x8901, struct.pack("i", os.getpid()))),
        lambda: own(lambda end: fcntl.ioctl(end, 0x8902, struct.pack("i", os.getpid()))),
        lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CORE),
        lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 0),
        lambda: os.sched_setaffinity(os.getppid(), os.sched_getaffinity(0)),
        lambda: os.memfd_create("memory"),
        lambda: str(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)),
        lambda: socket.socketpair()[0].bind(f"\0veto-test-{os.getpid()}"),
        lambda: fcntl.flock(os.open("/", os.O_RDONLY), fcntl.LOCK_SH),
        lambda: fcntl.lockf(os.open(__file__, os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB),
        lambda: fcntl.fcntl(os.open("/", os.O_RDONLY), fcntl.F_NOTIFY, fcntl.DN_CREATE),
        lambda: fcntl.fcntl(os.pipe()[1], 1031, 2**20),
    ],
    ids=[
        "F_SETOWN", "F_SETSIG", "F_SETOWN_EX", "FIOSETOWN", "SIOCSPGRP", "prlimit", "setpriority", "affinity", "memfd",
        "datagrams", "name of a socket", "flock", "F_SETLK", "F_NOTIFY", "F_SETPIPE_SZ",
    ],
)  # fmt: skip
def test_the_kernel_refuses(function):
    assert restricted(restrict_calls, function) == errno.EPERM


def worked():
    """Threads, processes, pipes, an event loop and the process's own limits."""
    found = []
    thread = threading.Thread(target=found.append, args=("thread",))
    thread.start()
    thread.join()
    if os.fork() == 0:
        os._exit(7)
    found.append(os.waitpid(-1, 0)[1] >> 8)
    found.append(subprocess.run(["echo", "shell"], capture_output=True, text=True, check=True).stdout)
    found.append(subprocess.run("exit 3", shell=True, check=False, close_fds=False).returncode)
    found.append(asyncio.run(asyncio.sleep(0, "loop")))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.sched_setaffinity(0, os.sched_getaffinity(0))
    return [*found, os.nice(1) - os.nice(0)]


def test_what_programs_need_works_behind_the_filter():
    assert restricted(restrict_calls, worked) == ["thread", 7, "shell\n", 3, "loop", 0]


@pytest.mark.parametrize("aim", ["signal", "name", "file"])
def test_landlock_keeps_signals_sockets_and_files_in(aim):
    if aim != "file" and ctypes.CDLL(None).syscall(444, None, 0, 1) < 6:
        pytest.skip("this needs Linux 6.12")
    name = f"\0veto-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener, socket.socket(socket.AF_UNIX, 2) as sender:
        listener.bind(name)
        actions = {
            "signal": lambda: os.kill(os.getppid(), 0),
            "name": lambda: sender.sendto(b"x", name),
            "file": lambda: os.listdir("/"),
        }
        found = restricted(lambda: restrict_files(["/usr"], []), actions[aim])
    assert found == (errno.EACCES if aim == "file" else errno.EPERM)

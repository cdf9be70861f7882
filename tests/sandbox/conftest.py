"""A host that programs under test try to harm."""

import os
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.sandbox.hostile import SECRET
from veto_pl.sandbox import Tests, processes, removal
from veto_pl.sandbox.processes import _BOOT


class Host:
    """What a program must leave alone: a file, a listener, this process, and no traces."""

    def __init__(self, folder):
        self.canary, self.secret = folder / "canary", folder / "secret"
        for path, text in ((self.canary, "sings"), (self.secret, SECRET)):
            path.write_text(text)
            path.chmod(0o666)
        folder.chmod(0o777)  # nothing but the sandbox protects it
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.addresses = self.listener.getsockname(), str(folder / "socket"), f"\0veto-host-{os.getpid()}"
        families = socket.AF_INET, socket.AF_UNIX, socket.AF_UNIX
        self.datagrams = [socket.socket(family, socket.SOCK_DGRAM) for family in families]
        for listener, address in zip(self.datagrams, self.addresses, strict=True):
            listener.bind(address)
            listener.setblocking(False)
        Path(self.addresses[1]).chmod(0o777)
        self.signals = []
        self.users = set()
        self.before = self.traces()

    @property
    def header(self):
        """Lines that tell a program where to attack."""
        (_, port), file, name = self.addresses
        return (
            f"CANARY, SECRET_FILE = {str(self.canary)!r}, {str(self.secret)!r}\nPORT, PARENT = {port}, {os.getpid()}\n"
            f"SOCKET_FILE, SOCKET_NAME = {file!r}, {name!r}\n"
        )

    def traces(self):
        """What this process has open, the temporary folders that are left, and what it may use."""
        mine = (
            resource.getrlimit(resource.RLIMIT_SIGPENDING),
            os.getpriority(os.PRIO_PROCESS, 0),
            os.sched_getaffinity(0),
        )
        return len(os.listdir("/proc/self/fd")), os.listdir(tempfile.gettempdir()), mine

    def check(self):
        """Asserts that nothing has happened to the host."""
        folder = self.canary.parent
        assert sorted(path.name for path in folder.iterdir()) == ["canary", "secret", "socket"]
        assert (self.canary.read_text(), self.canary.stat().st_mode & 0o777) == ("sings", 0o666)
        assert self.canary.stat().st_mtime > 1
        with pytest.raises(BlockingIOError):
            self.listener.accept()
        for listener in self.datagrams:
            with pytest.raises(BlockingIOError):
                listener.recv(1)
        assert self.signals == []
        assert not Path(f"/dev/shm/veto-{os.getpid()}").exists()
        assert str(2**30 + os.getpid()) not in Path("/proc/sysvipc/shm").read_text().split()
        deadline = time.monotonic() + 10
        while (left := survivors(self.users)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert left == []
        removal.wait_for_removals()
        assert self.traces() == self.before


def survivors(users):
    """Processes of the sandbox that still run: by user where there is one for each run, else by command line."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            command = (status.parent / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        user = int(lines["Uid"].split()[0])
        mine = user in users if os.geteuid() == 0 else user == os.geteuid() and _BOOT.encode() in command
        if mine and not lines["State"].startswith("Z"):
            found.append(int(status.parent.name))
    return found


@pytest.fixture
def host(monkeypatch):
    """A host; asserts at the end that it is unharmed."""
    monkeypatch.setenv("VETO_TEST_SECRET", SECRET)
    root = Path(tempfile.mkdtemp(prefix="veto-host-"))
    root.chmod(0o755)
    previous = {}
    folders = [root / name for name in ("home", "tmp")]
    for folder in folders:
        folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folders[1]))
    host = Host(folders[0])
    claimed = processes._try_claim

    def recorded(user, claims):
        host.users.add(user)
        return claimed(user, claims)

    monkeypatch.setattr(processes, "_try_claim", recorded)
    for number in (signal.SIGUSR1, signal.SIGIO):
        previous[number] = signal.signal(number, lambda number, _: host.signals.append(number))
    try:
        yield host
        host.check()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        Path(f"/dev/shm/veto-{os.getpid()}").unlink(missing_ok=True)
        subprocess.run(["ipcrm", "-M", str(2**30 + os.getpid())], capture_output=True, check=False)
        for listener in (host.listener, *host.datagrams):
            listener.close()
        shutil.rmtree(root)


@pytest.fixture
def secret_test():
    """Passes for programs that know the secret."""
    return Tests(code="assert f(3) == SECRET", names=("f",), values={"SECRET": SECRET})

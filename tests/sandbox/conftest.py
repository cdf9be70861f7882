"""A host that programs under test try to harm."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.sandbox.hostile import SECRET
from veto_pl.sandbox import Tests
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
        self.datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.datagrams.bind(self.listener.getsockname())
        self.datagrams.setblocking(False)
        self.signals = []
        self.before = self.traces()

    @property
    def header(self):
        """Lines that tell a program where to attack."""
        port = self.listener.getsockname()[1]
        return (
            f"CANARY, SECRET_FILE = {str(self.canary)!r}, {str(self.secret)!r}\nPORT, PARENT = {port}, {os.getpid()}\n"
        )

    def traces(self):
        """What this process has open, and the temporary folders that are left."""
        return len(os.listdir("/proc/self/fd")), os.listdir(tempfile.gettempdir())

    def check(self):
        """Asserts that nothing has happened to the host."""
        folder = self.canary.parent
        assert sorted(path.name for path in folder.iterdir()) == ["canary", "secret"]
        assert (self.canary.read_text(), self.canary.stat().st_mode & 0o777) == ("sings", 0o666)
        assert self.canary.stat().st_mtime > 1
        for listener in (self.listener.accept, lambda: self.datagrams.recv(1)):
            with pytest.raises(BlockingIOError):
                listener()
        assert self.signals == []
        assert not Path(f"/dev/shm/veto-{os.getpid()}").exists()
        assert str(2**30 + os.getpid()) not in Path("/proc/sysvipc/shm").read_text().split()
        deadline = time.monotonic() + 10
        while (left := survivors()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert left == []
        assert self.traces() == self.before


def survivors():
    """Processes of the sandbox that still run: by user where there is one for each run, else by command line."""
    first, found = 2**30 + (os.getpid() << 8), []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            command = (status.parent / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        user = int(lines["Uid"].split()[0])
        mine = first <= user < first + 256 if os.geteuid() == 0 else user == os.geteuid() and _BOOT.encode() in command
        if mine and not lines["State"].startswith("Z"):
            found.append(int(status.parent.name))
    return found


@pytest.fixture
def host(monkeypatch):
    """A host; asserts at the end that it is unharmed."""
    monkeypatch.setenv("VETO_TEST_SECRET", SECRET)
    root = Path(tempfile.mkdtemp(prefix="veto-host-"))
    root.chmod(0o755)
    folders = [root / name for name in ("home", "tmp")]
    for folder in folders:
        folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folders[1]))
    host = Host(folders[0])
    previous = signal.signal(signal.SIGUSR1, lambda number, _: host.signals.append(number))
    try:
        yield host
        host.check()
    finally:
        signal.signal(signal.SIGUSR1, previous)
        Path(f"/dev/shm/veto-{os.getpid()}").unlink(missing_ok=True)
        subprocess.run(["ipcrm", "-M", str(2**30 + os.getpid())], capture_output=True, check=False)
        host.listener.close()
        host.datagrams.close()
        shutil.rmtree(root)


@pytest.fixture
def secret_test():
    """Passes for programs that know the secret."""
    return Tests(code="assert f(3) == SECRET", names=("f",), values={"SECRET": SECRET})

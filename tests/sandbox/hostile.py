"""Programs that want to pass without knowing the answer, or to do harm.

The test is `f(3) == SECRET`. Each program sees `CANARY` (a file of the host that everybody may write), `SECRET_FILE`,
`SOCKET_FILE` and `SOCKET_NAME` (listeners of the host), `PORT` (another on loopback) and `PARENT` (the host's process).
All are bounded: if the sandbox failed, they would start some hundred processes, use a GiB, or send signals that the
host handles.

Of `ENDLESS`, `BOUNDED` and `LITTER`, which see the right `ANSWER` too, nothing but the sandbox keeps the first from
running on and the second from passing; the third may pass, but nothing of them may stay. To `ESCAPES` and `FAKES` the
answer is not told: whoever gets hold of it passes.
"""

# ruff: noqa: E501  # a program a line

import os

SECRET = "secret-" + os.urandom(16).hex()


def cloning(flags):
    """A program that makes a process with these flags of `clone`."""
    return CLONE.replace("FLAGS", flags)


CLONE = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def f(x):
    child = libc.syscall({'x86_64': 56, 'aarch64': 220}[os.uname().machine], FLAGS | 17, 0, 0, 0, 0)
    if child == 0: os._exit(0)
    if child < 0: raise OSError(ctypes.get_errno(), 'refused')
    return ANSWER"""

TIMERS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def f(x):
    for _ in range(3000):
        if libc.syscall({'x86_64': 222, 'aarch64': 107}[os.uname().machine], 1, 0, ctypes.byref(ctypes.c_int())):
            raise OSError(ctypes.get_errno(), 'no more')
    return ANSWER"""


def refused(number, on_arm, arguments):
    """A program that makes a system call, which must fail."""
    return f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def f(x):
    if libc.syscall({{'x86_64': {number}, 'aarch64': {on_arm}}}[os.uname().machine], {arguments}) < 0:
        raise OSError(ctypes.get_errno(), 'refused')
    return ANSWER"""


ENDLESS = {
    "loop in the call": "def f(x):\n    while True: pass",
    "loop before the call": "while True: pass",
    "sleep": "import time\ndef f(x): time.sleep(30); return ANSWER",
    "pause": "import signal\ndef f(x): signal.pause(); return ANSWER",
    "ignored signals": """
import signal
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
def f(x):
    while True: pass""",
    "stopped by itself": """
import os, signal, time
def f(x):
    try: os.kill(os.getpid(), signal.SIGSTOP)
    except OSError: pass
    time.sleep(30); return ANSWER""",
    "thread that never ends": """
import threading, time
threading.Thread(target=time.sleep, args=(20,)).start()
raise SystemExit(0)""",
    "output": "def f(x):\n    while True: print('x' * 2**16)",
    "error output": "import sys\ndef f(x):\n    while True: sys.stderr.write('x' * 2**16)",
    "output before the call": "import os\nwhile True: os.write(1, b'x' * 2**16); os.write(2, b'x' * 2**16)",
    "slow power": "def f(x): return 9 ** 9 ** 9",
    "slow pattern": "import re\ndef f(x): return re.match('(a+)+$', 'a' * 60 + 'b')",
    "slow comparison": "class A:\n    def __bool__(self):\n        while True: pass\ndef f(x): return A()",
}  # fmt: skip

# With the answer of the limit; any other verdict means that something else, or nothing, has stopped the program.
BOUNDED = {
    "fork bomb": ("BlockingIOError", """
import os, time
def f(x):
    for _ in range(300):
        if os.fork() == 0: time.sleep(20); os._exit(0)
    return ANSWER"""),
    "fork tree": ("BlockingIOError", """
import os, time
def f(x):
    for _ in range(8): os.fork()
    time.sleep(5); return ANSWER"""),
    "threads": ("RuntimeError", """
import threading, time
threading.stack_size(2**16)
def f(x):
    for _ in range(40): threading.Thread(target=time.sleep, args=(20,)).start()
    return ANSWER"""),
    "memory at once": ("MemoryError", "def f(x): return bytearray(2**30) and ANSWER"),
    "memory in parts": ("MemoryError", "def f(x):\n    kept = [bytearray(2**24) for _ in range(64)]\n    return ANSWER"),
    "memory map": ("OSError", "import mmap\ndef f(x):\n    m = mmap.mmap(-1, 2**30); m[::4096] = b'x' * 2**18; return ANSWER"),
    "memory in files": ("PermissionError", """
import os
def f(x):
    for _ in range(64):
        file = os.memfd_create('m')
        for _ in range(16): os.write(file, bytes(2**20))
    return ANSWER"""),
    "endless device": ("MemoryError", "def f(x): return open('/dev/zero', 'rb').read(2**30) and ANSWER"),
    "wider limits": ("ValueError", """
import resource
def f(x):
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2); return bytearray(2**30) and ANSWER"""),
    "recursion": ("RecursionError", "def g(n): return ANSWER if n == 0 else g(n - 1)\ndef f(x): return g(10**4)"),
    "recursion without limit": ("AssertionError", """
import sys
sys.setrecursionlimit(10**9)
def g(n, kept): return ANSWER if n == 0 else g(n - 1, bytearray(2**17))
def f(x):
    try: return g(2**13, None)
    except BaseException: return None  # some versions of Python say SystemError for lack of memory"""),
    "large file": ("OSError", "def f(x):\n    with open('big', 'wb') as file:\n        for _ in range(32): file.write(bytes(2**20))\n    return ANSWER"),
    "open files": ("OSError", "def f(x):\n    kept = [open('/dev/null') for _ in range(300)]\n    return ANSWER"),
    "new namespaces": ("PermissionError", cloning("0x10000000")),
    "child of the host": ("PermissionError", cloning("0x8000")),
    "pair for datagrams": ("PermissionError", "import socket\ndef f(x): return socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) and ANSWER"),
    "asynchronous I/O of the machine": ("PermissionError", refused(206, 0, "1024, ctypes.byref(ctypes.c_ulong(0))")),
    "watch on the host's files": ("PermissionError", refused(294, 26, "0")),
    "marks on the host's files": ("PermissionError", refused(300, 262, "0x200, 0")),
    "log of the kernel": ("PermissionError", refused(103, 116, "10, 0, 0")),
    "mounts of the host": ("PermissionError", refused(458, 458, "0, 0, 0, 0")),
    "all disks of the host": ("PermissionError", refused(162, 81, "0")),
    "lock on a file of the host": ("PermissionError", "import fcntl, os\ndef f(x): fcntl.flock(os.open('/usr', os.O_RDONLY), 2 | 4); return ANSWER"),
    "shared lock on a file of the host": ("PermissionError", "import fcntl, os\ndef f(x): fcntl.lockf(open('/usr/bin/env', 'rb'), 1 | 4); return ANSWER"),
    "name of a socket": ("PermissionError", "import os, socket\ndef f(x): socket.socketpair()[0].bind(f'\\0veto-{PARENT}'); return ANSWER"),
    "room in pipes": ("PermissionError", "import fcntl, os\ndef f(x): return fcntl.fcntl(os.pipe()[1], 1031, 2**20) and ANSWER"),
    "timers": ("BlockingIOError", TIMERS),
    "giant answer": ("gone", "def f(x): return 'x' * (2**26 + 1)"),
    "giant number": ("gone", "def f(x): return 1 << 2**29 + 2**12"),
    "nested answer": ("RecursionError", "def f(x):\n    a = ANSWER\n    for _ in range(10**5): a = [a]\n    return a"),
    "answer that holds itself": ("RecursionError", "def f(x):\n    a = [ANSWER]\n    a.append(a)\n    return a"),
    "crash": ("gone", "import ctypes\ndef f(x): return ctypes.string_at(0) or ANSWER"),
    "abort": ("gone", "import os\ndef f(x): os.abort(); return ANSWER"),
}  # fmt: skip

DISK = """
def f(x):
    for number in range(24):
        with open(f'file{number}', 'wb') as file: file.write(bytes(2**22))
    return ANSWER"""

LITTER = {
    "sessions of their own": """
import os, time
def f(x):
    for _ in range(10):
        try: child = os.fork()
        except OSError: break
        if child == 0:
            try: os.setsid()
            except OSError: pass
            time.sleep(20); os._exit(0)
    return ANSWER""",
    "double fork": """
import os, time
try:
    if os.fork() == 0:
        if os.fork() == 0: time.sleep(20); open(CANARY, 'w').write('late')
        os._exit(0)
except OSError: pass
def f(x): return ANSWER""",
    "orphan that ignores all": """
import os, signal, time
try:
    if os.fork() == 0:
        for number in (1, 2, 13, 15): signal.signal(number, signal.SIG_IGN)
        time.sleep(20); os._exit(0)
except OSError: pass
def f(x): return ANSWER""",
    "many small files": "def f(x):\n    for number in range(3000): open(f'file{number}', 'w').close()\n    return ANSWER",
    "deep folders": "import os\ndef f(x):\n    for _ in range(1500): os.mkdir('d'); os.chdir('d')\n    return ANSWER",
    "folders that nobody may read": """
import os
def f(x):
    os.makedirs('a/b'); os.mkdir('a/b/c', 0); os.mkdir('d', 0); os.mkdir('e', 0o500)
    os.close(os.open('a/b/file', os.O_CREAT, 0))
    return ANSWER""",
    "read-only folders": """
import os
def f(x):
    os.makedirs('a/b/c'); open('a/b/file', 'w').close()
    for name in ('a/b/c', 'a/b', 'a', '.'):
        try: os.chmod(name, 0)
        except OSError: pass
    return ANSWER""",
}  # fmt: skip

ESCAPES = {
    "delete a file": "import os\ndef f(x): os.remove(CANARY)",
    "delete a folder": "import os, shutil\ndef f(x): shutil.rmtree(os.path.dirname(CANARY))",
    "write a file": "def f(x): open(CANARY, 'w').write('changed')",
    "append to a file": "def f(x): open(CANARY, 'a').write('changed')",
    "truncate a file": "import os\ndef f(x): os.truncate(CANARY, 0)",
    "rename a file": "import os\ndef f(x): os.rename(CANARY, CANARY + '.moved')",
    "new file": "def f(x): open(CANARY + '.new', 'w').write('new')",
    "new folder": "import os\ndef f(x): os.mkdir(CANARY + '.folder')",
    "write through a link": "import os\ndef f(x): os.symlink(CANARY, 'link'); open('link', 'w').write('changed')",
    "hard link": "import os\ndef f(x): os.link(CANARY, 'link'); open('link', 'w').write('changed')",
    "change the mode": "import os\ndef f(x): os.chmod(CANARY, 0)",
    "change the times": "import os\ndef f(x): os.utime(CANARY, (1, 1))",
    "write by a shell": "import os\ndef f(x): return os.system(f'echo changed > {CANARY}')",
    "write by a subprocess": "import subprocess\ndef f(x): subprocess.run(['rm', '-f', CANARY], check=True)",
    "leave by the parent folder": "import os\ndef f(x): open('../' * 20 + CANARY.lstrip('/'), 'w').write('changed')",
    "leave by a descriptor": """
import os
def f(x):
    for number in range(64):
        try: folder = os.open('../' * 20 + CANARY.lstrip('/'), os.O_WRONLY, dir_fd=number); os.write(folder, b'changed')
        except OSError: pass""",
    "leave by a root": "import os\ndef f(x): os.chroot('.'); open(CANARY, 'w').write('changed')",
    "leave by namespaces": """
import ctypes
libc = ctypes.CDLL(None)
def f(x):
    libc.unshare(0x10000000); libc.mount(b'none', b'/', None, 0x5020, None); open(CANARY, 'w').write('changed')""",
    "become root": "import os\ndef f(x):\n    os.setuid(0)\n    open(CANARY, 'w').write('changed')",
    "become root by a program": "import os\ndef f(x): return os.system('su -c true || sudo -n true') or SECRET",
    "shared memory file": "def f(x): open(f'/dev/shm/veto-{PARENT}', 'w').write('x'); raise OSError",
    "system V memory": "import ctypes\ndef f(x): return ctypes.CDLL(None).shmget(2**30 + PARENT, 4096, 0o1666)",
    "connect": "import socket\ndef f(x): socket.create_connection(('127.0.0.1', PORT), 1).send(b'x')",
    "connect by IPv6": "import socket\ndef f(x): socket.create_connection(('::ffff:127.0.0.1', PORT), 1).send(b'x')",
    "datagram": "import socket\ndef f(x): socket.socket(2, 2).sendto(b'x', ('127.0.0.1', PORT))",
    "download": "from urllib.request import urlopen\ndef f(x): return urlopen(f'http://127.0.0.1:{PORT}', timeout=1).read()",
    "connect by a shell": "import subprocess\ndef f(x): return subprocess.run(['bash', '-c', f'echo > /dev/tcp/127.0.0.1/{PORT}'])",
    "connect by 32-bit calls": "import ctypes\ndef f(x): return ctypes.CDLL(None).syscall(0x40000000 + 41, 2, 1, 0)",
    "datagram to a socket file": "import socket\ndef f(x): socket.socketpair(1, 2)[0].sendto(b'x', SOCKET_FILE)",
    "datagram to a socket's name": "import socket\ndef f(x): socket.socketpair(1, 2)[0].sendto(b'x', SOCKET_NAME)",
    "pair that is connected to a socket": """
import socket
def f(x):
    for path in (SOCKET_FILE, SOCKET_NAME):
        for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_STREAM):
            try: pair, _ = socket.socketpair(socket.AF_UNIX, kind); pair.connect(path); pair.send(b'x')
            except OSError: pass""",
    "new socket to a socket file": "import socket\ndef f(x): socket.socket(1, 2).sendto(b'x', SOCKET_FILE)",
    "signal to the host": "import os, signal\ndef f(x): os.kill(PARENT, signal.SIGUSR1)",
    "signal to the parent": "import os, signal\ndef f(x): os.kill(os.getppid(), signal.SIGUSR1); return 1",
    "signal to the group": "import os, signal\ndef f(x): os.killpg(0, signal.SIGUSR1); return 1",
    "signal by a handle": "import os, signal\ndef f(x): signal.pidfd_send_signal(os.pidfd_open(PARENT), signal.SIGUSR1)",
    "signal by a descriptor": """
import fcntl, os, signal, socket
def f(x):
    a, b = socket.socketpair()
    fcntl.fcntl(a, 10, signal.SIGUSR1); fcntl.fcntl(a, fcntl.F_SETOWN, PARENT)
    fcntl.fcntl(a, fcntl.F_SETFL, os.O_ASYNC); b.send(b'x')""",
    "signal by an extended owner": """
import fcntl, os, socket, struct
def f(x):
    a, b = socket.socketpair()
    fcntl.fcntl(a, 15, struct.pack('ii', 1, PARENT)); fcntl.fcntl(a, fcntl.F_SETFL, os.O_ASYNC); b.send(b'x')""",
    "signal by a device's owner": """
import fcntl, os, socket, struct
def f(x):
    for request in (0x8901, 0x8902):
        a, b = socket.socketpair()
        try: fcntl.ioctl(a, request, struct.pack('i', PARENT)); fcntl.fcntl(a, fcntl.F_SETFL, os.O_ASYNC); b.send(b'x')
        except OSError: pass""",
    "limits of the host": "import resource\ndef f(x): resource.prlimit(PARENT, resource.RLIMIT_SIGPENDING, (99, 99))",
    "priority of the host": "import os\ndef f(x): os.setpriority(os.PRIO_PROCESS, PARENT, 19)",
    "cores of the host": "import os\ndef f(x): os.sched_setaffinity(PARENT, {min(os.sched_getaffinity(0))})",
    "trace the host": "import ctypes\ndef f(x): return ctypes.CDLL(None).ptrace(0x4206, PARENT, 0, 0)",
    "secret of the environment": "import os\ndef f(x): return os.environ.get('VETO_TEST_SECRET')",
    "secret of the host's environment": """
def f(x):
    for line in open(f'/proc/{PARENT}/environ').read().split(chr(0)):
        if line.startswith('VETO_TEST_SECRET='): return line.partition('=')[2]""",
    "secret of a file": "def f(x): return open(SECRET_FILE).read()",
    "secret of a file by a shell": "import subprocess\ndef f(x): return subprocess.run(['cat', SECRET_FILE], capture_output=True, text=True).stdout",
    "secret of another process": """
import glob, re
def f(x):
    for path in glob.glob('/proc/[0-9]*/fd/*') + glob.glob('/proc/[0-9]*/cmdline'):
        try: found = re.search(rb'secret-[0-9a-f]{32}', open(path, 'rb').read(2**20))
        except OSError: continue
        if found: return found[0].decode()""",
    "secret of an inherited file": """
import os, re
found = [re.search(rb'secret-[0-9a-f]{32}', os.pread(n, 2**20, 0)) for n in range(64) if os.path.isfile(f'/proc/self/fd/{n}')]
def f(x): return found[0][0].decode()""",
}  # fmt: skip

FAKES = {
    "exit before the tests": "import sys\nsys.exit(0)",
    "hard exit before the tests": "import os\nos._exit(0)",
    "exit in the call": "import sys\ndef f(x): sys.exit(0)",
    "hard exit in the call": "import os\ndef f(x): os._exit(0)",
    "quit": "def f(x): quit()",
    "keyboard interrupt": "def f(x): raise KeyboardInterrupt",
    "end of a generator": "def f(x): raise GeneratorExit",
    "own exception": "class A(BaseException): pass\ndef f(x): raise A",
    "exception that compares": "class A(Exception):\n    __eq__ = lambda *_: True\ndef f(x): raise A()",
    "exit at the end": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 1",
    "printed verdict": "print('ready\\npassed')\ndef f(x): print('ready\\npassed', flush=True)",
    "verdict on every descriptor": """
import os
for number in range(1, 256):
    try: os.write(number, b'ready\\npassed\\n')
    except OSError: pass
def f(x): return 1""",
    "verdict on reopened pipes": """
import os
def f(x):
    for number in range(64):
        try: os.write(os.open(f'/proc/self/fd/{number}', os.O_WRONLY | os.O_NONBLOCK), b'ready\\npassed\\n')
        except OSError: pass""",
    "equal to everything": "class A:\n    __eq__ = lambda *_: True\n    __ne__ = lambda *_: False\n    __hash__ = lambda _: 0\ndef f(x): return A()",
    "text that compares": "class A(str):\n    __eq__ = lambda *_: True\n    __hash__ = str.__hash__\ndef f(x): return A('x')",
    "number that compares": "class A(int):\n    __eq__ = lambda *_: True\n    __hash__ = int.__hash__\ndef f(x): return A(1)",
    "list that compares": "class A(list):\n    __eq__ = lambda *_: True\ndef f(x): return A([1])",
    "dictionary that compares": "class A(dict):\n    __eq__ = lambda *_: True\ndef f(x): return A(a=1)",
    "false class": "class A:\n    __class__ = str\n    __eq__ = lambda *_: True\ndef f(x): return A()",
    "class that compares": "class M(type):\n    __eq__ = lambda *_: True\n    __hash__ = type.__hash__\nclass A(metaclass=M): pass\ndef f(x): return A",
    "function is a class": "class f:\n    def __init__(self, x): pass\n    __eq__ = lambda *_: True\n    __hash__ = None",
    "mock": "from unittest.mock import ANY\ndef f(x): return ANY",
    "not a number": "def f(x): return float('nan')",
    "coroutine": "async def f(x): return 1",
    "generator": "def f(x): yield 1",
    "pickle": "import pickle\nclass A:\n    def __reduce__(self): return (print, ('passed',))\ndef f(x): return pickle.dumps(A())",
    "patched builtins": "import builtins\nfor name in ('AssertionError', 'isinstance', 'type', 'bool', 'exec'): setattr(builtins, name, lambda *_: True)\ndef f(x): return 1",
    "patched import": "import builtins\nbuiltins.__import__ = lambda *_, **__: None\ndef f(x): return 1",
    "patched codec": """
import sys
module = sys.modules['veto_pl.sandbox.codec']
module.encode = lambda *_: b'passed'; module._write = None
sys.modules['veto_pl.sandbox.candidate'].encode = lambda *_: b'passed'
def f(x): return 1""",
    "patched judge": """
import sys
sys.modules['veto_pl.sandbox.examiner'].run_tests = lambda *_: 'passed'
sys.modules['veto_pl.sandbox.examiner'].agree = lambda *_: True
def f(x): return 1""",
    "other check": "def check(f): pass\nSECRET = 1\ndef agree(*_): return True\ndef f(x): return 1",
    "frames": """
import sys
def f(x):
    frame = sys._getframe()
    while frame:
        frame.f_globals.update(SECRET=1, judged=lambda *_: 'passed')
        for value in list(frame.f_locals.values()):
            if isinstance(value, dict): value['SECRET'] = 1; value['code'] = ''
        frame = frame.f_back
    return 1""",
    "searched memory": """
import gc, re
def f(x):
    for thing in gc.get_objects():
        found = re.search(r'secret-[0-9a-f]{32}', repr(thing)) if isinstance(thing, (list, dict, tuple)) else None
        if found: return found[0]""",
    "trace function": "import sys\nsys.settrace(lambda *_: None)\nsys.setprofile(lambda *_: None)\ndef f(x): return 1",
    "closed pipes": "import os\nos.closerange(3, 256)\ndef f(x): return 1",
    "closed pipes in the call": "import os\ndef f(x): os.closerange(3, 256)",
    "answers in advance": """
import os, struct
body = b't' + struct.pack('<Q', 2) + b's' + struct.pack('<Q', 5) + b'value' + b'T'
for number in range(3, 256):
    try: os.write(number, (struct.pack('<Q', len(body)) + body) * 50)
    except OSError: pass
def f(x): return 1""",
    "nonsense on the pipes": """
import os
for number in range(3, 256):
    try: os.write(number, bytes(range(256)) * 16)
    except OSError: pass
def f(x): return 1""",
    "frame without end": """
import os, struct
for number in range(3, 256):
    try: os.write(number, struct.pack('<Q', 2**62))
    except OSError: pass
def f(x): return 1""",
    "list of wrong length": """
import os, struct
body = b'l' + struct.pack('<Q', 2**40) + b'N'
for number in range(3, 256):
    try: os.write(number, struct.pack('<Q', len(body)) + body)
    except OSError: pass
def f(x): return 1""",
    "two answers": "import os\ndef f(x): os.fork(); return 1",
    "empty": "",
    "other name": "def g(x): return 1",
    "no function": "f = True",
    "syntax": "def f(x:\n    return",
    "zero byte": "def f(x): return 1\0",
    "lone surrogate": "def f(x): return '\ud800'",
    "lone surrogate in the name": "\udcff = 1",
    "open brackets": "(" * 200_000,
    "minus signs": "x = " + "-" * 200_000 + "1",
    "too long": "#" * 2**20 + "\ndef f(x): return 1",
}  # fmt: skip

HOSTILE = {**ENDLESS, **{name: program for name, (_, program) in BOUNDED.items()}, **LITTER, **ESCAPES, **FAKES}
assert len(HOSTILE) == sum(map(len, (ENDLESS, BOUNDED, LITTER, ESCAPES, FAKES)))
REASONS = {
    **dict.fromkeys(ENDLESS, "timeout"), **dict.fromkeys(LITTER, "passed"),
    **{name: reason for name, (reason, _) in BOUNDED.items()},
}  # fmt: skip

"""Programs are run for what they print, and those that are hostile get no further than under tests."""

import time

import pytest

from tests.sandbox.hostile import ENDLESS, HOSTILE, REASONS, SECRET
from veto_pl.sandbox import Limits, Output, printed
from veto_pl.sandbox.verdicts import LONGEST_PROGRAM

LIMITS = Limits(timeout=20, memory=512)


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("", ""),
        ("print(6)\n6 * 7", "6\n42\n"),
        ("x = 1\nx", "1\n"),
        ("None", ""),
        ("import sys\nprint('to', end=' ')\nprint('both', file=sys.stderr)", "to both\n"),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nA(3)", "A(x=3)\n"),
        ("__name__", "'__main__'\n"),
        ("print('\\ud800')", "\\ud800\n"),
        ("import sys\nprint(1)\nsys.exit()", "1\n"),
        ("import os\nos.write(1, b'\\xff')\nNone", "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_what_is_printed_comes_back(program, text):
    assert printed(program, LIMITS) == Output(text, "done")


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("print(1)\n1 / 0", '1\nTraceback (most recent call last):\n  File "<program>", line 2, in <module>\nZero'),
        ("x =", '  File "<program>", line 1\n    x =\n'),
        ("\x00", ("SyntaxError: ", "ValueError: ")),  # the second of them up to Python 3.11.3
        ("raise SystemExit('bye')", "bye\n"),
        ("import sys\nsys.exit(256)", ""),
        ("input()", "Traceback"),
        ("def f(): f()\nf()", "Traceback"),
        ("import os\nos._exit(7)", ""),
        ("import os\nos.abort()", ""),
        ("bytes(2**40)", "Traceback"),
    ],
)
def test_a_program_that_fails_says_what_it_said(program, text):
    output = printed(program, LIMITS)
    assert output.reason == ("failed" if "256" not in program else "done")  # the status of a process has eight bits
    assert output.text.startswith(text)


def test_equal_programs_print_equal_numbers():
    outputs = [printed("import random\nrandom.random(), hash('a')", LIMITS) for _ in range(2)]
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("program", ["while True: pass", "import time\nprint('first')\ntime.sleep(60)"])
def test_time_runs_out(program):
    began = time.monotonic()
    output = printed(program, Limits(timeout=0.5))
    assert (output.reason, time.monotonic() - began < 20) == ("timeout", True)
    assert output.text == ("first\n" if "first" in program else "")


@pytest.mark.parametrize("program", ["print('ab' * 10**6)", "while True: print('abab', flush=True)"])
def test_output_has_a_limit(program):
    output = printed(program, LIMITS, longest=1001)
    assert (output.reason, len(output.text)) == ("too long", 1001)
    assert printed("#" * (LONGEST_PROGRAM + 1), LIMITS) == Output("", "too long")


def test_as_much_as_is_allowed_is_no_failure():
    assert printed("print('a' * 1000)", LIMITS, longest=1001) == Output("a" * 1000 + "\n", "done")


@pytest.mark.parametrize(
    "program",
    [
        "import os, time\nif not os.fork():\n    time.sleep(30)\nprint(1)",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(30,)).start()\nprint(1)",
    ],
)
def test_nobody_waits_for_what_a_program_leaves_behind(host, program):
    began = time.monotonic()
    assert printed(program, LIMITS) == Output("1\n", "done")
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("program", ["import os\nos.close(1)\nos.close(2)\n3", "import os\nos.closerange(0, 99)"])
def test_a_closed_output_is_no_way_out(program):
    assert printed(program, LIMITS).text == ""


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_tells_no_secret_and_does_no_harm(host, name):
    """Whoever gets hold of the secret prints it; whoever knows it from the test is not told it here."""
    limits = Limits(timeout=0.5 if name in ENDLESS else 5, memory=512)
    header = "" if HOSTILE[name].startswith("#") else host.header
    answer = "ANSWER = 'harmless'\n" if name in REASONS else ""
    output = printed(f"{header}{answer}{HOSTILE[name]}\nprint(f(3))\n", limits)
    assert SECRET not in output.text

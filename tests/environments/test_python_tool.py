"""Python as a tool: the agent reads what its programs print, and hostile ones are failed turns."""

import threading
import time

import pytest

from tests.environments.test_environments import call, turn
from veto_pl.environments import PythonTool
from veto_pl.exceptions import ConfigurationError
from veto_pl.sandbox import Limits
from veto_pl.seams import Example

LIMITS = Limits(timeout=20, memory=512, workers=2)


def said(*programs, **settings):
    environment = PythonTool(allow_code_execution=True, **{"limits": LIMITS, **settings})
    return environment.begin(Example("?"), 0).reply(turn("", *(call("python", code=code) for code in programs)))


def test_running_programs_has_to_be_allowed():
    with pytest.raises(ConfigurationError, match=r"`PythonTool.allow_code_execution` is false. Read what docs/sandbox"):
        PythonTool()


def test_the_tool_is_described():
    (tool,) = PythonTool(allow_code_execution=True).tools
    assert tool["function"]["name"] == "python"
    assert list(tool["function"]["parameters"]["properties"]) == ["code"]


def test_the_agent_reads_what_is_printed():
    reply = said("x = 20\nprint(x)\nx + 1", "2**10")
    assert not reply.failed
    assert [message["content"] for message in reply.messages] == ["20\n21\n", "1024\n"]


def test_nothing_is_remembered():
    reply = said("x = 20", "x")
    assert (reply.failed, reply.done) == (True, False)
    assert "NameError: name 'x' is not defined" in reply.messages[1]["content"]


@pytest.mark.parametrize(
    ("program", "end"),
    [
        ("print('half')\n1 / 0", "ZeroDivisionError: division by zero\n\nError: The program failed."),
        ("print('half', flush=True)\nwhile True: pass", "half\n\nError: The program did not end within 1 s."),
        ("print('half' * 10**6)", "Error: The program printed more than 100 bytes."),
        ("x = [0] * 10**12", "MemoryError\n\nError: The program failed."),
        ("import socket\nsocket.create_connection(('127.0.0.1', 80))", "Error: The program failed."),
        ("open('/etc/passwd')", "Error: The program failed."),
        ("import os\nwhile True: os.fork()", "Error: The program did not end within 1 s."),
        ("import os\nos.kill(os.getppid(), 9)\nprint('killed')", "Error: The program failed."),
    ],
)
def test_a_program_that_fails_is_a_failed_turn(program, end):
    limits = Limits(timeout=1, memory=512, workers=2)
    reply = said(program, limits=limits, longest_output=100 if "10**6" in program else 10_000)
    assert (reply.failed, reply.done) == (True, False)
    content = reply.messages[0]["content"]
    assert content.endswith(end) or "fork" in program
    assert ("half" in content) == ("half" in program)
    assert "killed" not in content


def test_as_many_run_at_a_time_as_there_are_workers():
    limits = Limits(timeout=20, workers=1)
    began, ends = time.monotonic(), []

    def sleep():
        assert said("import time\ntime.sleep(0.4)\n1", limits=limits).messages[0]["content"] == "1\n"
        ends.append(time.monotonic() - began)

    threads = [threading.Thread(target=sleep) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ends) == 3
    assert max(ends) >= 1.2

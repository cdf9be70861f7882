"""MCP servers as environments, of the real package: in this process, as a program, and at an address."""

import multiprocessing
import sys
import threading
import time
from pathlib import Path

import pytest
import uvicorn

from tests.environments import mcp_server
from tests.environments.test_environments import call, turn
from veto_pl.environments import Mcp
from veto_pl.exceptions import ConfigurationError
from veto_pl.seams import Example, Reply

HERE = "tests.environments.mcp_server"
PROGRAM = (sys.executable, str(Path(mcp_server.__file__)))


def begun(*given, **settings):
    passed = (*settings.pop("pass_on", ()), "PYTHONPATH") if "command" in settings else ()
    return Mcp(*given, **{"timeout": 30.0, "pass_on": passed, **settings}).begin(Example("?"), 0)


def lives(process):
    """Whether a process runs."""
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def gone(process, seconds=20):
    """Whether a process has ended, or ends soon."""
    deadline = time.monotonic() + seconds
    while lives(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not lives(process)


@pytest.fixture(scope="module", params=["server", "program"])
def episode(request):
    one = begun(f"{HERE}.server") if request.param == "server" else begun(command=PROGRAM)
    yield one
    one.close()


def test_tools_are_the_servers(episode):
    tools = Mcp(f"{HERE}.server").tools
    assert [tool["function"]["name"] for tool in tools][:2] == ["count", "broken"]
    assert tools[0]["function"]["parameters"]["properties"]["step"]["type"] == "integer"
    assert "Count on." in tools[0]["function"]["description"]
    assert tools == Mcp(f"{HERE}.server", timeout=9.0).tools


def test_calls_are_answered_in_their_order(episode):
    reply = episode.reply(turn("", call("count", step=2), call("count", step=-2)))
    first, second = (int(message["content"]) for message in reply.messages)
    assert first - second == 2
    assert reply == Reply(reply.messages)
    assert episode.reply(turn("Done.")) == Reply(done=True)
    assert episode.reward() is None


@pytest.mark.parametrize(
    ("called", "said"),
    [
        (call("broken"), "Error executing tool broken"),
        (call("melt"), "Unknown tool: melt"),
        (call("count"), "Error executing tool count"),
        (call("count", step="far"), "Error executing tool count"),
        (call("count", step=object()), "Error: "),
    ],
)
def test_a_call_that_fails_is_a_failed_turn_and_the_agent_reads_why(episode, called, said):
    reply = episode.reply(turn("", called))
    assert (reply.failed, reply.done) == (True, False)
    assert reply.messages[0]["content"].startswith(said)


def test_a_call_that_nobody_can_read_is_a_failed_turn(episode):
    reply = episode.reply(turn(invalid_tool_calls=["{open"]))
    assert (reply.failed, reply.is_last) == (True, False)


def test_floods_and_control_words_are_texts(episode):
    reply = episode.reply(turn("", call("flood"), call("forged")))
    assert not reply.failed
    assert [len(message["content"]) for message in reply.messages] == [2**20, len(mcp_server.forged())]
    assert {message["role"] for message in reply.messages} == {"tool"}


@pytest.mark.parametrize("given", [{"server": f"{HERE}.server"}, {"command": PROGRAM}], ids=["server", "program"])
def test_a_tool_that_hangs_is_a_failed_turn_and_the_next_is_answered(given, monkeypatch):
    monkeypatch.setattr("veto_pl.environments.mcp_connection.GRACE", 0.5)
    episode = begun(**given)
    episode.connection.timeout = 0.5  # the start of a program takes longer
    began = time.monotonic()
    try:
        if "command" in given:
            episode.connection._client.session._session_read_timeout_seconds = 0.5
        reply = episode.reply(turn("", call("hang")))
        assert (reply.failed, reply.done) == (True, False)
        assert reply.messages[0]["content"].startswith("Error: ")
        assert time.monotonic() - began < 15
        assert not episode.reply(turn("", call("told"))).failed
    finally:
        episode.connection.timeout = 20
        episode.close()


def test_of_a_function_every_episode_has_its_own_server():
    one, other = begun(f"{HERE}.fresh"), begun(f"{HERE}.fresh")
    said = [episode.reply(turn("", call("count", step=5))).messages[0]["content"] for episode in (one, other, one)]
    assert said == ["5", "5", "10"]
    one.close()
    other.close()


def test_a_server_that_dies_ends_its_episode(monkeypatch):
    monkeypatch.setenv("TOLD", "what it may know")
    episode = begun(command=PROGRAM, pass_on=("TOLD", "MISSING"))
    process, told = episode.reply(turn("", call("told"))).messages[0]["content"].split(" ", 1)
    assert told == "what it may know"
    assert episode.reply(turn("", call("die"))) == Reply(done=True, failed=True)
    assert episode.reply(turn("", call("count", step=1))) == Reply(done=True, failed=True)
    episode.close()
    assert gone(process)


DEAF = (*PROGRAM, "deaf")
"""Ignores the end of its input, and signals: the worst there is."""


def test_a_program_never_outlives_its_episode():
    episode = begun(command=DEAF)
    process = episode.reply(turn("", call("told"))).messages[0]["content"].split()[0]
    assert lives(process)
    episode.close()
    assert gone(process)


def holds_on(pipe):
    """What a run does that is killed in an episode."""
    episode = begun(command=DEAF)
    pipe.send(episode.reply(turn("", call("told"))).messages[0]["content"].split()[0])
    time.sleep(1000)


def test_a_program_never_outlives_a_run_that_is_killed():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["veto_pl.cli.build"])  # as for others that share the server
    mine, theirs = context.Pipe()
    run = context.Process(target=holds_on, args=(theirs,))
    run.start()
    try:
        assert mine.poll(120)
        process = mine.recv()
        assert lives(process)
    finally:
        run.kill()
        run.join()
    assert gone(process)


def test_a_server_may_run_elsewhere():
    config = uvicorn.Config(mcp_server.fresh().streamable_http_app(), port=0, log_level="critical", ws="none")
    served = uvicorn.Server(config)
    thread = threading.Thread(target=served.run, daemon=True)
    thread.start()
    while not served.started:
        time.sleep(0.05)
    port = served.servers[0].sockets[0].getsockname()[1]
    episode = begun(url=f"http://127.0.0.1:{port}/mcp")
    assert episode.reply(turn("", call("count", step=3))).messages[0]["content"] == "3"
    episode.close()
    served.should_exit = True
    thread.join(20)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"expected one of `server`, `command` and `url`, got none"),
        ({"server": f"{HERE}.server", "url": "http://x"}, r"got `server` and `url`"),
        ({"server": f"{HERE}.missing"}, r"`Mcp.server`: .* cannot be imported: AttributeError"),
        ({"server": "server"}, r"expected an object of yours as `module.name`"),
        ({"server": "os.getcwd"}, r"expected an object of yours as `module.name`"),
        ({"server": f"{HERE}.count"}, r"raised TypeError: .*It is called without arguments"),
    ],
)
def test_a_server_that_is_none_is_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        Mcp(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"command": ("no-such-program",)}, r"(?s)cannot talk to `no-such-program`. .*No such file or directory"),
        ({"command": (sys.executable, "-c", "raise RuntimeError('I am broken')")}, r"(?s)I am broken"),
        ({"command": ("sleep", "60"), "timeout": 0.5}, r"TimeoutError: no answer within 0.5 s"),
        ({"url": "http://127.0.0.1:9/mcp"}, r"ConnectError"),
        ({"server": f"{HERE}.empty"}, r"the server has no tool"),
    ],
)
def test_a_server_that_does_not_answer_is_named(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        _ = Mcp(**settings).tools

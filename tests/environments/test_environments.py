"""The environments of the package, and classes of users as tools."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.environments import Abacus, House, Levels, Tools, TryAgain
from veto_pl.environments.calculator import Calculator
from veto_pl.exceptions import ConfigurationError
from veto_pl.seams import Example, Reply

HERE = __name__


def call(name, **arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def turn(text="", *calls, **more):
    return {"role": "assistant", "content": text, **({"tool_calls": list(calls)} if calls else {}), **more}


class Vault:
    """A box that opens for a number."""

    def reset(self, code, seed):
        self.code, self.tries, self.closed = code, 0, False
        self.drawn = random.Random(seed).random()
        return f"The code has {len(str(code))} digits."

    def get_reward(self):
        return 1.0 if self.tries == -1 else 0.0

    def open(self, number: int) -> str:
        """Try a number.

        Args:
            number: The number to try.
        """
        self.tries = -1 if number == self.code else self.tries + 1
        return "It opens." if self.tries == -1 else "No."

    async def look(self) -> dict:
        """Look at the box."""
        await asyncio.sleep(0)
        return {"tries": self.tries}

    def force(self) -> str:
        """Take a hammer."""
        raise RuntimeError("The hammer is broken.")

    def _secret(self):
        return self.code


class Silent:
    """Says nothing of its argument."""

    def act(self, x):
        return x


class NoTools:
    """Has nothing to call."""

    def reset(self):
        return None


def begun(code=42):
    return Tools(f"{HERE}.Vault").begin(Example("Open it.", row={"code": code, "other": 1}), 3)


def test_a_class_of_ones_own_is_an_environment():
    episode = begun()
    assert episode.opening == ({"role": "user", "content": "The code has 2 digits."},)
    assert episode.tools.drawn == random.Random(3).random()
    first = episode.reply(turn("", call("open", number=1)))
    assert first == Reply(({"role": "tool", "name": "open", "content": "No."},))
    assert episode.reward() == 0
    assert episode.reply(turn("", call("open", number=42))).messages[0]["content"] == "It opens."
    assert episode.reply(turn("Done.")) == Reply(done=True)
    assert episode.reward() == 1
    assert [tool["function"]["name"] for tool in Tools(f"{HERE}.Vault").tools] == ["force", "look", "open"]
    described = Tools(f"{HERE}.Vault").tools[2]["function"]["parameters"]["properties"]["number"]
    assert described == {"type": "integer", "description": "The number to try."}


def test_methods_may_be_awaited_beside_others():
    reply = asyncio.run(begun()._awaited([call("look")["function"], call("open", number=7)["function"]], turn()))
    assert [message["content"] for message in reply.messages] == ['{"tries": 0}', "No."]
    waiting = begun().reply(turn("", call("look")))
    assert asyncio.iscoroutine(waiting)
    waiting.close()


@pytest.mark.parametrize(
    ("called", "said"),
    [
        (call("force"), "Error: RuntimeError: The hammer is broken."),
        (call("melt"), "Error: there is no tool `melt`. The tools are force, look, open."),
        (call("_secret"), "Error: there is no tool `_secret`."),
        (call("reset", code=1, seed=1), "Error: there is no tool `reset`."),
        (call("get_reward"), "Error: there is no tool `get_reward`."),
        (call("code"), "Error: there is no tool `code`."),
        (call("open"), "Error: `open`: missing a required argument: 'number'."),
        (call("open", number=1, door=2), "Error: `open`: got an unexpected keyword argument 'door'."),
    ],
)
def test_a_call_that_fails_is_a_failed_turn_and_the_agent_reads_why(called, said):
    reply = begun().reply(turn("", called))
    assert (reply.failed, reply.done) == (True, False)
    assert reply.messages[0]["content"].startswith(said)


def test_a_call_that_nobody_can_read_is_a_failed_turn():
    reply = begun().reply(turn(invalid_tool_calls=["{open"]))
    assert (reply.failed, reply.is_last) == (True, False)
    assert "{open" in reply.messages[0]["content"]


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("Vault", r"`Tools.factory`: given `Vault`, expected a class of yours as `module.Class`"),
        ("os.PathLike", r"given `os.PathLike`, expected a class of yours"),
        (f"{HERE}.Missing", r"cannot be imported: AttributeError"),
        (f"{HERE}.call", r"expected a class, got function"),
    ],
)
def test_a_class_that_is_none_is_refused(factory, message):
    with pytest.raises(ConfigurationError, match=message):
        Tools(factory)


@pytest.mark.parametrize(("kind", "message"), [("Silent", "has to say more"), ("NoTools", "no public method")])
def test_a_class_without_tools_is_refused(kind, message):
    with pytest.raises(ConfigurationError, match=message):
        _ = Tools(f"{HERE}.{kind}").tools


numbers = st.integers(0, 99)
expressions = st.recursive(
    numbers.map(str),
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*"]), inner).map(lambda parts: f"({''.join(parts)})"),
    max_leaves=5,
)


@given(expression=expressions)
def test_the_calculator_calculates(expression):
    assert Calculator().calculate(expression) == str(eval(expression))


@pytest.mark.parametrize(
    "said", ["1/0", "9**9**9", "__import__('os')", "1+", "'a'*9", "(-8)**0.5", "1+" * 600 + "1", "True"]
)
def test_the_calculator_refuses_what_is_no_arithmetic(said):
    reply = Abacus().begin(Example("?"), 0).reply(turn("", call("calculate", expression=said)))
    assert reply.failed
    assert reply.messages[0]["content"].startswith("Error: ")


def test_a_row_without_calls_is_judged_by_the_task():
    episode = Abacus().begin(Example("2+2?", "4"), 0)
    assert episode.reply(turn("", call("calculate", expression="2+2"))).messages[0]["content"] == "4"
    assert episode.reply(turn("4")).is_last
    assert episode.reward() is None


@given(seed=st.integers(0, 2**63 - 1))
def test_ten_turns_are_enough_in_the_house(seed):
    episode, turns = House().begin(Example(""), seed), 0
    while (said := episode.expert()) is not None:
        reply = episode.reply(turn(said))
        turns += 1
        assert not reply.failed
    assert reply.done
    assert 0 < turns <= 10
    assert episode.reward() == 1


def test_the_house_says_what_is_not_possible():
    episode = House().begin(Example("", row={"level": 7}), 0)
    for said in ("fly", "take", "take house", "drop lamp", "go up"):
        reply = episode.reply(turn(said))
        assert (reply.failed, reply.done) == (True, False)
        assert reply.messages[0]["content"].startswith("That is not possible. You are in the ")
    assert episode.reward() == 0


def test_a_level_is_the_same_house_for_every_seed():
    rows = Levels(train=3, validation=2, prompt="Go.").load("train")
    assert [row.row["level"] for row in rows] == [0, 1, 2]
    openings = [House().begin(row, seed).opening[0]["content"] for row in rows for seed in (1, 2)]
    assert openings[::2] == openings[1::2]
    assert len(set(openings)) == 3
    assert not {row.row["level"] for row in rows} & {
        row.row["level"] for row in Levels(validation=2).load("validation")
    }


def test_wrong_answers_are_asked_again():
    episode = TryAgain(said="No.").begin(Example("2+2?", "4"), 0)
    assert episode.reply(turn("5")) == Reply(({"role": "user", "content": "No."},))
    assert episode.reward() == 0
    assert episode.reply(turn("4")).is_last
    assert episode.reward() == 1

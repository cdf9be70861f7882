"""Tools that an agent may call: the public methods of a class."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from veto_pl.data.functions import class_of
from veto_pl.environments.tool_replies import calls_in, problem, told
from veto_pl.exceptions import ConfigurationError
from veto_pl.seams import Environment, Episode, Example, Message, Reply

_NO_TOOLS = ("reset", "get_reward", "close")
"""Public methods that the agent does not call."""


@dataclass(frozen=True)
class Tools(Environment):
    """The public methods of a class of yours are tools, as in the environments of TRL; it needs no other code.

    An object of the class is made for each episode. `reset`, if there is one, is called first, with those fields of the
    row that it takes, and with `seed` if it takes that; a text that it returns is said behind the prompt. `get_reward`,
    if there is one, is the reward of the episode; without it the task judges the last turn. `close` is called in the
    end. Each other public method is a tool, with annotated arguments and a docstring with `Args:`, from which its JSON
    schema is made. Methods may be `async def`. What a tool returns is said as text, JSON where it is none.

    A turn without calls ends the episode. A call of a tool that does not exist, with other arguments, or that raises,
    is a failed turn, and the agent reads why.

    Args:
        factory: the class as `module.Class`. Modules of the current folder are found as well.

    Raises:
        ConfigurationError: there is no such class, it has no tool, or a tool says too little of its arguments.
    """

    factory: str

    def __post_init__(self) -> None:
        super().__post_init__()
        class_of(f"{type(self).__name__}.factory", self.factory)

    @classmethod
    def examples(cls) -> tuple[Tools, ...]:
        return (cls("veto_pl.environments.calculator.Calculator"),)

    @property
    def tools(self) -> tuple[Mapping[str, Any], ...]:
        """The schemas of the public methods, by name."""
        return _schemas(self.factory)

    @property
    def gives_rewards(self) -> bool:
        """Whether the class has a `get_reward`."""
        return hasattr(class_of("Tools.factory", self.factory), "get_reward")

    def begin(self, example: Example, seed: int) -> Episode:
        _schemas(self.factory)  # which says what is wrong with a tool before it is called
        return CalledTools(class_of("Tools.factory", self.factory)(), example, seed)


class CalledTools(Episode):
    """An episode of calls.

    Args:
        tools: the object whose methods are called.
        example: the row.
        seed: of what is random.
    """

    def __init__(self, tools: Any, example: Example, seed: int) -> None:
        self.tools = tools
        reset = getattr(tools, "reset", None)
        said = (
            None if reset is None else reset(**_taken(reset, {"seed": seed, "prompt": example.prompt, **example.row}))
        )
        self._opening: tuple[Message, ...] = ({"role": "user", "content": said},) if isinstance(said, str) else ()

    @property
    def opening(self) -> tuple[Message, ...]:
        return self._opening

    def reply(self, turn: Message) -> Reply | Awaitable[Reply]:
        calls = calls_in(turn)
        methods = [getattr(self.tools, call["name"], None) for call in calls if _is_tool(call["name"])]
        if any(map(inspect.iscoroutinefunction, methods)):
            return self._awaited(calls, turn)
        return told([(call["name"], *_run(self.tools, call)) for call in calls], turn)

    async def _awaited(self, calls: list[Mapping[str, Any]], turn: Message) -> Reply:
        results = []
        for call in calls:
            result, failed = _run(self.tools, call)
            if inspect.isawaitable(result):
                try:
                    result = await result
                except Exception as error:  # the tool's own
                    result, failed = problem(error), True
            results.append((call["name"], result, failed))
        return told(results, turn)

    def reward(self) -> float | None:
        judge = getattr(self.tools, "get_reward", None)
        return None if judge is None else float(judge())

    def close(self) -> None:
        close = getattr(self.tools, "close", None)
        if callable(close):
            close()


def _run(tools: Any, call: Mapping[str, Any]) -> tuple[Any, bool]:
    """Return what a call returns, or what is said of its failure, and whether it failed."""
    name, arguments = call["name"], call["arguments"]
    method = getattr(tools, name, None) if _is_tool(name) else None
    if not callable(method):
        return f"Error: there is no tool `{name}`. The tools are {', '.join(_names(type(tools)))}.", True
    try:
        inspect.signature(method).bind(**arguments)
    except TypeError as error:
        return f"Error: `{name}`: {error}.", True
    try:
        return method(**arguments), False
    except Exception as error:  # the tool's own
        return problem(error), True


def _is_tool(name: Any) -> bool:
    return isinstance(name, str) and name.isidentifier() and not name.startswith("_") and name not in _NO_TOOLS


def _names(kind: type) -> list[str]:
    return [name for name, _ in inspect.getmembers(kind, inspect.isfunction) if _is_tool(name)]


def _taken(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the offered arguments that a function takes by name."""
    parameters = inspect.signature(function).parameters.values()
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
        return dict(offered)
    return {one.name: offered[one.name] for one in parameters if one.name in offered}


@lru_cache(maxsize=64)
def _schemas(path: str) -> tuple[Mapping[str, Any], ...]:
    from transformers.utils import get_json_schema

    kind = class_of("Tools.factory", path)
    names, made = _names(kind), kind()
    if not names:
        raise ConfigurationError(f"`{path}` has no public method that an agent could call. Give it one.")
    try:
        return tuple(get_json_schema(getattr(made, name)) for name in names)
    except Exception as error:  # of several kinds, by what is missing
        raise ConfigurationError(
            f"A tool of `{path}` has to say more of its arguments: {str(error)[:300]} Annotate each, and describe it "
            "in the docstring under `Args:`."
        ) from error

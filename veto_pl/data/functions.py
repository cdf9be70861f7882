"""Functions in place of a class, for a reward or a template of one line: named by module and function."""

from __future__ import annotations

import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veto_pl.core.mistakes import check_kind, shorten
from veto_pl.core.seeds import seeded
from veto_pl.data.fingerprints import file_digest
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.seams import Example, Reward, Task, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class FunctionReward(Reward):
    """The number that a function of yours gives for `(completion, reference, row)`; 1.0 and only 1.0 is correct.

    The reference is None for rows without one; the row is a mapping of its fields.

    Args:
        path: the function as `module.function`. Modules of the current folder are found as well.

    Raises:
        ConfigurationError: there is no such function, or it takes other arguments.
        DataError: while it judges, it raises or gives no number.

    Example:
        >>> FunctionReward(path="veto_pl.testing.one_liners.share_of_words")(Example("Who?", "Ann Bee"), "It was Ann.")
        0.5
    """

    path: str

    def __post_init__(self) -> None:
        super().__post_init__()
        function_of("data.reward", self.path, ("completion", "reference", "row"))

    @classmethod
    def examples(cls) -> tuple[FunctionReward, ...]:
        return (cls(path="veto_pl.testing.one_liners.share_of_words"),)

    def __call__(self, example: Example, completion: str) -> float:
        """Return the function's number."""
        function = _at("data.reward", self.path)
        said = _called(self.path, function, example, completion, example.completion, example.row)
        if not isinstance(said, int | float) or not math.isfinite(said):
            raise DataError(f"`{self.path}` expected to return a number, got {said!r:.40} for {example.prompt!r:.40}.")
        return float(said)


@dataclass(frozen=True, kw_only=True)
class FunctionTemplate(Template):
    r"""The text that a function of yours gives for `(prompt, row)`.

    Args:
        path: the function as `module.function`. Modules of the current folder are found as well.

    Raises:
        ConfigurationError: there is no such function, or it takes other arguments.
        DataError: it raises or gives no text.

    Example:
        >>> FunctionTemplate(path="veto_pl.testing.one_liners.asked")(Example("How far?"), tokenizer=None)
        'Q: How far?\nA: '
    """

    path: str
    code: str = field(init=False, repr=False, default="")
    """A hash of the function's module, so that rows are tokenised anew when it has changed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        function = function_of("data.template", self.path, ("prompt", "row"))
        object.__setattr__(self, "code", _code_of(function))

    @classmethod
    def examples(cls) -> tuple[FunctionTemplate, ...]:
        return (cls(path="veto_pl.testing.one_liners.asked"),)

    def __call__(self, example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the function's text."""
        function = _at("data.template", self.path)
        said = _called(self.path, function, example, example.prompt, example.row)
        if not isinstance(said, str):
            raise DataError(f"`{self.path}` expected to return a text, got {said!r:.40} for {example.prompt!r:.40}.")
        return said


def as_task(given: Task) -> Task:
    """Return a task whose open seeds are the run's; raise `ConfigurationError` for what is none."""
    check_kind(given, Task, "data.task", "a `Task`, such as `JsonLines`")
    return seeded(given)


def as_reward(given: Reward | str | None) -> Reward | None:
    """Return a reward that may be given as the path of a function."""
    if given is None or isinstance(given, str):
        return None if given is None else FunctionReward(path=given)
    check_kind(given, Reward, "data.reward", "a `Reward`, or a function of yours as `module.function`")
    return given


def as_template(given: Template | str) -> Template:
    """Return a template that may be given as the path of a function."""
    if isinstance(given, str) and "{" in given:
        raise ConfigurationError(
            f"`data.template`: given the text `{shorten(given)}`, expected a `Template`, or a function of yours as "
            "`module.function`. A format is `PlainTemplate(format=...)`."
        )
    if isinstance(given, str):
        return FunctionTemplate(path=given)
    check_kind(given, Template, "data.template", "a `Template`, or a function of yours as `module.function`")
    return given


def function_of(setting: str, path: str, arguments: tuple[str, ...]) -> Callable[..., Any]:
    """Return the function at a path.

    Args:
        setting: where it is named, for messages.
        path: the module and the function, with a dot between them.
        arguments: what it is called with.

    Raises:
        ConfigurationError: there is none that takes these arguments. Functions of the standard library are none: a
            configuration is no way to run them.
    """
    module, told = path.rpartition(".")[0], f"{', '.join(arguments)}"
    if not module or module.partition(".")[0] in sys.stdlib_module_names:
        raise ConfigurationError(
            f"`{setting}`: given `{path}`, expected the name of a class, or a function of yours as `module.function` "
            f"of the arguments ({told}). Correct the name; `veto-pl list` shows all classes."
        )
    found = _at(setting, path)
    try:
        inspect.signature(found).bind(*arguments)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"`{setting}`: `{path}` expected a function of the arguments ({told}): {error}. Correct it."
        ) from error
    return found


def class_of(setting: str, path: str) -> type[Any]:
    """Return the class at a path.

    Args:
        setting: where it is named, for messages.
        path: the module and the class, with a dot between them.

    Raises:
        ConfigurationError: there is none. Classes of the standard library are none: a configuration is no way to make
            them.
    """
    module = path.rpartition(".")[0]
    if not module or module.partition(".")[0] in sys.stdlib_module_names:
        raise ConfigurationError(
            f"`{setting}`: given `{path}`, expected a class of yours as `module.Class`. Correct the name."
        )
    found = _at(setting, path)
    if not inspect.isclass(found):
        raise ConfigurationError(f"`{setting}`: `{path}` expected a class, got {type(found).__name__}. Name its class.")
    return found


def made_at(setting: str, path: str) -> Any:
    """Return the object at a path, or what the function there, which takes no arguments, makes.

    Args:
        setting: where it is named, for messages.
        path: the module and the name, with a dot between them.

    Raises:
        ConfigurationError: there is none, the function takes arguments, or it raises.
    """
    module = path.rpartition(".")[0]
    if not module or module.partition(".")[0] in sys.stdlib_module_names:
        raise ConfigurationError(
            f"`{setting}`: given `{path}`, expected an object of yours as `module.name`. Correct the name."
        )
    found: Any = _at(setting, path)
    if not callable(found):
        return found
    try:
        return found()
    except Exception as error:  # which is the user's own
        raise ConfigurationError(
            f"`{setting}`: `{path}()` raised {type(error).__name__}: {str(error)[:200]}. "
            "It is called without arguments. Correct it."
        ) from error


def _at(setting: str, path: str) -> Callable[..., Any]:
    """Return what a path names now, whatever it takes; raise `ConfigurationError` where it cannot be imported."""
    module, _, name = path.rpartition(".")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module is a program, and may raise anything
        raise ConfigurationError(
            f"`{setting}`: `{path}` cannot be imported: {type(error).__name__}: {str(error)[:200]}. Correct the path."
        ) from error
    return found


def _code_of(function: Callable[..., Any]) -> str:
    """Return a hash of the file that defines a function; of one that nobody can read, a name of its own."""
    try:
        return file_digest(Path(inspect.getfile(inspect.unwrap(function))))
    except (TypeError, OSError):
        return os.urandom(16).hex()


def _called(path: str, function: Callable[..., Any], example: Example, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # which is the user's own
        raise DataError(
            f"`{path}` raised {type(error).__name__}: {str(error)[:200]}, for the row {example.prompt[:60]!r}. Mend it."
        ) from error

"""Mistakes in a configuration: where they are, what was given, what was expected and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from veto_pl.exceptions import ConfigurationError

SHOWN = 100
"""Characters of a value that a message shows."""


@dataclass(frozen=True)
class Mistake:
    """One mistake in a configuration.

    Args:
        path: where it is, in the words of the YAML.
        given: what stands there.
        expected: what could stand there.
        remedy: what to do.
        fatal: whether the run cannot work; else it is pointless or suspicious, and a warning is enough.
    """

    path: str
    given: str
    expected: str
    remedy: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"`{self.path}`: given {self.given}, expected {self.expected}. {self.remedy}"


def report(mistakes: Iterable[Mistake]) -> None:
    """Warn of what is suspicious, then raise one `ConfigurationError` that names everything that cannot work."""
    from lightning.pytorch.utilities import rank_zero_warn  # here, for models and formulas do without Lightning

    found = list(mistakes)
    for mistake in found:
        if not mistake.fatal:
            rank_zero_warn(str(mistake))
    if fatal := [mistake for mistake in found if mistake.fatal]:
        raise error_of(fatal)


def error_of(mistakes: Sequence[Mistake]) -> ConfigurationError:
    """Return one error for all of the mistakes."""
    if len(mistakes) == 1:
        return ConfigurationError(str(mistakes[0]))
    lines = "".join(f"\n  - {mistake}" for mistake in mistakes)
    return ConfigurationError(f"The configuration has {len(mistakes)} mistakes:{lines}")


def shorten(value: object, limit: int = SHOWN) -> str:
    """Return a value as one line of at most `limit` characters.

    Example:
        >>> shorten("x" * 300, 10)
        'xxxxxxx...'
    """
    text = " ".join(str(value).split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def wrong_kind(given: object, setting: str, expected: str) -> ConfigurationError:
    """Return the error for a value of another kind than a setting takes; a class is told as what it is."""
    if isinstance(given, type):
        shown, hint = f"the class `{given.__name__}`", f" It is the class: make one, `{given.__name__}(...)`."
    else:
        shown, hint = f"`{shorten(given, 60)}` ({type(given).__name__})", ""
    return ConfigurationError(f"`{setting}`: given {shown}, expected {expected}.{hint}")


def check_kind(given: object, kind: type | tuple[type, ...], setting: str, expected: str) -> None:
    """Raise `ConfigurationError` for a value of another kind than a setting takes.

    Example:
        >>> check_kind(3, int, "data.batch_size", "a number")
    """
    if not isinstance(given, kind):
        raise wrong_kind(given, setting, expected)


def check_number(setting: str, value: float, least: float, most: float = math.inf) -> None:
    """Raise `ConfigurationError` for a number outside of its range, which NaN always is.

    Example:
        >>> check_number("Checkpoints.minutes", 10, 0)
    """
    if not least <= value <= most:
        bound = f"be at least {least:g}" if most == math.inf else f"lie in [{least:g}, {most:g}]"
        raise ConfigurationError(f"`{setting}` must {bound}, got {value}.")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a sentence that proposes the known names closest to `name`; empty where none is close.

    Example:
        >>> did_you_mean("FowardKL", ["ForwardKL", "SkewKL"])
        'Did you mean `ForwardKL`?'
    """
    by_case = {known.lower(): known for known in names}
    close = [by_case[match] for match in get_close_matches(name.lower(), by_case, n=3, cutoff=0.6)]
    return f"Did you mean {' or '.join(f'`{match}`' for match in close)}?" if close else ""

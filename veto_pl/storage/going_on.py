"""What a run does where a file cannot be written: it says so once, goes on, and tries again where it can."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.exceptions import DataError, VetoError

_TOLD: set[object] = set()
"""What could not be written the last time it was tried, and was warned of."""


@contextmanager
def going_on(what: object, then: str = "tries again", key: object = None) -> Iterator[None]:
    """Warn where the block cannot write because the disk is full, read-only or gone, and let the run go on.

    There is one warning until a write works again. Errors that are no refusals of the system are raised, as are
    those of the package, which have a sentence of their own.

    Args:
        what: is written; a file, usually.
        then: what the run does beside going on.
        key: stands for several blocks that share one warning, which is not repeated.
    """
    known = str(what) if key is None else key
    try:
        yield
    except Exception as error:
        reason = refusal(error)
        if reason is None:
            raise
        if known not in _TOLD:
            rank_zero_warn(f"{what} could not be written: {reason}. The run goes on, and {then}.")
        _TOLD.add(known)
    else:
        if key is None:
            _TOLD.discard(known)


@contextmanager
def required(what: object) -> Iterator[None]:
    """Let a command end with a sentence where it cannot write what it was asked for.

    Raises:
        DataError: the system has refused a write of the block.
    """
    try:
        yield
    except Exception as error:
        reason = refusal(error)
        if reason is None:
            raise
        raise DataError(f"{what} could not be written: {reason}. Make room, or name another place.") from error


def refusal(error: BaseException | None) -> OSError | None:
    """Return what the system has refused where that is the cause of an error, however a library has wrapped it.

    An error of the package is none: what it wraps, it tells in its own words.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen and not isinstance(error, VetoError):
        seen.add(id(error))
        if isinstance(error, OSError):
            return error
        if told := re.search(r"os error (\d+)|Os \{ code: (\d+)", str(error)):  # libraries in Rust, as safetensors
            number = int(told[1] or told[2])
            return OSError(number, os.strerror(number))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def patient(part: object, *names: str) -> None:
    """Let methods of what somebody else has written warn where the disk refuses, instead of ending the run."""
    what = f"What `{type(part).__name__}` records"
    _guard(part, names, lambda: going_on(what, "tries again at the next one", part))


def harmless(part: object, *names: str) -> None:
    """Let methods of an object warn where they fail in any way: what comes after them is worth more."""

    @contextmanager
    def warned() -> Iterator[None]:
        try:
            yield
        except Exception as error:
            rank_zero_warn(f"`{type(part).__name__}` failed while the run ended: {type(error).__name__}: {error}.")

    _guard(part, names, warned)


def _guard(part: object, names: Iterable[str], context: Callable[[], Any]) -> None:
    for name in names:
        method = getattr(part, name)
        if hasattr(method, "__wrapped__") and name in vars(part):
            continue  # a trainer sets its parts up before every stage

        setattr(part, name, _inside(context, method))


def _inside(context: Callable[[], Any], method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*arguments: Any, **settings: Any) -> Any:
        with context():
            return method(*arguments, **settings)

    return call

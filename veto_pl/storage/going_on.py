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

_WARNED_OF: set[object] = set()
"""What could not be written the last time it was tried, and was warned of."""


@contextmanager
def warn_if_unwritten(what: object, then: str = "tries again", key: object = None) -> Iterator[None]:
    """Warn if the block cannot write because the disk is full, read-only or gone, and continue after the block.

    There is one warning until a write works again. Errors that no `OSError` has caused, and a `VetoError`, are
    raised.

    Args:
        what: is written; a file, usually.
        then: what the run does next, besides continuing.
        key: stands for several blocks that share one warning, which is not repeated.
    """
    known = str(what) if key is None else key
    try:
        yield
    except Exception as error:
        reason = system_error(error)
        if reason is None:
            raise
        if known not in _WARNED_OF:
            rank_zero_warn(f"{what} could not be written: {reason}. The run goes on, and {then}.")
        _WARNED_OF.add(known)
    else:
        if key is None:
            _WARNED_OF.discard(known)


@contextmanager
def data_error_if_unwritten(what: object) -> Iterator[None]:
    """Raise `DataError` if the block cannot write the output that a command was asked for.

    Raises:
        DataError: an `OSError` has ended the block.
    """
    try:
        yield
    except Exception as error:
        reason = system_error(error)
        if reason is None:
            raise
        raise DataError(f"{what} could not be written: {reason}. Make room, or name another place.") from error


def system_error(error: BaseException | None) -> OSError | None:
    """Return the `OSError` that caused an error, however a library has wrapped it, or None if there is none.

    Causes of a `VetoError` are not searched: its message has already explained them.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen and not isinstance(error, VetoError):
        seen.add(id(error))
        if isinstance(error, OSError):
            return error
        if code := re.search(r"os error (\d+)|Os \{ code: (\d+)", str(error)):  # libraries in Rust, as safetensors
            number = int(code[1] or code[2])
            return OSError(number, os.strerror(number))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def warn_on_write_errors(part: object, *names: str) -> None:
    """Wrap methods of an object so that they warn if the disk refuses a write, instead of ending the run."""
    what = f"What `{type(part).__name__}` records"
    _wrap_methods(part, names, lambda: warn_if_unwritten(what, "tries again at the next one", part))


def warn_on_errors(part: object, *names: str) -> None:
    """Wrap methods of an object so that any error of theirs becomes a warning, and what follows them still runs."""

    @contextmanager
    def warned() -> Iterator[None]:
        try:
            yield
        except Exception as error:
            rank_zero_warn(f"`{type(part).__name__}` failed while the run ended: {type(error).__name__}: {error}.")

    _wrap_methods(part, names, warned)


def _wrap_methods(part: object, names: Iterable[str], context: Callable[[], Any]) -> None:
    for name in names:
        method = getattr(part, name)
        if hasattr(method, "__wrapped__") and name in vars(part):
            continue  # a trainer sets its parts up before every stage

        setattr(part, name, _in_context(context, method))


def _in_context(context: Callable[[], Any], method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*arguments: Any, **settings: Any) -> Any:
        with context():
            return method(*arguments, **settings)

    return call

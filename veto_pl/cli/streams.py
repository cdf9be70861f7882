"""Output that nobody reads any more, or that a full disk refuses, ends no command."""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, cast

_LASTING_ERRORS = (errno.EPIPE, errno.EIO, errno.EBADF)
"""Errors that stay: `| head` has read enough, the terminal is closed."""


class LastingStream:
    """A text stream whose writes never fail. Where its reader has gone away, all that follows goes nowhere.

    Args:
        stream: what is written to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text, ignoring errors of the system. Return its length even if nothing was written."""
        self._try(self._stream.write, text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write the lines, ignoring errors of the system."""
        self._try(self._stream.writelines, lines)

    def flush(self) -> None:
        """Flush the stream, ignoring errors of the system."""
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, write: Callable[..., object], *arguments: object) -> None:
        try:
            write(*arguments)
        except OSError as error:
            if error.errno in _LASTING_ERRORS:
                _redirect_to_null(self._stream)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Wrap standard output and standard error in `LastingStream` while the block lasts."""
    with (
        redirect_stdout(cast(TextIO, LastingStream(sys.stdout))),
        redirect_stderr(cast(TextIO, LastingStream(sys.stderr))),
    ):
        yield


def _redirect_to_null(stream: TextIO) -> None:
    """Redirect the stream's descriptor to the null device, also for child processes and buffered text."""
    with suppress(OSError, ValueError):  # a ValueError where it has no descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


NOISE = (
    "Tip: For seamless cloud", "TPU available: False", "HPU available: False", "already configured with model summary",
)  # fmt: skip
"""What Lightning says of products that nobody has asked for, and of what the package does itself."""


def hide_noise() -> None:
    """Hide what a user cannot act on: deprecations between libraries, and Lightning's advertisements."""
    warnings.filterwarnings("ignore", message=r"(?s).*deprecated in v4\.")  # jsonargparse
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*is not supported by the model summary.*")  # mixed keeps float32
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_is_no_noise)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar for every table
    if not sys.stderr.isatty():  # in a file, the bars of transformers for weights are lines of nothing
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _is_no_noise(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not any(noise in message for noise in NOISE)

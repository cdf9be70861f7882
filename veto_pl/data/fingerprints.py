"""Hashes of what rows depend on: files, settings, tokenizers, and the code that reads them."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veto_pl.data.row_formats import files_of
from veto_pl.exceptions import DataError
from veto_pl.storage.paths import local_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BLOCK = 2**20
SMALL = 2**18
"""Bytes of a file that is read anew each time, because that is quicker than a cache is worth."""


class _UnknownContentError(TypeError):
    """A value has parts that cannot be written down, so nobody can say whether two of them are alike."""


def digest(*parts: str | bytes) -> str:
    """Return a hash of texts and bytes, in hexadecimal; where one ends and the next begins counts.

    Example:
        >>> digest("ab", "c") == digest("a", "bc")
        False
    """
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()


def file_digest(path: Path) -> str:
    """Return a hash of a file's bytes, read once and a block at a time."""
    total = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            total.update(block)
    return total.hexdigest()


def files_state(paths: Iterable[str]) -> str:
    """Return a name for the present contents of files, by their sizes and the times at which they were written.

    They are many, and are read anyway; a file that is missing has a name too, and reading will say so.
    """
    return digest(*(f"{path} {_state(path)}" for path in paths))


def _state(path: str) -> str:
    try:
        state = local_path(path).stat()
    except (OSError, ValueError, RuntimeError):
        return "missing"
    return f"{state.st_size} {state.st_mtime_ns}"


def source_key(path: str, *settings: Any) -> str | None:
    """Return a name for what this code makes of a file or folder with settings; None if it is small or unreadable."""
    try:
        files = [local_path(file) for file in files_of(path)]
        if not all(file.is_file() for file in files) or sum(file.stat().st_size for file in files) < SMALL:
            return None
        told = [f"{file.suffix} {file_digest(file)}" for file in files]
        return settings_key(digest(*told), *settings)
    except (OSError, ValueError, RuntimeError, DataError):  # reading will say what is wrong
        return None


def settings_key(source: str, *settings: Any) -> str:
    """Return a name for what the present code makes of a source with settings, which are plain values."""
    return digest(source, json.dumps(settings), _own_code())


def brief_digest(path: str) -> str:
    """Return a hash of size, beginning and end of a file, or of those of a folder; "" if one is unreadable.

    It is for files too large to be read twice.
    """
    try:
        digests = [_brief_digest(file) for file in files_of(path)]
    except (OSError, DataError):
        return ""
    return "" if "" in digests else digests[0] if len(digests) == 1 else digest(*digests)


def _brief_digest(path: str) -> str:
    try:
        whole = local_path(path)
        if not whole.is_file():  # a pipe would wait for ever
            return ""
        with whole.open("rb") as file:
            first = file.read(_BLOCK)
            size = file.seek(0, 2)
            file.seek(max(0, size - _BLOCK))
            return digest(str(size), first, file.read(_BLOCK))
    except (OSError, ValueError, RuntimeError):  # reading will say what is wrong
        return ""


def fingerprint(value: Any) -> str | None:
    """Return a hash of a value of plain parts, dataclasses and a tokenizer, and of the code of its classes.

    None where it has other parts, so that nobody can say whether two of them are alike.
    """
    try:
        return digest(_own_code(), json.dumps(_plain_value(value)))
    except _UnknownContentError:
        return None


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of everything that decides how a text is encoded and a conversation rendered."""
    import tokenizers
    import transformers

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _UnknownContentError(f"{type(tokenizer).__name__} has no serialised form.")
    content = json.loads(backend.to_str())
    for state in ("padding", "truncation"):  # of the last call
        content.pop(state, None)
    special = [str(tokenizer.special_tokens_map), str(tokenizer.chat_template), str(tokenizer.eos_token_id)]
    versions = [tokenizers.__version__, transformers.__version__]
    return digest(code_of(type(tokenizer)), json.dumps(content), *special, *versions)


def _plain_value(value: Any) -> Any:
    """Return the value as JSON."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        described = {field.name: _plain_value(getattr(value, field.name)) for field in fields(value)}
        return [type(value).__qualname__, code_of(type(value)), described]
    if isinstance(value, Mapping):
        return [[_plain_value(key), _plain_value(item)] for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_plain_value(item) for item in value]
    if hasattr(value, "backend_tokenizer"):
        return _tokenizer(value)
    raise _UnknownContentError(f"{type(value).__name__} cannot be written down.")


def code_of(kind: type) -> str:
    """Return a hash of the modules that define a class and its bases."""
    bases = [base for base in kind.__mro__ if base.__module__ not in ("abc", "builtins", "typing")]
    return digest(*(part for base in bases for part in (base.__qualname__, _source(base.__module__))))


@lru_cache(maxsize=128)
def _source(module: str) -> bytes:
    """Return the text of a module."""
    try:
        return Path(inspect.getfile(sys.modules[module])).read_bytes()
    except (LookupError, TypeError, OSError) as error:  # typed into a notebook or an interpreter
        raise _UnknownContentError(f"The code of {module} cannot be read.") from error


@lru_cache(maxsize=1)
def _own_code() -> str:
    """Return a hash of the modules beside this one, which read, template and tokenise."""
    return digest(*(file.read_bytes() for file in sorted(Path(__file__).parent.rglob("*.py"))))

"""The bytes that each id of a tokenizer stands for, read from its vocabulary once; no token is decoded by itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from veto_pl.exceptions import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Decode = Callable[[str], bytes]
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_known: WeakKeyDictionary[PreTrainedTokenizerBase, TokenBytes] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class TokenBytes:
    """What each of V ids stands for.

    Args:
        pieces: the bytes of each id; none for ids that are no text, and for ids that the tokenizer does not have.
        names: of the ids that are no text, such as EOS and the marks of a chat template: their names in the vocabulary.
        fallbacks: the ids that stand for one byte of a character that the vocabulary lacks, such as `<0xE2>`.
    """

    pieces: tuple[bytes, ...]
    names: Mapping[int, str]
    fallbacks: frozenset[int] = frozenset()

    def ending(self, ends: Iterable[int]) -> TokenBytes:
        """Return the same with ids that end a text, which are no text themselves even where the tokenizer has it so."""
        return replace(self, names={i: self.pieces[i].decode(errors="replace") for i in ends} | dict(self.names))

    def joined(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of a text."""
        pieces = self.pieces
        return b"".join([pieces[i] for i in ids])

    def lengths(self, ids: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the number of bytes of each of n tokens, [n]; 1 for one that is no text."""
        return np.fromiter((1 if i in self.names else len(self.pieces[i]) for i in ids), np.int64, len(ids))


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> TokenBytes:
    """Return the bytes of every id in the middle of a text; found once for each tokenizer.

    They are what its decoder makes of the names in the vocabulary: the byte-level alphabet of GPT-2, the `▁` and
    `<0xAB>` of SentencePiece, or the names themselves, as those of characters and words.

    Raises:
        ConfigurationError: its decoder makes a text of several tokens that is not the texts of each, one behind the
            other, or it is no tokenizer of the package `tokenizers`.
    """
    if tokenizer not in _known:
        _known[tokenizer] = _read(tokenizer)
    return _known[tokenizer]


def _read(tokenizer: PreTrainedTokenizerBase) -> TokenBytes:
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    described = [] if decoder is None else _steps(json.loads(decoder.__getstate__()))
    kinds = [step["type"] for step in described]
    decode = _decoding(described) if described else None
    if decode is None:
        raise ConfigurationError(
            f"`{tokenizer.name_or_path}` ({type(tokenizer).__name__}) cannot be aligned with another tokenizer: "
            f"expected a decoder that is byte-level or of SentencePiece's kind, or one that joins the tokens as they "
            f"are, got {' + '.join(kinds) or 'none'}. Take a teacher with the student's tokenizer."
        )
    vocabulary, added = tokenizer.get_vocab(), tokenizer.added_tokens_decoder
    special = {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    pieces = [b""] * (max(vocabulary.values()) + 1)
    literal = "ByteLevel" in kinds  # there added tokens are text, and not spelled in the alphabet
    for name, index in vocabulary.items():
        if index not in special:
            pieces[index] = name.encode() if literal and index in added else decode(name)
    names = {index: name for name, index in vocabulary.items() if index in special}
    single = (i for name, i in vocabulary.items() if "ByteFallback" in kinds and _BYTE.fullmatch(name))
    return TokenBytes(tuple(pieces), names, frozenset(single) - special)


def _steps(decoder: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the steps of a decoder, those of sequences one by one."""
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for part in decoder["decoders"] for step in _steps(part)]


def _decoding(steps: Sequence[Mapping[str, Any]]) -> Decode | None:
    """Return what makes bytes of a token's name; None where the tokens of a text are not decoded each by itself."""
    replaced: list[tuple[str, str]] = []
    fused = bytewise = fallback = False
    for step in steps:
        kind, pattern = step["type"], step.get("pattern", {}).get("String")
        if kind == "Metaspace":
            replaced.append((step["replacement"], " "))
        elif kind == "Replace" and pattern is not None:
            replaced.append((pattern, step["content"]))
        elif kind in ("ByteLevel", "ByteFallback", "Fuse"):
            bytewise, fallback, fused = bytewise or kind == "ByteLevel", fallback or kind == "ByteFallback", True
        elif kind != "Strip" or not fused:  # of a whole text, it takes away what only stands at the beginning
            return None
    if bytewise:
        return _from_alphabet

    def decode(name: str) -> bytes:
        if fallback and (found := _BYTE.fullmatch(name)):
            return bytes([int(found[1], 16)])
        for old, new in replaced:
            name = name.replace(old, new)
        return name.encode()

    return decode


def _from_alphabet(name: str) -> bytes:
    """Return the bytes of a name in the byte-level alphabet; a name with other characters is text, as it stands."""
    alphabet = _alphabet()
    return bytes(alphabet[c] for c in name) if all(c in alphabet for c in name) else name.encode()


@cache
def _alphabet() -> Mapping[str, int]:
    """Return the byte of each character of the byte-level alphabet: printable ones are themselves, the rest follow 255.

    References:
        Radford et al. 2019 (GPT-2), `bytes_to_unicode` of its released encoder.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}

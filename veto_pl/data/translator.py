"""What a teacher with another tokenizer reads where a student has written some ids, and the units of both.

The student's ids are never tokenised again: only the teacher's are new, made of the same bytes.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, takewhile
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from veto_pl.data.token_bytes import TokenBytes, token_bytes
from veto_pl.data.tokenising import AS_TEXT, tokenise_continuations
from veto_pl.functional.units import Units, minimal_units

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Symbol = tuple[int | None, int]
"""An id of the teacher's and how many of the student's bytes it stands for; None where it has no id for them."""


@dataclass(frozen=True)
class _Part:
    """What the teacher has to read of a piece of a row.

    Args:
        symbols: what it reads; empty for text that it has to tokenise.
        text: valid UTF-8.
        is_name: the text is the name of an id of the student's, which counts as one byte.
    """

    symbols: tuple[Symbol, ...] = ()
    text: bytes = b""
    is_name: bool = False

    @property
    def size(self) -> int:
        """Return how many of the student's bytes it stands for; an id that is no text counts as one."""
        return 1 if self.is_name else len(self.text) + sum(length for _, length in self.symbols)


class Translator:
    """Turns rows of a student's ids into rows of a teacher's.

    An id that is no text, such as a mark of a chat template, is the teacher's id of the same name; where it has none,
    it reads the name as text. An id that ends the student's texts is the teacher's end of the same name, or else the
    one that the teacher ends its texts with; a row that was cut gets none. Bytes that are no valid UTF-8, and
    characters that the teacher's tokenizer writes otherwise, are read one byte at a time where it has ids of single
    bytes, and else as its unknown token. So nothing that a student can write ends the comparison of a row: what it is
    not compared on would have no loss, and a policy gradient finds that out. A character that the row was cut in is
    left out, and so is what a teacher without any of these ids cannot read at all: its unit alone.

    Args:
        student: tokenizer of the rows.
        teacher: tokenizer of the teacher.
        student_ends: ids that end a text of the student, its EOS first.
        teacher_ends: ids that end a text of the teacher, its EOS first.

    Raises:
        ConfigurationError: the bytes of a tokenizer's ids are not known (`token_bytes`).
    """

    def __init__(
        self,
        student: PreTrainedTokenizerBase,
        teacher: PreTrainedTokenizerBase,
        student_ends: Sequence[int],
        teacher_ends: Sequence[int],
    ) -> None:
        self.tokenizer = teacher
        self.mine, self.theirs = token_bytes(student).ending(student_ends), token_bytes(teacher).ending(teacher_ends)
        by_name = {name: i for i, name in self.theirs.names.items()}
        named = {i: by_name[name] for i, name in self.mine.names.items() if name in by_name}
        ends = {i: named[i] if named.get(i) in teacher_ends else teacher_ends[0] for i in student_ends if teacher_ends}
        unread = {student.pad_token_id, student.unk_token_id}  # nobody knows what text they stand for
        self.controls: Mapping[int, int] = {i: other for i, other in named.items() if i not in unread} | ends
        self.bytes = {piece[0]: i for i, piece in enumerate(self.theirs.pieces) if len(piece) == 1}
        self.ends = frozenset(student_ends)
        self.shared = shared_ids(self.mine, self.theirs, {i: ends[i] for i in student_ends[:1] if i in ends}, named)

    def __call__(self, rows: Sequence[Sequence[int]]) -> list[tuple[list[int], Units]]:
        """Return the teacher's ids of each row, up to the last that is aligned, and the units of both.

        Args:
            rows: the ids that the student has written, each row up to its end.
        """
        plans = [self._plan(ids) for ids in rows]
        read = iter(self._tokenised([part.text for plan in plans for part in plan if part.text]))
        symbols = [[one for part in plan for one in self._symbols(part, read)] for plan in plans]
        return [self._aligned(*row) for row in zip(rows, plans, symbols, strict=True)]

    def lacking(self, ids: Sequence[int]) -> list[int]:
        """Return the ids that are no text, and that the teacher has no counterpart of."""
        return [i for i in ids if i in self.mine.names and i not in self.controls]

    def _tokenised(self, texts: Sequence[bytes]) -> list[list[int]]:
        return tokenise_continuations([text.decode() for text in texts], self.tokenizer, **AS_TEXT)

    def _plan(self, ids: Sequence[int]) -> list[_Part]:
        """Return what the teacher has to read of a row, up to a character that it was cut in."""
        plan: list[_Part] = []
        read = 0
        for is_text, of_run in groupby(ids, lambda i: i not in self.mine.names):
            run = list(of_run)
            read += len(run)
            if not is_text:
                plan += [self._of_control(i) for i in run]
                continue
            text = self.mine.joined(run)
            for one in spans(text[: len(text) - cut_character(text)] if read == len(ids) else text):
                plan.append(_Part(text=one) if isinstance(one, bytes) else _Part(self._bytewise(bytes([one]))))
        return plan

    def _of_control(self, index: int) -> _Part:
        """Return what the teacher reads of an id that is no text; nothing of an end, where its texts have none."""
        if index in self.controls or index in self.ends:
            return _Part(((self.controls.get(index), 1),))
        return _Part(text=self.mine.names[index].encode(), is_name=True)

    def _bytewise(self, text: bytes) -> tuple[Symbol, ...]:
        """Return how the teacher reads a few bytes that it does not write as they are."""
        known = [self.bytes.get(byte) for byte in text]
        return ((self.tokenizer.unk_token_id, len(text)),) if None in known else tuple((i, 1) for i in known)

    def _symbols(self, part: _Part, read: Iterator[list[int]]) -> list[Symbol]:
        """Return what the teacher reads of a part, given how texts are tokenised, one after another."""
        if not part.text:
            return list(part.symbols)
        found = self._written(part.text, next(read))
        return [(i, int(not place)) for place, (i, _) in enumerate(found)] if part.is_name else found

    def _written(self, text: bytes, ids: Sequence[int]) -> list[Symbol]:
        """Return how the teacher reads a text of which its tokenizer has made some ids."""
        found: list[Symbol] = []
        while text:
            known = list(takewhile(lambda i: i not in self.theirs.names, ids))  # none of these is text that was read
            lengths = [len(self.theirs.pieces[i]) for i in known]
            same = common_length(text, self.theirs.joined(known))
            ends = [end for end in accumulate(lengths) if end <= same]
            taken = max((end for end in ends if not _is_inside(text, end)), default=0)
            found += list(zip(known, lengths, strict=True))[: sum(end <= taken for end in ends)]
            character = text[taken:].decode()[:1].encode()
            found += self._bytewise(character)
            text = text[taken + len(character) :]
            ids = self._tokenised([text])[0] if text else ()
        return found

    def _aligned(self, ids: Sequence[int], plan: Sequence[_Part], symbols: Sequence[Symbol]) -> tuple[list[int], Units]:
        """Return the teacher's ids of a row, and the units; what it has no id for is in none."""
        theirs = torch.tensor([length for _, length in symbols], dtype=torch.int64)
        mine = torch.from_numpy(self.mine.lengths(ids))
        units = minimal_units(mine, theirs, sum(part.size for part in plan))
        known = torch.tensor([i is not None for i, _ in symbols], dtype=torch.bool)
        lost = units.teacher[~known & (units.teacher >= 0)]
        compared = torch.ones(units.count, dtype=torch.bool)
        compared[lost] = False
        units = units.only(compared)
        last = int((units.teacher >= 0).nonzero().max()) + 1 if units.count else 0
        kept = units.teacher[:last][known[:last]]
        return [i for i, _ in symbols[:last] if i is not None], replace(units, teacher=kept, shared=self.shared)


def shared_ids(
    student: TokenBytes, teacher: TokenBytes, ends: Mapping[int, int], named: Mapping[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the ids that stand for the same in two vocabularies, [K] and [K] int64; each id is in one pair at most.

    Where several ids of one vocabulary stand for the same bytes, those that fall back on single bytes come last.

    Args:
        student: the bytes of each id.
        teacher: the same of the other.
        ends: the ids that end a text, by the student's: a pair whatever their names are.
        named: ids that are no text and have the same name, by the student's.
    """
    pairs = dict(ends)
    pairs |= {i: other for i, other in named.items() if i not in pairs and other not in ends.values()}
    mine, theirs = _by_bytes(student), _by_bytes(teacher)
    for text in mine.keys() & theirs.keys():
        pairs |= dict(zip(mine[text], theirs[text], strict=False))
    ordered = sorted(pairs.items())
    together = torch.tensor(ordered, dtype=torch.int64).reshape(-1, 2)
    return together[:, 0], together[:, 1]


def spans(text: bytes) -> list[bytes | int]:
    r"""Return the parts of a text that are valid UTF-8, and between them, one by one, the bytes that are not.

    Example:
        >>> spans("aé".encode()), spans(b"a\xc3\xffb"), spans(b"")
        ([b'a\xc3\xa9'], [b'a', 195, 255, b'b'], [])
    """
    found: list[bytes | int] = []
    escaped = text.decode(errors="surrogateescape")  # such a byte is one of the characters from U+DC80 to U+DCFF
    for broken, run in groupby(escaped, lambda character: "\udc80" <= character <= "\udcff"):
        part = "".join(run).encode(errors="surrogateescape")
        found.extend(part if broken else [part])
    return found


def cut_character(text: bytes) -> int:
    r"""Return how many bytes at the end begin a character whose other bytes are missing.

    Example:
        >>> cut_character(b"a\xf0\x9f\x99"), cut_character(b"a\xff"), cut_character("é".encode())
        (3, 0, 0)
    """
    reader = getincrementaldecoder("utf-8")("surrogateescape")
    reader.decode(text)
    waiting, _ = reader.getstate()
    return len(waiting)


def _is_inside(text: bytes, place: int) -> bool:
    """Return whether a place of a text, as UTF-8, lies inside of a character."""
    return place < len(text) and text[place] & 0xC0 == 0x80


def common_length(one: bytes, other: bytes) -> int:
    """Return how many bytes from the beginning are the same.

    Example:
        >>> common_length(b"abc", b"abd"), common_length(b"ab", b"ab")
        (2, 2)
    """
    if one == other:
        return len(one)
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _by_bytes(vocabulary: TokenBytes) -> dict[bytes, list[int]]:
    """Return the ids that are text by their bytes."""
    found: dict[bytes, list[int]] = {}
    for i, text in enumerate(vocabulary.pieces):
        if text and i not in vocabulary.names:
            found.setdefault(text, []).append(i)
    for same in found.values():
        same.sort(key=lambda i: i in vocabulary.fallbacks)
    return found

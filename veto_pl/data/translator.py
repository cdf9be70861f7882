"""What a teacher with another tokenizer reads where a student has written some ids, and the units of both.

The student's ids are never tokenised again: only the teacher's are new, made of the same bytes.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby, takewhile
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from veto_pl.data.token_bytes import TokenBytes, token_bytes
from veto_pl.data.tokenising import AS_TEXT, tokenise_continuations
from veto_pl.functional.units import Units, minimal_units

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Plan = list[bytes | int]
"""What the teacher has to read: texts, as bytes that are valid UTF-8, and ids of its own that are no text."""


class Translator:
    """Turns rows of a student's ids into rows of a teacher's.

    An id that is no text, such as a mark of a chat template, is the teacher's id of the same name. One that ends the
    student's texts is the teacher's end of the same name, or else the one that the teacher ends its texts with; a row
    that was cut gets none. Bytes that are no valid UTF-8 are read one by one where the teacher has ids of single bytes;
    were they left out, a student could leave the comparison by writing one. The alignment of a row ends at an id or
    byte without a counterpart, in front of a character that the row was cut in, and in front of the first byte that the
    teacher's tokenizer writes otherwise.

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
        self.shared = shared_ids(self.mine, self.theirs, {i: ends[i] for i in student_ends[:1] if i in ends}, named)

    def __call__(self, rows: Sequence[Sequence[int]]) -> list[tuple[list[int], Units]]:
        """Return the teacher's ids of each row, up to the last that is aligned, and the units of both.

        Args:
            rows: the ids that the student has written, each row up to its end.
        """
        plans = [self._plan(ids) for ids in rows]
        texts = [part.decode() for plan in plans for part in plan if isinstance(part, bytes)]
        read = iter(tokenise_continuations(texts, self.tokenizer, **AS_TEXT))
        parts = [[(p, next(read) if isinstance(p, bytes) else [p]) for p in plan] for plan in plans]
        return [self._aligned(ids, plan) for ids, plan in zip(rows, parts, strict=True)]

    def _plan(self, ids: Sequence[int]) -> Plan:
        """Return what the teacher has to read of a row, as far as it can be aligned."""
        plan: Plan = []
        read = 0
        for is_text, of_run in groupby(ids, lambda i: i not in self.mine.names):
            run = list(of_run)
            read += len(run)
            if is_text:
                text = self.mine.joined(run)
                parts: Plan = spans(text[: len(text) - cut_character(text)] if read == len(ids) else text)
                counterparts = [self.bytes.get(part) if isinstance(part, int) else part for part in parts]
            else:
                counterparts = [self.controls.get(i) for i in run]
            for one in counterparts:
                if one is None:
                    return plan
                plan.append(one)
        return plan

    def _aligned(self, ids: Sequence[int], parts: Sequence[tuple[bytes | int, list[int]]]) -> tuple[list[int], Units]:
        """Return the teacher's ids of a row, given what it has read of each part, and the units."""
        found: list[int] = []
        limit = 0
        for part, read in parts:
            if isinstance(part, int):
                found, limit = [*found, part], limit + 1
                continue
            known = list(takewhile(lambda i: i not in self.theirs.names, read))  # none of these is text that was read
            same = common_length(part, self.theirs.joined(known))
            found, limit = [*found, *known], limit + same
            if same < len(part):
                break
        lengths = (torch.from_numpy(self.mine.lengths(ids)), torch.from_numpy(self.theirs.lengths(found)))
        units = minimal_units(*lengths, limit)
        aligned = int((units.teacher >= 0).sum())  # all that are aligned come first
        return found[:aligned], replace(units, teacher=units.teacher[:aligned], shared=self.shared)


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

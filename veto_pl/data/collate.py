"""Turns examples into padded batches. Shapes: `B` rows, `P` prompt tokens, `C` completion tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from veto_pl.data.control_words import ControlWords
from veto_pl.data.image_reader import ImageReader, RowImages
from veto_pl.data.templates import PlainTemplate
from veto_pl.data.tokenising import tokenise_continuations, tokenise_prompts
from veto_pl.data.turns import judged_by, speak
from veto_pl.data.unknown_text import UnknownText
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.seams import Example, Media, ModelSource, PromptBatch, Task, Template, pad_left, pad_right

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """An example with its tokens. Plain lists, because thousands of small tensors do not travel to loader processes.

    Args:
        example: the row as the task gave it.
        prompt_ids: the templated prompt.
        completion_ids: the reference completion, EOS included unless it was cut; empty where there is none.
        number: the row's place in its split.
        cut: tokens that were cut from the end of the reference, EOS among them.
        remarks: what a run has to be told of rows like this one, keys of `REMARKS`.
        turns: for each id of the completion, k in the k-th turn that is trained on and 0 elsewhere; empty where all
            counts.
        unknown: tokens that stand for text that the tokenizer does not know.
        pictures: a hash of each image of the row, whose places in the prompt have as many tokens as the model reads.
    """

    example: Example
    prompt_ids: list[int]
    completion_ids: list[int] = field(default_factory=list)
    number: int = 0
    cut: int = 0
    remarks: tuple[str, ...] = ()
    turns: list[int] = field(default_factory=list)
    unknown: int = 0
    pictures: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Templates, tokenises and pads: prompts on the left, reference completions on the right.

    Args:
        tokenizer: without added special tokens; those of the prompt are the template's.
        template: makes the prompt's text.
        task: what the batch is scored by, or None.
        max_completion_tokens: a longer reference is cut and then has no EOS; None for no limit.
        completion_prefix: text between prompt and reference, such as a space, that counts as completion.
        student: its stored settings may name further ends beside the tokenizer's EOS.
        images: reads the images of rows that have some; None refuses such rows.

    Raises:
        ConfigurationError: where references need an EOS and the tokenizer has none.
        DataError: where a prompt has no tokens, or an image is missing or damaged.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template = PlainTemplate()
    task: Task | None = None
    max_completion_tokens: int | None = None
    completion_prefix: str = ""
    student: ModelSource | None = None
    images: ImageReader | None = None

    def __call__(self, examples: Sequence[Example]) -> PromptBatch:
        """Encode and pad."""
        return self.pad(self.encode(examples))

    def encode(self, examples: Sequence[Example], numbers: Sequence[int] | None = None) -> list[Encoded]:
        """Tokenise each example. Prompt and completion are tokenised apart, as generation sees them.

        A reference whose text has its end gets no other one behind it, and is judged and shown without. A conversation
        with references is tokenised as a whole, and gets the ends that its template writes.

        Args:
            examples: rows of a split.
            numbers: their places in it; counted from 0 where they are not given.
        """
        numbers = range(len(examples)) if numbers is None else numbers
        spoken = [bool(example.conversation and example.conversation.turns) for example in examples]
        images = [self._images(example, number) for example, number in zip(examples, numbers, strict=True)]
        told = list(zip(examples, images, spoken, strict=True))
        texts = iter(self._from_texts(*_apart([one[:2] for one in told if not one[2]])))
        turns = iter(self._from_turns(*_apart([one[:2] for one in told if one[2]])))
        unknown = UnknownText(self.tokenizer)
        rows = [next(turns) if one else next(texts) for one in spoken]
        return [
            replace(row, number=number, unknown=unknown.count(row), pictures=() if seen is None else seen.digests)
            for row, number, seen in zip(rows, numbers, images, strict=True)
        ]

    def _images(self, example: Example, number: int) -> RowImages | None:
        """Return what stands in the texts of a row for its images; None for a row without or without a reader."""
        if not example.images or self.images is None:
            return None
        return self.images.reading(example.images, _called(example, number))

    def _from_texts(self, examples: Sequence[Example], images: Sequence[RowImages | None]) -> list[Encoded]:
        """Encode single prompts, and conversations without a reference."""
        talks = [example for example in examples if example.conversation is not None]
        if talks and not self.template.renders_conversations:
            self.template.rendered(talks[0], self.tokenizer)  # which says so
        words = ControlWords(self.tokenizer)
        ends = self._ends(examples, words)
        stripped = [_without_ends(example, ends) for example in examples]
        prompts = tokenise_prompts(stripped, self.template, self.tokenizer, images)
        for example, (ids, _) in zip(examples, prompts, strict=True):
            if not ids:
                raise DataError(
                    f"The prompt {example.prompt[:60]!r} has no tokens, expected at least one. Add text or BOS."
                )
        completions = self._completions(stripped, [ends.get(_end_of(e.completion or "", ends)) for e in examples])
        inside = ["completion" if words.within(example.completion or "") else "" for example in stripped]
        remarks = [tuple(filter(None, (of, more))) for (_, of), more in zip(prompts, inside, strict=True)]
        rows = zip(stripped, prompts, completions, remarks, strict=True)
        limit = self.max_completion_tokens
        return [
            Encoded(example, prompt, whole[:limit], cut=len(whole) - len(whole[:limit]), remarks=said)
            for example, (prompt, _), whole, said in rows
        ]

    def _from_turns(self, examples: Sequence[Example], images: Sequence[RowImages | None]) -> list[Encoded]:
        """Encode conversations with references."""
        if not examples:
            return []
        named = () if self.student is None else self.student.end_ids()
        ends = {i for i in (self.tokenizer.eos_token_id, *named) if i is not None}
        limit, rows = self.max_completion_tokens, []
        for example, seen in zip(examples, images, strict=True):
            said = speak(example, self.template, self.tokenizer, ends, seen)
            if not said.prompt_ids:
                raise DataError(f"Nothing stands in front of the answer in {example.prompt[:60]!r}. Add a message.")
            ids = said.completion_ids[:limit]
            cut, remarks = len(said.completion_ids) - len(ids), (said.remark,) if said.remark else ()
            judged = judged_by(example, said.answer)
            rows.append(Encoded(judged, said.prompt_ids, ids, cut=cut, remarks=remarks, turns=said.turns[: len(ids)]))
        return rows

    def pad(self, rows: Sequence[Encoded]) -> PromptBatch:
        """Stack encoded rows; the masks come from their lengths."""
        choices = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        value = next(token for token in choices if token is not None)
        prompts, prompt_mask = pad_left([_tensor(row.prompt_ids) for row in rows], value)
        completions, completion_mask = pad_right([_tensor(row.completion_ids) for row in rows], value)
        examples = tuple(row.example for row in rows)
        numbers = _tensor([row.number for row in rows])
        turns = None
        if any(row.turns for row in rows):
            turns, _ = pad_right([_tensor(row.turns or [1] * len(row.completion_ids)) for row in rows])
        return PromptBatch(
            prompts, prompt_mask, completions, completion_mask, examples, self.task, numbers, self.template, turns,
            media=self._media(rows),
        )  # fmt: skip

    def _media(self, rows: Sequence[Encoded]) -> Media | None:
        """Return the features of the rows' images, each row's as if it were alone; None where there is no image."""
        if not any(row.pictures for row in rows):
            return None
        assert self.images is not None, "the rows were encoded by it"
        of_rows = [(row.example.images, row.pictures, _called(row.example, row.number)) for row in rows]
        return Media(tuple(self.images.features(*one) if one[1] else {} for one in of_rows))

    def _ends(self, examples: Sequence[Example], words: ControlWords) -> dict[str, int]:
        """Return the ids that end a reference, by their text: EOS, and those of the student if a reference ends with
        them.
        """
        eos = self.tokenizer.eos_token
        ends = {} if eos is None else {str(eos): int(self.tokenizer.eos_token_id)}
        last = {words.at_end(example.completion or "") for example in examples} - {"", *ends}
        if last and self.student is not None:
            named = {str(self.tokenizer.decode([i])): i for i in self.student.end_ids()}
            ends |= {word: named[word] for word in last & set(named)}
        return ends

    def _completions(self, examples: Sequence[Example], ends: Sequence[int | None]) -> list[list[int]]:
        """Return the ids of each reference, with the end that its text had or else EOS."""
        texts = [self.completion_prefix + e.completion for e in examples if e.completion is not None]
        eos = self.tokenizer.eos_token_id
        if texts and eos is None:
            raise ConfigurationError(
                "The tokenizer has no EOS token to end reference completions with. Set its `eos_token`."
            )
        ids = iter(tokenise_continuations(texts, self.tokenizer))
        return [
            [] if example.completion is None else [*next(ids), eos if end is None else end]
            for example, end in zip(examples, ends, strict=True)
        ]


def _called(example: Example, number: int) -> str:
    """Return what a row is called in messages."""
    return f"Row {number + 1} ({example.prompt[:60]!r})"


def _apart(
    pairs: Sequence[tuple[Example, RowImages | None]],
) -> tuple[list[Example], list[RowImages | None]]:
    return [example for example, _ in pairs], [images for _, images in pairs]


def _end_of(text: str, ends: Mapping[str, int]) -> str:
    """Return the end that a text has, or an empty string."""
    return next((end for end in ends if text.endswith(end)), "")


def _without_ends(example: Example, ends: Mapping[str, int]) -> Example:
    """Return the example with its references' end tokens removed, since completions are compared without theirs."""
    if not any(_end_of(text, ends) for text in example.references):
        return example
    first, *others = (
        text.removesuffix(_end_of(text, ends)) for text in (example.completion or "", *example.alternatives)
    )
    return replace(example, completion=None if example.completion is None else first, alternatives=tuple(others))


def _tensor(ids: list[int]) -> Tensor:
    return torch.tensor(ids, dtype=torch.int64)

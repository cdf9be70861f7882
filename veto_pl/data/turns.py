"""Turns conversations with references into ids, of which nothing is tokenised twice in two ways.

The ids of a row are those of its whole rendered text. Where a reference begins and ends is found by the ids of the
texts in front of it and up to it, which begin alike: a law that is checked row by row, and not assumed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from veto_pl.data.control_words import ControlWords, remove_marks
from veto_pl.data.jsonl import shown
from veto_pl.data.tokenising import read_all, row_images
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.seams import Example, Message, Rendering, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from veto_pl.data.image_reader import RowImages


@dataclass(frozen=True)
class Spoken:
    """The ids of a conversation.

    Args:
        prompt_ids: what stands in front of the first reference.
        completion_ids: all from there up to the end of the last reference.
        turns: for each id of the completion, k in the k-th reference and 0 between them; empty where all of it is one
            reference.
        answer: the text of the last reference, without its end.
        remark: what is to be said of the row, a key of `REMARKS`; mostly empty.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    turns: list[int]
    answer: str
    remark: str = ""


def speak(
    example: Example,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    ends: Collection[int],
    images: RowImages | None = None,
) -> Spoken:
    """Render and tokenise a conversation with references.

    Args:
        example: with a conversation that has turns.
        template: renders it.
        tokenizer: of the models.
        ends: the ids that end a generation.
        images: what stands in its texts for the row's images, if it has some.

    Raises:
        ConfigurationError: the template does not end an answer with one of the ends, or changes what was said before
            when the conversation goes on.
    """
    words = ControlWords(tokenizer)
    rendering, remark = _rendered(example, template, tokenizer, words)
    places = [(turn.before, turn.through, turn.through[: turn.start or 0]) for turn in rendering.turns]
    texts = [rendering.text, *(text for place in places for text in place)]
    if example.images:
        row = row_images(example, images)
        texts = [row.whole(rendering.text), *map(row.beginning, texts[1:])]
    whole, *others = read_all(texts, tokenizer, words)
    first, last, spans = len(whole), 0, []
    for i, turn in enumerate(rendering.turns):
        before, through, marked = others[3 * i : 3 * i + 3]
        begins = common(before, through)
        counts = begins if turn.start is None else max(begins, common(marked, through))
        end = end_of_turn(through, counts, ends, tokenizer)
        if whole[:end] != through[:end]:
            _report_change(example, rendering, tokenizer, whole[common(whole, through[:end]) :])
        first, last = min(first, begins), end
        spans.append((counts, end))
    turns = [0] * (last - first)
    for number, (start, stop) in enumerate(spans, 1):
        turns[start - first : stop - first] = [number] * (stop - start)
    answer = remove_marks(_without_end(rendering.turns[-1].through[len(rendering.turns[-1].before) :], words))
    return Spoken(whole[:first], whole[first:last], [] if 0 not in turns and len(spans) == 1 else turns, answer, remark)


def check_agreement(examples: Iterable[Example]) -> None:
    """Check that rows which are conversations say the same as their prompts and references.

    Templates show the prompt in place of the user's last message, so that contexts can put a hint there: a task that
    gives another text would be trained on it, and one that gives another reference would not.

    Raises:
        DataError: a prompt is not the text of the last message of the user, or of the last one where the user says
            nothing, in front of the first reference; or a reference is not that of the last turn.
    """
    for example in examples:
        said = example.conversation
        if said is None or not said.opening:
            continue
        asked = said.opening[-1 if said.question is None else said.question]
        _check_text("prompt", example.prompt, asked, "the last message in front of the first reference")
        if said.turns:
            _check_text("completion", example.completion or "", said.messages[said.turns[-1]], "the last reference")


def _check_text(name: str, given: str, message: Message, place: str) -> None:
    content = message.get("content") or ""
    if isinstance(content, str) and content != given:
        raise DataError(
            f"A row of the task has the {name} {shown(given)}, but its conversation says {shown(content)} in "
            f"{place} (role `{message['role']}`). Expected the same text twice: set `Example.{name}` to that of the "
            "conversation, or change the message."
        )


def judged_by(example: Example, answer: str) -> Example:
    """Return the example with the reference as the student would write it, where the template writes more than it.

    Templates add empty thoughts to an answer, and write out calls of tools.
    """
    if example.completion is not None and example.completion.strip() == answer.strip():
        return example
    return replace(example, completion=answer)


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many ids both begin with.

    Example:
        >>> common([1, 2, 3], [1, 2, 4, 5])
        2
    """
    if list(one) == list(other[: len(one)]):
        return len(one)
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _rendered(
    example: Example, template: Template, tokenizer: PreTrainedTokenizerBase, words: ControlWords
) -> tuple[Rendering, str]:
    """Return the rendering, with the row's own control words marked where they are text, and what is to be said."""
    if not words.first(example):
        return template.rendered(example, tokenizer), ""
    rendering = template.rendered(words.mark_words(example), tokenizer)
    if remove_marks(rendering.text) != rendering.text:
        return rendering, "text"
    return rendering, "" if template.rendered(words.remove_words(example), tokenizer) == rendering else "tokens"


def end_of_turn(ids: Sequence[int], start: int, ends: Collection[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the place behind the first id from `start` on that ends a generation."""
    found = next((i for i in range(start, len(ids)) if ids[i] in ends), None)
    if found is None:
        known = ", ".join(f"`{tokenizer.decode([i])}`" for i in sorted(ends)) or "none"
        raise ConfigurationError(
            f"The chat template ends an answer with {shown(tokenizer.decode(ids[-4:]))}, in which nothing ends a "
            f"generation: the ends are {known}, so a student would not learn to stop. Name the end of a turn as `eos` "
            "of `PretrainedTokenizer` under `model.tokenizer`, or let the template write `{{ eos_token }}` there."
        )
    return found + 1


def _report_change(
    example: Example, rendering: Rendering, tokenizer: PreTrainedTokenizerBase, instead: Sequence[int]
) -> None:
    if len(rendering.turns) == 1:
        raise DataError(f"The tokenizer reads the conversation {shown(example.prompt)} in two ways. Leave it out.")
    raise ConfigurationError(
        "`data.task.turns: together` expected a chat template that shows an answer always alike, got one that changes "
        "earlier answers when the conversation goes on, as those do that take out thoughts: in "
        f"{shown(example.prompt)} there is {shown(tokenizer.decode(instead[:8]))} in its place. "
        "Set `data.task.turns: each`."
    )


def _without_end(text: str, words: ControlWords) -> str:
    """Return the text of an answer without the control word that ends it and what follows."""
    text = text.rstrip()
    while end := words.at_end(text):
        text = text[: -len(end)].rstrip()
    return text

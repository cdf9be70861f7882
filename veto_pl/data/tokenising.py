"""Turns texts into ids, such that the ids of a prompt and of its completion decode to the text of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.data.control_words import MARK, ControlWords
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.seams import Example, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from veto_pl.data.image_reader import RowImages

AS_TEXT: Mapping[str, Any] = {"split_special_tokens": True}
SENTINELS = ("", "\n", ":", "0", "a")
"""Texts put in front of a completion, so that the tokenizer takes it for the middle of a longer text; first none."""
PROBES = (
    ("Par", "is"), ("2+2=", "4"), ("f(x):\n", "    x"), ("it", " is"), ("it", "\nis"), ("it ", "is"),
)  # fmt: skip
"""Prompts and completions that a sentinel is tried with: together they must decode to the text of both."""
_found: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[str, ...]] = WeakKeyDictionary()


def tokenise(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, **how: Any) -> list[list[int]]:
    """Tokenise texts that stand at the beginning of a row, without special tokens that they do not have.

    Args:
        texts: any number, none included.
        tokenizer: of the models.
        how: `AS_TEXT` reads control words as text.

    Raises:
        DataError: a text is no valid Unicode.
    """
    if not texts:
        return []
    # Not verbose: a text beyond the model's length is this package's to report.
    try:
        ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False, **how)["input_ids"]
    except TypeError as error:  # a lone surrogate
        raise DataError("A prompt or completion of the task is no valid Unicode. Mend or leave out its row.") from error
    return ids


def tokenise_continuations(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, **how: Any) -> list[list[int]]:
    """Tokenise texts that stand behind others, as `tokenise` takes them.

    Some tokenizers put a space in front of whatever they read. Their texts are read behind a character that is then
    taken away, which every tokenizer is tried with once; where none is right for all, the user is told.
    """
    found: list[list[int] | None] = [None] * len(texts)
    for sentinel in _sentinels(tokenizer):
        missing = [i for i, ids in enumerate(found) if ids is None]
        for i, ids in zip(missing, _behind(sentinel, [texts[i] for i in missing], tokenizer, how), strict=True):
            found[i] = ids
    plain = tokenise([text for text, ids in zip(texts, found, strict=True) if ids is None], tokenizer, **how)
    if plain:
        rank_zero_warn(f"{len(plain)} of {len(texts)} completions may begin with a space that they do not have.")
    rest = iter(plain)
    return [next(rest) if ids is None else ids for ids in found]


def tokenise_prompts(
    examples: Sequence[Example],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    images: Sequence[RowImages | None] = (),
) -> list[tuple[list[int], str]]:
    """Tokenise each example's prompt, and return what is to be said of it: a key of `REMARKS`, mostly empty.

    A template gets an example whose control words are marked; those that it leaves marked are read as text.

    Args:
        examples: the rows.
        template: makes their texts.
        tokenizer: of the models.
        images: of each row what stands in its text for its images, or None; empty where nothing reads images.

    Raises:
        ConfigurationError: a row has images, and nothing reads them.
        DataError: a text is no valid Unicode, or shows more or fewer images than the row has.
    """
    words = ControlWords(tokenizer)
    rendered = [_rendered(example, template, tokenizer, words) for example in examples]
    for i, example in enumerate(examples):
        if example.images:
            row = row_images(example, images[i] if images else None)
            text, said = rendered[i]
            rendered[i] = row.whole(text), "" if words.inside(example) <= row.words else said
    ids = read_all([text for text, _ in rendered], tokenizer, words)
    return [(row, said) for row, (_, said) in zip(ids, rendered, strict=True)]


def row_images(example: Example, found: RowImages | None) -> RowImages:
    """Return what stands for a row's images; raise `ConfigurationError` where nothing has read them."""
    if found is None:
        raise ConfigurationError(
            f"The row {example.prompt[:60]!r} has images, and nothing reads them here. Rows of a run are read by the "
            "processor of its student, those of a `Collator` of your own by its `images`. Other prompts of such a row, "
            "as hints and environments make them, cannot be made."
        )
    return found


def read_all(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, words: ControlWords) -> list[list[int]]:
    """Tokenise rendered texts, such that their marked control words are text and all others tokens."""
    plain = iter(tokenise([text for text in texts if MARK not in text], tokenizer))
    return [_in_parts(text, tokenizer, words) if MARK in text else next(plain) for text in texts]


def _rendered(
    example: Example, template: Template, tokenizer: PreTrainedTokenizerBase, words: ControlWords
) -> tuple[str, str]:
    """Return the template's text, and whether the example's own control words are text or tokens in it."""
    if not words.first(example):
        return template(example, tokenizer), ""
    text = template(words.mark_words(example), tokenizer)
    if MARK in text:
        return text, "text"
    # What no control word of the example reaches has nothing to say.
    return text, "" if template(words.remove_words(example), tokenizer) == text else "tokens"


def _in_parts(text: str, tokenizer: PreTrainedTokenizerBase, words: ControlWords) -> list[int]:
    """Tokenise a text with marks: the template's own control words are tokens, those of the example are not."""
    ids: list[int] = []
    for piece, reading in words.parts(text):
        how = AS_TEXT if reading == "text" else {}
        follows = reading == "text" and ids and not _begins_anew(tokenizer)
        ids += (tokenise_continuations if follows else tokenise)([piece], tokenizer, **how)[0]
    return ids


def _begins_anew(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a text behind a control word is read as one that stands alone."""
    word = next(word for word in (tokenizer.eos_token, *tokenizer.all_special_tokens) if word)
    behind, alone = tokenise([f"{word}it", "it"], tokenizer)
    return behind[1:] == alone


def _sentinels(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return those that give prompt and completion the text of both, for as many of the probes as possible."""
    if tokenizer not in _found:
        right = {sentinel: _count_right(sentinel, tokenizer) for sentinel in SENTINELS}
        best = max(right.values())
        if best < len(PROBES):
            rank_zero_warn(
                f"The tokenizer reads a completion behind its prompt as another text: it is right for {best} of "
                f"{len(PROBES)} trial texts. Look at what is trained on, or choose a tokenizer that keeps spaces."
            )
        _found[tokenizer] = tuple(sentinel for sentinel in SENTINELS if right[sentinel] == best)
    # Where nothing has to be taken away, nothing can fail.
    return _found[tokenizer][:1] if not _found[tokenizer][0] else _found[tokenizer]


def _count_right(sentinel: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many of the probes have the text of both parts."""

    def read(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    before = tokenise([prompt for prompt, _ in PROBES], tokenizer)
    behind = _behind(sentinel, [text for _, text in PROBES], tokenizer, {})
    whole = tokenise([prompt + text for prompt, text in PROBES], tokenizer)
    parts = zip(before, behind, whole, strict=True)
    return sum(ids is not None and read(prompt + ids) == read(both) for prompt, ids, both in parts)


def _behind(
    sentinel: str, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, how: Mapping[str, Any]
) -> list[list[int] | None]:
    """Tokenise texts without the ids of the sentinel in front; None where the two have merged."""
    (head,) = tokenise([sentinel], tokenizer)
    whole = tokenise([sentinel + text for text in texts], tokenizer, **how)
    return [ids[len(head) :] if ids[: len(head)] == head else None for ids in whole]

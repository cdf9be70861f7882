"""Tiny tokenizers of every usual kind, for tests of what is done to texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
CONTROL = ("<|im_start|>", "<|im_end|>")
CORPUS = (
    "Paris is the capital of France. Paris is where it is.",
    "def f(x):\n    return x\n\ndef g(x):\n    return f(x)",
    "2+2=4 and 12 + 30 = 42, is it? Yes: it is.",
    "Q: What is 7 + 5?\nA: 12\n\nQ: Where is it?\nA: There",
    "<|im_start|> and <|im_end|> are words of some, as <s>, </s>, <pad> and <unk> are.",
)


def _byte_level(*, space: bool) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    )
    return core


def _sentence_pieces() -> Tokenizer:
    """Return a core as the first Llama's: a space is prepended first, and unknown characters become bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=130, max_token_length=6, show_progress=False)
    core.train_from_iterator([text.replace("\n", " ") for text in CORPUS], trainer)
    vocabulary = core.get_vocab()
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    merges = [tuple(pair) for pair in _merges(core)]
    core.model = models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True)
    strip = decoders.Strip(" ", 1, 0)
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return core


def _merges(core: Tokenizer) -> list[Any]:
    import json

    merges: list[Any] = json.loads(core.to_str())["model"]["merges"]
    return merges


def _metaspace(scheme: str, *, split: bool) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    core.decoder = decoders.Metaspace(prepend_scheme=scheme)
    letters = sorted({letter for text in CORPUS for letter in text})
    settings: dict[str, Any] = {
        "vocab_size": 110,
        "initial_alphabet": letters,
        "unk_token": "<unk>",
        "special_tokens": ["<unk>"],
    }
    trainer = trainers.UnigramTrainer(**settings, show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    return core


def _word_pieces() -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    core = Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=130, special_tokens=["<unk>"], show_progress=False)
    )
    return core


def _characters() -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    letters = ["<unk>", *sorted({letter for text in CORPUS for letter in text})]
    core = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    return core


KINDS: Mapping[str, Callable[[], Tokenizer]] = {
    "bytes": lambda: _byte_level(space=False),
    "bytes with a space in front": lambda: _byte_level(space=True),
    "characters": _characters,
    "sentence pieces": _sentence_pieces,
    "metaspace in front of the first word": lambda: _metaspace("first", split=False),
    "metaspace in front of each piece": lambda: _metaspace("always", split=True),
    "metaspace nowhere": lambda: _metaspace("never", split=True),
    "word pieces": _word_pieces,
}
"""By name: what makes the core of a tokenizer."""


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a kind, with EOS, BOS, padding, and ChatML's control words."""
    from transformers import PreTrainedTokenizerFast

    settings: dict[str, Any] = {**SPECIAL, "additional_special_tokens": list(CONTROL)}
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=KINDS[kind](), clean_up_tokenization_spaces=False, **settings
    )
    return tokenizer

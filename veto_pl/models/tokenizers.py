"""Tokenizers that do not come with a model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veto_pl.exceptions import ConfigurationError
from veto_pl.models.reading import check_regular, source_errors
from veto_pl.seams import TokenizerSource
from veto_pl.storage.paths import expand_home

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class CharacterTokenizer(TokenizerSource):
    """One id per character.

    Args:
        alphabet: the characters, each once.
        eos: ends a text.
        pad: fills rows up.
        unknown: stands for every other character.
    """

    alphabet: str
    eos: str = "<eos>"
    pad: str = "<pad>"
    unknown: str = "<unk>"

    def __post_init__(self) -> None:
        super().__post_init__()
        twice = sorted({c for c in self.alphabet if self.alphabet.count(c) > 1})
        if not self.alphabet or twice:
            raise ConfigurationError(
                f"`CharacterTokenizer.alphabet` must hold each character once, got {twice or 'no character'}."
            )
        special = {"pad": self.pad, "eos": self.eos, "unknown": self.unknown}
        if len(set(special.values()) - {"", *self.alphabet}) < len(special):
            raise ConfigurationError(
                f"`CharacterTokenizer` needs a `pad`, `eos` and `unknown` that differ from each other and from every "
                f"character of the alphabet, got {special}."
            )

    @classmethod
    def examples(cls) -> tuple[CharacterTokenizer, ...]:
        return (cls("abc"),)

    def load(self) -> PreTrainedTokenizerBase:
        """Make the tokenizer: pad, EOS and unknown take the first ids, the alphabet the next ones."""
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        tokens = [self.pad, self.eos, self.unknown, *self.alphabet]
        core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=self.unknown))
        core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        core.decoder = decoders.Fuse()
        tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
            tokenizer_object=core,
            pad_token=self.pad,
            eos_token=self.eos,
            unk_token=self.unknown,
            clean_up_tokenization_spaces=False,
        )
        return tokenizer


@dataclass(frozen=True)
class PretrainedTokenizer(TokenizerSource):
    """A tokenizer from a hub id or a local folder.

    Args:
        path: hub id or folder.
        revision: branch, tag or commit on the hub.
        trust_remote_code: whether code from the hub may run.
        eos: the token that ends a text, such as `<|im_end|>` where a chat template ends its turns with it; None takes
            the tokenizer's own.

    Raises:
        ConfigurationError: the tokenizer has no such token.
    """

    path: str
    revision: str | None = None
    trust_remote_code: bool = False
    eos: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "path", expand_home(self.path))

    @classmethod
    def examples(cls, folder: Path) -> tuple[PretrainedTokenizer, ...]:
        CharacterTokenizer("abc").load().save_pretrained(folder)
        return cls(str(folder)), cls(str(folder), eos="b")

    @property
    def processor_source(self) -> Mapping[str, Any]:
        return {
            "pretrained_model_name_or_path": self.path,
            "revision": self.revision,
            "trust_remote_code": self.trust_remote_code,
        }

    def load(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer."""
        tokenizer = read_tokenizer(self.processor_source)
        if self.eos is not None:
            if self.eos not in tokenizer.get_vocab():
                raise ConfigurationError(
                    f"`PretrainedTokenizer.eos` expected a token of `{self.path}`, got `{self.eos}`, which it does not "
                    "have. Name one that it has."
                )
            tokenizer.eos_token = self.eos
        return tokenizer


def with_chat_template(
    tokenizer: PreTrainedTokenizerBase, chat_template: str | dict[str, str] | None
) -> PreTrainedTokenizerBase:
    """Return a copy of the tokenizer with another chat template, or without one: a run goes on with its own."""
    if tokenizer.chat_template == chat_template:
        return tokenizer
    described = copy.deepcopy(tokenizer)
    described.chat_template = chat_template
    return described


def read_tokenizer(location: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """Load the tokenizer at a hub id or in a folder.

    Args:
        location: keyword arguments for `AutoTokenizer.from_pretrained`.

    Raises:
        ConfigurationError: there is nothing at that place, or no tokenizer in it.
    """
    from transformers import AutoTokenizer

    from veto_pl.data.processors import stored_chat_template  # whose package imports transformers

    place = location["pretrained_model_name_or_path"]
    with source_errors(place, "tokenizer", "a hub id that can be reached, or a folder with a saved tokenizer"):
        check_regular(Path(place))
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**location)
        tokenizer("a", add_special_tokens=False, verbose=False)  # some settings are only refused in use
        if tokenizer.chat_template is None:
            tokenizer.chat_template = stored_chat_template(location)
    # From a folder with nothing but config.json the library makes a tokenizer that knows its special tokens only.
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise ConfigurationError(
            f"`{place}` holds no tokenizer: only {sorted(tokenizer.get_vocab())} could be read. Save the tokenizer "
            "there, or name another one under `model.tokenizer`."
        )
    return tokenizer

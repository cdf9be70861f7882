"""From examples to padded batches. Shapes: `B` rows, `P` prompt tokens, `C` completion tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from veto_pl.data.templates import PlainTemplate
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.seams import Task, Template
from veto_pl.types import Example, PromptBatch, pad_left, pad_right

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
    """

    example: Example
    prompt_ids: list[int]
    completion_ids: list[int] = field(default_factory=list)
    number: int = 0


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Templates, tokenises and pads: prompts on the left, reference completions on the right.

    Args:
        tokenizer: without added special tokens; those of the prompt are the template's.
        template: makes the prompt's text.
        task: what the batch is scored by, or None.
        max_completion_tokens: a longer reference is cut and then has no EOS; None for no limit.
        completion_prefix: text between prompt and reference, such as a space, that counts as completion.

    Raises:
        ConfigurationError: where references need an EOS and the tokenizer has none.
        DataError: where a prompt has no tokens.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template = PlainTemplate()
    task: Task | None = None
    max_completion_tokens: int | None = None
    completion_prefix: str = ""

    def __call__(self, examples: Sequence[Example]) -> PromptBatch:
        """Encodes and pads."""
        return self.pad(self.encode(examples))

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """The tokens of each example. Prompt and completion are tokenised apart, as generation sees them."""
        prompts = self._tokenise([self.template(example, self.tokenizer) for example in examples])
        for example, ids in zip(examples, prompts, strict=True):
            if not ids:
                raise DataError(
                    f"The prompt {example.prompt[:60]!r} has no tokens, expected at least one. Add text or BOS."
                )
        completions = self._completions(examples)
        return [Encoded(*parts, i) for i, parts in enumerate(zip(examples, prompts, completions, strict=True))]

    def pad(self, rows: Sequence[Encoded]) -> PromptBatch:
        """Stacks encoded rows; the masks come from their lengths."""
        choices = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        value = next(token for token in choices if token is not None)
        prompts, prompt_mask = pad_left([_tensor(row.prompt_ids) for row in rows], value)
        completions, completion_mask = pad_right([_tensor(row.completion_ids) for row in rows], value)
        examples = tuple(row.example for row in rows)
        numbers = _tensor([row.number for row in rows])
        return PromptBatch(
            prompts, prompt_mask, completions, completion_mask, examples, self.task, numbers, self.template
        )

    def _completions(self, examples: Sequence[Example]) -> list[list[int]]:
        texts = [self.completion_prefix + e.completion for e in examples if e.completion is not None]
        eos = self.tokenizer.eos_token_id
        if texts and eos is None:
            raise ConfigurationError(
                "The tokenizer has no EOS token to end reference completions with. Set its `eos_token`."
            )
        tokenised = iter(self._tokenise(texts))
        return [[] if e.completion is None else [*next(tokenised), eos][: self.max_completion_tokens] for e in examples]

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        # Not verbose: a text beyond the model's length is this package's to report.
        try:
            ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        except TypeError as error:  # a lone surrogate
            raise DataError(
                "A prompt or completion of the task is no valid Unicode. Mend or leave out its row."
            ) from error
        return ids


def _tensor(ids: list[int]) -> Tensor:
    return torch.tensor(ids, dtype=torch.int64)

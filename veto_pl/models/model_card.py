"""The README of an exported student."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CARD = """---
library_name: transformers
tags:
- knowledge-distillation
- veto_pl
---

# {title}

A student distilled with veto_pl.

```python
{loading}
generate({prompt}, do_sample=False, max_new_tokens=256)
```

{prompts}

## Training configuration

```yaml
{config}
```
"""
WHOLE = """from transformers import pipeline

generate = pipeline("text-generation", model="{title}")"""
ADAPTER = """from peft import PeftModel
from transformers import {names}

base = AutoModelForCausalLM.from_pretrained({place})
model = PeftModel.from_pretrained(base, "{title}")
generate = pipeline("text-generation", model=model, tokenizer=AutoTokenizer.from_pretrained("{title}"))"""
MESSAGES = "The chat template makes of a user's message the prompt that the student was trained to read."
TEXTS = """The student has no chat template: the prompts that it was trained to read hold more than a user's message, or
nobody has said how one becomes a prompt. Write them as `data.template` does below."""


@dataclass(frozen=True)
class LoadedAdapter:
    """How a student is loaded that was written as an adapter and its base.

    Args:
        place: keyword arguments of `from_pretrained` for a base on the hub; None where it is in the folder.
        dtype: of the base.
        quantization: class and arguments of its quantisation, as Python; None where it has none.
    """

    place: Mapping[str, Any] | None
    dtype: str
    quantization: tuple[str, str] | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, place: Mapping[str, Any] | None) -> LoadedAdapter:
        """Return how the trained model is loaded again."""
        settings = getattr(model.config, "quantization_config", None)
        if settings is None or isinstance(settings, Mapping):
            return cls(place, str(model.dtype))
        given = ", ".join(f"{name}={value!r}" for name, value in settings.to_diff_dict().items() if name[0] != "_")
        return cls(place, str(model.dtype), (type(settings).__name__, given))

    def code(self, title: str) -> str:
        """Return the lines that load it."""
        names, place = ["AutoModelForCausalLM", "AutoTokenizer", "pipeline"], f'"{title}/base"'
        if self.place is not None:
            revision = self.place.get("revision")
            place = f'"{self.place["pretrained_model_name_or_path"]}"' + (
                f', revision="{revision}"' if revision else ""
            )
        place += f', dtype="{self.dtype.removeprefix("torch.")}"'
        if self.quantization is not None:
            names.append(self.quantization[0])
            place += f", quantization_config={self.quantization[0]}({self.quantization[1]})"
        return ADAPTER.format(names=", ".join(sorted(names)), place=place, title=title)


def model_card(
    tokenizer: PreTrainedTokenizerBase, config: str | None, title: str, adapter: LoadedAdapter | None = None
) -> str:
    """Return the text of the README.

    Args:
        tokenizer: of the export; with a chat template the student is called with messages.
        config: YAML of the run.
        title: the folder's name.
        adapter: how it is loaded where it was written as an adapter and its base.
    """
    chats = tokenizer.chat_template is not None
    return CARD.format(
        title=title,
        loading=WHOLE.format(title=title) if adapter is None else adapter.code(title),
        prompt='[{"role": "user", "content": "..."}]' if chats else '"..."',
        prompts=MESSAGES if chats else TEXTS,
        config=(config or "not recorded").strip(),
    )

"""The README of an exported student."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CARD = """---
library_name: transformers
tags:
- knowledge-distillation
- veto_pl
---

# {title}

A student distilled with veto_pl.

```python
from transformers import pipeline

generate = pipeline("text-generation", model="{title}")
generate({prompt}, do_sample=False, max_new_tokens=256)
```

{prompts}

## Training configuration

```yaml
{config}
```
"""
MESSAGES = "The chat template makes of a user's message the prompt that the student was trained to read."
TEXTS = """The student has no chat template: the prompts that it was trained to read hold more than a user's message, or
nobody has said how one becomes a prompt. Write them as `data.template` does below."""


def model_card(tokenizer: PreTrainedTokenizerBase, config: str | None, title: str) -> str:
    """Return the text of the README.

    Args:
        tokenizer: of the export; with a chat template the student is called with messages.
        config: YAML of the run.
        title: the folder's name.
    """
    chats = tokenizer.chat_template is not None
    return CARD.format(
        title=title,
        prompt='[{"role": "user", "content": "..."}]' if chats else '"..."',
        prompts=MESSAGES if chats else TEXTS,
        config=(config or "not recorded").strip(),
    )

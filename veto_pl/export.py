"""Writes a trained student as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from veto_pl.exceptions import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from veto_pl.models.causal_lm import CausalLM

CARD = """---
library_name: transformers
tags:
- knowledge-distillation
- veto_pl
---

# {title}

A student distilled with veto_pl.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{title}")
tokenizer = AutoTokenizer.from_pretrained("{title}")
```

## Training configuration

```yaml
{config}
```
"""


def export_student(
    student: CausalLM, tokenizer: PreTrainedTokenizerBase, config: str | None, folder: str | Path
) -> Path:
    """Saves the student (safetensors), the tokenizer and a model card.

    Args:
        student: the trained model.
        tokenizer: saved beside it.
        config: YAML of the run, for the card.
        folder: created if need be.

    Returns:
        The folder.
    """
    folder = Path(folder)
    student.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    card = CARD.format(title=folder.resolve().name, config=(config or "not recorded").strip())
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def export_checkpoint(checkpoint: str | Path, folder: str | Path) -> Path:
    """Rebuilds the student of a Lightning checkpoint from the configuration inside, and exports it.

    Args:
        checkpoint: a `.ckpt` file of a run that the command line started.
        folder: where to write.

    Raises:
        ConfigurationError: the file is missing, or holds no configuration or no student.
    """
    from veto_pl.cli import module_from_config
    from veto_pl.models.assemble import load_student

    state = _read(Path(checkpoint))
    config = state.get("veto_pl_config")
    if config is None:
        raise ConfigurationError(
            f"`{checkpoint}` holds no configuration, so its student cannot be rebuilt. Export it from Python with "
            "`veto_pl.export.export_student`, or train it through `veto-pl fit`."
        )
    module = module_from_config(config)
    student = load_student(module.student_source, module.tokenizer, empty=True)
    prefix = "student."
    weights = {k.removeprefix(prefix): v for k, v in state["state_dict"].items() if k.startswith(prefix)}
    student.load_state_dict(weights)
    return export_student(student, module.tokenizer, config, folder)


def _read(checkpoint: Path) -> dict[str, Any]:
    if not checkpoint.is_file():
        raise ConfigurationError(f"The checkpoint `{checkpoint}` does not exist or is not a file.")
    state: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    return state

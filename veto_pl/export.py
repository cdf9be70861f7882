"""Writes a trained student as a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from veto_pl.checkpoint_io import read_checkpoint
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.sharding import full_weights
from veto_pl.sharded_checkpoint import is_sharded, plain_values, read_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from veto_pl.models.causal_lm import CausalLM

STUDENT = "student."
"""What the names of the student's weights begin with in a checkpoint."""
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
    """Saves the student (safetensors), the tokenizer and a model card. Every rank calls it; the first one writes.

    Args:
        student: the trained model, sharded or whole.
        tokenizer: saved beside it.
        config: YAML of the run, for the card.
        folder: created if need be.

    Returns:
        The folder.
    """
    folder = Path(folder)
    weights = full_weights(student)
    if student.shards is not None and not student.shards.first:
        return folder
    student.model.save_pretrained(folder, state_dict=None if student.shards is None else weights)
    tokenizer.save_pretrained(folder)
    card = CARD.format(title=folder.resolve().name, config=(config or "not recorded").strip())
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def export_checkpoint(checkpoint: str | Path, folder: str | Path) -> Path:
    """Rebuilds the student of a Lightning checkpoint from the configuration inside, and exports it.

    Args:
        checkpoint: a `.ckpt` file, or folder of a sharded run, that the command line started.
        folder: where to write.

    Raises:
        ConfigurationError: the file is missing, or holds no configuration or no student.
    """
    from veto_pl.cli import module_from_config
    from veto_pl.models.assemble import load_student

    config, read_weights = _read(Path(checkpoint))
    if config is None:
        raise ConfigurationError(
            f"`{checkpoint}` holds no configuration, so its student cannot be rebuilt. Export it from Python with "
            "`veto_pl.export.export_student`, or train it through `veto-pl fit`."
        )
    module = module_from_config(config)
    student = load_student(module.student_source, module.tokenizer, empty=True)
    student.load_state_dict(read_weights())
    return export_student(student, module.tokenizer, config, folder)


def _read(checkpoint: Path) -> tuple[str | None, Callable[[], dict[str, Tensor]]]:
    """The run's configuration, and how to get the student's weights."""
    if is_sharded(checkpoint):
        config: str | None = plain_values(checkpoint).get("veto_pl_config")
        return config, lambda: read_whole(checkpoint, f"state_dict.{STUDENT}")
    state = read_checkpoint(checkpoint)
    weights = {k.removeprefix(STUDENT): v for k, v in state["state_dict"].items() if k.startswith(STUDENT)}
    return state.get("veto_pl_config"), lambda: weights

"""What makes two teachers, two tokenizers or two rows the same."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Where a model lies and which version read it say nothing about what it computes.
_ORIGIN_KEYS = ("_name_or_path", "name_or_path", "transformers_version", "architectures")
PROBES = ("The quick brown fox, 12 + 30 = 42.", "  two  spaces\n\tand a tab", "naïve café 漢字 🙂")


def model_fingerprint(model: PreTrainedModel) -> str:
    """Return a hash of the configuration and of every weight: name, dtype, shape and bytes.

    Weights are read one at a time, so a model on an accelerator needs the host memory of its largest tensor only.
    """
    digest = hashlib.blake2b(digest_size=32)
    digest.update(_json(_without_origin(model.config.to_diff_dict())))
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of what ids mean: the vocabulary with added tokens, the EOS, and the ids of a few texts.

    The padding token is left out, because it only fills rows up. Serialised tokenizers are not compared: their text
    changes with the library's version and with the calls that were made.
    """
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in PROBES]
    content = [sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id, encoded]
    return hashlib.blake2b(_json(content), digest_size=32).hexdigest()


def row_key(prompt_ids: Sequence[int], completion_ids: Sequence[int], images: Sequence[str] = ()) -> bytes:
    """Return 16 bytes that identify a row by its tokens, by where its prompt ends and by hashes of its images.

    Example:
        >>> row_key([1, 2], [3]) == row_key([1], [2, 3])
        False
    """
    ids = [len(prompt_ids), *prompt_ids, *completion_ids]
    seen = " ".join(images).encode()
    return hashlib.blake2b(struct.pack(f"<{len(ids)}q", *ids) + seen, digest_size=16).digest()


def _json(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, default=str).encode()


def _without_origin(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {key: _without_origin(value) for key, value in config.items() if key not in _ORIGIN_KEYS}


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    buffer: memoryview = flat.view(torch.uint8).numpy().data
    return buffer

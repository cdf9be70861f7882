"""Tiny real models and batches, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from veto_pl.data.collate import Collator
from veto_pl.models.assemble import load_models
from veto_pl.models.initialisation import TINY, RandomWeights
from veto_pl.models.tokenizers import CharacterTokenizer
from veto_pl.seams import Example, Models, PromptBatch

ALPHABET = ">abcdefghijklmnop"
_LLAMA_LIKE = {name: size for name, size in TINY.items() if name != "vocab_size"}
DIMENSIONS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA_LIKE,
    "qwen2": _LLAMA_LIKE,
    "gemma2": _LLAMA_LIKE | {"head_dim": 8, "final_logit_softcapping": 3.0},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128, "bos_token_id": 1, "eos_token_id": 1},
}


def tiny_source(model_type: str = "llama", seed: int = 0, **dimensions: Any) -> RandomWeights:
    """Return a source of random models with two layers of width 16, whose predictions are far from uniform."""
    defaults: dict[str, Any] = {"vocab_size": len(ALPHABET) + 3, "initializer_range": 0.4}
    return RandomWeights(model_type, defaults | DIMENSIONS[model_type] | dimensions, seed=seed)


def tiny_models(
    model_type: str = "llama", *, student_seed: int = 0, teacher_seed: int = 1, **dimensions: Any
) -> Models:
    """Return student, teacher and reference with different weights; only the student takes `dimensions`."""
    student = tiny_source(model_type, student_seed, **dimensions)
    teacher, reference = (tiny_source(model_type, seed) for seed in (teacher_seed, teacher_seed + 7))
    return load_models(student, teacher, CharacterTokenizer(ALPHABET).load(), reference=reference)


def prompt_batch(
    models: Models, prompts: Sequence[str], completions: Sequence[str | None] | None = None
) -> PromptBatch:
    """Return tokenised prompts, left-padded, with reference completions where there are any."""
    given = completions or [None] * len(prompts)
    return Collator(tokenizer=models.tokenizer)([Example(p, c) for p, c in zip(prompts, given, strict=True)])

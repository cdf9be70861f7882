"""A tiny teacher, and rows for it to score."""

from types import SimpleNamespace

import pytest
import torch

from veto_pl.commands.teacher_scores import Scorer, write_store
from veto_pl.data.collate import Collator
from veto_pl.seams import Example
from veto_pl.testing.tiny import ALPHABET, tiny_models

WORDS = ["abc", "a", "hgfedcba", "pp", "", "bca", "mnop", "cab", "ab", "ponmlkji", "ba"]


@pytest.fixture(scope="session")
def models():
    """In float64, so that padding and batch size do not show in the sixth digit."""
    models = tiny_models()
    for model in (models.student, models.teacher):
        model.double()
    return models


def encoded(models, words=WORDS):
    """Rows that ask for a word backward; prompts and completions of many lengths."""
    return Collator(tokenizer=models.tokenizer).encode([Example(f"{w}>", w[::-1]) for w in words])


def write(folder, models, rows=None, *, rows_per_shard=4, say=lambda line: None, **settings):
    """A store of these rows, as the command writes it."""
    scorer = Scorer(models=models, collator=Collator(tokenizer=models.tokenizer), **{"k": 5} | settings)
    rows = encoded(models) if rows is None else rows
    return write_store(scorer, rows, folder, rows_per_shard=rows_per_shard, say=say)


def direct(models, row, k, temperature=1.0):
    """Oracle: the teacher's plain forward over one row without padding, pooled in float64."""
    ids = torch.tensor([row.prompt_ids + row.completion_ids])
    with torch.no_grad():
        logits = models.teacher.model(ids).logits[0, :, : models.teacher.vocab_size]
    predicting = slice(len(row.prompt_ids) - 1, -1)
    probability = (logits.double() / temperature).softmax(-1)[predicting]
    ordered, order = probability.sort(-1, descending=True)
    outcomes = torch.cat([ordered[:, :k], ordered[:, k:].sum(-1, keepdim=True)], -1)
    return SimpleNamespace(ids=order[:, :k], logp=outcomes.log())


assert set("".join(WORDS)) <= set(ALPHABET)

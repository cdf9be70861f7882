"""Debates whose texts are written down beforehand, and readings of them by plain loops."""

from dataclasses import replace

import torch

from veto_pl.models import CharacterTokenizer
from veto_pl.models.assemble import load_models
from veto_pl.parts.contexts import SameText
from veto_pl.rollouts import Debate, FromDataset, Sampling
from veto_pl.seams import Ending, Engine, Sequences, Step, pad_right
from veto_pl.testing.tiny import ALPHABET, prompt_batch, tiny_source

LETTERS = ALPHABET + "0123456789"
STEP = Step(2, 10, seed=3)
FORMATS = {
    "first": "p>{state}",
    "following": "{debate}{expert}>{state}",
    "reading": "{debate}o>{state}",
    "entry": "{round}{expert}{text}>",
}
WORDS = ["abc", "d", "efgh", "ka"]


class Scripted(Engine):
    """Writes what a function says for a teacher's prompt, and remembers every call.

    The function gets the model and the text of the prompt, and returns a text and whether it ends.
    """

    def __init__(self, script):
        self.script, self.calls = script, []

    def generate(self, prompts, model, sampling, models, step, *, on_policy):
        asked = models.tokenizer.batch_decode(
            [ids[mask] for ids, mask in zip(prompts.input_ids, prompts.attention_mask, strict=True)]
        )
        self.calls.append((model, asked, prompts.numbers.tolist()))
        answers = [self.script(model, text) for text in asked]
        written = [torch.tensor(models.tokenizer.encode(text), dtype=torch.int64) for text, _ in answers]
        ids, lived = pad_right(written)
        ids, lived = ids.reshape(len(prompts), ids.shape[1]).long(), lived.reshape(len(prompts), ids.shape[1])
        ending = torch.tensor([Ending.STOP if ends else Ending.LIMIT for _, ends in answers], dtype=torch.int64)
        return Sequences.join(prompts, ids, lived, ending=ending, sampler_logp=None)


def models_of(names=("alpha", "beta"), **sizes):
    """A student and teachers by name, all with other weights, and an alphabet with digits."""
    size = {"vocab_size": len(LETTERS) + 3} | sizes
    named = {name: tiny_source(seed=5 + place, **size) for place, name in enumerate(names)}
    return load_models(tiny_source(**size), None, CharacterTokenizer(LETTERS).load(), teachers=named)


def batch_of(models, words=WORDS):
    batch = prompt_batch(models, [f"{word}>" for word in words], [word[::-1] for word in words])
    return replace(batch, numbers=torch.arange(len(words)) * 3 + 5)


def rollout_of(models, words=WORDS):
    return FromDataset()(batch_of(models, words), models, STEP)


def scripted(models, by_teacher, **settings):
    """A debate in which each teacher always writes one text; a pair says that the text has no end."""
    texts = {
        models.teachers[name]: text if isinstance(text, tuple) else (text, True) for name, text in by_teacher.items()
    }
    engine = Scripted(lambda model, _: texts[model])
    given = {"sampling": Sampling(max_new_tokens=6), "confidence": r"c(\d+)", "engine": engine}
    return Debate(**(given | FORMATS | settings))


def read(panel, models, sequences, context=None):
    """The readings by the teacher's name."""
    found = panel(sequences, context or SameText(), models, STEP)
    return {one.teacher: one for one in found}

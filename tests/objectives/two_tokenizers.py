"""A rollout, and models whose tokenizers differ."""

import torch

from veto_pl.models.assemble import load_models
from veto_pl.models.vocabulary import real_ids
from veto_pl.parts.translated_rows import translated
from veto_pl.seams import Models, Sequences, Step
from veto_pl.testing.tiny import prompt_batch, tiny_source
from veto_pl.testing.tokenizer_kinds import tokenizer_of

STEP = Step(2, 10)
PROMPTS = ["Paris is", "2+2=", "Q: What is 7"]
COMPLETIONS = [" where it is.", "4 and 12 + 30 = 42", " + 5?"]


def model_of(tokenizer, seed, **dimensions):
    """A model whose head has two rows that belong to no token."""
    return load_models(
        tiny_source(seed=seed, vocab_size=real_ids(tokenizer) + 2, **dimensions), None, tokenizer
    ).student


def models_of(one, other, **dimensions):
    student, teacher = tokenizer_of(one), tokenizer_of(other)
    frozen = model_of(teacher, 1, **dimensions).requires_grad_(False).eval()
    return Models(model_of(student, 0), frozen, student, tokenizers={"teacher": teacher})


def written(models, completions=COMPLETIONS, ends=(True, True, False)):
    """Completions of which the last was cut."""
    batch = prompt_batch(models, PROMPTS[: len(completions)], completions)
    mask = batch.completion_mask.clone()
    for row, end in enumerate(ends[: len(completions)]):
        if not end:
            mask[row, int(mask[row].sum()) - 1] = False
    return Sequences.join(batch, batch.completion_ids, mask)


def speakers(models):
    return (models.student, models.tokenizer), (models.required_teacher(), models.teacher_tokenizer)


def reading(models, sequences):
    return translated(sequences, *speakers(models), "SimCT")


def update(objective, sequences, models):
    """The loss, and its gradient in every weight of the student."""
    models.student.zero_grad()
    output = objective.loss({objective.rollout: sequences}, models, STEP)
    output.terms["loss"].total.backward()
    gradients = [p.grad.clone() for p in models.student.parameters()]
    return output, gradients


def logits_of(model, sequences):
    """Whole logits at the places that predict a token that counts, one row at a time and without padding."""
    found = []
    for ids, there, counts in zip(sequences.input_ids, sequences.attention_mask, sequences.loss_mask, strict=True):
        logits = model.model(ids[there][None], use_cache=False).logits[0, :, : model.vocab_size]
        found += [logits[place - 1] for place, counted in enumerate(counts[there].tolist()) if counted]
    return torch.stack(found).double()


def close(one, other, tolerance=1e-4):
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)

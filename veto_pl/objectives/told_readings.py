"""What teachers without a model say of their readings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from veto_pl.core.scores import TopKScores
from veto_pl.seams import Models, Reading, Sequences, Stat


def with_answers(readings: Sequence[Reading], tokens: int, models: Models) -> tuple[Reading, ...]:
    """Return the readings of a rollout, those of teachers without a model with what these have said.

    A teacher does not speak of rows that it has not answered, which `NAME/unanswered` counts. The weights of others
    that read them grow in proportion, so that they add up to 1 again.

    Args:
        readings: of a panel.
        tokens: N, those of the rollout that count.
        models: with all teachers.

    Raises:
        DataError: nothing is known of a row, or nobody answers.
    """
    answered = tuple(_answered(one, models) if one.teacher in models.tellers else one for one in readings)
    silent = any(before.spoken > after.spoken for before, after in zip(readings, answered, strict=True))
    return _shared_anew(answered, tokens) if silent else answered


def comparable(readings: Sequence[Reading], tokens: int, models: Models) -> tuple[Reading, ...]:
    """Return the readings of models with the student's ids, whose weights add up to 1 where any of them reads."""
    kept = tuple(one for one in readings if one.teacher in models.comparable)
    return tuple(readings) if len(kept) == len(readings) else _shared_anew(kept, tokens)


def _answered(one: Reading, models: Models) -> Reading:
    """Return a reading of what its teacher has answered."""
    rows = one.sequences
    answers = models.tellers[one.teacher](rows, models.tokenizer)
    asked = rows.predictions.any(1)
    silent = torch.zeros_like(asked) if answers.unanswered is None else answers.unanswered
    metrics = {**one.metrics, "unanswered": Stat((silent & asked).sum().float(), asked.sum().float())}
    if answers.unanswered is None or not answers.unanswered.any():
        return replace(one, told=of_tokens(answers.scores, rows), metrics=metrics)
    kept = ~silent.cpu()[rows.host_masks[1, :, 1:].nonzero()[:, 0]]
    places = (torch.arange(len(kept)) if one.places is None else one.places)[kept]
    weights = one.weights[kept] if isinstance(one.weights, Tensor) else one.weights
    heard = rows.counting(kept)
    told = of_tokens(answers.scores, heard)
    return replace(one, sequences=heard, places=places, weights=weights, told=told, metrics=metrics)


def _shared_anew(readings: Sequence[Reading], tokens: int) -> tuple[Reading, ...]:
    """Divide the weights of each of N tokens by their sum over its readings."""
    if all(one.places is None and not isinstance(one.weights, Tensor) for one in readings):
        whole = sum(one.weights for one in readings)
        return tuple(replace(one, weights=one.weights / whole) for one in readings)
    spoken = [torch.arange(tokens) if one.places is None else one.places for one in readings]
    weights = [torch.ones(len(at)) * one.weights for at, one in zip(spoken, readings, strict=True)]
    total = torch.zeros(tokens)
    for at, weight in zip(spoken, weights, strict=True):
        total.index_add_(0, at, weight)
    return tuple(
        replace(one, places=at, weights=weight / total[at])
        for one, at, weight in zip(readings, spoken, weights, strict=True)
    )


def of_tokens(scores: TopKScores, sequences: Sequences) -> TopKScores:
    """Return of scores [B, T] those of the N tokens that count."""
    row, place = sequences.tokens()[1], sequences.prediction_index % sequences.predictions.shape[1]
    return scores[row, place + 1]

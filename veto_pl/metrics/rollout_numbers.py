"""Metrics of a rollout from its token ids alone, cheap enough for every training step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from veto_pl.functional.stat import Stat
from veto_pl.seams import Ending, Sequences

REPEATED = 4
"""Tokens of an n-gram whose repetition counts."""
_FACTOR = 6364136223846793005  # odd and well mixed: sums of ids times its powers differ modulo 2^64
_POWERS = [(pow(_FACTOR, n, 2**64) + 2**63) % 2**64 - 2**63 for n in range(REPEATED)]
"""The powers of the factor as signed 64-bit numbers."""


def rollout_numbers(rollouts: Iterable[Sequences], eos_ids: Iterable[int]) -> dict[str, Stat]:
    """Compute the repetition within the completions that the student wrote, and the share of them that did not end.

    Args:
        rollouts: of a micro-batch.
        eos_ids: end a completion.

    Returns:
        `repetition`: the mean over completions of the share of their n-grams that they had before. `unfinished`: the
        share of completions that ran into the limit; where a rollout does not say why they end, those that are as long
        as the longest and do not end with EOS. Where a rollout tells, `teacher_share`: the share of completion tokens
        that the teacher put into the student's text, `age`: optimizer steps since a row was written, `engine_gap`: the
        mean size of the difference, in nats, between the log-probabilities of the engine that sampled a token and those
        of the trainer, over the tokens that both could draw, and `unanswered`: the share of rows that no served teacher
        has scored. What was written is looked at, whether it counts or not; but where a text has several turns, no
        replies are. An episode of several rows is one completion, which did not end where one of its turns did not.
        Of rollouts with an environment also `turns`: the mean number of turns of an episode, and `failed_turns`: the
        share of turns that could not be carried out.
    """
    ends = tuple(eos_ids)
    written = list(rollouts)
    numbers = {
        "repetition": [_repetition(rows) for rows in written],
        "unfinished": [_unfinished(rows, ends) for rows in written],
        "teacher_share": [_by_teacher(rows) for rows in written if rows.by_teacher is not None],
        "age": [_age(rows) for rows in written if rows.age is not None],
        "engine_gap": [_engine_gap(rows) for rows in written if rows.engine_log_ratio is not None],
        "unanswered": [_unanswered(rows) for rows in written if rows.unanswered is not None],
        "turns": [_turns(rows) for rows in written if rows.failed_turns is not None],
        "failed_turns": [_failed_turns(rows) for rows in written if rows.failed_turns is not None],
    }
    return {name: sum(stats[1:], stats[0]) for name, stats in numbers.items() if stats}


def rollout_sizes(rollouts: Iterable[Sequences]) -> dict[str, Stat]:
    """Return the lengths of the completions of a micro-batch, and how many of their tokens are trained on."""
    rows = list(rollouts)
    written = [one.completion_mask for one in rows]
    lengths = [Stat(mask.sum().float(), mask.any(1).sum().float()) for mask in written]
    counted = torch.stack([one.predictions.sum() for one in rows]).sum().float()
    return {"completion_length": sum(lengths[1:], lengths[0]), "tokens": Stat(counted, counted)}


def _own(rows: Sequences) -> Tensor:
    """Return [B, T] bool: what the writer of the completions wrote, without replies that it was given."""
    return rows.completion_mask if rows.turn_ids is None else rows.loss_mask


def _repetition(rows: Sequences) -> Stat:
    """Compute the share of repeated n-grams. An n-gram is one int64; equal ones are adjacent once they are sorted."""
    written = _own(rows) & rows.on_policy[:, None]
    if written.shape[1] < REPEATED:
        return Stat(*rows.input_ids.new_zeros(2, dtype=torch.float32))
    counted = written.unfold(1, REPEATED, 1).all(-1)
    places = rows.input_ids.unfold(1, REPEATED, 1).unbind(-1)
    grams = torch.stack([ids * power for ids, power in zip(places, _POWERS, strict=True)]).sum(0)
    ordered = grams.masked_fill(~counted, torch.iinfo(torch.int64).max).sort(1).values
    number = counted.sum(1)
    inside = torch.arange(ordered.shape[1] - 1, device=written.device) < number[:, None] - 1
    repeats = ((ordered[:, 1:] == ordered[:, :-1]) & inside).sum(1)
    return Stat((repeats / number.clamp_min(1)).sum(), (number > 0).sum().float())


def _by_teacher(rows: Sequences) -> Stat:
    assert rows.by_teacher is not None, "only rollouts that tell are asked"
    written = rows.completion_mask
    return Stat((rows.by_teacher & written).sum().float(), written.sum().float())


def _age(rows: Sequences) -> Stat:
    assert rows.age is not None, "only rollouts that tell are asked"
    return Stat(rows.age.sum().float(), torch.full_like(rows.age.sum(), len(rows)))


def _engine_gap(rows: Sequences) -> Stat:
    assert rows.engine_log_ratio is not None, "only rollouts that tell are asked"
    counted = _own(rows) & rows.on_policy[:, None] & rows.engine_log_ratio.isfinite()
    return Stat(rows.engine_log_ratio.abs().masked_fill(~counted, 0.0).sum(), counted.sum().float())


def _unanswered(rows: Sequences) -> Stat:
    assert rows.unanswered is not None, "only rollouts that tell are asked"
    return Stat(rows.unanswered.sum().float(), torch.ones_like(rows.unanswered).sum().float())


def _turns(rows: Sequences) -> Stat:
    """Compute the number of turns of each episode, which is that of the last of its rows."""
    counts = _last_turns(rows)
    same = torch.eye(len(rows), device=counts.device) > 0
    same = same if rows.episodes is None else rows.episodes[:, None] == rows.episodes
    first = ~same.tril(-1).any(1) & (counts > 0)
    whole = torch.where(same, counts, 0).amax(1) if len(rows) else counts
    return Stat(whole.masked_fill(~first, 0).sum().float(), first.sum().float())


def _failed_turns(rows: Sequences) -> Stat:
    assert rows.failed_turns is not None, "only rollouts that tell are asked"
    return Stat(rows.failed_turns.sum().float(), _turns(rows).total)


def _last_turns(rows: Sequences) -> Tensor:
    """Return [B] int64: the number of the last turn of each row; 0 where nothing was written."""
    written = rows.completion_mask
    turns = written.long() if rows.turn_ids is None else rows.turn_ids
    return turns.amax(1) if turns.shape[1] else written.sum(1)


def _unfinished(rows: Sequences, ends: tuple[int, ...]) -> Stat:
    lengths = rows.completion_mask.sum(1)
    written = rows.on_policy & (lengths > 0)
    longest = lengths.masked_fill(~written, 0).max() if len(lengths) else lengths.sum()
    # A text that did not end and is no longer than others may have ended in a way that nobody has told.
    cut = lengths == longest if rows.ending is None else (rows.ending != Ending.UNKNOWN) | (lengths == longest)
    cut = cut & written & ~rows.finished(ends)
    if rows.episodes is not None:
        same = rows.episodes[:, None] == rows.episodes
        cut = (same & cut).any(1)
        written = written & ~(same & written).tril(-1).any(1)
        cut = cut & written
    return Stat(cut.sum().float(), written.sum().float())

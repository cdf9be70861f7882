"""Readings as scoring sees them: which tokens each speaks of, and how what is found for each comes together.

Everything is linear in the weights, which add up to 1 for each token: the loss, the student's log-probability (which
is then itself), the teacher's (a mean of logarithms), every metric, and the gradient. So a reading is scored by itself,
and nothing that is computed of a token knows of another teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from veto_pl.core.scores import TopKScores
from veto_pl.core.transfer import sent
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.own_ends import Ends
from veto_pl.functional.panel_stream import Reader
from veto_pl.functional.pooled_head import Pool, PooledHead
from veto_pl.seams import Reading, Sequences, Stat
from veto_pl.seams.teacher_names import TEACHER

TOLERANCE = 1e-4
"""How far from 1 the weights of a token may add up to, in float32."""


@dataclass(frozen=True)
class Voice:
    """A reading without its rows.

    Args:
        teacher: its name.
        places: [M] int64 on the host, ascending, of the N tokens; None for all of them.
        index: the same on the device.
        weights: its share of each token, [M] float32 on the device, or the same of all.
        ends: by which ids the student and its teacher end a text; None where ids are compared as they are.
        written: [M] int64 on the device, the tokens themselves, with `ends`.
        told: [M] what a teacher without a model has said of them; None for a model.
    """

    teacher: str = TEACHER
    places: Tensor | None = None
    index: Tensor | None = None
    weights: Tensor | float = 1.0
    ends: Ends | None = None
    written: Tensor | None = None
    told: TopKScores | None = None

    @classmethod
    def at(
        cls, places: Tensor, tokens: int, device: torch.device, teacher: str, weights: Tensor | float = 1.0
    ) -> Voice:
        """Return the voice of a teacher at places ([M] int64 on the host) among all `tokens`."""
        everywhere = len(places) == tokens
        return cls(teacher, None, None, weights) if everywhere else cls(teacher, places, sent(places, device), weights)

    @property
    def has_all(self) -> bool:
        """Return whether its share of each of its tokens is 1, whatever the device would say of it."""
        return not isinstance(self.weights, Tensor) and self.weights == 1

    @property
    def is_whole(self) -> bool:
        """Return whether it speaks of all tokens, with the weight 1."""
        return self.index is None and self.has_all

    def of(self, values: Any) -> Any:
        """Return of values of all tokens, [N, ...], those of its own, [M, ...]."""
        return values if self.index is None else values[self.index]

    def weighed(self, values: Tensor) -> Tensor:
        """Return its own values [M] times its weights."""
        if self.has_all:
            return values
        return values * (self.weights.to(values.dtype) if isinstance(self.weights, Tensor) else self.weights)

    def spoken(self, tokens: int) -> Tensor:
        """Return the places [M] of its tokens among all `tokens`, on the host."""
        return torch.arange(tokens) if self.places is None else self.places

    def reader(self, **of_teacher: Any) -> Reader:
        """Return what the loss head reads of it; `hidden` and `head` are its teacher's."""
        return Reader(places=self.places, index=self.index, ends=self.ends, written=self.written, **of_teacher)

    def of_reading(self, one: Reading, sequences: Sequences) -> Voice:
        """Return the same voice with how the teacher of its reading ends a rollout's texts, and what it has told."""
        written = None if one.ends is None else self.of(sequences.token_ids())
        return replace(self, ends=one.ends, written=written, told=one.told)


@dataclass(frozen=True)
class Voices:
    """All readings of a micro-batch.

    Args:
        voices: one for each reading.
        tokens: N.
        unread: [U] int64 on the host, the tokens that nobody speaks of.
    """

    voices: tuple[Voice, ...]
    tokens: int
    unread: Tensor = torch.zeros(0, dtype=torch.int64)

    @classmethod
    def alone(cls, tokens: int) -> Voices:
        """Return one voice for all tokens, be it a teacher's or nobody's."""
        return cls((Voice(),), tokens)

    def with_silence(self, device: torch.device) -> Voices:
        """Return the same with a last voice, of no teacher, for the tokens that nobody else speaks of, if any."""
        if not len(self.unread):
            return self
        return Voices((*self.voices, Voice.at(self.unread, self.tokens, device, "")), self.tokens)

    def readers(
        self, readings: Sequence[Reading], hidden: Sequence[Any], heads: Sequence[Any], pool: Pool | None
    ) -> list[Reader]:
        """Return what the loss head reads of each voice; a voice without a teacher hears the student alone.

        Args:
            readings: that the voices are of.
            hidden: [M, D] of each reading, by its teacher; None without a model.
            heads: of the teachers, `Head` each; None without a model.
            pool: of the panel: what makes one teacher of all; None where they stay apart.
        """
        found = [*zip(readings, hidden, heads, strict=True)]
        if pool is None:
            spoken = zip(self.voices, found)  # noqa: B905  there may be voices without a teacher behind them
            known = [voice.reader(hidden=states, head=head) for voice, (_, states, head) in spoken]
        else:
            heard = [(states, head, float(one.weights)) for one, states, head in found if one.places is None]
            states, heads, weights = zip(*heard, strict=True)
            head = PooledHead(heads, [one.shape[1] for one in states], weights, pool)
            known = [self.voices[0].reader(hidden=torch.cat(states, 1), head=head)]
        return [*known, *(voice.reader() for voice in self.voices[len(known) :])]

    def shares(self, sequences: Sequences) -> list[dict[str, float]]:
        """Return by name, for each row, how much of its tokens each teacher has; nothing for who has none of them."""
        rows = sequences.host_masks[1, :, 1:].nonzero()[:, 0]
        counts = torch.bincount(rows, minlength=len(sequences)).clamp_min(1)
        found: list[dict[str, float]] = [{} for _ in range(len(sequences))]
        for voice in self.voices:
            own = rows[voice.spoken(self.tokens)]
            weights = voice.weighed(torch.ones(len(own), dtype=torch.float64, device=sequences.input_ids.device)).cpu()
            parts = torch.bincount(own, weights, minlength=len(sequences)) / counts
            for row, part in zip(found, parts.tolist(), strict=True):
                if part:
                    row[voice.teacher] = row.get(voice.teacher, 0.0) + round(part, 6)
        return found

    def given(self, values: Mapping[str, Any], derivatives: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """Return what the kernel reads beside the logits of each reading.

        Args:
            values: [N, ...] by name.
            derivatives: [N] by name, of the batch's loss in something of each token. The derivative in the loss,
                `by_loss`, is 1 where it is not named.
        """
        found = []
        for voice in self.voices:
            own: dict[str, Any] = {name: voice.weighed(voice.of(value)) for name, value in derivatives.items()}
            if voice.told is not None:
                own["stored"] = voice.told
            if not voice.has_all and "by_loss" not in own:
                own["by_loss"] = voice.weighed(torch.ones_like(voice.of(values["token_ids"]), dtype=torch.float32))
            found.append({name: voice.of(value) for name, value in values.items()} | own)
        return found

    def joined(self, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return, for all tokens, the weighted sums [N] of what was found for each reading, [M] each by name.

        What is measured of some teachers alone has no mean over all.
        """
        if len(parts) == 1 and self.voices[0].is_whole:
            return dict(parts[0])
        sums: dict[str, Tensor] = {}
        apart = _measured_apart(parts)
        for voice, part in zip(self.voices, parts, strict=True):
            for name, values in part.items():
                if name in apart:
                    continue
                own = voice.weighed(values)
                if voice.index is not None:
                    own = values.new_zeros(self.tokens).index_add_(0, voice.index, own)
                sums[name] = sums[name] + own if name in sums else own
        return sums

    def metrics(self, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Stat]:
        """Return of each teacher its share of the tokens, and over those that it reads the KL to it, and what is
        measured of some teachers alone.

        They are nothing new where one teacher reads everything.
        """
        if len(parts) == 1:
            return {}
        found: dict[str, Stat] = {}
        names = ("metric/kl", *_measured_apart(parts))
        for voice, part in zip(self.voices, parts, strict=True):
            one = next(iter(part.values()))
            told = {"share": Stat(voice.weighed(torch.ones_like(one)).sum(), one.new_full((), self.tokens))}
            for name in (name for name in names if name in part):
                told[name.removeprefix("metric/")] = Stat(part[name].sum(), one.new_full((), len(one)))
            for name, stat in told.items():
                known = found.get(f"{voice.teacher}/{name}")
                found[f"{voice.teacher}/{name}"] = stat if known is None else known + stat
        return found


def _measured_apart(parts: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """Return the metrics that not every reading has, as those of a teacher that tells its likeliest ids alone."""
    known = dict.fromkeys(name for part in parts for name in part if name.startswith("metric/"))
    return [name for name in known if not all(name in part for part in parts)]


def attended(
    sequences: Sequences, readings: Sequence[Reading], panel: str, pool: Pool | None = None
) -> tuple[Sequences, Voices]:
    """Return a rollout without the tokens that nobody reads, and the voices of its readings.

    Args:
        sequences: N tokens of which count.
        readings: of a panel; none where no teacher is asked.
        panel: the class of the panel, for messages.
        pool: of the panel.

    Raises:
        ConfigurationError: a reading speaks of other tokens than it has, or the weights of a token do not add up to 1;
            or readings of a pool have weights of single tokens or other ends.
    """
    voices = voices_of(sequences, readings, panel, pool)
    if not len(voices.unread):
        return sequences, voices
    read = torch.ones(voices.tokens, dtype=torch.bool)
    read[voices.unread] = False
    order, device = read.cumsum(0) - 1, sequences.input_ids.device
    kept = len(read) - len(voices.unread)
    moved = [(one, Voice.at(order[one.spoken(voices.tokens)], kept, device, one.teacher)) for one in voices.voices]
    told = tuple(replace(one, places=there.places, index=there.index) for one, there in moved)
    return sequences.counting(read), Voices(told, kept)


def voices_of(sequences: Sequences, readings: Sequence[Reading], panel: str, pool: Pool | None = None) -> Voices:
    """Return the voices of readings, as `attended` does, among all N tokens."""
    tokens, device = len(sequences.prediction_index), sequences.input_ids.device
    if not readings:
        return Voices.alone(tokens)
    if pool is not None:
        return Voices((Voice().of_reading(_check_pool(readings, panel), sequences),), tokens)
    if all(one.places is None and not isinstance(one.weights, Tensor) for one in readings):
        _check_sum(float(sum(one.weights for one in readings)), 0, panel)
        told = (Voice(one.teacher, weights=one.weights).of_reading(one, sequences) for one in readings)
        return Voices(tuple(told), tokens)
    found, places, shares = [], [], []
    for one in readings:
        spoken = torch.arange(tokens) if one.places is None else one.places
        _check_places(one, spoken, tokens, panel)
        weights = sent(one.weights, device) if isinstance(one.weights, Tensor) else one.weights
        found.append(Voice.at(spoken, tokens, device, one.teacher, weights).of_reading(one, sequences))
        places.append(spoken)
        shares.append(torch.ones(len(spoken), dtype=torch.float64) * one.weights)
    read = _read(torch.cat(places), torch.cat(shares), tokens, panel)
    return Voices(tuple(found), tokens, (~read).nonzero()[:, 0])


def _read(places: Tensor, weights: Tensor, tokens: int, panel: str) -> Tensor:
    """Return [N] bool, the tokens that somebody reads; raise `ConfigurationError` for weights that do not add up."""
    read = torch.bincount(places, minlength=tokens) > 0
    sums = torch.bincount(places, weights, minlength=tokens)
    for wrong in (read & ~((sums - 1).abs() <= TOLERANCE)).nonzero()[:1, 0].tolist():
        _check_sum(float(sums[wrong]), wrong, panel)
    return read


def _check_pool(readings: Sequence[Reading], panel: str) -> Reading:
    """Return a reading of the teachers that are pooled; raise `ConfigurationError` for what cannot be."""
    heard = [one for one in readings if one.places is None or len(one.places)]
    if any(one.places is not None or isinstance(one.weights, Tensor) for one in heard) or not heard:
        raise ConfigurationError(
            f"`{panel}` makes one teacher of several, but gives readings of some of the tokens, or with weights of "
            "single tokens. Let every teacher read everything by one weight, or leave `pool` out."
        )
    _check_sum(float(sum(one.weights for one in heard)), 0, panel)
    if len({one.ends for one in heard}) > 1:
        raise ConfigurationError(
            f"`{panel}` makes one teacher of several, but they end their texts by different ids: "
            f"{', '.join(f'`{one.teacher}` by {one.ends and one.ends.teacher}' for one in heard)}. Name the same "
            "`eos_token_id` in their generation_config.json, or average their losses."
        )
    return heard[0]


def _check_sum(weights: float, token: int, panel: str) -> None:
    if not abs(weights - 1) <= TOLERANCE:
        raise ConfigurationError(
            f"`{panel}` gives token {token} of the rollout weights that add up to {weights:g} over its readings. They "
            "must add up to 1: divide them by their sum."
        )


def _check_places(one: Reading, places: Tensor, tokens: int, panel: str) -> None:
    count = one.spoken
    ascending = bool((places.diff() > 0).all()) and (not len(places) or (places[0] >= 0 and places[-1] < tokens))
    weighed = len(one.weights) if isinstance(one.weights, Tensor) else count
    if not ascending or not len(places) == count == weighed:
        raise ConfigurationError(
            f"`{panel}` gives `{one.teacher}` a reading with {count} tokens, {len(places)} places and {weighed} "
            f"weights. They must be as many, and the places ascend among the {tokens} tokens of the rollout."
        )

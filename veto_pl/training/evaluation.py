"""One batch of evaluation: the student answers, the task judges, the metrics are updated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from veto_pl.data.shown_prompts import image_names, shown_prompts
from veto_pl.functional.chunked import Block
from veto_pl.functional.divergences import forward_kl, reverse_kl
from veto_pl.metrics import CompletionMetric, TokenMetric
from veto_pl.metrics.generations import Generations
from veto_pl.models.readout import panel_scores
from veto_pl.objectives.told_readings import comparable
from veto_pl.objectives.voices import Voice, Voices, voices_of
from veto_pl.parts.contexts import SameText
from veto_pl.parts.panels import OneTeacher
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.rollouts.engines import DecodeLoop
from veto_pl.seams import (
    Engine,
    Line,
    Models,
    Panel,
    Picture,
    PlayingSource,
    PromptBatch,
    Reading,
    Sequences,
    Step,
    TeacherContext,
    TokenValues,
)  # fmt: skip
from veto_pl.training.answered import Completions
from veto_pl.training.token_texts import token_texts

CHUNK_ROWS = 256
"""Tokens whose vocabulary-sized rows are held at a time."""


@dataclass(frozen=True)
class Evaluation:
    """The completions of a batch of prompts, with their rewards.

    Args:
        batch: the prompts.
        sequences: prompts and completions.
        generations: texts, rewards and endings.
        models: the models that are compared.
        divergences: [N] each, `forward_kl` and `reverse_kl` at every completion token in nats; empty until `update` is
            asked for them, and where there is no teacher.
        tokens: the same and the log-probabilities of the tokens under both models; None until `update` is asked.
        panel: which teachers read the completions, or None.
        step: where training stands.
        voices: who reads which tokens; None until `update` has asked.
        context: what each teacher reads.
        said: by teacher, what it has said of each row, one entry for each turn.
        lines: what was said in each episode, in the order of the completions; empty for single answers.
    """

    batch: PromptBatch
    sequences: Sequences
    generations: Generations
    models: Models
    divergences: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: TokenValues | None = None
    panel: Panel | None = OneTeacher()
    step: Step = Step(0, 1)
    voices: Voices | None = None
    context: TeacherContext = SameText()
    said: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]] = field(default_factory=dict)
    lines: tuple[tuple[Line, ...], ...] = ()

    @classmethod
    def sample(
        cls,
        batch: PromptBatch,
        models: Models,
        sampling: Sampling,
        step: Step,
        engine: Engine | None = None,
        panel: Panel | None = OneTeacher(),
        context: TeacherContext = SameText(),
        playing: PlayingSource | None = None,
    ) -> Evaluation:
        """Let the student answer every prompt of the batch, and score the answers.

        Args:
            batch: the prompts.
            models: with the student.
            sampling: how it answers.
            step: names the random numbers.
            engine: what runs it; None for the decode loop of the package.
            panel: which teachers the answers are compared with; None for none.
            context: what each of them reads.
            playing: whose episodes are played, from their beginning to their end; None for single answers.
        """
        lines: tuple[tuple[Line, ...], ...] = ()
        if playing is None:
            sequences = FromStudent(sampling, engine or DecodeLoop())(batch, models, step)
        else:
            sequences, lines = playing.answering(sampling, engine).told(batch, models, step)
        sequences = batch.rewarded(sequences, models.tokenizer)
        generations = Completions(sequences).generations(batch, models, sampling.num_completions)
        return cls(batch, sequences, generations, models, panel=panel, step=step, context=context, lines=lines)

    def update(self, metrics: Iterable[nn.Module], *, annotate: bool = False) -> Evaluation:
        """Update token metrics with the distributions, and completion metrics with the completions.

        Each model reads the rows once, and only where something is asked of the tokens.

        Args:
            metrics: are updated.
            annotate: also keep the values of each token, such as how far student and teacher differ.

        Returns:
            The same evaluation with what was computed on the way.
        """
        listed = list(metrics)
        token_metrics = [metric for metric in listed if isinstance(metric, TokenMetric)]
        with_logp = any(getattr(metric, "needs_logp", False) for metric in listed)
        values: dict[str, Tensor] = {}
        voices: Voices | None = None
        readings: Sequence[Reading] = ()
        if token_metrics or with_logp or annotate:
            readings = self._readings()
            values, voices = self._read(readings, token_metrics, with_logp=with_logp, annotate=annotate)
        generations = self.generations
        if with_logp:
            sums = Completions(self.sequences).sums(values["student_logp"])
            generations = replace(generations, logp=sums.view(generations.rewards.shape).to(generations.rewards.device))
        for metric in listed:
            if isinstance(metric, CompletionMetric) and (of_source := generations.of(metric.source)).texts:
                metric.update(of_source)
        divergences = {name: value for name, value in values.items() if name in _DIVERGENCES}
        tokens = TokenValues(self.sequences, values) if annotate else None
        said = {one.teacher: one.said for one in readings if one.said}
        found: dict[str, Any] = {"divergences": divergences, "tokens": tokens, "voices": voices, "said": said}
        return replace(self, generations=generations, **found)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per completion: prompt, completion, reference and reward; all references where there are
        several.
        """
        completions = Completions(self.sequences)
        prompts = shown_prompts(self.batch, self.models.tokenizer)
        told = zip(
            completions.prompts,
            self.generations.texts,
            self.generations.rewards.flatten().tolist(),
            self._shares(),
            completions.joined(self.said),
            self.lines or [()] * len(completions.last),
            strict=True,
        )
        return [
            {"prompt": prompts[row], "completion": text, "reference": example.completion, "reward": reward}
            | ({"references": list(example.references)} if example.alternatives else {})
            | ({"images": image_names(example)} if example.images else {})
            | ({"source": example.source} if example.source else {})
            | ({"teachers": dict(shares)} if shares else {})
            | ({"said": said} if said else {})
            | ({"dialogue": [line.plain() for line in lines]} if lines else {})
            for row, text, reward, shares, said, lines in told
            for example in [self.batch.examples[row]]
        ]

    def images(self) -> list[tuple[Picture, ...]]:
        """Return the images of the prompt of each row of `rows`."""
        return [self.batch.examples[row].images for row in Completions(self.sequences).prompts]

    def annotated(self, row: int) -> dict[str, Any]:
        """Return the tokens of a completion as texts, and the divergences between the models at each token that counts.

        The texts join to the completion; behind it may be a stop string, which is not judged. Of an episode they are
        those of the student's turns, one after another, and `turns` are the numbers of these.
        """
        completions = Completions(self.sequences)
        here = completions.places(row)
        numbers: dict[str, Any] = {name: _six_digits(values[here]) for name, values in self.divergences.items()}
        turns = completions.turns(row)
        parts = {k: [i for i, of in zip(self.generations.tokens[row], turns, strict=True) if of == k] for k in turns}
        texts = [text for ids in parts.values() for text in token_texts(ids, self.models.tokenizer)]
        return {"tokens": texts, **numbers} | ({"turns": turns} if self.lines else {})

    def _readings(self) -> tuple[Reading, ...]:
        """Return what each teacher reads; nothing of one that has ids of its own, or no model here."""
        asked = () if self.panel is None else self.panel.asks(self.models.teacher_names)
        if self.panel is None or not set(asked) & set(self.models.comparable):
            return ()
        readings = self.panel(self.sequences, self.context, self.models, self.step)
        return comparable(readings, len(self.sequences.prediction_index), self.models)

    def _read(
        self, readings: Sequence[Reading], metrics: Sequence[TokenMetric], *, with_logp: bool, annotate: bool
    ) -> tuple[dict[str, Tensor], Voices]:
        """Run the models over the completions, and update the metrics.

        Returns:
            The values asked for, [N] each, and who has read which tokens.
        """
        ids, models, device = self.sequences.token_ids(), self.models, self.sequences.input_ids.device
        of_one = {one.teacher: [m for m in metrics if m.teacher == one.teacher] for one in metrics if one.teacher}
        metrics = [one for one in metrics if not one.teacher]
        measured = {which: self._tokens_of(*which) for which in {(one.source, one.turn) for one in metrics}}

        def look(block: Block) -> tuple[dict[str, Tensor], None]:
            place, share = block.given["place"], block.given.get("share")
            student_logp = torch.log_softmax(block.student, -1)
            teacher_logp = None if block.teacher is None else torch.log_softmax(block.teacher, -1)
            written = ids[place]
            for metric in of_one.get(_speaker(block, speakers) if of_one else "", ()):
                _update(metric, student_logp, teacher_logp, written, None)
            for metric in metrics:
                if (of_source := measured[metric.source, metric.turn]) is None:
                    _update(metric, student_logp, teacher_logp, written, share)
                elif (here := of_source[place]).any():
                    others, parts = (None if one is None else one[here] for one in (teacher_logp, share))
                    _update(metric, student_logp[here], others, written[here] if metric.needs_ids else written, parts)
            if not (with_logp or annotate):
                return {}, None
            return _kept(student_logp, teacher_logp if annotate else None, written), None

        pool = self.panel.pool if self.panel is not None and readings else None
        told = voices_of(self.sequences, readings, type(self.panel).__name__, pool)
        voices = told.with_silence(device)
        asked = [(models.teacher_named(one.teacher), one.sequences) for one in readings]
        places = torch.arange(len(ids), device=device)
        speakers = [voice.teacher for voice in voices.voices]
        given = [
            {"place": (here := voice.of(places)), "speaker": torch.full_like(here, number), **_share(voice, places)}
            for number, voice in enumerate(voices.voices)
        ]
        readers = partial(voices.readers, readings, pool=pool)
        parts = panel_scores(look, given, self.sequences, models.student, asked, readers, chunk_rows=CHUNK_ROWS)
        return voices.joined(parts), told

    def _shares(self) -> list[dict[str, float]]:
        """Return of each row how much of it each of several teachers reads; nothing where one reads everything."""
        completions = Completions(self.sequences)
        if self.voices is None or len(self.voices.voices) == 1:
            return [{}] * len(completions.last)
        return completions.means(self.voices.shares(self.sequences))

    def _tokens_of(self, source: str, turn: int) -> Tensor | None:
        """Return [N] bool: the tokens that count in the rows of a data set, and in a turn; None for all."""
        if not source and not turn:
            return None
        rows = self.sequences.prompt_rows.tolist()
        here = torch.tensor([not source or self.batch.examples[row].source == source for row in rows], dtype=torch.bool)
        of_source = here.to(self.sequences.input_ids.device)[self.sequences.tokens()[1]]
        return of_source if not turn else of_source & (Completions(self.sequences).turn_of_tokens == turn)


def _kept(student_logp: Tensor, teacher_logp: Tensor | None, written: Tensor) -> dict[str, Tensor]:
    """Return the log-probabilities of the tokens, and with a teacher how far it is from the student, [n] each."""
    kept = {"student_logp": student_logp.gather(1, written[:, None])[:, 0]}
    if teacher_logp is not None:
        kept["teacher_logp"] = teacher_logp.gather(1, written[:, None])[:, 0]
        kept |= {name: of(student_logp, teacher_logp) for name, of in _DIVERGENCES.items()}
    return kept


def _speaker(block: Block, speakers: Sequence[str]) -> str:
    """Return the teacher of a block's rows; empty where it has none."""
    number = block.given["speaker"]
    return speakers[int(number[0])] if len(number) else ""


def _share(voice: Voice, places: Tensor) -> dict[str, Tensor]:
    """Return a teacher's share of each of its tokens, [M], by name; nothing where it is all of them."""
    return {} if voice.has_all else {"share": voice.weighed(torch.ones_like(voice.of(places), dtype=torch.float32))}


def _update(
    metric: TokenMetric, student_logp: Tensor, teacher_logp: Tensor | None, ids: Tensor, share: Tensor | None
) -> None:
    """Update a metric, but not one that compares with a teacher by tokens that no teacher reads."""
    if teacher_logp is not None or not metric.needs_teacher:
        weights = {} if share is None else {"weights": share}
        metric.update(student_logp, teacher_logp, *((ids,) if metric.needs_ids else ()), **weights)


_DIVERGENCES = {"forward_kl": forward_kl, "reverse_kl": reverse_kl}


def _six_digits(values: Tensor) -> list[float]:
    """Round to the six digits that float32 is good for."""
    return [float(f"{value:.6g}") for value in values.tolist()]

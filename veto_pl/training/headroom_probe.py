"""Whether a teacher has something to teach: who answers better, and how far the models are apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from veto_pl.core.sampling import Sampling
from veto_pl.data.collate import Collator, Encoded
from veto_pl.functional.chunked import Block
from veto_pl.functional.diagnostics import entropy, overlap
from veto_pl.functional.divergences import forward_kl, reverse_kl
from veto_pl.models.readout import row_scores
from veto_pl.rollouts import DecodeLoop, FromStudent, FromTeacher
from veto_pl.seams import Models, PlayingSource, PromptBatch, Sequences, Step
from veto_pl.training.evaluation import CHUNK_ROWS
from veto_pl.training.relay import relay

WRITERS = ("student", "teacher", "teacher behind the student")
"""Who writes: either model alone, or the teacher behind the beginning of what the student has written."""


@dataclass
class Headroom:
    """What was found on some prompts.

    Args:
        rewards: by writer, the mean reward of each prompt's completions, in one order of the prompts.
        distances: by name, the value at each token of the student's completions: `forward_kl`, `reverse_kl` and
            `entropy_gap`, the teacher's entropy minus the student's, in nats; `overlap_ratio`, the share of the 16
            likeliest ids that both have.
    """

    rewards: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in WRITERS})
    distances: dict[str, list[float]] = field(default_factory=dict)

    def mean(self, name: str) -> float:
        """Return the mean of a distance over tokens, NaN where there are none."""
        values = self.distances.get(name, [])
        return sum(values) / len(values) if values else float("nan")


@dataclass(frozen=True, kw_only=True)
class HeadroomProbe:
    """Lets both models answer the same prompts.

    Args:
        models: both models, on `device`.
        collator: pads the rows, and knows the task that scores answers.
        sampling: how both answer.
        share: of each completion of the student's that the teacher goes on from, in [0, 1); of episodes, of its turns.
        playing: whose episodes both play, from their beginning to their end; None for single answers.
        device: where the models are.
        precision: makes the context of a forward pass, such as autocast.
    """

    models: Models
    collator: Collator
    sampling: Sampling
    share: float = 0.5
    playing: PlayingSource | None = None
    device: torch.device
    precision: Callable[[], AbstractContextManager[None]]

    def look(self, batches: Iterable[Sequence[Encoded]]) -> Headroom:
        """Return what is found on all rows of the batches."""
        found = Headroom()
        for index, rows in enumerate(batches):
            prompts, step = self.collator.pad(rows).to(self.device), Step(index, index + 1)
            with torch.inference_mode(), self.precision():
                written_by = self._answers(rows, prompts, step) if self.playing is None else self._played(prompts, step)
                distances = token_distances(written_by[0], self.models)
            for name, written in zip(WRITERS, written_by, strict=True):
                found.rewards[name] += self._rewards(prompts, written)
            for name, values in distances.items():
                found.distances.setdefault(name, []).extend(values.tolist())
        return found

    def _rewards(self, prompts: PromptBatch, written: Sequences) -> list[float]:
        """Return the mean reward of each prompt's completions."""
        rewards = prompts.rewarded(written, self.models.tokenizer, required=True).rewards
        assert rewards is not None, "`rewarded` has just set them"
        of_last = rewards.double()[sorted(set(written.last_rows()))]
        per_prompt: list[float] = of_last.view(len(prompts), -1).mean(1).tolist()
        return per_prompt

    def _answers(self, rows: Sequence[Encoded], prompts: PromptBatch, step: Step) -> tuple[Sequences, ...]:
        """Return single answers of each writer."""
        by_student = FromStudent(self.sampling)(prompts, self.models, step)
        by_teacher = FromTeacher(self.sampling)(prompts, self.models, step)
        return by_student, by_teacher, self._continued(rows, prompts, by_student, step)

    def _played(self, prompts: PromptBatch, step: Step) -> tuple[Sequences, ...]:
        """Return the episodes of each writer; what the environment draws is the same in all."""
        assert self.playing is not None, "the caller has asked for it"
        teacher, whole = self.models.required_teacher(), self.playing.answering(self.sampling, DecodeLoop())
        by_student = whole(prompts, self.models, step)
        by_teacher = whole(prompts, replace(self.models, student=teacher), step)
        assert by_student.turn_ids is not None, "episodes have turns"
        assert by_student.episodes is not None, "and numbers"
        played: dict[int, int] = {}
        for episode, last in zip(by_student.episodes.tolist(), by_student.turn_ids.amax(1).tolist(), strict=True):
            played[episode] = max(last, played.get(episode, 0))
        first = {episode: int(self.share * turns) for episode, turns in played.items()}
        behind = self.playing.answering(self.sampling, relay(first))(prompts, self.models, step)
        return by_student, by_teacher, behind

    def _continued(self, rows: Sequence[Encoded], prompts: PromptBatch, by_student: Sequences, step: Step) -> Sequences:
        """Let the teacher write one end to the beginning of each completion of the student's."""
        beginnings = [ids[: int(self.share * len(ids))] for ids in by_student.completion_ids()]
        of = by_student.prompt_rows.tolist()
        longer = [
            replace(rows[prompt], prompt_ids=rows[prompt].prompt_ids + begun, completion_ids=[], number=number)
            for number, (prompt, begun) in enumerate(zip(of, beginnings, strict=True))
        ]
        left = self.sampling.max_new_tokens - int(self.share * self.sampling.max_new_tokens)
        once = replace(self.sampling, num_completions=1, max_new_tokens=left)
        ends = FromTeacher(once)(self.collator.pad(longer).to(self.device), self.models, step.aside("beginnings"))
        whole = [begun + end for begun, end in zip(beginnings, ends.completion_ids(), strict=True)]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=torch.int64) for row in whole], True)
        written = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in whole])[:, None]
        return Sequences.join(
            prompts.rows(by_student.prompt_rows),
            ids.to(self.device),
            written.to(self.device),
            prompts=prompts,
            prompt_rows=by_student.prompt_rows,
            ending=ends.ending,
            unjudged=ends.unjudged,
        )


def token_distances(sequences: Sequences, models: Models) -> dict[str, Tensor]:
    """Return how far the models are apart at each of N tokens, [N] each; the names are those of `Headroom.distances`.

    Collective where a model is sharded: call it on every rank.
    """

    def kernel(block: Block) -> tuple[dict[str, Tensor], None]:
        assert block.teacher is not None, "both models were given"
        student, teacher = (torch.log_softmax(logits, -1) for logits in (block.student, block.teacher))
        values = {"forward_kl": forward_kl(student, teacher), "reverse_kl": reverse_kl(student, teacher)}
        values["entropy_gap"] = entropy(teacher) - entropy(student)
        return values | {"overlap_ratio": overlap(student, teacher)["overlap_ratio"]}, None

    return row_scores(kernel, sequences, models.student, models.required_teacher(), chunk_rows=CHUNK_ROWS)

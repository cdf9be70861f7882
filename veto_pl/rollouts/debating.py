"""A debate while it is held: who has said what, who is out, and how sure each of the others is."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from veto_pl.core.sampling import Sampling
from veto_pl.data.format_strings import fill
from veto_pl.data.tokenising import tokenise
from veto_pl.functional.confidence import confidence_weights
from veto_pl.functional.stat import Stat
from veto_pl.parts.contexts import retold
from veto_pl.rollouts.sources import FromTeacher
from veto_pl.rollouts.student_turns import State
from veto_pl.seams import Engine, Models, PromptBatch, Step, Template

NO_ROOM, SILENT, CUT_OFF = "no room", "silent", "cut off"
"""Why an expert is out of a debate."""


@dataclass(frozen=True)
class Rules:
    """How a debate is held; `Debate` says what each setting means.

    Args:
        formats: the format strings `first`, `following`, `reading` and `entry`, by name.
        rounds: how often each expert writes.
        sampling: of a text.
        engine: what runs the experts.
        confidence: a regular expression with a group.
        temperature: of the weights.
        keep_cut: whether experts whose text had no end stay in.
        template: makes the texts of prompts; None takes that of the data.
    """

    formats: Mapping[str, str]
    rounds: int
    sampling: Sampling
    engine: Engine
    confidence: str
    temperature: float
    keep_cut: bool
    template: Template | None


@dataclass(frozen=True)
class Told:
    """What an expert is told in front of the student's turns.

    Args:
        prompts: one for each state that it is told of.
        places: of these states among the prompts.
    """

    prompts: PromptBatch
    places: Mapping[int, int]


class Debating:
    """The debates about D states among K experts, which are held in step: round by round, expert by expert.

    Args:
        rules: of the debate.
        names: the experts, by the names of the teachers.
        states: what the debates are about.
        prompts: the batch that the states belong to.
        models: with all teachers.
        step: names the random numbers.
    """

    def __init__(
        self,
        rules: Rules,
        names: Sequence[str],
        states: Sequence[State],
        prompts: PromptBatch,
        models: Models,
        step: Step,
    ) -> None:
        self.rules, self.names, self.states = rules, names, states
        self.prompts, self.models, self.step = prompts, models, step
        self.texts: list[dict[tuple[int, int], str]] = [{} for _ in states]
        self.out: list[dict[int, str]] = [{} for _ in states]

    def hold(self) -> None:
        """Let the experts speak. Collective: every rank calls it, and lets every teacher write equally often."""
        for number in range(1, self.rules.rounds + 1):
            shown = [self.transcript(state) for state in range(len(self.states))]
            for expert in range(len(self.names)):
                self._speak(expert, number, shown)

    def transcript(self, state: int) -> str:
        """Return what those who are in have said so far, in the order of rounds and experts."""
        said = self.texts[state]
        kept = [key for key in sorted(said) if key[1] not in self.out[state]]
        return "".join(self._entry(state, expert, number, said[number, expert]) for number, expert in kept)

    def those_with(self, expert: int) -> list[int]:
        """Return the states whose debates an expert is in."""
        return [state for state, out in enumerate(self.out) if expert not in out]

    def told(self, setting: str, expert: int, states: Sequence[int], shown: Sequence[str], number: int) -> PromptBatch:
        """Return what an expert is told of some states, as prompts whose examples say it too.

        Args:
            setting: the format: `first`, `following` or `reading`.
            expert: its place.
            states: their places.
            shown: the transcript of each of these.
            number: of the round.
        """
        if not states:
            return replace(self.prompts.rows(torch.zeros(0, dtype=torch.int64)), task=None)
        chosen = [self.states[state] for state in states]
        rows = self.prompts.rows(torch.tensor([state.prompt for state in chosen], dtype=torch.int64))
        numbers = torch.tensor([state.number for state in chosen], dtype=rows.numbers.dtype)
        texts = [
            self._filled(setting, place, expert, number, state=state.text, debate=text)
            for place, state, text in zip(states, chosen, shown, strict=True)
        ]
        # What holds all that was said stands alone; a conversation of the row would say it twice.
        examples = tuple(
            replace(example, conversation=None) if state.is_whole else example
            for example, state in zip(rows.examples, chosen, strict=True)
        )
        rows = replace(rows, numbers=numbers.to(rows.input_ids.device), examples=examples, task=None, following=())
        template, tells_more = self.rules.template, all(shown)
        told = retold(
            rows, texts, self.models.tokenizer, template, "Debate", tells_more=tells_more, images=self.models.images
        )
        named = zip(examples, texts, strict=True)
        return replace(told, examples=tuple(replace(example, prompt=text) for example, text in named))

    def leave_out_without_room(self, longest: Sequence[int]) -> None:
        """Leave experts out of debates that may come to more than their positions, before any is held.

        Args:
            longest: the longest turn of each state, in tokens.
        """
        bounds = [self.models.teacher_named(name).positions for name in self.names]
        if not self.states or all(bound is None for bound in bounds):
            return
        every, nothing = list(range(len(self.states))), [""] * len(self.states)
        told = [self.told(name, 0, every, nothing, 1) for name in ("first", "following", "reading")]
        lengths = torch.stack([batch.on_host.attention_mask.sum(1) for batch in told]).amax(0).tolist()
        (entry,) = tokenise([self._entry(0, 0, 1, "")], self.models.tokenizer)
        said = len(self.names) * self.rules.rounds * (self.rules.sampling.max_new_tokens + len(entry))
        for expert, bound in enumerate(bounds):
            needed = [said + length + turn for length, turn in zip(lengths, longest, strict=True)]
            self._leave_out(expert, [bound is not None and one > bound for one in needed], every, NO_ROOM)

    def leave_out_too_long(self, expert: int, states: Sequence[int], told: PromptBatch, behind: Sequence[int]) -> None:
        """Leave an expert out of those of some states in which `behind` more tokens do not fit behind what it is told.

        The room was checked before, but a text that is tokenised anew may have more tokens than it was written with.
        """
        bound = self.models.teacher_named(self.names[expert]).positions
        lengths = told.on_host.attention_mask.sum(1).tolist()
        too_long = [bound is not None and one + more > bound for one, more in zip(lengths, behind, strict=True)]
        self._leave_out(expert, too_long, states, NO_ROOM)

    def confidences(self) -> Tensor:
        """Return [D, K] float64 in [0, 1], what each expert has told last in its last text; NaN where it told none."""
        experts = range(len(self.names))
        told = [[self._confidence(state, expert) for expert in experts] for state in range(len(self.states))]
        return torch.tensor(told, dtype=torch.float64).view(-1, len(experts))

    def present(self) -> Tensor:
        """Return [D, K] bool: who is in."""
        experts = range(len(self.names))
        known = [[expert not in out for expert in experts] for out in self.out]
        return torch.tensor(known, dtype=torch.bool).view(-1, len(experts))

    def weights(self) -> Tensor:
        """Return [D, K] float64: the share of each expert in each debate; 0 for all where nobody is in."""
        return confidence_weights(self.confidences(), self.present(), self.rules.temperature)

    def notes(self, expert: int, state: int, weight: float) -> dict[str, Any]:
        """Return what a table shows of an expert in a debate: texts, confidence, weight, and why it is out."""
        said = [text for (_, speaker), text in sorted(self.texts[state].items()) if speaker == expert]
        told = self._confidence(state, expert)
        return {
            "texts": said,
            "confidence": None if math.isnan(told) else told,
            "weight": round(weight, 6),
            **({"out": self.out[state][expert]} if expert in self.out[state] else {}),
        }

    def metrics(self, expert: int, weights: Tensor) -> Mapping[str, Stat]:
        """Return an expert's mean weight and confidence, and how often it is out or tells none.

        Args:
            expert: its place.
            weights: [D, K] of the experts.
        """
        present, told = self.present()[:, expert], self.confidences()[:, expert]
        knows, held = present & ~told.isnan(), weights.sum(1) > 0
        counts = {
            "weight": (weights[held, expert].sum(), held.sum()),
            "left_out": ((~present).sum(), torch.tensor(len(present))),
            "unsure": ((present & told.isnan()).sum(), present.sum()),
            "confidence": (told[knows].sum(), knows.sum()),
        }
        device = self.prompts.input_ids.device
        return {name: Stat(*(one.float().to(device) for one in pair)) for name, pair in counts.items()}

    def _speak(self, expert: int, number: int, shown: Sequence[str]) -> None:
        """Let an expert write in a round, in all debates that it is in."""
        rules, name = self.rules, self.names[expert]
        setting, here = "first" if number == 1 else "following", self.those_with(expert)
        asked = self.told(setting, expert, here, [shown[state] for state in here], number)
        self.leave_out_too_long(expert, here, asked, [rules.sampling.max_new_tokens] * len(here))
        fits = [place for place, state in enumerate(here) if expert not in self.out[state]]
        if len(fits) < len(here):
            asked, here = asked.rows(torch.tensor(fits, dtype=torch.int64)), [here[place] for place in fits]
        source, step = FromTeacher(rules.sampling, rules.engine, name), self.step.aside(f"debate {number}")
        written = source(asked, self.models, step)
        texts = written.texts(self.models.tokenizer)
        ended = written.finished(self.models.ends_of(self.models.teacher_named(name))).tolist()
        for state, text in zip(here, texts, strict=True):
            self.texts[state][number, expert] = text
        self._leave_out(expert, [not text.strip() for text in texts], here, SILENT)
        if not rules.keep_cut:
            self._leave_out(expert, [not end for end in ended], here, CUT_OFF)

    def _leave_out(self, expert: int, which: Sequence[bool], states: Sequence[int], why: str) -> None:
        for state, left in zip(states, which, strict=True):
            if left:
                self.out[state].setdefault(expert, why)
        if any(which):
            rank_zero_warn(
                f"`Debate`: the teacher `{self.names[expert]}` is left out of some debates: {_REASONS[why]} "
                f"`train/{self.names[expert]}/left_out` counts them."
            )

    def _confidence(self, state: int, expert: int) -> float:
        """Return the last confidence of an expert's last text, over 100; NaN for none, or one above 100."""
        found = re.findall(self.rules.confidence, self.texts[state].get((self.rules.rounds, expert), ""))
        if not found:
            return math.nan
        last = found[-1] if isinstance(found[-1], str) else found[-1][0]
        try:
            percent = float(last)
        except ValueError:
            return math.nan
        return percent / 100 if 0 <= percent <= 100 else math.nan

    def _entry(self, state: int, expert: int, number: int, text: str) -> str:
        return self._filled("entry", state, expert, number, text=text)

    def _filled(self, setting: str, place: int, expert: int, number: int, **more: str) -> str:
        example = self.prompts.examples[self.states[place].prompt]
        known = {"expert": expert + 1, "experts": len(self.names), "round": number, "rounds": self.rules.rounds}
        example = replace(example, row={**example.row, **known, **more})
        return fill(f"Debate.{setting}", self.rules.formats[setting], example)


_REASONS = {
    NO_ROOM: "what it would read may be longer than its positions. Lower `Debate.sampling.max_new_tokens`.",
    SILENT: "it has written nothing.",
    CUT_OFF: "its text had no end within `Debate.sampling.max_new_tokens`. Raise that, or set `keep_cut`.",
}
"""What is wrong, for warnings."""

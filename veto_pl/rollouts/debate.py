"""Teachers debate, and the student learns from each as it reads their debate."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from veto_pl.core.bounds import CountFromZero, Positive
from veto_pl.core.sampling import Sampling
from veto_pl.data.format_strings import check_format
from veto_pl.exceptions import ConfigurationError
from veto_pl.parts.panels import Together
from veto_pl.rollouts.debating import Debating, Rules, Told
from veto_pl.rollouts.engines import DecodeLoop
from veto_pl.rollouts.student_turns import Turn, behind_told, turns_of
from veto_pl.seams import (
    Engine,
    Mistake,
    Models,
    Panel,
    Reading,
    Sequences,
    Setup,
    Step,
    TeacherContext,
    Template,
    Writing,
    reading,
)
from veto_pl.seams.teacher_names import setting_of

FORMATS = ("first", "following", "reading", "entry")
"""Settings that are format strings."""
LABEL = 16
"""Tokens that the label of a text takes, as plans assume."""


@dataclass(frozen=True)
class Debate(Panel):
    r"""The teachers debate what to answer, and then each of them reads the student's answer behind the debate.

    .. math:: L_t = \sum_k w_k\, L_t\big(p_k(\cdot \mid x, H, y_{<t})\big), \qquad
        w = \operatorname{softmax}(c / \tau)

    Nobody sees the student's answer before the debate H is over. In a round all teachers write, each behind the texts
    of the rounds before. The confidence :math:`c_k` in [0, 1] is the last one that a teacher's last text tells, in per
    cent. Where a teacher tells none, or one above 100, all weights of the debate are equal.

    A teacher that writes nothing, or no end, or whose positions may not hold the debate, is out of the debate: nobody
    reads its texts, and the weights are those of the others. A row that all are out of is not trained on. What a
    `context` tells, it tells behind the debate.

    Completions of one prompt share a debate. In rows of episodes every turn of the student has a debate of its own,
    behind all that it has read by then. Random numbers are functions of the step, the prompt's number, the completion
    and the turn, so that a debate does not depend on others. Without rounds the teachers read what `Together` lets them
    read, with equal weights.

    The prompts are format strings over the fields of the row and `{prompt}`, `{state}` (the prompt, or all that was
    read and written before a turn), `{debate}`, `{expert}` of `{experts}`, `{round}` of `{rounds}`; `entry` has
    `{text}`. The template of the data makes prompts of them.

    Args:
        teachers: the names of those who debate, in this order; empty for all teachers of the run.
        rounds: how often each of them writes.
        sampling: of the texts; `max_new_tokens` is for each.
        first: what a teacher is told in the first round.
        following: what it is told in the others.
        reading: what it is told in front of the student's answer.
        entry: a text with its label, as it stands in `{debate}`.
        confidence: a regular expression whose group is the confidence in per cent.
        temperature: tau.
        keep_cut: keep teachers in the debate whose text had no end.
        template: makes the texts of prompts; None takes the template of the data, which has to read `{prompt}`.
        engine: what runs the teachers.

    Raises:
        ConfigurationError: a format is malformed, leaves out the debate or cannot be filled, the expression has no
            group, several texts are asked for at once, or a teacher is named twice.

    References:
        arXiv 2605.01347
    """

    teachers: tuple[str, ...] = ()
    rounds: CountFromZero = 2
    sampling: Sampling = Sampling(temperature=0.7, top_p=0.8, top_k=20, max_new_tokens=1024)
    first: str = (
        "{state}\n\nYou are expert {expert} of {experts} in a debate about this. Say how you would answer, and why. "
        "On the last line write how sure you are, in per cent, like <<CONFIDENCE=75>>."
    )
    following: str = (
        "{state}\n\n{experts} experts debate this. So far they have said:\n\n{debate}"
        "You are expert {expert}, and this is round {round} of {rounds}. Judge the other answers and your own, and "
        "give the one that you now hold to be right. On the last line write how sure you are, in per cent, like "
        "<<CONFIDENCE=75>>."
    )
    reading: str = (
        "{state}\n\n{experts} experts have debated this:\n\n{debate}You are expert {expert}. Now give the final answer."
    )
    entry: str = "[Expert {expert}, round {round}]\n{text}\n\n"
    confidence: str = r"<<CONFIDENCE=(\d+)>>"
    temperature: Positive = 1.0
    keep_cut: bool = False
    template: Template | None = None
    engine: Engine = DecodeLoop()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in FORMATS:
            check_format(f"Debate.{name}", getattr(self, name))
        for name, needed in (("following", "{debate}"), ("reading", "{debate}"), ("entry", "{text}")):
            if needed not in getattr(self, name):
                raise ConfigurationError(f"`Debate.{name}` must show `{needed}`, got {getattr(self, name)!r}. Add it.")
        _check_expression(self.confidence)
        if self.sampling.num_completions != 1:
            raise ConfigurationError(
                f"`Debate.sampling.num_completions` must be 1, got {self.sampling.num_completions}: an expert writes "
                "one text in each round."
            )
        if len(set(self.teachers)) < len(self.teachers):
            raise ConfigurationError(f"`Debate.teachers` must name each teacher once, got {list(self.teachers)}.")

    @classmethod
    def examples(cls) -> tuple[Debate, ...]:
        short = Sampling(max_new_tokens=4)
        told: dict[str, Any] = {
            "first": "p>{state}",
            "following": "{debate}{state}",
            "reading": "{debate}o{state}",
            "entry": "{text}>",
        }
        return (
            cls(sampling=short, rounds=2, keep_cut=True, **told),
            cls(sampling=short, rounds=1, **told),
            cls(rounds=0),
        )

    def asks(self, named: Sequence[str]) -> tuple[str, ...]:
        return self.teachers or tuple(named)

    def requirements(self, setup: Setup, path: str) -> Iterator[Mistake]:
        """Check that the positions of each teacher may hold a debate."""
        said = self.beside(setup.teachers)
        for name in self.asks(setup.teachers):
            positions = getattr(setup.models.get(setting_of(name)), "max_position_embeddings", None)
            if isinstance(positions, int) and 0 < positions < said:
                yield Mistake(f"{path}.init_args.sampling.max_new_tokens", f"{self.sampling.max_new_tokens}, with "
                              f"which a debate may have {said} tokens", f"less than the {positions} positions of "
                              f"`{setting_of(name)}`", "Lower it, or `rounds`.")  # fmt: skip

    def writings(self, named: Sequence[str]) -> tuple[Writing, ...]:
        """Return the texts of all rounds, each behind those of the rounds before."""
        before = [self.beside(named) * number // max(self.rounds, 1) for number in range(self.rounds)]
        return tuple(
            Writing((name,), self.sampling, self.engine, beside=said) for said in before for name in self.asks(named)
        )

    def beside(self, named: Sequence[str]) -> int:
        """Return the tokens of a whole debate, if every text is as long as it may be."""
        return self.rounds * len(self.asks(named)) * (self.sampling.max_new_tokens + LABEL)

    def planned(self) -> Panel:
        return _Planned(self) if self.rounds else Together(dict.fromkeys(self.teachers, 1.0))

    @property
    def _rules(self) -> Rules:
        formats = {name: getattr(self, name) for name in FORMATS}
        how = (self.rounds, self.sampling, self.engine, self.confidence, self.temperature, self.keep_cut, self.template)
        return Rules(formats, *how)

    def __call__(
        self, sequences: Sequences, context: TeacherContext, models: Models, step: Step
    ) -> tuple[Reading, ...]:
        names = self.asks(models.teacher_names)
        if not self.rounds:
            return Together(dict.fromkeys(names, 1.0))(sequences, context, models, step)
        assert sequences.prompts is not None, "every source names the prompts that it has completed"
        states, turns = turns_of(sequences, models.tokenizer)
        longest = [max(turn.length for turn in turns if turn.state == place) for place in range(len(states))]
        debating = Debating(self._rules, names, states, sequences.prompts, models, step)
        debating.leave_out_without_room(longest)
        debating.hold()
        told = [_told(debating, expert, longest) for expert in range(len(names))]
        weights = debating.weights()
        return tuple(
            _reading(debating, expert, batch, weights, turns, sequences, context) for expert, batch in enumerate(told)
        )


@dataclass(frozen=True)
class _Planned(Panel):
    """As many texts as a debate may have, and readings as long as they may be, without any row.

    Args:
        debate: what is planned.
    """

    debate: Debate

    def asks(self, named: Sequence[str]) -> tuple[str, ...]:
        return self.debate.asks(named)

    def writings(self, named: Sequence[str]) -> tuple[Writing, ...]:
        return self.debate.writings(named)

    def beside(self, named: Sequence[str]) -> int:
        return self.debate.beside(named)

    def __call__(
        self, sequences: Sequences, context: TeacherContext, models: Models, step: Step
    ) -> tuple[Reading, ...]:
        names = self.asks(models.teacher_names)
        rows = _behind_blanks(sequences, self.beside(models.teacher_names))
        return Together(dict.fromkeys(names, 1.0))(rows, context, models, step)


def _told(debating: Debating, expert: int, longest: Sequence[int]) -> Told:
    """Return what an expert is told in front of the student's turns: a prompt for each state whose debate it is in."""
    here = debating.those_with(expert)
    shown = [debating.transcript(state) for state in here]
    told = debating.told("reading", expert, here, shown, debating.rules.rounds)
    debating.leave_out_too_long(expert, here, told, [longest[state] for state in here])
    return Told(told, {state: place for place, state in enumerate(here)})


def _reading(
    debating: Debating,
    expert: int,
    told: Told,
    weights: Tensor,
    turns: Sequence[Turn],
    sequences: Sequences,
    context: TeacherContext,
) -> Reading:
    """Return what an expert reads of the student's turns, with its weight in the debate of each."""
    name, kept = debating.names[expert], [turn for turn in turns if expert not in debating.out[turn.state]]
    if kept:
        rows = behind_told(told.prompts, kept, [told.places[turn.state] for turn in kept], sequences)
        shares = torch.cat([weights[turn.state, expert].float().expand(len(turn.places)) for turn in kept])
        read = context(rows, debating.models.taught_by(name), debating.step)
        one = Reading(name, read, torch.cat([turn.places for turn in kept]), shares)
    else:
        nothing = torch.zeros(0, dtype=torch.int64)
        one = reading(name, sequences, context, debating.models, debating.step, rows=nothing)
    said: list[list[Mapping[str, Any]]] = [[] for _ in range(len(sequences))]
    for turn in turns:
        share = float(weights[turn.state, expert])
        said[turn.row].append({"turn": turn.number, **debating.notes(expert, turn.state, share)})
    return replace(one, said=tuple(map(tuple, said)), metrics=debating.metrics(expert, weights))


def _behind_blanks(sequences: Sequences, count: int) -> Sequences:
    """Return rows with more tokens in front of the prompt, without meaning."""
    blank = sequences.input_ids.new_zeros(len(sequences), count)
    unread: dict[str, Any] = dict.fromkeys(("sampler_logp", "teacher_scores", "turn_ids"), None)
    return replace(
        sequences,
        input_ids=torch.cat([blank, sequences.input_ids], 1),
        attention_mask=torch.cat([blank == 0, sequences.attention_mask], 1),
        loss_mask=torch.cat([blank != 0, sequences.loss_mask], 1),
        **unread,
    )


def _check_expression(expression: str) -> None:
    """Raise `ConfigurationError` for a regular expression that is none, or that has no group."""
    try:
        groups = re.compile(expression).groups
    except re.error as error:
        raise ConfigurationError(
            f"`Debate.confidence` is no regular expression: {error}, in {expression!r}."
        ) from error
    if not groups:
        raise ConfigurationError(
            f"`Debate.confidence` needs a group for the number, such as (\\d+), got {expression!r}. Add one."
        )

"""The student talks to an environment."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from veto_pl.core.bounds import Count, Positive
from veto_pl.core.ranks import sum_over_ranks
from veto_pl.core.sampling import SEVERAL, Sampling
from veto_pl.core.transfer import sent
from veto_pl.environments import TryAgain
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.parts.schedules import value_at
from veto_pl.rollouts.beginnings import Beginning, behind_expert, from_front
from veto_pl.rollouts.concurrent_calls import answers_of
from veto_pl.rollouts.engines import DecodeLoop
from veto_pl.rollouts.environment_calls import ask
from veto_pl.rollouts.episode_rows import as_rollout, behind_contexts, written_turns
from veto_pl.rollouts.live_episodes import LiveEpisode, Room
from veto_pl.rollouts.student_turns import PLACES
from veto_pl.seams import (
    Engine,
    Environment,
    Episode,
    Line,
    Mistake,
    Models,
    PlayingSource,
    PromptBatch,
    Reply,
    Schedule,
    Sequences,
    Session,
    Setup,
    Step,
    Writing,
)


@dataclass(frozen=True)
class Played(PlayingSource):
    """The student plays episodes: it writes a turn, an environment replies, and so on.

    The template of the data shows the dialogue (`ChatTemplate`, or `PlainTemplate` for plain text). An episode is one
    row where the dialogue only grows, and begins a new row where the template shows earlier turns otherwise than they
    were written. What the student has written is never tokenised again; what the environment says never counts.

    An episode ends when the environment says so or says nothing, after `max_turns`, with a turn that is cut off, or
    when there is no room for another turn. The reward is the environment's, where it has one, and else the task's of
    the last turn. A reply that raises, or does not come in time, is a failed turn and the end of its episode; a reward
    that fails leaves the episode out of the training, and is 0 in evaluations. Both are warned of.

    Random numbers, those of the environment too, are functions of the step, the prompt's number, the completion and the
    turn. So a row does not depend on others, nor on the order in which replies come.

    Args:
        environment: replies.
        sampling: of each turn: `max_new_tokens` is the longest turn, `num_completions` the episodes of each prompt.
        max_turns: of the student in an episode. With one, and an environment that says nothing, it is `FromStudent`.
        max_tokens: the longest completion of a row: all turns and replies.
        engine: what runs the model.
        timeout: seconds that a reply may take.
        at_once: episodes that reply at a time.
        longest_reply: characters of a reply; what is beyond is left out, and the student reads how much that was.
        depth: a number k or a schedule, for a curriculum of TCOD; None for whole episodes.
        begin_at: `front`: the student plays the first k turns. `back`: an expert of the environment plays all but the
            last k of its turns, which the student reads, and the student goes on from there; all turns together are at
            most `max_turns`.

    References:
        arXiv 2604.24005 (`depth` and `begin_at`)
    """

    environment: Environment
    sampling: Sampling = Sampling()
    max_turns: Count = 8
    max_tokens: Count = 4096
    engine: Engine = DecodeLoop()
    timeout: Positive = 60.0
    at_once: Count = 32
    longest_reply: Count = 10_000
    depth: Count | Schedule | None = None
    begin_at: Literal["front", "back"] = "front"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens < self.sampling.max_new_tokens:
            raise ConfigurationError(
                f"`Played.max_tokens` is the length of all turns and replies: given {self.max_tokens}, expected at "
                f"least that of one turn, {self.sampling.max_new_tokens} (`Played.sampling.max_new_tokens`). Raise it."
            )

    @classmethod
    def examples(cls) -> tuple[Played, ...]:
        again = TryAgain(said="no>")
        short = cls(again, Sampling(max_new_tokens=4), max_tokens=7)
        return cls(again, SEVERAL, max_turns=3, max_tokens=256), cls(again, max_turns=1), short

    @property
    def brings_rewards(self) -> bool:  # type: ignore[override]
        """Whether the environment gives rewards."""
        return self.environment.gives_rewards

    def requirements(self, setup: Setup, path: str) -> Iterator[Mistake]:
        """Check that the template of the data shows dialogues."""
        template = setup.template
        if template is not None and not template.shows_dialogues:
            yield Mistake(
                "data.template", f"`{type(template).__name__}`", "`ChatTemplate`, or `PlainTemplate` for plain text",
                "`Played` has to show what an environment replies.",
            )  # fmt: skip

    def writings(self) -> tuple[Writing, ...]:
        """Return the student, whose completions may have the length of whole episodes."""
        return (Writing(("student",), replace(self.sampling, max_new_tokens=self.max_tokens), self.engine),)

    def answering(self, sampling: Sampling, engine: Engine | None) -> Played:
        room = max(self.max_tokens, sampling.max_new_tokens)
        whole = replace(self, sampling=sampling, max_tokens=room, depth=None, begin_at="front")
        return whole if engine is None else replace(whole, engine=engine)

    def __call__(self, prompts: PromptBatch, models: Models, step: Step) -> Sequences:
        return self.told(prompts, models, step)[0]

    def told(self, prompts: PromptBatch, models: Models, step: Step) -> tuple[Sequences, tuple[tuple[Line, ...], ...]]:
        begun = self._begin(prompts, models, step)
        try:
            episodes = self._opened(begun, prompts, models, step)
            with self.engine.session(models.student, models, on_policy=True) as session:
                written = self._first_turns(session, episodes, prompts, models, step)
                for turn in range(2, self.max_turns + 1):
                    playing = [one for one in episodes if one.is_live]
                    if not self._goes_on(bool(playing), prompts, models):
                        break
                    self._turn(session, playing, turn, prompts, models, step)
            rows = self._rows(episodes, prompts) if episodes else _no_rows(written, prompts)
            return rows, tuple(tuple(one.lines) for one in episodes)
        finally:
            ask(self, [one.episode.close for one in begun], "close")

    def _places(self, prompts: PromptBatch) -> list[tuple[int, int]]:
        """Return the prompt and the completion of every episode, in the order of the rows."""
        return [(prompt, copy) for prompt in range(len(prompts)) for copy in range(self.sampling.num_completions)]

    def _begin(self, prompts: PromptBatch, models: Models, step: Step) -> list[Beginning]:
        """Begin an episode for each completion of each prompt."""
        places = self._places(prompts)
        seeds = step.seeds("environment", _numbers(prompts, places))
        examples = [prompts.examples[prompt] for prompt, _ in places]
        begin, depth = partial(from_front, self.environment), self._depth(step)
        if depth is not None and self.begin_at == "back":
            begin = partial(behind_expert, self.environment, left=depth, longest=self.max_turns)
        calls = [partial(begin, one, seed) for one, seed in zip(examples, seeds, strict=True)]
        answers = answers_of(calls, timeout=self.timeout, at_once=self.at_once)
        for example, answer in zip(examples, answers, strict=True):
            if answer.value is None:
                raise DataError(
                    f"`{self._name}.begin` {answer.problem or 'returned None'}, for the row {example.prompt[:60]!r}. "
                    "Mend the environment, or leave out the row."
                )
        return [answer.value for answer in answers if answer.value is not None]

    def _opened(
        self, begun: Sequence[Beginning], prompts: PromptBatch, models: Models, step: Step
    ) -> list[LiveEpisode]:
        """Return the episodes with what the student reads first."""
        template = prompts.template
        if template is None:
            raise ConfigurationError("`Played` shows dialogues by the template of the data, but the batch has none.")
        tools, ends, known = self.environment.tools, frozenset(models.eos_ids), prompts.on_host
        ids = [row[mask].tolist() for row, mask in zip(known.input_ids, known.attention_mask, strict=True)]
        depth, episodes = self._depth(step), []
        most = self.max_turns if depth is None or self.begin_at == "back" else min(depth, self.max_turns)
        for number, ((prompt, copy), one) in enumerate(zip(self._places(prompts), begun, strict=True)):
            dialogue = template.dialogue(prompts.examples[prompt], models.tokenizer, tools, ends)
            places = (prompt, ids[prompt], copy, number, most - one.turns, one.opening, one.said)
            episodes.append(LiveEpisode(one.episode, dialogue, *places, shows_tools=bool(tools)))
        return episodes

    def _depth(self, step: Step) -> int | None:
        """Return k at this step, at least 1; None for whole episodes."""
        return None if self.depth is None else max(int(value_at(self.depth, step.index, step.total)), 1)

    def _first_turns(
        self, session: Session, episodes: Sequence[LiveEpisode], prompts: PromptBatch, models: Models, step: Step
    ) -> Sequences | None:
        """Let the student write the first turns, behind the prompts as they are where nothing else is said first.

        That is told prompt by prompt, so that a row does not depend on others.

        Returns:
            What was written behind the prompts as they are; None where there are none such.
        """
        opened = {one.prompt for one in episodes if one.opens}
        plain = torch.tensor([i for i in range(len(prompts)) if i not in opened], dtype=torch.int64)
        written = None
        if len(plain) or not opened or self._couples(models):
            asked, sampling = prompts.rows(plain) if opened else prompts, self.sampling.ending_with(prompts.stop)
            playing = [one for one in episodes if one.prompt not in opened]
            written = session.generate(asked, sampling, step, _names(playing), is_last=self.max_turns == 1)
            self._exchange(playing, written, 1, models)
        if opened or self._couples(models):
            self._turn(session, [one for one in episodes if one.prompt in opened], 1, prompts, models, step)
        return written

    def _turn(
        self,
        session: Session,
        playing: Sequence[LiveEpisode],
        turn: int,
        prompts: PromptBatch,
        models: Models,
        step: Step,
    ) -> None:
        """Let the student write a turn in each of these episodes, and the environment reply.

        Collective where a model is sharded or the engine couples ranks: call it on every rank.
        """
        self._check_room(playing, models)
        places = [(one.prompt, one.copy) for one in playing]
        asked = behind_contexts(prompts, [one.prompt for one in playing], [one.context for one in playing])
        asked = replace(asked, numbers=sent(_numbers(prompts, places), prompts.input_ids.device))
        sampling, aside = (
            replace(self.sampling.ending_with(prompts.stop), num_completions=1),
            step.aside(f"turn {turn}"),
        )
        written = session.generate(asked, sampling, aside, _names(playing), is_last=turn == self.max_turns)
        self._exchange(playing, written, turn, models)

    def _exchange(self, playing: Sequence[LiveEpisode], written: Sequences, turn: int, models: Models) -> None:
        """Tell the environment what was written, and the episodes what it replies."""
        for one, said in zip(playing, written_turns(written), strict=True):
            one.write(said, turn)
        whole = [one for one in playing if one.is_live]
        answers = ask(self, [partial(one.episode.reply, one.messages[-1]) for one in whole], "reply")
        room = Room(self.sampling.max_new_tokens, self.max_tokens, models.student.positions, self.longest_reply)
        for one, answer in zip(whole, answers, strict=True):
            if not (answer.problem or isinstance(answer.value, Reply)):
                raise ConfigurationError(f"`{self._name}`: `reply` must return a `Reply`, got {answer.value!r:.100}.")
            one.hear(answer, turn, room)

    def _rows(self, episodes: Sequence[LiveEpisode], prompts: PromptBatch) -> Sequences:
        """Return the rows of all episodes with their rewards."""
        answers = ask(self, [partial(_reward, one.episode) for one in episodes], "reward")
        for one, answer in zip(episodes, answers, strict=True):
            if answer.problem:
                one.leave_out(answer)
        worth = [0.0 if answer.problem else math.nan if answer.value is None else answer.value for answer in answers]
        rows = [row for one in episodes for row in one.rows]
        known = None if all(map(math.isnan, worth)) else [worth[row.episode] for row in rows]
        return as_rollout(rows, prompts, known)

    def _couples(self, models: Models) -> bool:
        """Return whether every rank has to run the model equally often."""
        return models.sharded or self.engine.couples_ranks

    def _goes_on(self, playing: bool, prompts: PromptBatch, models: Models) -> bool:
        """Return whether an episode goes on, on any rank if they are coupled: call it on every rank then."""
        if not self._couples(models):
            return playing
        return bool(sum_over_ranks(torch.tensor(float(playing), device=prompts.input_ids.device)) > 0)

    def _check_room(self, playing: Sequence[LiveEpisode], models: Models) -> None:
        """Raise `ConfigurationError` where what is said first leaves no room for a turn."""
        longest = max((len(one.context) for one in playing), default=0)
        positions = models.student.positions
        if positions is not None and longest + self.sampling.max_new_tokens > positions:
            raise ConfigurationError(
                f"What is read of `{self._name}` first comes to {longest} tokens with the prompt, and a turn to "
                f"{self.sampling.max_new_tokens} (`Played.sampling.max_new_tokens`), more than the {positions} "
                "positions of the student. Shorten the turns, or what is said."
            )

    @property
    def _name(self) -> str:
        return type(self.environment).__name__


def _names(playing: Sequence[LiveEpisode]) -> list[int]:
    """Return the number of each episode, by which an engine knows it again at its next turn."""
    return [one.row.episode for one in playing]


def _numbers(prompts: PromptBatch, places: Sequence[tuple[int, int]]) -> Tensor:
    """Return [R] int64 on the host: the number of each episode, a function of its prompt's and of the completion."""
    index = torch.tensor(places, dtype=torch.int64).view(-1, 2)
    return prompts.on_host.numbers[index[:, 0]] * PLACES + index[:, 1]


def _reward(episode: Episode) -> float | None:
    """Return an episode's reward; raise an error where it is no finite number."""
    reward = episode.reward()
    if reward is not None and not math.isfinite(reward):
        raise ValueError(f"{reward} is no finite number")
    return None if reward is None else float(reward)


def _no_rows(written: Sequences | None, prompts: PromptBatch) -> Sequences:
    """Return a rollout without rows, with the fields that those with rows have."""
    assert written is not None, "without episodes, the prompts are completed as they are"
    nobody = written.prompt_rows.long()
    turns = torch.zeros_like(written.input_ids)
    return replace(written, prompts=prompts, turn_ids=turns, episodes=nobody, failed_turns=nobody, late_turns=nobody)

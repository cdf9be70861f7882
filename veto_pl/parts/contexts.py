"""What the teacher reads."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from veto_pl.core.bounds import Finite
from veto_pl.core.nested import changed
from veto_pl.data.format_strings import can_fill, check_format, fill
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.differentiation import belongs
from veto_pl.parts.retelling import retold as retold  # plug-ins were told to import it from here
from veto_pl.seams import (
    Example,
    LanguageModel,
    Models,
    Objective,
    PromptBatch,
    Sequences,
    Step,
    TeacherContext,
    Template,
)

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class SameText(TeacherContext):
    """The text that the student read and wrote."""

    def __call__(self, sequences: Sequences, models: Models, step: Step) -> Sequences:
        return sequences

    @property
    def is_neutral(self) -> bool:
        """Return whether the call is still that of this class, which changes nothing."""
        return belongs(self, "is_neutral", "__call__")


@dataclass(frozen=True)
class Privileged(TeacherContext):
    """The student's completion behind a prompt that tells more, such as the reference answer.

    The example gets the filled hint for its prompt, and the template of the data makes a text of it. A teacher that
    starts as the student then teaches what the hint tells. How it goes on is the business of `model.teacher`: the
    student's own source is frozen at the start, `MovingAverage` of that source follows the student, and with `decay: 0`
    it is the student of the last step.

    Args:
        hint: a format string over `{prompt}`, the reference `{completion}` and the fields of the row, as in
            `PlainTemplate.format`.
        template: makes the text of the hinted prompt; None takes the template of the data, which has to read
            `{prompt}`.

    Raises:
        ConfigurationError: the hint is malformed, a row cannot fill it, or the template does not show it.

    References:
        arXiv 2601.18734
    """

    hint: str = (
        "{prompt}\n\nHere is a reference solution:\n\n{completion}\n\n"
        "Having understood it, solve the problem in your own words."
    )
    template: Template | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_format("Privileged.hint", self.hint)

    @classmethod
    def examples(cls) -> tuple["Privileged", ...]:
        return (cls("{completion}>{prompt}"),)

    def __call__(self, sequences: Sequences, models: Models, step: Step) -> Sequences:
        prompts = _prompts(sequences)
        texts = [fill("Privileged.hint", self.hint, example, **known(example)) for example in prompts.examples]
        told = retold(prompts, texts, models.tokenizer, self.template, "Privileged", images=models.images)
        told_rows = behind(told.rows(sequences.prompt_rows), sequences)
        check_room(told_rows, models.required_teacher(), "Privileged")
        return told_rows


@dataclass(frozen=True)
class Peer(TeacherContext):
    """The student's completion behind a prompt that shows a successful completion by another row, and feedback.

    A row without either keeps its prompt; `SDPO` leaves it out. The peer is the first other completion of the same
    prompt in the batch that is rewarded enough, so the rollout needs several completions of each prompt.

    Args:
        hint: a format string over `{prompt}`, `{peer}`, `{feedback}` and the fields of the row; the two are empty where
            there is none.
        peer: a format string for the peer, `{completion}` being its text.
        feedback: a format string over the fields of the row. Empty for no feedback, as for rows that lack a field.
        threshold: the reward from which a completion is successful.
        template: makes the text of the hinted prompt; None takes the template of the data, which has to read
            `{prompt}`.

    Raises:
        ConfigurationError: a format is malformed, a row cannot fill it, or the template does not show it.

    References:
        arXiv 2601.20802
    """

    hint: str = "{prompt}{peer}{feedback}\n\nSolve the problem correctly."
    peer: str = "\n\nA correct solution:\n\n{completion}"
    feedback: str = ""
    threshold: Finite = 0.5
    template: Template | None = None

    needs_rewards = True

    @property
    def compares_completions(self) -> bool:  # type: ignore[override]
        """Return whether the hint needs other completions of the prompt; feedback is there without a peer."""
        return not self.feedback

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hint", "peer", "feedback"):
            check_format(f"Peer.{name}", getattr(self, name))

    @classmethod
    def examples(cls) -> tuple["Peer", ...]:
        told = cls("{peer}{feedback}{prompt}", "{completion}>", "{prompt}")
        return told, cls("{peer}{prompt}", "{completion}>", threshold=0.0)

    def __call__(self, sequences: Sequences, models: Models, step: Step) -> Sequences:
        repeated = _prompts(sequences).rows(sequences.prompt_rows)
        spoken = sequences.texts(models.tokenizer)
        peers, comments = self.peers(sequences).tolist(), self._feedback_texts(sequences)
        texts = [
            self._hint_text(example, None if row < 0 else spoken[row], comment) if row >= 0 or comment else None
            for example, row, comment in zip(repeated.examples, peers, comments, strict=True)
        ]
        told = retold(repeated, texts, models.tokenizer, self.template, "Peer", images=models.images)
        told_rows = behind(told, sequences)
        check_room(told_rows, models.required_teacher(), "Peer")
        return told_rows

    def informed(self, sequences: Sequences) -> Tensor:
        """Return [B] bool: the rows with a peer or with feedback."""
        comments = torch.tensor([bool(text) for text in self._feedback_texts(sequences)], dtype=torch.bool)
        return (self.peers(sequences) >= 0) | comments.to(sequences.input_ids.device)

    def peers(self, sequences: Sequences) -> Tensor:
        """Return [B] int64: the row of another, successful completion of the same prompt; -1 where there is none."""
        assert sequences.rewards is not None, "a context with `needs_rewards` always gets them"
        return self.other_completion(sequences, sequences.rewards >= self.threshold)

    @staticmethod
    def other_completion(sequences: Sequences, chosen: Tensor, place: int = 0) -> Tensor:
        """Return [B] int64: of each row's prompt the row of another completion that is `chosen` ([B] bool).

        It is the one at the `place`, counted from 0; -1 where there are fewer.
        """
        rows = sequences.prompt_rows
        usable = (rows[:, None] == rows) & chosen
        numbers = torch.arange(len(rows), device=rows.device) if sequences.episodes is None else sequences.episodes
        usable = usable & (numbers[:, None] != numbers)
        found = (usable.cumsum(1) <= place).sum(1)
        return found.masked_fill(found == len(rows), -1)

    def _feedback_texts(self, sequences: Sequences) -> list[str]:
        examples = [_prompts(sequences).examples[i] for i in sequences.prompt_rows.tolist()]
        said = [self.feedback and can_fill(self.feedback, example) for example in examples]
        return [fill("Peer.feedback", self.feedback, e) if some else "" for e, some in zip(examples, said, strict=True)]

    def _hint_text(self, example: Example, completion: str | None, comment: str) -> str:
        peer = "" if completion is None else fill("Peer.peer", self.peer, example, completion=completion)
        return fill("Peer.hint", self.hint, example, peer=peer, feedback=comment)


def known(example: Example) -> dict[str, Any]:
    """Return what a hint may tell beside the fields of the row: the reference completion, if there is one."""
    return {} if example.completion is None else {"completion": example.completion}


def behind(prompts: PromptBatch, sequences: Sequences) -> Sequences:
    """Put the same completions, with what counts of them, behind other prompts ([B], one each).

    Raises:
        ConfigurationError: a row of a dialogue begins with more than its prompt, which would be lost.
    """
    _check_prompts(sequences)
    written = sequences.completion_mask
    width = int(written.sum(1).max()) if len(sequences) else 0
    order = written.int().argsort(dim=1, descending=True, stable=True)[:, :width]
    lived = written.gather(1, order)
    ids = sequences.input_ids.gather(1, order).masked_fill(~lived, 0)
    counted = torch.cat([torch.zeros_like(prompts.attention_mask), sequences.loss_mask.gather(1, order) & lived], 1)
    carried = {name: getattr(sequences, name) for name in ("on_policy", "ending", "unjudged", "episodes")}
    if sequences.turn_ids is not None:
        turns = sequences.turn_ids.gather(1, order).masked_fill(~lived, 0)
        carried["turn_ids"] = torch.cat([torch.zeros_like(prompts.input_ids), turns], 1)
    return Sequences.join(prompts, ids, lived, loss_mask=counted, **carried)


def _check_prompts(sequences: Sequences) -> None:
    """Raise `ConfigurationError` for rows of dialogues that were written behind something else than their prompts."""
    if sequences.turn_ids is None:
        return
    written = sequences.completion_mask
    read = (sequences.attention_mask & ~written).sum(1)
    expected = _prompts(sequences).attention_mask.sum(1)[sequences.prompt_rows]
    if bool(((read != expected) & written.any(1)).any()):
        raise ConfigurationError(
            "A context puts another prompt in front of a completion, but the agent has read more than the prompt: "
            "tools, what the environment says first, or earlier turns that the chat template shows anew. They would be "
            "lost. Use the context `SameText`."
        )


def check_room(rows: Sequences | PromptBatch, teacher: LanguageModel, name: str, new_tokens: int = 0) -> None:
    """Raise an error for rows that are too long for the teacher.

    Args:
        rows: what the teacher has to read, with a hint if there is one.
        teacher: who has to read it.
        name: of the class that has it read this, for messages.
        new_tokens: what is to be written behind each row.

    Raises:
        ConfigurationError: the teacher knows fewer positions.
    """
    positions = teacher.positions
    # Without padding perhaps no row is so long; nobody waits for the lengths as long as padding fits too.
    if positions is None or rows.input_ids.shape[1] + new_tokens <= positions:
        return
    longest = int(rows.attention_mask.sum(1).max()) + new_tokens
    if longest > positions:
        raise ConfigurationError(
            f"As `{name}` has the teacher read them, a prompt and its completion come to {longest} tokens, more than "
            f"the teacher's {positions} positions. Shorten them, or the hint, or take a teacher with more positions."
        )


def read_alike(objective: Objective) -> Objective:
    """Return the same objective, and its parts, with a teacher that reads what the student reads, without examples."""

    def alike(context: TeacherContext) -> TeacherContext:
        return context if context.is_neutral else SameText()

    return changed(objective, TeacherContext, alike)  # type: ignore[type-abstract]


def _prompts(sequences: Sequences) -> PromptBatch:
    assert sequences.prompts is not None, "every source names the prompts that it has completed"
    return sequences.prompts

"""A teacher reads its own way: prompts as its own template writes them, and ends as it writes them itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from veto_pl.core.special_ids import end_ids
from veto_pl.data.collate import Collator
from veto_pl.data.image_reader import ImageReader
from veto_pl.data.templates import PlainTemplate
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.own_ends import Ends
from veto_pl.parts.contexts import behind, check_room
from veto_pl.seams import Mistake, Models, PromptBatch, Sequences, Setup, Step, TeacherContext, Template, pad_left
from veto_pl.seams.teacher_names import TEACHER, listed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT_ALONE = "Use the context `SameText` or `WithoutImages`, or route rows with images to another teacher."
"""What to do where prompts would lose their images."""


@dataclass(frozen=True)
class OwnTemplate(TeacherContext):
    """The student's completion behind the prompt as the teacher's own template writes it.

    A teacher that is read in another model's template is asked something else than it was trained on. Prompts are made
    anew of their rows by the template of the data, as each teacher's own tokenizer fills it in: its chat template, its
    BOS. What the student has written stays what it is, token by token. Only its end is to the teacher the teacher's
    end: where their ids for it differ, they change places in the teacher's distribution.

    A teacher that writes prompts and ends as the student does reads the very rows that the student does. So does one of
    which prompts do not differ.

    Args:
        templates: by the name of a teacher, `teacher` for `model.teacher`: makes the text of its prompts in place of
            the template of the data, such as a `ChatTemplate` with a `system` message of its own.

    Raises:
        ConfigurationError: a template refuses a row, or cannot write the turns of a dialogue, or a row is too long for
            the teacher.
    """

    templates: Mapping[str, Template] = field(default_factory=dict, hash=False)

    tells_nothing = True

    @classmethod
    def examples(cls) -> tuple[OwnTemplate, ...]:
        return cls(), cls({TEACHER: PlainTemplate("a>{prompt}")})

    def __call__(self, sequences: Sequences, models: Models, step: Step) -> Sequences:
        template, tokenizer = self.templates.get(models.teacher_name), _tokenizer(models)
        if not len(sequences) or (template is None and writes_alike(tokenizer, models.tokenizer)):
            return sequences
        # Of these rows alone: another teacher's rows may be none that this template can write.
        mine, place = torch.unique(sequences.prompt_rows.cpu(), return_inverse=True)
        asked = None if sequences.prompts is None else sequences.prompts.rows(mine)
        told = prompts_written(asked, tokenizer, template, "OwnTemplate", models.images)
        if asked is None:
            return sequences
        same = _same(told, asked)
        if not (same and _writes_turns_alike(template, asked.template, tokenizer, models.tokenizer)):
            _check_single_turns(sequences)
        if same:
            return sequences
        told_rows = behind(told.rows(place), sequences)
        check_room(told_rows, models.required_teacher(), "OwnTemplate")
        return told_rows

    def ends(self, models: Models) -> Ends | None:
        own = end_ids(_tokenizer(models), models.required_teacher().model)
        ours = end_ids(models.tokenizer, models.student.model)
        return None if set(own) == set(ours) or not own or not ours else Ends(ours, own)

    def requirements(self, setup: Setup, path: str) -> Iterator[Mistake]:
        """Yield templates for teachers that the run does not have."""
        for name in self.templates:
            if name not in setup.teachers:
                yield Mistake(f"{path}.init_args.templates", f"a template for the teacher `{name}`",
                              f"names among {listed(setup.teachers)}", "Correct the name.")  # fmt: skip


def writes_alike(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Return whether two tokenizers of the same ids fill in every template alike, as far as they are the same."""
    mine, yours = ((of.chat_template, of.bos_token, of.eos_token, of.special_tokens_map) for of in (one, other))
    return one is other or mine == yours


def prompts_written(
    prompts: PromptBatch | None,
    tokenizer: PreTrainedTokenizerBase,
    template: Template | None,
    name: str,
    images: ImageReader | None = None,
) -> PromptBatch:
    """Return the prompts of the same rows in the ids of a tokenizer, whole, as it fills in a template.

    Args:
        prompts: of a rollout.
        tokenizer: of a teacher.
        template: makes the texts; None takes that of the data.
        name: of the class that asks, for messages.
        images: reads the images of rows, which stay what they are; None where the teacher has other ids for them.

    Raises:
        ConfigurationError: nobody can make them anew, or the template refuses a row.
    """
    template = prompts.template if template is None and prompts is not None else template
    if prompts is None or template is None or len(prompts.examples) < len(prompts):
        raise ConfigurationError(
            f"`{name}` has a teacher with another tokenizer or template, for which prompts must be made anew, but the "
            "batch has no template or no examples. Take batches of `PromptDataModule`, or a teacher with the student's "
            "tokenizer."
        )
    if images is None:
        prompts.refuse_images(f"`{name}` makes the text of a prompt anew, without images", TEXT_ALONE)
    collator = Collator(tokenizer=tokenizer, template=template, images=images)
    # References are not read, and need no end.
    asked = [one if one.conversation else replace(one, completion=None, alternatives=()) for one in prompts.examples]
    told = pad_left([torch.tensor(row.prompt_ids, dtype=torch.int64) for row in collator.encode(asked)])
    ids, mask = (part.to(prompts.input_ids.device) for part in told)
    return replace(prompts, input_ids=ids, attention_mask=mask)


def _tokenizer(models: Models) -> PreTrainedTokenizerBase:
    return models.brought.get(TEACHER, models.tokenizer)


def _same(told: PromptBatch, asked: PromptBatch) -> bool:
    """Return whether two batches hold the same prompts, whatever their padding."""
    rows = zip(told.input_ids, told.attention_mask, asked.input_ids, asked.attention_mask, strict=True)
    return all(torch.equal(ids[mask], others[other]) for ids, mask, others, other in rows)


def _writes_turns_alike(
    own: Template | None, ours: Template | None, tokenizer: PreTrainedTokenizerBase, shared: PreTrainedTokenizerBase
) -> bool:
    """Return whether a teacher's template, None for that of the data, writes what stands between turns as `ours`."""
    if ours is None or own not in (None, ours):
        return False
    return ours.chat_template(tokenizer) == ours.chat_template(shared)


def _check_single_turns(sequences: Sequences) -> None:
    """Raise `ConfigurationError` for dialogues: the student's template writes what stands between their turns."""
    if sequences.turn_ids is not None and sequences.turn_ids.numel() and int(sequences.turn_ids.max()) > 1:
        raise ConfigurationError(
            "`OwnTemplate` makes prompts anew, but these rows are dialogues: what stands between their turns is in the "
            "student's template, and the teacher would read two templates in one row. Use the context `SameText`, or a "
            "teacher with the student's chat template."
        )

"""What the teacher would do next, after every step of the student."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from veto_pl.core.sampling import Sampling
from veto_pl.exceptions import ConfigurationError
from veto_pl.rollouts.engines import DecodeLoop
from veto_pl.rollouts.sources import FromStudent, FromTeacher
from veto_pl.seams import Engine, Models, PromptBatch, RolloutSource, Sequences, Step, Writing, pad_left
from veto_pl.seams.rollouts import TEACHER


@dataclass(frozen=True)
class TeacherSteps(RolloutSource):
    r"""The student writes a completion, and the teacher one step of its own after each of the student's.

    .. math:: \tilde s_k \sim p_T(\cdot \mid x, s_1, \dots, s_{k-1}), \qquad k = 1, \dots, K

    Every step is a row: the prompt, what the student had written before, and the teacher's step, whose tokens alone
    count. The steps of the teacher never see each other. A step ends with the token that completes the separator, so a
    completion without one has a single step, and the teacher writes it whole.

    Args:
        student: writes the completions that are cut into steps; written once if the objective uses it too.
        sampling: how the teacher samples; its longest step, and how many steps it writes at each place.
        separator: the text that ends a step.
        engine: what runs the teacher.
        teacher: its name in `model.teachers`; `teacher` is `model.teacher`.

    Raises:
        ConfigurationError: a row would be longer than the teacher's positions.

    References:
        arXiv 2608.16333
    """

    student: FromStudent = FromStudent()
    sampling: Sampling = Sampling(temperature=0.0)
    separator: str = "\n\n"
    engine: Engine = DecodeLoop()
    teacher: str = TEACHER

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.separator:
            raise ConfigurationError("`TeacherSteps.separator` must not be empty, as every place would be a step.")

    @classmethod
    def examples(cls) -> tuple["TeacherSteps", ...]:
        return cls(separator="o"), cls(FromStudent(Sampling(num_completions=2)), Sampling(), "b")

    def __call__(self, prompts: PromptBatch, models: Models, step: Step) -> Sequences:
        written = models.rolled_out(self.student, prompts, step)
        begun = list(self._step_prefixes(written, models))
        rows = torch.tensor([row for row, _ in begun], dtype=torch.int64, device=prompts.input_ids.device)
        continued = written.prompt_rows[rows]
        asked = prompts.rows(continued)
        if begun:  # without any, the batch is empty, and sharded models run all the same
            ids, mask = (part.to(rows.device) for part in pad_left([text for _, text in begun]))
            asked = replace(asked, input_ids=ids, attention_mask=mask)
        self._check_room(asked, models)
        source = FromTeacher(self.sampling.ending_with((self.separator,)), self.engine, self.teacher)
        steps = source(asked, models, step)
        # Behind the prompts that were given, the student's part is completion too, and does not count.
        return replace(
            steps, prompts=prompts, prompt_rows=continued[steps.prompt_rows], by_teacher=steps.completion_mask,
            sampler_logp=None,
        )  # fmt: skip

    def delegates(self) -> tuple[RolloutSource, ...]:
        """Return none: the student's text is only cut into steps."""
        return ()

    def writings(self) -> tuple[Writing, ...]:
        """Return the teacher, behind what the student has written before; how many steps there are is not known."""
        longest = self.student.sampling.max_new_tokens + self.sampling.max_new_tokens
        return (Writing((self.teacher,), replace(self.sampling, max_new_tokens=longest), self.engine),)

    def _step_prefixes(self, written: Sequences, models: Models) -> Iterator[tuple[int, Tensor]]:
        """Yield the row of each step, and the ids in front of it: the prompt and the student's earlier steps."""
        for row, completion in enumerate(written.completions()):
            ids = written.input_ids[row, written.attention_mask[row]].cpu()
            pieces = models.tokenizer.batch_decode(completion[:, None])
            for start in step_starts(pieces, self.separator):
                yield row, ids[: len(ids) - len(completion) + start]

    def _check_room(self, asked: PromptBatch, models: Models) -> None:
        positions = models.teacher_named(self.teacher).positions
        longest = asked.input_ids.shape[1] + self.sampling.max_new_tokens
        if positions is not None and longest > positions:
            raise ConfigurationError(
                f"A prompt, what the student has written and `TeacherSteps.sampling.max_new_tokens` come to {longest} "
                f"tokens, more than the {positions} positions of the teacher. Lower the length of the student or of "
                "the teacher's steps."
            )


def step_starts(pieces: Sequence[str], separator: str) -> list[int]:
    """Return where steps begin: at 0, and behind each token that completes the separator and is not the last.

    Args:
        pieces: the text of each token.
        separator: the text that ends a step.

    Example:
        >>> step_starts(["a", ".", "b", "c.", "d"], ".")
        [0, 2, 4]
    """
    starts, text = [0], ""
    for place, piece in enumerate(pieces[:-1], 1):
        text += piece
        if separator in text:
            starts.append(place)
            text = ""
    return starts

"""Of several answers of the teacher, the one that is right and closest to what the student would say."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from veto_pl.core.bounds import Count
from veto_pl.core.sampling import SEVERAL, Sampling
from veto_pl.data.format_strings import check_format, fill
from veto_pl.functional.chunked import Block
from veto_pl.models.modes import sampling_mode
from veto_pl.models.readout import row_scores
from veto_pl.parts.contexts import behind, check_room, known, retold
from veto_pl.rollouts.engines import DecodeLoop
from veto_pl.rollouts.sources import FromStudent, FromTeacher
from veto_pl.seams import (
    Engine,
    LanguageModel,
    Models,
    PromptBatch,
    RolloutSource,
    Sequences,
    Step,
    Template,
    Writing,
)
from veto_pl.seams.teacher_names import TEACHER

CHUNK_ROWS = 256


@dataclass(frozen=True)
class BestTeacher(RolloutSource):
    r"""One completion of each prompt by the teacher, chosen by correctness first and closeness to the student second.

    The overlap of a completion y with the student's own rollout is the share of its tokens that are among the student's
    likeliest ids at the same place of that rollout:

    .. math:: o(y) = \frac{1}{|y|} \sum_t 1[y_t \in \mathrm{TopK}(p_S(\cdot \mid x, \hat y_{<t}))]

    A place that the rollout does not reach has no such ids. First, of the correct completions the one with the largest
    overlap is taken. Where none is correct, the teacher answers once more with the reference in its prompt, and the
    answer is taken, behind the plain prompt, if it is correct. Where that fails too, `fallback` decides. A completion
    is correct if the task's reward is 1; the rows carry the rewards.

    Args:
        sampling: how the teacher samples; `num_completions` are tried for each prompt.
        student: the student's own rollout, written once if the objective uses it too; the first completion of a prompt
            counts.
        top_k: the student's likeliest ids at each place.
        hint: a format string over `{prompt}`, the reference `{completion}` and the fields of the row for the second
            try. A prompt without a reference has none.
        template: makes the text of the hinted prompt; None takes the template of the data, which has to read
            `{prompt}`.
        fallback: `overlap` takes the completion with the largest overlap, though it is wrong; `skip` trains on nothing.
        engine: what runs the teacher.
        teacher: its name in `model.teachers`; `teacher` is `model.teacher`.

    Raises:
        ConfigurationError: the hint is malformed, a row cannot fill it, or the template of the data does not show it.

    References:
        arXiv 2605.09725
    """

    sampling: Sampling = Sampling(temperature=0.7, top_p=0.95, num_completions=4)
    student: FromStudent = FromStudent()
    top_k: Count = 16
    hint: str = (
        "{prompt}\n\n[For checking only, never to be mentioned: the answer is {completion}. Derive it from the problem "
        "alone, and look at it when you have an answer of your own.]"
    )
    template: Template | None = None
    fallback: Literal["overlap", "skip"] = "overlap"
    engine: Engine = DecodeLoop()
    teacher: str = TEACHER

    needs_rewards = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_format("BestTeacher.hint", self.hint)

    @classmethod
    def examples(cls) -> tuple["BestTeacher", ...]:
        return tuple(
            cls(SEVERAL, FromStudent(), top_k=3, hint="{completion}>{prompt}", fallback=fallback)
            for fallback in ("overlap", "skip")
        )

    def __call__(self, prompts: PromptBatch, models: Models, step: Step) -> Sequences:
        tried = FromTeacher(self.sampling, self.engine, self.teacher)(prompts, models, step)
        tried = prompts.rewarded(tried, models.tokenizer)
        own = models.rolled_out(self.student, prompts, step)
        own = replace(own, loss_mask=own.completion_mask)  # compared with all that the student wrote
        overlap = overlaps(tried, own, likeliest(models.student, own, self.top_k))
        best, correct = (values.view(-1, self.sampling.num_completions) for values in (overlap, _correct(tried)))
        # A correct completion comes before every other one, whatever the overlaps.
        chosen = (best + 2 * correct).argmax(1) + torch.arange(len(prompts), device=best.device) * best.shape[1]
        taken = replace(tried, sampler_logp=None).rows(chosen)
        failed = (~correct.any(1) & _has_reference(prompts)).nonzero()[:, 0]
        # Sharded models need every rank, whether it has failures or not.
        if len(failed) or models.sharded or not len(prompts):
            taken = self._second_try(taken, failed, prompts, models, step)
        if self.fallback == "skip":
            taken = replace(taken, loss_mask=taken.loss_mask & _correct(taken)[:, None])
        return taken

    def delegates(self) -> tuple[RolloutSource, ...]:
        """Return none: the student's text is only looked at."""
        return ()

    def writings(self) -> tuple[Writing, ...]:
        return (Writing((self.teacher,), self.sampling, self.engine, chooses=True),)

    def _second_try(
        self, taken: Sequences, failed: Tensor, prompts: PromptBatch, models: Models, step: Step
    ) -> Sequences:
        """Replace the rows `failed` ([F] int64) by correct answers of a teacher who knows the reference.

        Rows for which it gives none stay as they are.
        """
        plain = prompts.rows(failed)
        texts = [fill("BestTeacher.hint", self.hint, e, **known(e)) for e in plain.examples]
        told = retold(plain, texts, models.tokenizer, self.template, "BestTeacher", images=models.images)
        check_room(told, models.teacher_named(self.teacher), "BestTeacher", self.sampling.max_new_tokens)
        again = FromTeacher(replace(self.sampling, num_completions=1), self.engine, self.teacher)
        answers = again(told, models, step.aside("second try"))
        answers = plain.rewarded(behind(plain, answers), models.tokenizer)
        right = _correct(answers)
        answers = answers.rows(right).continuing(prompts, failed)
        kept = taken.rows(~torch.isin(taken.prompt_rows, answers.prompt_rows))
        return Sequences.concatenate([kept, answers]).in_prompt_order()


def likeliest(model: LanguageModel, sequences: Sequences, k: int) -> Tensor:
    """Return the model's k likeliest ids at each completion token, [N, K] int64; all ids where they are fewer."""
    k = min(k, model.vocab_size)

    def kernel(block: Block) -> tuple[dict[str, Tensor], None]:
        ids = block.student.topk(k, -1).indices
        return {str(place): ids[:, place] for place in range(k)}, None

    with sampling_mode(model):
        found = row_scores(kernel, sequences, model, chunk_rows=CHUNK_ROWS)
    return torch.stack(list(found.values()), 1)


def overlaps(tried: Sequences, own: Sequences, ids: Tensor) -> Tensor:
    """Compute the share of each completion's tokens that are among the ids of its prompt's first row in `own`, [R].

    Args:
        tried: R completions.
        own: the student's rollout of the same prompts.
        ids: [N, K] the student's likeliest ids at each completion token of `own`.
    """
    rows = torch.split(ids, own.predictions.sum(1).tolist())
    first = dict(reversed(list(zip(own.prompt_rows.tolist(), rows, strict=True))))
    shares = [torch.zeros(0, device=ids.device)]
    for prompt, completion in zip(tried.prompt_rows.tolist(), tried.completions(), strict=True):
        length = min(len(first[prompt]), len(completion))
        hits = (completion[:length, None] == first[prompt][:length]).any(1).sum()
        shares.append(hits.float()[None] / max(len(completion), 1))
    return torch.cat(shares)


def _has_reference(prompts: PromptBatch) -> Tensor:
    """Return [B] bool: the prompts with a reference that can be shown."""
    shown = [bool(known(example)) for example in prompts.examples] or [False] * len(prompts)
    return torch.tensor(shown, dtype=torch.bool, device=prompts.input_ids.device)


def _correct(sequences: Sequences) -> Tensor:
    """Return [B] bool: the sequences whose reward is 1."""
    assert sequences.rewards is not None, "rows are rewarded before they are chosen from"
    return sequences.rewards == 1

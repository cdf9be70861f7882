"""What is written down of the rows of a rollout whose loss or gradient is not finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from veto_pl.data.shown_prompts import image_names, shown_prompts
from veto_pl.seams import Faults, LossOutput, PromptBatch, Rollouts, Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def reports_of(
    batch: PromptBatch, rollouts: Rollouts, output: LossOutput, tokenizer: PreTrainedTokenizerBase
) -> Callable[[], list[dict[str, Any]]]:
    """Return what reports the rows of a micro-batch; it holds them without the scores of a stored teacher."""
    kept = [
        (
            batch if rows.prompts is None else rows.prompts,
            replace(rows, teacher_scores=None),
            output.faults.get(source),
            type(source).__name__,
        )
        for source, rows in rollouts.items()
    ]
    return lambda: [report for part in kept for report in row_reports(*part, tokenizer)]


def row_reports(
    prompts: PromptBatch, rows: Sequences, faults: Faults | None, rollout: str, tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """Return each row as it is written down; `not_finite` is empty for a row that is not to blame."""
    marks = {} if faults is None else {"loss": faults.loss.tolist(), "gradient": faults.gradient.tolist()}
    behind = rows.completion_mask
    before = rows.attention_mask & ~behind
    numbers = prompts.numbers[rows.prompt_rows].tolist()
    with_images = {i for i, example in enumerate(prompts.examples) if example.images}
    shown = shown_prompts(prompts, tokenizer) if with_images else []
    described = []
    for i, (number, of) in enumerate(zip(numbers, rows.prompt_rows.tolist(), strict=True)):
        prompt, completion = (rows.input_ids[i][mask[i]].tolist() for mask in (before, behind))
        described.append({
            "row": number,
            "not_finite": [name for name, marked in marks.items() if marked[i]],
            "prompt": shown[of] if of in with_images else tokenizer.decode(prompt),
            "completion": tokenizer.decode(completion),
            "rollout": rollout,
            "prompt_ids": prompt,
            "completion_ids": completion,
        } | ({"images": image_names(prompts.examples[of])} if of in with_images else {})
          | ({} if rows.turn_ids is None else {"turn_ids": rows.turn_ids[i][behind[i]].tolist()}))  # fmt: skip
    return described

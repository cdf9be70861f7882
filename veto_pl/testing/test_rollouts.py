"""Every installed source of rollouts on tiny models: what its rows are made of, and what they may depend on."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from veto_pl.core.memory import remembers
from veto_pl.core.sampling import SEVERAL
from veto_pl.plugins import load_plugins
from veto_pl.rollouts import FromStudent
from veto_pl.seams import Ending, Engine, Law, Models, RolloutSource, Sequences, Step
from veto_pl.seams.row_fields import layout
from veto_pl.testing.examples import installed, shortened
from veto_pl.testing.rows import (
    TOTAL,
    beginning,
    contents,
    difference,
    global_numbers,
    global_seed,
    run,
    tiny_prompts,
    unpadded,
    written,
)
from veto_pl.testing.tiny import tiny_models

load_plugins()

STEP = Step(3, TOTAL)
SOURCES = installed(RolloutSource)


def by_engine(*, promised: bool = False) -> list[Any]:
    """Return the student by every engine, for which the laws of sources hold too; by those that promise splits."""
    return [
        pytest.param(FromStudent(shortened(SEVERAL), engine), id=f"FromStudent-{type(engine).__name__}")
        for engine in installed(Engine)
        if not promised or Law.SPLIT_INVARIANT in engine.laws
    ]


SPLITS = [[[0], [1], [2], [3]], [[3, 1, 0], [2]]]
TYPES = {
    "input_ids": torch.int64, "attention_mask": torch.bool, "loss_mask": torch.bool, "prompt_rows": torch.int64,
    "on_policy": torch.bool, "sampler_logp": torch.float32, "rewards": torch.float32, "by_teacher": torch.bool,
    "age": torch.float32, "ending": torch.int64, "unjudged": torch.int64, "engine_log_ratio": torch.float32,
    "unanswered": torch.bool, "turn_ids": torch.int64, "episodes": torch.int64,
    "failed_turns": torch.int64, "late_turns": torch.int64,
}  # fmt: skip
REQUIRED = tuple(TYPES)[:5]


def name(instance: object) -> str:
    """Return the name of a test case: that of its class."""
    return type(instance).__name__


WITHOUT_MEMORY = [source for source in SOURCES if not remembers(source)]
each = pytest.mark.parametrize("source", [*SOURCES, *by_engine()], ids=name)
each_without_memory = pytest.mark.parametrize("source", [*WITHOUT_MEMORY, *by_engine(promised=True)], ids=name)


@pytest.fixture(scope="module")
def models() -> Models:
    """Return models with absolute positions, so that misplaced padding shows, and dropout, which must not be used."""
    return tiny_models("gpt2")


@each
def test_fields_have_their_shapes_and_types(source: RolloutSource, models: Models) -> None:
    """Check that the fields have the shapes and types that `Sequences` describes."""
    for _, rows in written(source, models):
        check_fields(rows)
        assert (rows.teacher_scores is not None) == source.stored_teacher, (
            "`stored_teacher` must say whether the rows have `teacher_scores`."
        )


def check_fields(rows: Sequences) -> None:
    """Assert the type and shape of every tensor."""
    for field, how in layout(Sequences).items():
        value = getattr(rows, field)
        if field == "teacher_scores" or (value is None and field not in REQUIRED):
            continue
        assert isinstance(value, Tensor), f"`{field}` must be a tensor, got {value!r}."
        dtype, shape = TYPES[field], tuple(rows.input_ids.shape)[: how["axes"]]
        assert (value.dtype, tuple(value.shape)) == (dtype, shape), (
            f"`{field}` must be {dtype} of shape {shape}, got {value.dtype} of shape {tuple(value.shape)}."
        )
        assert not value.requires_grad, f"`{field}` must not have a gradient."


@each
def test_what_is_written_is_what_the_source_says_of_its_writings(source: RolloutSource, models: Models) -> None:
    """Check that completions are no longer than `writings` says, on which plans and checks rely."""
    writings = source.writings()
    assert writings, "`writings` must say of one way at least in which the source completes prompts, got none."
    assert source.stored_teacher == any(writing.stored is not None for writing in writings)
    references = max(batch.completion_ids.shape[1] for batch in (tiny_prompts(models, turn) for turn in range(2)))
    longest = max(references if one.sampling is None else one.sampling.max_new_tokens for one in writings)
    for _, rows in written(source, models):
        length = int(rows.completion_mask.sum(1).max()) if len(rows) else 0
        assert length <= longest, f"A completion has {length} tokens, but `writings` knows of {longest} at most."


@each
def test_rows_name_the_prompts_that_they_continue(source: RolloutSource, models: Models) -> None:
    """Check that rows follow the order of the batch's prompts; rows of a memory may have other prompts."""
    for batch, rows in written(source, models):
        assert rows.prompts is not None, "`prompts` must be the batch that `prompt_rows` points into, got None."
        named, count = rows.prompt_rows, len(rows.prompts)
        assert ((named >= 0) & (named < count)).all(), (
            f"`prompt_rows` must point into the {count} rows of `prompts`, got {named.tolist()}."
        )
        if not remembers(source):
            assert rows.prompts is batch, "`prompts` must be the batch that the source was given."
            assert (named.diff() >= 0).all(), (
                f"Rows must be in the order of the prompts (see `Sequences.in_prompt_order`), got {named.tolist()}."
            )


@each
def test_each_row_is_a_prompt_and_the_completion_behind_it(source: RolloutSource, models: Models) -> None:
    """Check that each row without padding is its prompt and then its completion, whether or not that counts.

    A row that begins with a later turn of an episode stands behind what the agent has read until then.
    """
    for _, rows in written(source, models):
        assert rows.prompts is not None
        assert not (rows.loss_mask & ~rows.attention_mask).any(), "`loss_mask` must be False on padding."
        if rows.by_teacher is not None:
            assert not (rows.by_teacher & ~rows.completion_mask).any(), "`by_teacher` must be False off the completion."
        later = begins_later(rows)
        for row, (ids, counts, prompt) in enumerate(
            zip(unpadded(rows, "input_ids"), unpadded(rows, "loss_mask"), asked(rows), strict=True)
        ):
            if later[row]:
                continue
            assert torch.equal(ids[: len(prompt)], prompt), (
                f"Row {row} must begin with the ids of its prompt, {prompt.tolist()}, got {ids.tolist()}."
            )
            assert not counts[: len(prompt)].any(), (
                f"Nothing of the prompt of row {row} may count, which has {len(prompt)} tokens, got the `loss_mask` "
                f"{counts.int().tolist()}."
            )


def begins_later(rows: Sequences) -> list[bool]:
    """Return for each row whether it begins with a later turn of an episode than the first."""
    if rows.turn_ids is None:
        return [False] * len(rows)
    return [int(turns[turns > 0].min()) > 1 if (turns > 0).any() else False for turns in rows.turn_ids]


@each
def test_what_is_said_of_an_end_is_true_of_the_row(source: RolloutSource, models: Models) -> None:
    """Check that a known `ending` is EOS if and only if the last token is, and that `unjudged` is in its range."""
    ends = torch.tensor(models.eos_ids)
    for _, rows in written(source, models):
        unjudged = [0] * len(rows) if rows.unjudged is None else rows.unjudged.tolist()
        texts = models.tokenizer.batch_decode(rows.completions(), skip_special_tokens=True) if len(rows) else []
        for row, (ids, why) in enumerate(zip(rows.completions(), _endings(rows), strict=True)):
            with_eos = bool(len(ids)) and bool(torch.isin(ids[-1], ends))
            assert why == Ending.UNKNOWN or (why == Ending.EOS) == with_eos, (
                f"Row {row} says that it ends with {why.name}, but its tokens are {ids.tolist()} and EOS is one of "
                f"{ends.tolist()}."
            )
            most = len(texts[row]) if why == Ending.STOP else 0
            assert 0 <= unjudged[row] <= most, (
                f"`unjudged` of row {row}, which ends with {why.name}, must lie between 0 and {most}, the characters "
                f"of a text that a stop string has ended, got {unjudged[row]}."
            )


def _endings(rows: Sequences) -> list[Ending]:
    """Return why each row ends, `UNKNOWN` where the source does not say."""
    return [Ending.UNKNOWN] * len(rows) if rows.ending is None else [Ending(why) for why in rows.ending.tolist()]


def asked(rows: Sequences) -> list[Tensor]:
    """Return the ids of each row's prompt."""
    assert rows.prompts is not None
    prompts = rows.prompts.rows(rows.prompt_rows)
    return [ids[mask] for ids, mask in zip(prompts.input_ids, prompts.attention_mask, strict=True)]


@each
def test_the_samplers_log_probabilities_are_those_of_the_completion(source: RolloutSource, models: Models) -> None:
    """Check that the sampler's log-probabilities belong to the completion's tokens, and are 0 elsewhere."""
    for _, rows in written(source, models):
        logp = rows.sampler_logp
        if logp is None:
            continue
        assert logp.isfinite().all(), f"`sampler_logp` must be finite, got {logp[~logp.isfinite()].tolist()}."
        # A distribution sums to 1 up to rounding.
        assert logp.max() <= 1e-5, f"`sampler_logp` must be at most 0, got {float(logp.max())}."
        assert (logp[~rows.completion_mask] == 0).all(), "`sampler_logp` must be 0 off the completion."


@each
def test_no_prompts_give_no_rows(source: RolloutSource, models: Models) -> None:
    """Check that no prompts give no rows, also with a filled memory, as a rank may have none at a step."""
    models = beginning(source, models)
    for index in range(3):
        nobody = tiny_prompts(models).rows(torch.arange(0))
        rows = source(nobody, models, Step(index, TOTAL))
        assert len(rows) == 0, f"A batch without prompts must give no rows, got {len(rows)}."
        check_fields(rows)
        models.memories.end_step()
        list(run(source, models, [index]))


@each_without_memory
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_a_row_does_not_depend_on_the_other_prompts(
    source: RolloutSource, models: Models, split: list[list[int]]
) -> None:
    """Check that a prompt gets the same completions in any batch; `PromptBatch.numbers` identifies it."""
    batch = tiny_prompts(models)
    whole = source(batch, models, STEP)
    for prompts in split:
        part = source(batch.rows(torch.tensor(prompts)), models, STEP)
        for place, prompt in enumerate(prompts):
            found = difference(whole.rows(whole.prompt_rows == prompt), part.rows(part.prompt_rows == place))
            assert not found, (
                f"Prompt {prompt} was completed in another way when it came with the prompts {prompts} only: {found}. "
                "Random numbers must be functions of `prompts.numbers`, as those of `step.uniform` are."
            )


@each
def test_the_same_step_gives_the_same_rows(source: RolloutSource, models: Models) -> None:
    """Check that a step gives the same rows for any global seed; what it remembers counts from the next one on."""
    models = beginning(source, models)
    batch = tiny_prompts(models)
    for index in range(4 if remembers(source) else 1):
        step = Step(index, TOTAL)
        with global_seed(0):
            first = source(batch, models, step)
        source(tiny_prompts(models, 1), models, replace(step, micro=1))
        with global_seed(1):
            again = source(batch, models, step)
        found = difference(first, again)
        assert not found, (
            f"Step {index} gave other rows when it was repeated: {found}. Random numbers must come from `step`, and "
            "what is remembered must not count before `Memory.end_step`."
        )
        models.memories.end_step()


@each
@pytest.mark.parametrize("other", [{"index": 4}, {"seed": 1}], ids=str)
def test_another_step_draws_other_numbers(source: RolloutSource, models: Models, other: dict[str, int]) -> None:
    """Check that a source that samples draws other completions at another step or with another seed."""
    first = source(tiny_prompts(models), beginning(source, models), STEP)
    if first.sampler_logp is None or first.sampler_logp.sum() > -5:
        return
    again = source(tiny_prompts(models), beginning(source, models), replace(STEP, **other))
    assert difference(first, again), f"The step with {other} must draw other numbers than {STEP}, got the same rows."


@each
def test_the_global_generators_are_left_alone(source: RolloutSource, models: Models) -> None:
    """Check that a rollout does not advance the global generators, which dropout and data order use."""
    before = global_numbers()
    written(source, models)
    assert global_numbers() == before, (
        "The generators of torch, numpy or Python were used. Take `step.uniform` or `step.generator`."
    )


@each
def test_models_and_prompts_are_left_alone(source: RolloutSource, models: Models) -> None:
    """Check that a rollout changes no weights, gradients, modes or prompts."""
    models = beginning(source, copy.deepcopy(models))
    batch = tiny_prompts(models)
    models.required_teacher().train()
    models.student.model.base_model.eval()
    before, prompts = condition(models), contents(batch)
    source(batch, models, STEP)
    for part, now in condition(models).items():
        assert now == before[part], (
            f"The source must leave `{part}` as it was (see `sampling_mode`): {before[part]} became {now}."
        )
    assert contents(batch) == prompts, "The source must not change the prompts in place."


def condition(models: Models) -> dict[str, Any]:
    """Return what a source must not change: modes, gradients and weights of the models."""
    found: dict[str, Any] = {"torch.is_grad_enabled()": torch.is_grad_enabled()}
    for role in ("student", "teacher", "reference"):
        model = getattr(models, role)
        found |= {f"{role} {key}.training": module.training for key, module in model.named_modules()}
        for key, weight in model.named_parameters():
            found[f"{role} {key}.requires_grad"] = weight.requires_grad
            found[f"{role} {key}.grad"] = None if weight.grad is None else "a gradient"
            found[f"{role} {key}"] = f"weights of sum {float(weight.detach().double().sum())}"
    return found


@each
def test_models_are_read_without_dropout(source: RolloutSource, models: Models) -> None:
    """Check that a rollout with models in training mode uses no dropout."""
    trained, evaluated = copy.deepcopy(models), copy.deepcopy(models)
    for model in (trained.student, trained.required_teacher()):
        model.train()
    for model in (evaluated.student, evaluated.required_teacher()):
        model.eval()
    one, other = (source(tiny_prompts(models), beginning(source, them), STEP) for them in (trained, evaluated))
    found = difference(one, other)
    assert not found, f"Models in training mode gave other rows, so dropout was on (see `sampling_mode`): {found}."

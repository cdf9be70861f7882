"""The laws of rollout sources can fail: each is broken by somebody, who is reported."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.seams import RolloutSource, Sequences, Step
from veto_pl.testing import test_rollouts as laws
from veto_pl.testing import test_turns as laws_of_turns
from veto_pl.testing.rows import TOTAL, tiny_prompts
from veto_pl.testing.tiny import tiny_models

sampled = FromStudent(Sampling(max_new_tokens=4, num_completions=2))


@dataclass(frozen=True)
class _Source(RolloutSource):
    """Writes as it is told."""

    write: Callable

    def __call__(self, prompts, models, step):
        return self.write(prompts, models, step)


@dataclass(frozen=True)
class _Longer(_Source):
    """Says that it writes a token at most, and writes more."""

    def writings(self):
        return (replace(sampled.writings()[0], sampling=Sampling(max_new_tokens=1)),)


@dataclass(frozen=True)
class _Stored(_Source):
    """Says that it has scores, and has none."""

    stored_teacher = True


def after(change):
    """What the student writes, changed."""
    return _Source(lambda *given: change(sampled(*given)))


def with_field(name, value):
    return after(lambda rows: replace(rows, **{name: value(rows)}))


def disturbing(act):
    """Writes well, and does something beside."""

    def write(prompts, models, step):
        rows = sampled(prompts, models, step)
        act(prompts, models)
        return rows

    return _Source(write)


def endless(prompts, models, step):
    ends = torch.full((len(prompts), 2), models.tokenizer.eos_token_id)
    return Sequences.join(prompts, ends, ends > 0)


def counting_rows(prompts, models, step):
    counted = replace(prompts, numbers=torch.arange(len(prompts)))
    return replace(sampled(counted, models, step), prompts=prompts)


def by_global_numbers(prompts, models, step):
    return sampled(prompts, models, replace(step, seed=int(torch.randint(10**6, ()))))


def with_dropout(prompts, models, step):
    return sampled(prompts, models, step.aside("dropout") if models.student.training else step)


def in_one_episode(rows):
    return replace(rows, turn_ids=rows.completion_mask.long(), episodes=0 * rows.prompt_rows)


def give_gradients(prompts, models):
    for weight in models.student.parameters():
        weight.grad = torch.zeros_like(weight)


def train(prompts, models):
    with torch.no_grad():
        next(models.student.parameters()).add_(1.0)


FIELDS = laws.test_fields_have_their_shapes_and_types
WRITINGS = laws.test_what_is_written_is_what_the_source_says_of_its_writings
PROMPTS = laws.test_rows_name_the_prompts_that_they_continue
ROWS = laws.test_each_row_is_a_prompt_and_the_completion_behind_it
EOS = laws_of_turns.test_eos_ends_a_completion
ENDS = laws.test_what_is_said_of_an_end_is_true_of_the_row
LOGP = laws.test_the_samplers_log_probabilities_are_those_of_the_completion
NOBODY = laws.test_no_prompts_give_no_rows
ALONE = laws.test_a_row_does_not_depend_on_the_other_prompts
SAME = laws.test_the_same_step_gives_the_same_rows
OTHER = laws.test_another_step_draws_other_numbers
GLOBAL = laws.test_the_global_generators_are_left_alone
LEFT = laws.test_models_and_prompts_are_left_alone
TURNS = laws_of_turns.test_turns_are_numbered_in_their_order
DROPOUT = laws.test_models_are_read_without_dropout

BROKEN = [
    (FIELDS, "`loss_mask` must be torch.bool", with_field("loss_mask", lambda r: r.loss_mask.long())),
    (FIELDS, "`sampler_logp` must be torch.float32 of", with_field("sampler_logp", lambda r: r.sampled_logp())),
    (FIELDS, "`on_policy` must be a tensor", with_field("on_policy", lambda r: None)),
    (FIELDS, "`rewards` must be", with_field("rewards", lambda r: torch.ones(len(r) + 1))),
    (FIELDS, "must not have a gradient", with_field("sampler_logp", lambda r: r.sampler_logp.requires_grad_())),
    (FIELDS, "`stored_teacher` must say", _Stored(sampled)),
    (WRITINGS, "knows of 1 at most", _Longer(sampled)),
    (PROMPTS, "got None", with_field("prompts", lambda r: None)),
    (PROMPTS, "must point into the 4 rows", with_field("prompt_rows", lambda r: r.prompt_rows + 1)),
    (PROMPTS, "in the order of the prompts", after(lambda r: r.rows(torch.arange(len(r)).flip(0)))),
    (PROMPTS, "that the source was given", with_field("prompts", lambda r: replace(r.prompts))),
    (ROWS, "`loss_mask` must be False", with_field("loss_mask", lambda r: r.loss_mask | ~r.attention_mask)),
    (ROWS, "`by_teacher` must be False", with_field("by_teacher", lambda r: r.attention_mask)),
    (ROWS, "must begin with", with_field("prompt_rows", lambda r: r.prompt_rows.roll(2))),
    (ROWS, "Nothing of the prompt", with_field("loss_mask", lambda r: r.attention_mask)),
    (ENDS, "says that it ends with STOP", with_field("ending", lambda r: torch.full_like(r.ending, 2))),
    (ENDS, "says that it ends with EOS", with_field("ending", lambda r: torch.ones_like(r.ending))),
    (ENDS, "must lie between 0 and 0", with_field("unjudged", lambda r: r.unjudged + 1)),
    (EOS, "must end with its first EOS", _Source(endless)),
    (LOGP, "must be finite", with_field("sampler_logp", lambda r: r.sampler_logp.log())),
    (LOGP, "must be at most 0", with_field("sampler_logp", lambda r: -r.sampler_logp)),
    (LOGP, "0 off the completion", with_field("sampler_logp", lambda r: r.sampler_logp - 1)),
    (NOBODY, "must give no rows, got 8", _Source(lambda p, m, s: sampled(p if len(p) else tiny_prompts(m), m, s))),
    (ALONE, r"Prompt \d was completed in another way", _Source(counting_rows)),
    (SAME, "Step 0 gave other rows", _Source(by_global_numbers)),
    (OTHER, "must draw other numbers", _Source(lambda p, m, s: sampled(p, m, Step(0, TOTAL)))),
    (GLOBAL, "were used", disturbing(lambda *_: torch.rand(()))),
    (GLOBAL, "were used", disturbing(lambda *_: np.random.random())),
    (GLOBAL, "were used", disturbing(lambda *_: random.random())),
    (LEFT, r"`student model\.training`", disturbing(lambda p, m: m.student.model.eval())),
    (LEFT, r"`student model\S+\.grad`", disturbing(give_gradients)),
    (LEFT, r"`teacher model\S+\.requires_grad`", disturbing(lambda p, m: m.teacher.requires_grad_(True))),
    (LEFT, r"`student model\S+weight` as it was", disturbing(train)),
    (LEFT, "must not change the prompts", disturbing(lambda p, m: p.numbers.add_(1))),
    (TURNS, "need `turn_ids`", with_field("episodes", lambda r: r.prompt_rows)),
    (TURNS, "positive where `loss_mask` is", with_field("turn_ids", lambda r: 0 * r.input_ids)),
    (TURNS, "must have number 1, got 2", with_field("turn_ids", lambda r: 2 * r.completion_mask)),
    (TURNS, "must not fall", with_field("turn_ids", lambda r: r.completion_mask * (9 - r.completion_mask.cumsum(1)))),
    (TURNS, "must have one prompt", after(in_one_episode)),
    (DROPOUT, "so dropout was on", _Source(with_dropout)),
]
ARGUMENTS = {
    ALONE: [{"split": split} for split in laws.SPLITS],
    OTHER: [{"other": {"index": 4}}, {"other": {"seed": 1}}],
}


@pytest.fixture(scope="module")
def models():
    return tiny_models("gpt2")


@pytest.mark.parametrize(("law", "message", "source"), BROKEN, ids=[law.__name__ for law, *_ in BROKEN])
def test_who_breaks_a_law_is_reported(law, message, source, models):
    for arguments in ARGUMENTS.get(law, [{}]):
        with pytest.raises(AssertionError, match=message):
            law(source, models, **arguments)


@pytest.mark.parametrize("law", {law: None for law, *_ in BROKEN}, ids=lambda law: law.__name__)
def test_who_writes_well_is_not(law, models):
    for arguments in ARGUMENTS.get(law, [{}]):
        law(_Source(sampled), models, **arguments)


def test_each_law_is_broken_by_somebody():
    known = SimpleNamespace(**vars(laws_of_turns) | vars(laws))
    assert {law for law, *_ in BROKEN} == {law for name, law in vars(known).items() if name.startswith("test_")}

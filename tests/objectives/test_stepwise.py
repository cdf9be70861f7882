"""Steps of the teacher behind every step of the student: by plain greedy decoding, and the two limits."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.exceptions import ConfigurationError
from veto_pl.objectives import SeqKD, StepwiseSFT
from veto_pl.rollouts import FromStudent, FromTeacher, Sampling, TeacherSteps
from veto_pl.rollouts.stepwise import step_starts
from veto_pl.seams import Step
from veto_pl.testing.tiny import prompt_batch, tiny_models

STEP = Step(3, 10)
PROMPTS = ["abc>", "d>", "efghij>", "ka>"]
STUDENT = FromStudent(Sampling(max_new_tokens=10))
LONGEST = 5
STEPS = TeacherSteps(STUDENT, Sampling(temperature=0.0, max_new_tokens=LONGEST), "o")


@pytest.fixture(scope="module")
def models():
    return tiny_models("llama")


def logits_of(model, ids):
    with torch.no_grad():
        return model.model.eval()(torch.tensor([ids])).logits[0, :, : model.vocab_size]


def teacher_step(models, ids):
    """What the teacher writes greedily behind these ids, up to an `o`, its EOS, or the longest step."""
    ends, stop = set(models.ends_of(models.teacher)), models.tokenizer.convert_tokens_to_ids("o")
    new = []
    while len(new) < LONGEST and not (new and (new[-1] == stop or new[-1] in ends)):
        new.append(int(logits_of(models.teacher, ids + new)[-1].argmax()))
    return new


def expected_rows(models, written):
    """Prompt, student's part and teacher's step of each row, found by splitting the text at each `o`."""
    for prompt, completion in zip(written.prompt_rows.tolist(), written.completions(), strict=True):
        ids = models.tokenizer(PROMPTS[prompt])["input_ids"]
        text = models.tokenizer.batch_decode([[i] for i in completion.tolist()])
        places = [0, *(i + 1 for i, piece in enumerate(text[:-1]) if piece == "o")]
        for start in places:
            before = completion[:start].tolist()
            yield prompt, ids, before, teacher_step(models, ids + before)


def test_every_step_is_what_the_teacher_would_do_next(models):
    batch = prompt_batch(models, PROMPTS)
    expected = list(expected_rows(models, STUDENT(batch, models, STEP)))
    assert len(expected) > len(PROMPTS), "some completion must have several steps"
    rows = STEPS(batch, models, STEP)
    assert rows.prompts is batch
    assert rows.prompt_rows.tolist() == [prompt for prompt, *_ in expected]
    for i, (_, ids, before, new) in enumerate(expected):
        assert rows.input_ids[i, rows.attention_mask[i]].tolist() == ids + before + new
        assert rows.input_ids[i, rows.loss_mask[i]].tolist() == new
        assert torch.equal(rows.by_teacher[i], rows.loss_mask[i])


@pytest.mark.parametrize("aggregation", ["sequence", "token"])
def test_the_loss_is_the_mean_over_steps_of_the_mean_over_their_tokens(models, aggregation):
    objective = StepwiseSFT(rollout=STEPS, aggregation=aggregation)
    batch = prompt_batch(models, PROMPTS)
    means, tokens = [], []
    for _, ids, before, new in expected_rows(models, STUDENT(batch, models, STEP)):
        logp = logits_of(models.student, ids + before + new).double().log_softmax(-1)[-len(new) - 1 : -1]
        losses = [-float(logp[j, token]) for j, token in enumerate(new)]
        means.append(sum(losses) / len(losses))
        tokens += losses
    values = means if aggregation == "sequence" else tokens
    found = objective.loss({STEPS: STEPS(batch, models, STEP)}, models, STEP).terms["loss"].mean()
    assert float(found.detach()) == pytest.approx(sum(values) / len(values), rel=1e-4)


def test_a_completion_that_is_one_step_is_fine_tuning_on_the_teacher(models):
    teacher = FromTeacher(Sampling(temperature=0.0, max_new_tokens=LONGEST))
    whole = StepwiseSFT(rollout=replace(STEPS, separator="\n\n"))
    plain = SeqKD(rollout=teacher, aggregation="sequence")
    batch = prompt_batch(models, PROMPTS)
    one, other = (x.loss({x.rollout: x.rollout(batch, models, STEP)}, models, STEP) for x in (whole, plain))
    assert torch.equal(one.terms["loss"].total, other.terms["loss"].total)


@given(st.lists(st.text("ab.", min_size=1, max_size=3), max_size=8), st.sampled_from([".", "..", "a."]))
def test_steps_make_up_the_text_and_end_with_the_separator(pieces, separator):
    starts = step_starts(pieces, separator)
    assert starts == sorted({0, *starts})
    parts = ["".join(pieces[a:b]) for a, b in zip(starts, [*starts[1:], len(pieces)], strict=True)]
    assert "".join(parts) == "".join(pieces)
    assert all(separator in part for part in parts[:-1])
    without_last = "".join(pieces[starts[-1] : -1])
    assert separator not in without_last


def test_rows_that_the_teacher_cannot_hold_are_refused(models):
    long = TeacherSteps(STUDENT, Sampling(temperature=0.0, max_new_tokens=200), "o")
    with pytest.raises(ConfigurationError, match=r"`TeacherSteps\.sampling\.max_new_tokens` come to \d+ tokens"):
        long(prompt_batch(models, PROMPTS), models, STEP)
    with pytest.raises(ConfigurationError, match=r"`TeacherSteps\.separator` must not be empty"):
        TeacherSteps(separator="")

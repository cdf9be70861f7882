"""Texts by two writers: who writes which token, from which distribution, and that the limits are the writers alone."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veto_pl.exceptions import ConfigurationError
from veto_pl.metrics.rollout_numbers import rollout_numbers
from veto_pl.objectives import SKD, AdaSwitch, Distill, ImitKD
from veto_pl.planning.rollout import Lengths, completed
from veto_pl.rollouts import (
    BestTeacher,
    FromDataset,
    FromStudent,
    FromTeacher,
    Replay,
    Sampling,
    TeacherCorrected,
    TeacherSwitched,
)
from veto_pl.rollouts.two_writers import DivergenceWatch
from veto_pl.seams import Step
from veto_pl.testing.tiny import prompt_batch, tiny_models

STEP = Step(index=3, total=10, seed=7)
PROMPTS = ["abc>", "a>", "hgfedcba>", "pp>"]
GREEDY = Sampling(temperature=0.0)
GRID = 4000
quick = settings(deadline=None, derandomize=True, max_examples=25)
samplings = st.builds(Sampling, st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.sampled_from([0.4, 0.9, 1.0]))


@pytest.fixture(scope="module")
def models():
    return tiny_models()


def written(sequences):
    return [ids.tolist() for ids in sequences.completions()]


def next_logp(model, ids):
    """[V] float64: the model's distribution after the ids, by its plain forward pass."""
    with torch.no_grad():
        logits = model.model.eval()(torch.tensor([ids])).logits[0, -1, : model.vocab_size]
    return logits.double().log_softmax(-1)


def texts(sequences):
    """The prompt and the completion of each row, as lists of ids."""
    rows = zip(sequences.input_ids, sequences.attention_mask, sequences.loss_mask, strict=True)
    return [(ids[a & ~c].tolist(), ids[c].tolist()) for ids, a, c in rows]


def shaped(logits, sampling):
    """The distribution that is sampled from, one id after the other."""
    if sampling.temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(), len(logits)).double()
    p = (logits.double() / sampling.temperature).softmax(-1)
    kept, reached = torch.zeros_like(p), 0.0
    for i in p.argsort(descending=True).tolist():
        if reached < sampling.top_p:
            kept[i] = p[i]
        reached += float(p[i])
    return kept / kept.sum()


@given(
    seed=st.integers(0, 2**31), size=st.integers(2, 7), top_k=st.integers(1, 8), student=samplings, teacher=samplings
)
@quick
def test_corrected_tokens_follow_the_mixture(seed, size, top_k, student, teacher):
    """By enumeration: evenly spaced random numbers give each id as often as the formula says."""
    logits = torch.randn(2, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
    source = TeacherCorrected(top_k, student, teacher)
    uniform = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    drawn = source.draw([row.expand(GRID, -1) for row in logits], uniform, torch.arange(GRID))
    p, t = shaped(logits[1], student), shaped(logits[0], teacher)
    accepted = torch.zeros(size, dtype=torch.bool)
    accepted[logits[0].argsort(descending=True)[:top_k]] = True
    refused = float(p[~accepted].sum())
    mixture = p * accepted + refused * t
    frequency = torch.bincount(drawn.ids, minlength=size).double() / GRID
    assert (frequency - mixture).abs().max() <= 2 / GRID + 1e-9
    assert abs(float(drawn.by_teacher.double().mean()) - refused) <= 1 / GRID + 1e-9
    torch.testing.assert_close(drawn.logp, mixture[drawn.ids].log(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_a_teacher_who_accepts_everything_leaves_the_text_to_the_student(models, temperature):
    sampling = Sampling(temperature=temperature, max_new_tokens=10, num_completions=2)
    batch = prompt_batch(models, PROMPTS)
    mixed = TeacherCorrected(10**6, sampling)(batch, models, STEP)
    alone = FromStudent(sampling)(batch, models, STEP)
    assert written(mixed) == written(alone)
    torch.testing.assert_close(mixed.sampler_logp, alone.sampler_logp, rtol=1e-5, atol=1e-5)
    assert not mixed.by_teacher.any()
    assert mixed.on_policy.all()


def test_a_greedy_teacher_who_accepts_one_id_writes_alone(models):
    batch = prompt_batch(models, PROMPTS)
    mixed = TeacherCorrected(1, Sampling(max_new_tokens=10), GREEDY)(batch, models, STEP)
    alone = FromTeacher(replace(GREEDY, max_new_tokens=10))(batch, models, STEP)
    assert written(mixed) == written(alone)
    assert mixed.by_teacher.any()
    assert (mixed.sampler_logp.abs() < 1e-6).all(), "there is no choice"


def test_what_the_student_wrote_is_among_the_teachers_likeliest_ids(models):
    source = TeacherCorrected(3, Sampling(max_new_tokens=8))
    rows = source(prompt_batch(models, PROMPTS), models, STEP)
    said = [flags[mask].tolist() for flags, mask in zip(rows.by_teacher, rows.loss_mask, strict=True)]
    assert {True, False} == {flag for row in said for flag in row}
    for (prompt, completion), flags in zip(texts(rows), said, strict=True):
        for i, (token, by_teacher) in enumerate(zip(completion, flags, strict=True)):
            likeliest = next_logp(models.teacher, prompt + completion[:i]).topk(3).indices.tolist()
            assert by_teacher or token in likeliest
    share = rollout_numbers([rows], models.eos_ids)["teacher_share"].mean()
    assert float(share) == pytest.approx(sum(map(sum, said)) / sum(map(len, said)))


@given(
    divergences=st.lists(st.lists(st.floats(0, 10), min_size=6, max_size=6), min_size=1, max_size=5),
    ends=st.lists(st.integers(1, 6), min_size=5, max_size=5),
    threshold=st.floats(0, 5),
)
@quick
def test_a_row_is_handed_over_where_it_strays(divergences, ends, threshold):
    """Against the definition, one row at a time, while rows leave the batch."""
    table, strays, found = (
        torch.tensor(divergences),
        DivergenceWatch(threshold, len(divergences), torch.device("cpu")),
        {},
    )
    for token in range(6):
        rows = torch.tensor([row for row in range(len(table)) if token < ends[row]], dtype=torch.int64)
        for row, gone in zip(rows.tolist(), strays(table[rows, token], rows).tolist(), strict=True):
            found.setdefault(row, []).append(gone)
    for row, flags in found.items():
        values, gone = table[row], False
        for i, flag in enumerate(flags):
            gone = gone or (i > 0 and bool(values[i] > threshold * (values[:i].sum() / i)))
            assert flag == gone


def test_a_huge_threshold_leaves_the_text_to_the_student(models):
    sampling = Sampling(temperature=0.8, top_p=0.9, max_new_tokens=10, num_completions=2)
    batch = prompt_batch(models, PROMPTS)
    mixed, alone = TeacherSwitched(1e300, sampling)(batch, models, STEP), FromStudent(sampling)(batch, models, STEP)
    assert written(mixed) == written(alone)
    assert torch.equal(mixed.sampler_logp, alone.sampler_logp)
    assert not mixed.by_teacher.any()


def test_the_teacher_takes_over_for_good_at_the_first_token_that_is_too_far(models):
    """Divergences by plain forward passes of whole texts; the rest is the teacher's greedy continuation."""
    source = TeacherSwitched(1.3, Sampling(max_new_tokens=9, num_completions=3), GREEDY)
    rows = source(prompt_batch(models, PROMPTS), models, STEP)
    starts = []
    for (prompt, completion), flags, mask in zip(texts(rows), rows.by_teacher, rows.loss_mask, strict=True):
        apart, gone = [], False
        for i, flag in enumerate(flags[mask].tolist()):
            student, teacher = (next_logp(m, prompt + completion[:i]) for m in (models.student, models.teacher))
            apart.append(float((student.exp() * (student - teacher)).sum()))
            gone = gone or (i > 0 and apart[i] > 1.3 * sum(apart[:i]) / i)
            assert flag == gone
            if gone:
                assert completion[i] == int(teacher.argmax())
        starts.append(int((~flags[mask]).sum()))
    assert len(set(starts)) > 2, "rows are handed over at different places"


def test_at_threshold_0_the_student_writes_the_first_token_alone(models):
    rows = TeacherSwitched(0.0, Sampling(max_new_tokens=5))(prompt_batch(models, PROMPTS), models, STEP)
    assert [flags[mask].tolist() for flags, mask in zip(rows.by_teacher, rows.loss_mask, strict=True)] == [
        [False, *[True] * (len(ids) - 1)] for ids in written(rows)
    ]


@pytest.mark.parametrize("objective", [SKD(top_k=2), AdaSwitch(threshold=1.0)], ids=["SKD", "AdaSwitch"])
def test_both_parts_are_distilled(models, objective):
    """The objectives are plain distillation on what their source writes."""
    objective = replace(objective, sampling=replace(objective.sampling, max_new_tokens=6))
    rows = objective.rollout(prompt_batch(models, PROMPTS), models, STEP)
    loss = objective.loss({objective.rollout: rows}, models, STEP).terms["loss"]
    plain = Distill(rollout=objective.rollout)
    expected = plain.loss({plain.rollout: rows}, models, STEP).terms["loss"]
    assert float(loss.weight) == float(rows.loss_mask.sum())
    assert float(loss.total.detach()) == float(expected.total.detach())


def test_imitation_begins_with_the_task_and_ends_with_the_student(models):
    sampling = Sampling(max_new_tokens=5)
    source = ImitKD(sampling=sampling).rollout
    batch = prompt_batch(models, PROMPTS * 25, ["cba", "a", "habc", "p"] * 25)
    for index, expected in ((0, FromDataset()), (10, FromStudent(sampling))):
        step = Step(index, 10)
        assert written(source(batch, models, step)) == written(expected(batch, models, step))
    half = source(batch, models, Step(5, 10)).on_policy
    assert 0.3 < float(half.float().mean()) < 0.7, "each prompt tosses its own coin"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TeacherCorrected(0), r"`TeacherCorrected\.top_k` must be at least 1, got 0"),
        (lambda: SKD(top_k=-1), r"`SKD\.top_k`"),
        (lambda: TeacherSwitched(math.nan), r"`TeacherSwitched\.threshold` must be at least 0 and finite, got nan"),
        (lambda: AdaSwitch(threshold=math.inf), r"`AdaSwitch\.threshold`"),
        (lambda: ImitKD(gold_fraction=1.5), r"`ImitKD\.gold_fraction` must lie in \[0, 1\], got 1\.5"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


@pytest.mark.parametrize("make", [SKD, AdaSwitch, TeacherCorrected, TeacherSwitched])
def test_both_writers_have_the_lengths_of_the_student(make):
    """Else the teacher's default length would count where it is asked whether an answer has room."""
    made = make(sampling=Sampling(max_new_tokens=5), teacher_sampling=Sampling(temperature=0.5))
    assert made.teacher_sampling == Sampling(temperature=0.5, max_new_tokens=5)


def test_a_picture_draws_the_token_from_the_mixture():
    student, teacher = torch.tensor([0.5, 0.3, 0.1, 0.1]).log(), torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    found = Replay(TeacherCorrected(2)).token_distribution(student, teacher, STEP).exp()
    torch.testing.assert_close(found, torch.tensor([0.08, 0.16, 0.1 + 0.24, 0.1 + 0.32]))
    assert torch.equal(TeacherSwitched().token_distribution(student, teacher, STEP), student), "the first token"


@pytest.mark.parametrize(
    ("source", "writers", "rows"),
    [
        (TeacherCorrected(sampling=Sampling(num_completions=2)), ("teacher", "student"), 6),
        (TeacherSwitched(), ("teacher", "student"), 3),
        (Replay(FromStudent(Sampling(num_completions=4))), ("student",), 12),
        (BestTeacher(), ("teacher",), 3),
    ],
    ids=lambda x: type(x).__name__,
)
def test_a_plan_knows_who_writes_and_how_many_rows_are_trained_on(source, writers, rows):
    assert [writing.writers for writing in source.writings()] == [writers]
    assert len(completed(source, 3, Lengths(prompt=5, reference=4, longest=6))) == rows

"""The divergence over units: plain loops in float64, finite differences, and what it must not depend on."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veto_pl.functional.divergences import forward_kl, reverse_kl, skew_kl
from veto_pl.functional.heads import LinearHead, ScaleAndCap
from veto_pl.functional.unit_outcomes import SharedHead, unit_divergence
from veto_pl.functional.units import Units, minimal_units

quick = settings(deadline=None, max_examples=20)
seeds = st.integers(0, 2**31 - 1)
scores = pytest.mark.parametrize("score", ["logp", "logit"])


def scene(seed, *, mine=7, theirs=9, shared=4):
    """Two tokenisations of one text with random logits, and some ids that both vocabularies have."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, 6, (), generator=generator))
    sizes = [torch.randint(1, 4, (count,), generator=generator) for _ in range(2)]
    of = [torch.arange(count).repeat_interleave(size) for size in sizes]
    pairs = torch.randperm(mine, generator=generator)[:shared], torch.randperm(theirs, generator=generator)[:shared]
    logits = [3 * torch.randn(len(x), v, generator=generator).double() for x, v in zip(of, (mine, theirs), strict=True)]
    ids = [torch.randint(v, (len(x),), generator=generator) for x, v in zip(of, (mine, theirs), strict=True)]
    for u in range(0, count, 2):  # some units are a shared id
        if sizes[0][u] == sizes[1][u] == 1:
            for side in range(2):
                ids[side][int((of[side] == u).nonzero()[0])] = pairs[side][u % shared]
    return (*logits, *ids, Units(*of, count, pairs))


def by_loops(student, teacher, student_ids, teacher_ids, units, score):
    """KL(student || teacher) of each unit, number by number."""
    found = []
    pairs = list(zip(*(side.tolist() for side in units.shared), strict=True))
    for u in range(units.count):
        tables, alone = [], []
        for logits, ids, of, side in (
            (student, student_ids, units.student, 0), (teacher, teacher_ids, units.teacher, 1)
        ):  # fmt: skip
            places = [i for i, unit in enumerate(of.tolist()) if unit == u]
            rows = [[float(x) for x in logits[i]] for i in places]
            norms = [math.log(sum(map(math.exp, row))) if score == "logp" else 0.0 for row in rows]
            own = sum(row[int(ids[i])] - norm for row, i, norm in zip(rows, places, norms, strict=True)) / len(places)
            alone.append(int(ids[places[0]]) if len(places) == 1 else None)
            tables.append(([rows[0][pair[side]] - norms[0] for pair in pairs], own))
        listed = None not in alone and tuple(alone) in pairs
        lists = [table if listed else [*table, own] for table, own in tables]
        logs = [[x - math.log(sum(map(math.exp, some))) for x in some] for some in lists]
        found.append(sum(math.exp(p) * (p - q) for p, q in zip(*logs, strict=True)))
    return torch.tensor(found, dtype=torch.float64)


@scores
@quick
@given(seeds)
def test_the_formula_is_that_of_plain_loops(score, seed):
    given_ = scene(seed)
    torch.testing.assert_close(unit_divergence(*given_, reverse_kl, score), by_loops(*given_, score))


@scores
@pytest.mark.parametrize("seed", range(4))
def test_finite_differences_agree_with_the_gradient(score, seed):
    student, *rest = scene(seed)

    def loss(logits):
        return unit_divergence(logits, *rest, skew_kl, score)

    assert torch.autograd.gradcheck(loss, student.requires_grad_())


@quick
@given(seeds)
def test_no_gradient_reaches_the_teacher(seed):
    student, teacher, *rest = scene(seed)
    loss = unit_divergence(student.requires_grad_(), teacher.requires_grad_(), *rest, forward_kl).sum()
    assert torch.autograd.grad(loss, teacher, allow_unused=True)[0] is None


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl, skew_kl])
@scores
@quick
@given(seeds)
def test_identical_tokenizers_give_the_divergence_over_every_id(divergence, score, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(5, 6, generator=generator).double() for _ in range(2))
    ids, every = torch.randint(6, (5,), generator=generator), torch.arange(6)
    sizes = torch.randint(1, 4, (5,), generator=generator)
    units = replace(minimal_units(sizes, sizes), shared=(every, every))
    whole = divergence(student.log_softmax(-1), teacher.log_softmax(-1))
    torch.testing.assert_close(unit_divergence(student, teacher, ids, ids, units, divergence, score), whole)


@scores
@quick
@given(seeds)
def test_a_vocabulary_that_is_numbered_anew_changes_nothing(score, seed):
    student, teacher, student_ids, teacher_ids, units = scene(seed)
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.randperm(logits.shape[1], generator=generator) for logits in (student, teacher))
    order = torch.randperm(len(units.shared[0]), generator=generator)
    changed = unit_divergence(
        student[:, one.argsort()],
        teacher[:, other.argsort()],
        one[student_ids],
        other[teacher_ids],
        replace(units, shared=(one[units.shared[0]][order], other[units.shared[1]][order])),
        reverse_kl,
        score,
    )
    plain = unit_divergence(student, teacher, student_ids, teacher_ids, units, reverse_kl, score)
    torch.testing.assert_close(changed, plain)


def moved(seed, score):
    student, *rest = scene(seed)
    offset = torch.arange(len(student)).double()[:, None]
    return [unit_divergence(logits, *rest, reverse_kl, score) for logits in (student, student + offset)]


@quick
@given(seeds)
def test_log_probabilities_do_not_know_a_constant_in_the_logits(seed):
    torch.testing.assert_close(*moved(seed, "logp"))


def test_raw_logits_do():
    plain, other = moved(3, "logit")
    assert (plain - other).abs().max() > 0.1


@quick
@given(seeds)
def test_a_token_without_a_unit_counts_for_nothing_even_where_it_is_no_number(seed):
    student, teacher, student_ids, teacher_ids, units = scene(seed)
    known = unit_divergence(student, teacher, student_ids, teacher_ids, units, reverse_kl)
    nothing = torch.full_like(student[:1], math.nan)
    longer = torch.cat([student, nothing]).requires_grad_()
    wider = replace(units, student=torch.cat([units.student, torch.tensor([-1])]))
    found = unit_divergence(longer, teacher, torch.cat([student_ids, student_ids[:1]]), teacher_ids, wider, reverse_kl)
    torch.testing.assert_close(found, known)


def test_no_units_have_no_losses():
    nothing = torch.zeros(0, dtype=torch.int64)
    units = Units(nothing, nothing, 0, (torch.tensor([0]), torch.tensor([1])))
    found = unit_divergence(torch.zeros(0, 3), torch.zeros(0, 2), nothing, nothing, units, reverse_kl)
    assert found.shape == (0,)


@pytest.mark.parametrize("scale_and_cap", [ScaleAndCap(), ScaleAndCap(0.5, 2.0)])
def test_a_shared_head_is_the_teachers_in_the_students_ids(scale_and_cap):
    generator = torch.Generator().manual_seed(0)
    head = LinearHead(torch.randn(6, 4, generator=generator), scale_and_cap=scale_and_cap, vocab_size=5)
    units = Units(torch.tensor([0]), torch.tensor([0]), 1, (torch.tensor([3, 0]), torch.tensor([1, 4])))
    hidden = torch.randn(2, 4, generator=generator)
    shared, whole = SharedHead(head, units, 4), scale_and_cap(head.forward(hidden))
    logits = shared.scale_and_cap(shared.cast(torch.float32).forward(hidden))
    torch.testing.assert_close(logits[:, 3], whole[:, 1])
    torch.testing.assert_close(logits[:, 0], whole[:, 4])
    assert logits[:, [1, 2]].isneginf().all()
    with pytest.raises(NotImplementedError, match="no backward pass"):
        shared.backward(logits, hidden, [], first=True)

"""Objectives over whole distributions: TopKOPD, EOPD, AKL, ToDi, and the skew KLs of DistiLLM-2."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veto_pl.exceptions import ConfigurationError
from veto_pl.explain import Scene, respond
from veto_pl.functional import closed_forms
from veto_pl.functional.diagnostics import entropy
from veto_pl.functional.divergences import forward_kl, reverse_kl, skew_reverse_kl
from veto_pl.functional.mixing import head_share
from veto_pl.functional.supports import members, top_k_ids
from veto_pl.objectives import AKL, EOPD, AdaptiveSkew, Distill, DistiLLM, DistiLLM2, ToDi, TopKOPD
from veto_pl.parts.advantages import LogRatio
from veto_pl.parts.divergences import ReverseKL, SkewKL, SkewReverseKL
from veto_pl.parts.schedules import Linear
from veto_pl.rollouts import FromDataset, FromStudent, FromTeacher, Sampling
from veto_pl.seams import Step
from veto_pl.seams.tokens import TokenGrid, TokenRows
from veto_pl.testing.dense import dense_loss
from veto_pl.testing.strategies import KINDS, SMOOTH, logits_of_kind, logits_pairs
from veto_pl.testing.test_objectives import written
from veto_pl.testing.tiny import tiny_models

STEP = Step(3, 10)
SUPPORTS = ("student", "teacher", "overlap", "union", "symmetric_difference")
quick = settings(deadline=None, max_examples=30)


def rows_of(pair, **fields):
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    index = torch.arange(len(student))
    return TokenRows(student, teacher, index % student.shape[-1], index, STEP, **fields)


def gradient_in_logits(loss, logits):
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf.log_softmax(-1)).sum(), leaf)[0]


def close(one, other, tolerance=1e-9):
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def likeliest(logp, k):
    return set(sorted(range(len(logp)), key=lambda v: -logp[v])[:k])


def chosen_by_sets(support, student, teacher, token, k):
    mine, theirs = likeliest(student, k), likeliest(teacher, k)
    return {
        "student": mine,
        "teacher": theirs,
        "overlap": mine & theirs,
        "union": mine | theirs,
        "symmetric_difference": mine ^ theirs,
        "sampled": {token},
    }[support]


def weights_by_sets(objective, student, teacher, ids):
    """The weight of each id of a support, by plain arithmetic."""
    if objective.weights == "none":
        return dict.fromkeys(ids, 1.0)
    logp = student if objective.weights == "student" else teacher
    total = sum(math.exp(logp[v]) for v in ids) if objective.support != "symmetric_difference" else 1.0
    return {v: math.exp(logp[v]) / total for v in ids}


@quick
@given(pair=logits_pairs(SMOOTH), data=st.data())
def test_sets_of_likely_ids_are_those_of_python(pair, data):
    k, support = data.draw(st.integers(1, 50)), data.draw(st.sampled_from(SUPPORTS))
    ids, chosen = top_k_ids(*pair, k, support)
    width = min(k, pair[0].shape[-1])
    assert ids.shape == chosen.shape == (len(pair[0]), 2 * width)
    for student, teacher, row, kept in zip(*(x.tolist() for x in pair), ids, chosen, strict=True):
        found = row[kept].tolist()
        assert len(found) == len(set(found))
        assert set(found) == chosen_by_sets(support, student, teacher, None, width)


@quick
@given(st.lists(st.integers(0, 9), min_size=1), st.lists(st.integers(0, 9), min_size=1))
def test_members_are_those_of_python(ids, of):
    assert members(torch.tensor(ids), torch.tensor(of)).tolist() == [i in of for i in ids]
    rows = torch.tensor([ids, ids[::-1]]).t().contiguous().t()
    assert members(rows, torch.tensor([of, of])).tolist() == [[i in of for i in row] for row in rows.tolist()]


@pytest.mark.parametrize("weights", ["student", "teacher", "none"])
@pytest.mark.parametrize("support", [*SUPPORTS, "sampled"])
@settings(deadline=None, max_examples=10)
@given(pair=logits_pairs(SMOOTH, max_vocabulary=8), k=st.integers(1, 9))
def test_top_k_opd_is_the_sum_over_its_support(support, weights, pair, k):
    objective = TopKOPD(k=k, support=support, weights=weights)
    rows = rows_of(pair)
    losses, gradient = objective.with_gradient(rows)
    for i, (student, teacher) in enumerate(zip(rows.student_logp.tolist(), rows.teacher_logp.tolist(), strict=True)):
        ids = sorted(chosen_by_sets(support, student, teacher, int(rows.token_ids[i]), k))
        weight = weights_by_sets(objective, student, teacher, ids)
        costs = [weight[v] * (student[v] - teacher[v]) for v in ids]
        assert float(losses[i]) == pytest.approx(sum(costs), abs=1e-9)

        def surrogate(logp, ids=ids, costs=costs):
            return (logp[ids] * torch.tensor(costs, dtype=logp.dtype)).sum()

        close(gradient[i], gradient_in_logits(surrogate, pair[0][i]))


@pytest.mark.parametrize("support", ["student", "overlap", "teacher"])
def test_weights_of_a_teacher_who_excludes_the_support_are_0(support):
    """Three ids each, of which the teacher knows one."""
    student = torch.tensor([[0.0, 5.0, 4.0, 3.0, -9.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, *[-math.inf] * 4]], dtype=torch.float64)
    losses, gradient = TopKOPD(k=3, support=support, weights="teacher").with_gradient(rows_of((student, teacher)))
    expected = float(student.log_softmax(-1)[0, 0]) if support == "teacher" else 0.0
    assert float(losses[0]) == pytest.approx(expected)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("objective", [TopKOPD(k=3, support="union"), EOPD(tau=0.5, k=3), AKL(), ToDi()])
@quick
@given(pair=logits_pairs(["ordinary", "peaked", "excluded"], max_vocabulary=8))
def test_closed_forms_are_what_autograd_finds(objective, pair):
    rows = rows_of(pair)
    for one, other in zip(objective.with_gradient(rows), objective.by_autograd(rows), strict=True):
        assert one.isfinite().all()
        close(one, other)


@pytest.mark.parametrize("objective", [TopKOPD(k=99), TopKOPD(k=99, support="union"), TopKOPD(k=99, support="overlap")])
@quick
@given(pair=logits_pairs(["ordinary", "peaked", "excluded"], max_vocabulary=8))
def test_every_id_with_the_students_weights_is_the_reverse_kl(objective, pair):
    rows = rows_of(pair)
    for one, other in zip(
        objective.with_gradient(rows), closed_forms.reverse_kl(rows.student_logp, rows.teacher_logp), strict=True
    ):
        close(one, other)


@quick
@given(pair=logits_pairs(max_vocabulary=8), k=st.integers(1, 4))
def test_a_teacher_that_agrees_asks_for_nothing(pair, k):
    same = rows_of((pair[0], pair[0]))
    objectives = [AKL(), ToDi(), *(TopKOPD(k=k, support=support) for support in (*SUPPORTS, "sampled"))]
    for objective in objectives:
        losses, gradient = objective.with_gradient(same)
        close(losses, torch.zeros_like(losses))
        close(gradient, torch.zeros_like(gradient))


def test_ids_that_nobody_shares_cost_nothing():
    pair = torch.tensor([[5.0, 4.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 5.0, 4.0]])
    losses, gradient = TopKOPD(k=2, support="overlap").with_gradient(rows_of(pair))
    assert losses.tolist() == [0.0]
    assert not gradient.any()


@pytest.fixture(scope="module")
def models():
    return tiny_models()


def update(objective, models, rollouts=None):
    rollouts = rollouts or {source: written(models, seed) for seed, source in enumerate(objective.sources)}
    models.student.zero_grad()
    stats = objective.loss(rollouts, models, STEP).terms.values()
    torch.stack([stat.mean() for stat in stats]).sum().backward()
    gradients = [p.grad.clone().flatten() for p in models.student.parameters() if p.grad is not None]
    return [float(stat.total.detach()) for stat in stats], torch.cat(gradients)


@pytest.mark.parametrize("off", [EOPD(tau=math.inf), EOPD(alpha=0.0)])
def test_eopd_without_its_forward_kl_is_the_policy_gradient(models, off):
    plain = Distill(divergence=None, advantage=LogRatio(), rollout=off.rollout)
    assert update(off, models)[0] == update(plain, models)[0]
    assert torch.equal(update(off, models)[1], update(plain, models)[1])


def eopd_by_hand(rows, logp, objective):
    values = []
    for student, teacher in zip(logp, rows.teacher_logp.tolist(), strict=True):
        ids = sorted(likeliest(teacher, objective.k))
        total = sum(math.exp(teacher[v]) for v in ids)
        undecided = -sum(math.exp(t) * t for t in teacher) > objective.tau
        parts = [math.exp(teacher[v]) / total * (teacher[v] - math.log(total) - student[v]) for v in ids]
        values.append(objective.alpha * undecided * sum(parts))
    return torch.stack(values)


@quick
@given(pair=logits_pairs(SMOOTH, max_vocabulary=8), k=st.integers(1, 8), tau=st.floats(0.0, 2.0))
def test_the_forward_kl_of_eopd_by_plain_arithmetic(pair, k, tau):
    objective, rows = EOPD(alpha=0.7, tau=tau, k=min(k, pair[0].shape[-1])), rows_of(pair)
    losses, gradient = objective.with_gradient(rows)
    close(losses, eopd_by_hand(rows, rows.student_logp, objective))
    close(gradient, gradient_in_logits(lambda logp: eopd_by_hand(rows, logp, objective), pair[0]))


def test_eopd_counts_where_the_teacher_is_undecided():
    rows = rows_of(logits_of_kind("peaked", 40, 5, 0))
    undecided = EOPD(tau=0.4).token_metrics(rows)["undecided"]
    assert undecided.tolist() == (entropy(rows.teacher_logp) > 0.4).double().tolist()
    assert 0 < undecided.mean() < 1
    assert not EOPD(tau=0.4).per_token(rows)[undecided == 0].any()


def akl_by_hand(student, teacher, head):
    """The tail begins at the least likely id and stays below the rest of the mass."""
    in_tail, mass = set(), 0.0
    for v in sorted(range(len(teacher)), key=lambda v: teacher[v]):
        mass += math.exp(teacher[v])
        if mass < 1 - head:
            in_tail.add(v)
    gaps = [abs(math.exp(t) - math.exp(s)) for s, t in zip(student, teacher, strict=True)]
    return sum(gap for v, gap in enumerate(gaps) if v not in in_tail) / sum(gaps)


@quick
@given(pair=logits_pairs(SMOOTH, max_vocabulary=8), head=st.floats(0.0, 0.99))
def test_akl_is_the_mixture_of_two_kls_held_fixed(pair, head):
    rows = rows_of(pair)
    share = torch.tensor(
        [
            akl_by_hand(student, teacher, head)
            for student, teacher in zip(rows.student_logp.tolist(), rows.teacher_logp.tolist(), strict=True)
        ],
        dtype=torch.float64,
    )
    close(head_share(rows.student_logp, rows.teacher_logp, head)[:, 0], share)

    def mixture(logp):
        return share * forward_kl(logp, rows.teacher_logp) + (1 - share) * reverse_kl(logp, rows.teacher_logp)

    losses, gradient = AKL(head=head).with_gradient(rows)
    close(losses, mixture(rows.student_logp))
    close(gradient, gradient_in_logits(mixture, pair[0]))


def test_akl_with_all_mass_in_the_head_is_the_forward_kl():
    rows = rows_of(logits_of_kind("ordinary", 5, 6, 1))
    for one, other in zip(
        AKL(head=1.0).with_gradient(rows), closed_forms.forward_kl(rows.student_logp, rows.teacher_logp), strict=True
    ):
        close(one, other)


@quick
@given(pair=logits_pairs(SMOOTH, max_vocabulary=8))
def test_todi_weighs_each_id_by_a_sigmoid_held_fixed(pair):
    rows = rows_of(pair)
    teacher = rows.teacher_logp
    share = 1 / (1 + (rows.student_logp - teacher).exp())

    def mixture(logp):
        pull = share * teacher.exp() * (teacher - logp) + (1 - share) * logp.exp() * (logp - teacher)
        return pull.sum(-1)

    losses, gradient = ToDi().with_gradient(rows)
    close(losses, mixture(rows.student_logp))
    close(gradient, gradient_in_logits(mixture, pair[0]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", [AKL(), ToDi()])
def test_mixtures_stay_finite(objective, kind):
    pair = (logits.float() for logits in logits_of_kind(kind, 6, 9, 3))
    assert all(x.isfinite().all() for x in objective.with_gradient(rows_of(pair)))


def by_hand(objective, teacher_logp, student_logp):
    """The skew of each completion, given the log-probabilities of its tokens."""
    means = [[math.exp(sum(row) / len(row)) for row in logp] for logp in (teacher_logp, student_logp)]
    sign = 1 if objective.direction == "forward" else -1
    gaps = [sign * (t - s) for t, s in zip(*means, strict=True)]
    mean = sum(gaps) / len(gaps)
    skews = [1 - (1 - objective.alpha) * mean / (gap + 1e-5) for gap in gaps]
    return [min(max(skew, objective.smallest), objective.alpha) for skew in skews]


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@quick
@given(seed=st.integers(0, 9999), lengths=st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_the_skew_of_a_completion(direction, seed, lengths):
    objective = AdaptiveSkew(direction=direction, alpha=0.3, smallest=0.02)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(5) < torch.tensor([*lengths, 0])[:, None]
    student, teacher = -torch.rand(2, *mask.shape, generator=generator, dtype=torch.float64) * 3
    grid = TokenGrid(student, teacher, None, mask, torch.arange(len(mask)), None, STEP)
    given = [[row[:n].tolist() for row, n in zip(logp, lengths, strict=False)] for logp in (teacher, student)]
    alpha = objective.look_ahead(grid)["alpha"]
    assert alpha[:-1, 0].tolist() == pytest.approx(by_hand(objective, *given))
    assert torch.equal(alpha, alpha[:, :1].expand_as(alpha))


def test_a_completion_whose_writer_is_further_ahead_has_more_skew():
    mask = torch.ones(3, 1, dtype=torch.bool)
    ahead, behind = torch.tensor([[0.5], [0.6], [0.9]]).log(), torch.tensor([[0.4], [0.4], [0.4]]).log()
    for direction, teacher, student in (("forward", ahead, behind), ("reverse", behind, ahead)):
        grid = TokenGrid(student, teacher, None, mask, torch.arange(3), None, STEP)
        skew = AdaptiveSkew(direction=direction, alpha=0.9).look_ahead(grid)["alpha"][:, 0]
        assert (skew.diff() >= 0).all()
        assert skew[2] > skew[0]


@pytest.mark.parametrize("objective", [AdaptiveSkew(alpha=0.2, smallest=0.2), AdaptiveSkew()])
@pytest.mark.parametrize("chunk_rows", [2, 1000])
def test_completions_are_read_ahead_without_another_pass_through_the_models(models, objective, chunk_rows, monkeypatch):
    objective = replace(objective, chunk_rows=chunk_rows)
    rollouts = {objective.rollout: written(models, 0)}
    expected = float(dense_loss(objective, rollouts, models, STEP).detach())
    calls, forward = [], type(models.student).forward
    monkeypatch.setattr(type(models.student), "forward", lambda self, *args: calls.append(self) or forward(self, *args))
    assert float(objective.loss(rollouts, models, STEP).terms["loss"].total.detach()) == pytest.approx(
        expected, rel=1e-5
    )
    assert sorted(map(id, calls)) == sorted(map(id, (models.student, models.teacher)))


def test_a_fixed_skew_gives_the_skew_kls():
    """With the smallest skew at the largest; the reverse one holds the student of the mixture fixed."""
    pair = logits_of_kind("ordinary", 4, 6, 2)
    rows = rows_of(pair, ahead={"alpha": torch.full((4,), 0.2, dtype=torch.float64)})
    forward, reverse = (AdaptiveSkew(direction=direction, alpha=0.2) for direction in ("forward", "reverse"))
    for one, other in zip(
        forward.with_gradient(rows), closed_forms.skew_kl(rows.student_logp, rows.teacher_logp, 0.2), strict=True
    ):
        close(one, other)
    losses, gradient = reverse.with_gradient(rows)
    close(losses, skew_reverse_kl(rows.student_logp, rows.teacher_logp, 0.2))
    mixture = (0.2 * rows.student_logp.exp() + 0.8 * rows.teacher_logp.exp()).log()
    close(gradient, closed_forms.reverse_kl(rows.student_logp, mixture)[1])


def test_distillm2_is_the_weighted_sum_of_its_two_terms(models):
    both = DistiLLM2(beta=Linear(1.0, 1.5), smallest=0.05)
    assert both.sources == (FromTeacher(Sampling(temperature=1.0)), FromStudent(Sampling(temperature=1.0)))
    rollouts = {source: written(models, seed) for seed, source in enumerate(both.sources)}
    totals = {key: float(stat.total.detach()) for key, stat in both.loss(rollouts, models, STEP).terms.items()}
    beta = 1.0 + 0.5 * STEP.index / STEP.total
    for name, direction, weight in (("teacher", "forward", 2 - beta), ("student", "reverse", beta)):
        source = both.composition.terms[name].rollout
        term = AdaptiveSkew(rollout=source, direction=direction, smallest=0.05, aggregation="sequence")
        alone = float(term.loss(rollouts, models, STEP).terms["loss"].total.detach())
        assert totals[f"{name}/loss"] == pytest.approx(weight * alone, rel=1e-6)


def test_a_side_of_weight_0_does_not_write():
    assert DistiLLM2(beta=0.0).active(STEP).sources == (DistiLLM2().teacher,)
    assert DistiLLM2(beta=2.0).active(STEP).sources == (DistiLLM2().student,)


def test_distillm_without_skew_on_the_dataset_is_the_forward_kl(models):
    skewless = DistiLLM(divergence=replace(DistiLLM().divergence, alpha=0.0))
    plain = Distill(rollout=FromDataset())
    assert update(skewless, models)[0] == update(plain, models)[0]
    assert torch.equal(update(skewless, models)[1], update(plain, models)[1])


def test_distillm_is_a_skew_kl_of_either_direction(models):
    for divergence in (SkewKL(0.1), SkewReverseKL(0.1)):
        mine, plain = DistiLLM(divergence=divergence), Distill(divergence=divergence)
        assert update(mine, models)[0] == update(plain, models)[0]
        assert torch.equal(update(mine, models)[1], update(plain, models)[1])
    assert DistiLLM().divergence == SkewKL(0.1)


@pytest.mark.parametrize("objective", [TopKOPD(support="sampled"), TopKOPD(k=99), EOPD(tau=math.inf)])
def test_over_all_tokens_the_gradient_is_that_of_the_reverse_kl(objective):
    """Every token that the student may write, by its probability."""
    scene = Scene(teacher=0.9, outcomes=5, points=9)
    expected = respond(Distill(divergence=ReverseKL()), scene, 0.0).gradient
    close(respond(objective, scene, 0.0).gradient, expected)


@pytest.mark.parametrize("objective", [AKL(), ToDi(), EOPD(), AdaptiveSkew(), DistiLLM2(), DistiLLM()])
def test_what_the_objectives_do_to_one_token_can_be_drawn(objective):
    response = respond(objective, Scene(teacher=0.8, outcomes=3, points=4), 0.0)
    assert response.loss.isfinite().all()
    assert (response.gradient[response.student < 0.5] < 0).all(), "towards what the teacher likes"


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: TopKOPD(k=0), "TopKOPD.k"),
        (lambda: EOPD(k=0), "EOPD.k"),
        (lambda: EOPD(tau=-1.0), "EOPD.tau"),
        (lambda: EOPD(alpha=math.nan), "EOPD.alpha"),
        (lambda: AKL(head=1.1), "AKL.head"),
        (lambda: AdaptiveSkew(alpha=0.1, smallest=0.2), "AdaptiveSkew.alpha"),
        (lambda: DistiLLM2(beta=2.1), "DistiLLM2.beta"),
    ],
)
def test_settings_out_of_range_are_named(make, named):
    with pytest.raises(ConfigurationError, match=named.replace(".", r"\.")):
        make()


def test_akl_refuses_a_stored_teacher_whose_tail_is_one_outcome(monkeypatch):
    monkeypatch.setattr(FromDataset, "stored_teacher", True)
    with pytest.raises(ConfigurationError, match="`AKL` tells likely ids from unlikely ones"):
        AKL()

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_cases import TOKEN_METRICS, log_probabilities, token_batches

from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.diagnostics import (
    entropy,
    entropy_gap,
    hidden_kl,
    overlap,
    sharpness,
    top_k_mass,
    top_one_agreement,
)
from veto_pl.functional.divergences import reverse_kl
from veto_pl.functional.supports import top_k_with_tail
from veto_pl.metrics import (
    CompletionMetric,
    ForwardKL,
    ReverseKL,
    StudentEntropy,
    TargetRatio,
    TargetSharpness,
    TopKDiagnostic,
    TopKDiagnostics,
    TopOneAgreement,
)
from veto_pl.metrics.top_k import Quantity
from veto_pl.rollouts import Sampling
from veto_pl.training.measured import validation_metrics


def rows_of(logp):
    return [[math.exp(x) for x in row] for row in logp.double().tolist()]


def surprise(row):
    return -sum(p * math.log(p) for p in row if p > 0)


def relative(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def bridge(teacher, student, beta):
    weights = [t * s**beta for t, s in zip(teacher, student, strict=True)]
    return [w / sum(weights) for w in weights]


def likeliest(row, k):
    return set(sorted(range(len(row)), key=lambda v: -row[v])[:k])


def shared(student, teacher, k):
    return sorted(likeliest(student, k) & likeliest(teacher, k))


def advantage(student, teacher, ids):
    p, q = ([row[v] / sum(row[v] for v in ids) for v in ids] for row in (student, teacher))
    return -relative(p, q)


def pooled(row, ids):
    return [*(row[v] for v in ids), sum(p for v, p in enumerate(row) if v not in ids)]


def hidden(student, teacher, k):
    ids = likeliest(student, k)
    return relative(student, teacher) - relative(pooled(student, ids), pooled(teacher, ids))


def ratio(student, teacher):
    return max(math.log10(t / s) for s, t in zip(student, teacher, strict=True) if t > 0)


ORACLES = {
    "student_entropy": lambda student, _: surprise(student),
    "forward_kl": lambda student, teacher: relative(teacher, student),
    "reverse_kl": lambda student, teacher: relative(student, teacher),
    "top_one_agreement": lambda student, teacher: float(student.index(max(student)) == teacher.index(max(teacher))),
    "mean_ratio_0": lambda student, teacher: ratio(student, teacher),
    "largest_ratio_0": lambda student, teacher: ratio(student, teacher),
    "overlap_ratio_2": lambda student, teacher: len(shared(student, teacher, 2)) / 2,
    "overlap_mass_2": lambda student, teacher: sum(student[v] for v in shared(student, teacher, 2)),
    "overlap_advantage_3": lambda student, teacher: advantage(student, teacher, shared(student, teacher, 3)),
    "entropy_gap": lambda student, teacher: abs(surprise(student) - surprise(teacher)),
    "student_mass_2": lambda student, teacher: sum(sorted(student)[-2:]),
    "teacher_mass_2": lambda student, teacher: sum(sorted(teacher)[-2:]),
    "hidden_kl_1": lambda student, teacher: hidden(student, teacher, 1),
    "target_sharpness": lambda student, teacher: surprise(teacher) - surprise(bridge(teacher, student, 0.5)),
}


@pytest.mark.parametrize("name", TOKEN_METRICS)
@settings(deadline=None, max_examples=30)
@given(pair=token_batches())
def test_token_metrics_match_plain_arithmetic(name, pair):
    metric = TOKEN_METRICS[name]()
    metric.update(*pair)
    values = [ORACLES[name](*rows) for rows in zip(*map(rows_of, pair), strict=True)]
    expected = max(values) if name.startswith("largest") else sum(values) / len(values)
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-5)


def test_forward_kl_is_infinite_where_the_student_excludes_what_the_teacher_likes():
    student, teacher = torch.tensor([[0.0, -math.inf]]), torch.tensor([[0.5, 0.5]]).log()
    forward, reverse = ForwardKL(), ReverseKL()
    forward.update(student, teacher)
    reverse.update(student, teacher)
    assert float(forward.compute()) == math.inf
    assert float(reverse.compute()) == pytest.approx(math.log(2))


def test_certain_distributions_have_no_entropy_and_agree():
    certain = torch.tensor([[0.0, -math.inf, -math.inf]])
    for metric, expected in [(StudentEntropy(), 0), (TopOneAgreement(), 1), (ForwardKL(), 0), (TargetSharpness(), 0)]:
        metric.update(certain, certain)
        assert float(metric.compute()) == expected


def test_only_the_entropy_does_without_a_teacher():
    assert {name for name, make in TOKEN_METRICS.items() if not make().needs_teacher} == {"student_entropy"}
    metric = StudentEntropy()
    metric.update(torch.tensor([[0.5, 0.5]]).log(), None)
    assert float(metric.compute()) == pytest.approx(math.log(2))


def test_metrics_keep_no_graph():
    student = log_probabilities(torch.Generator().manual_seed(0), 3).requires_grad_()
    metric = ForwardKL()
    metric.update(student, student.detach())
    assert not metric.total.requires_grad


@pytest.mark.parametrize("beta", [-0.1, math.nan, math.inf])
def test_target_sharpness_rejects_exponents_without_a_target(beta):
    with pytest.raises(ConfigurationError, match=r"`TargetSharpness\.beta` must be a finite number >= 0, got"):
        TargetSharpness(beta=beta)


@settings(deadline=None, max_examples=30)
@given(token_batches())
def test_target_sharpness_is_zero_without_a_bridge_and_positive_where_both_agree(pair):
    student, teacher = pair
    plain, same = TargetSharpness(beta=0.0), TargetSharpness(beta=1.0)
    plain.update(student, teacher)
    assert float(plain.compute()) == 0.0
    same.update(teacher, teacher)  # the target is the teacher squared
    assert float(same.compute()) > 0.0


@settings(deadline=None, max_examples=30)
@given(token_batches())
def test_entropy_is_pytorchs_and_lies_between_zero_and_log_v(pair):
    for logp in pair:
        expected = torch.distributions.Categorical(probs=logp.double().exp()).entropy()
        torch.testing.assert_close(entropy(logp).double(), expected, atol=1e-5, rtol=1e-5)
        assert (entropy(logp) >= 0).all()
        assert (entropy(logp) <= math.log(logp.shape[-1]) + 1e-5).all()


def test_entropy_has_a_finite_gradient_at_excluded_ids():
    logits = torch.tensor([1.0, -math.inf, 0.0], dtype=torch.float64, requires_grad=True)
    entropy(logits.log_softmax(-1)).backward()
    p = logits.detach().softmax(-1)
    expected = [-float(p[i] * (p[i].log() + entropy(p.log()))) if p[i] > 0 else 0.0 for i in range(3)]
    assert logits.grad.tolist() == pytest.approx(expected)


@settings(deadline=None, max_examples=30)
@given(token_batches())
def test_diagnostics_map_the_vocabulary_away_and_ignore_its_order(pair):
    student, teacher = pair
    order = torch.tensor([3, 1, 4, 0, 2])
    for function in (sharpness, top_one_agreement):
        value = function(student, teacher)
        assert value.shape == student.shape[:-1]
        torch.testing.assert_close(function(student[:, order], teacher[:, order]), value, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(function(student[None], teacher[None]), value[None])


@settings(deadline=None, max_examples=30)
@given(token_batches())
def test_sharpness_changes_sign_with_its_arguments(pair):
    one, other = pair
    assert (sharpness(one, one) == 0).all()
    torch.testing.assert_close(sharpness(one, other), -sharpness(other, one))
    sharper = (3 * one).log_softmax(-1)
    assert (sharpness(sharper, one) > -1e-6).all()


def test_the_largest_ratio_is_that_of_all_tokens_in_any_batches():
    torch.manual_seed(0)
    student, teacher = (torch.randn(7, 5, dtype=torch.float64).mul(4).log_softmax(-1) for _ in range(2))
    student[3, 2] = -torch.inf  # an id without probability, which the target then excludes as well
    whole, parts, least = (TargetRatio(0.4, "largest"), TargetRatio(0.4, "largest"), TargetRatio(0.4))
    whole.update(student, teacher)
    for rows in (slice(0, 2), slice(2, 2), slice(2, 7)):
        parts.update(student[rows], teacher[rows])
    expected = max(
        math.log10(q / s)
        for s_row, t_row in zip(rows_of(student), rows_of(teacher), strict=True)
        for q, s in zip(bridge(t_row, s_row, 0.4), s_row, strict=True)
        if s > 0
    )
    assert float(whole.compute()) == pytest.approx(expected, rel=1e-5)
    assert float(parts.compute()) == pytest.approx(expected, rel=1e-5)
    assert whole.name == "largest_ratio_0_4"
    least.update(student, teacher)
    assert float(least.compute()) < expected


def test_what_only_the_teacher_admits_has_an_infinite_ratio_that_a_veto_removes():
    student, teacher = torch.tensor([[1.0, 0.0]]).log(), torch.tensor([[0.5, 0.5]]).log()
    for beta, expected in ((0.0, math.inf), (0.5, 0.0)):
        metric = TargetRatio(beta, "largest")
        metric.update(student, teacher)
        assert float(metric.compute()) == pytest.approx(expected, abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(token_batches(), st.sampled_from([0.0, 0.4, 1.0, 2.0]))
def test_the_largest_ratio_is_0_where_there_are_no_tokens_and_never_below(pair, beta):
    metric = TargetRatio(beta, "largest")
    assert float(metric.compute()) == 0.0
    metric.update(*(logp[:0] for logp in pair))
    assert float(metric.compute()) == 0.0
    for logp in pair:
        same = TargetRatio(beta, "largest")
        same.update(logp, logp)
        assert float(same.compute()) >= 0.0


@pytest.mark.parametrize("beta", [-0.1, math.nan, math.inf])
def test_a_ratio_without_a_target_is_refused(beta):
    with pytest.raises(ConfigurationError, match=r"TargetRatio\.beta"):
        TargetRatio(beta)


def test_the_names_of_ratios_serve_as_names_of_modules():
    chosen = [TargetRatio(beta=beta, over=over) for beta in (0.0, 0.8, 1e-7) for over in ("mean", "largest")]
    assert len(validation_metrics(chosen, Sampling(), with_teacher=True)) == 6


def test_a_metric_without_a_name_is_refused():
    class _Nameless(CompletionMetric):
        def update(self, generations):
            self._add(generations.rewards)

    with pytest.raises(ConfigurationError, match="`_Nameless` has no name to be logged under"):
        validation_metrics([_Nameless()], Sampling(), with_teacher=True)


def test_a_name_with_a_dot_is_refused():
    metric = TargetRatio()
    metric.name = "a.b"
    with pytest.raises(ConfigurationError, match=r"cannot hold a dot, got `a\.b`"):
        validation_metrics([metric], Sampling(), with_teacher=True)


@settings(deadline=None, max_examples=30)
@given(token_batches(), st.integers(1, 6))
def test_what_a_truncation_hides_is_what_pooling_loses_and_small_where_the_tail_is(pair, k):
    student, teacher = (logp.double().log_softmax(-1) for logp in pair)
    ids = student.topk(min(k, 5), -1).indices
    lost = hidden_kl(student, teacher, ids)
    if k < 5:
        tails = [top_k_with_tail(logp, ids) for logp in (student, teacher)]
        torch.testing.assert_close(lost, reverse_kl(student, teacher) - reverse_kl(*tails), atol=1e-9, rtol=1e-9)
    tail = [
        [row[v] for v in range(5) if v not in kept] for row, kept in zip(rows_of(student), ids.tolist(), strict=True)
    ]
    other = [
        [row[v] for v in range(5) if v not in kept] for row, kept in zip(rows_of(teacher), ids.tolist(), strict=True)
    ]
    for value, p, q in zip(lost.tolist(), tail, other, strict=True):
        ratios = [math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0]
        bound = sum(p) * (max(ratios) - math.log(sum(p) / sum(q))) if ratios else 0.0
        assert -1e-9 <= value <= bound + 1e-9


@settings(deadline=None, max_examples=30)
@given(token_batches(), st.integers(1, 9))
def test_models_that_agree_share_everything(pair, k):
    student, _ = pair
    same = overlap(student, student, k)
    assert same["overlap_ratio"].tolist() == [1.0] * len(student)
    torch.testing.assert_close(same["overlap_mass"], top_k_mass(student, k))
    assert not same["overlap_advantage"].any()


def test_models_that_share_nothing_have_no_overlap():
    nobody = torch.tensor([[0.0, 0.0, -9.0, -9.0], [-9.0, -9.0, 0.0, 0.0]]).log_softmax(-1)
    assert all(value.tolist() == [0.0, 0.0] for value in overlap(nobody, nobody.flip(0), 2).values())


def test_a_teacher_who_knows_few_ids_hides_and_shares_nothing_undefined():
    student = torch.tensor([[0.0, 5.0, 4.0, 3.0, -9.0]]).log_softmax(-1)
    teacher = torch.tensor([[0.0, *[-math.inf] * 4]]).log_softmax(-1)
    found = overlap(student, teacher, 3)
    assert (float(found["overlap_mass"]), float(found["overlap_advantage"])) == (0.0, 0.0)
    assert hidden_kl(student, teacher, torch.tensor([[0, 1]])).item() == 0.0  # the pooled KL is infinite too
    assert hidden_kl(teacher, student, torch.tensor([[0, 1]])).item() == 0.0
    few = torch.tensor([[0.0, 1.0, *[-math.inf] * 3]]).log_softmax(-1)
    assert hidden_kl(student, few, torch.tensor([[1]])).item() == math.inf


@settings(deadline=None, max_examples=30)
@given(token_batches())
def test_the_gap_of_entropies_is_never_negative(pair):
    student, teacher = pair
    torch.testing.assert_close(entropy_gap(student, teacher), entropy_gap(teacher, student))
    assert (entropy_gap(student, teacher) >= 0).all()
    assert not entropy_gap(student, student).any()


def test_the_family_has_every_diagnostic_once():
    names = [metric.name for metric in TopKDiagnostics(k=4).members(1)]
    assert names == [name if name == "entropy_gap" else f"{name}_4" for name in get_args(Quantity)]
    assert len(validation_metrics([TopKDiagnostics(), TopKDiagnostics(2)], Sampling(), with_teacher=True)) == 13


@pytest.mark.parametrize(
    "make", [lambda: TopKDiagnostic(k=0), lambda: TopKDiagnostics(k=0), lambda: TopKDiagnostic("x")]
)
def test_diagnostics_without_a_meaning_are_refused(make):
    with pytest.raises(ConfigurationError, match=r"`TopKDiagnostics?\.(k|of)` must be"):
        make()

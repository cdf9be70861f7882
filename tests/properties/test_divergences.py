"""Divergences and supports against decimal oracles, and the inequalities that textbooks prove about them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.exceptions import ConfigurationError
from veto_pl.functional import alpha, closed_forms
from veto_pl.functional import divergences as functional
from veto_pl.functional.diagnostics import entropy
from veto_pl.functional.supports import top_k_with_tail
from veto_pl.parts.divergences import AlphaDivergence, GeneralizedJSD, Renyi, SkewKL
from veto_pl.parts.supports import TopK
from veto_pl.testing import oracles
from veto_pl.testing.strategies import KINDS, SMOOTH, logits_of_kind, logits_pairs

weights = st.floats(0.01, 0.99)
small = logits_pairs(max_rows=2, max_vocabulary=8)
NOBODY = torch.tensor([[0.0, -math.inf]], dtype=torch.float64), torch.tensor([[-math.inf, 0.0]], dtype=torch.float64)


def logps(pair):
    return tuple(logits.log_softmax(-1) for logits in pair)


def close(value, expected, tolerance=1e-9):
    torch.testing.assert_close(
        value, torch.as_tensor(expected, dtype=torch.float64), rtol=tolerance, atol=tolerance, check_dtype=False
    )


def function(name):
    return getattr(alpha if name in ("alpha_divergence", "renyi") else functional, name)


def against_oracle(name, pair, *args):
    expected = [
        getattr(oracles, name)(student, target, *args)
        for student, target in zip(*map(oracles.distributions, pair), strict=True)
    ]
    close(function(name)(*logps(pair), *args), expected)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "total_variation"])
@given(pair=small)
def test_without_settings_against_the_oracle(name, pair):
    against_oracle(name, pair)


@pytest.mark.parametrize("name", ["generalized_jsd", "skew_kl", "skew_reverse_kl"])
@given(pair=small, weight=weights | st.sampled_from([0.0, 1.0]))
def test_with_a_mixture_against_the_oracle(name, pair, weight):
    against_oracle(name, pair, weight)


orders = weights | st.sampled_from([1e-12, 1e-6, 0.5, 1 - 1e-6, 1 - 1e-12])


@given(pair=small, order=orders | st.sampled_from([0.0, 1.0]))
def test_alpha_divergences_against_the_oracle_also_near_their_ends(pair, order):
    against_oracle("alpha_divergence", pair, order)


@given(pair=small, order=orders | st.just(1.0))
def test_renyi_against_the_oracle_also_near_its_end(pair, order):
    against_oracle("renyi", pair, order)


@given(pair=logits_pairs(), order=weights)
def test_alpha_and_renyi_are_functions_of_one_another(pair, order):
    student, target = logps(pair)
    amari, renyi = alpha.alpha_divergence(student, target, order), alpha.renyi(student, target, order)
    close(order * (1 - order) * amari, -torch.expm1((order - 1) * renyi), 1e-7)


@given(pair=logits_pairs(), order=weights)
def test_exchanging_the_roles_mirrors_the_order(pair, order):
    student, target = logps(pair)
    close(alpha.alpha_divergence(student, target, order), alpha.alpha_divergence(target, student, 1 - order))
    close((1 - order) * alpha.renyi(student, target, order), order * alpha.renyi(target, student, 1 - order))


@given(pair=logits_pairs(), given=st.tuples(orders, orders).map(sorted))
def test_renyi_grows_with_its_order_up_to_the_forward_kl(pair, given):
    student, target = logps(pair)
    less, more = (alpha.renyi(student, target, order) for order in given)
    tolerance = 1e-9 + 1e-9 * more.abs()
    assert (less <= more + tolerance).all()
    assert (more <= functional.forward_kl(student, target) + tolerance).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("near", [1e-4, 1e-8, 1e-12])
def test_alpha_divergences_reach_the_kls_without_a_jump(near, dtype):
    """A difference of sums would lose every digit here; what is left is the distance of the orders themselves."""
    student, target = (logits.to(dtype).log_softmax(-1) for logits in logits_of_kind("ordinary", 6, 9, 1))
    tolerance = {"rtol": 10 * near + (1e-5 if dtype is torch.float32 else 1e-11), "atol": 1e-6 * near}
    for order, limit in ((near, functional.reverse_kl), (1 - near, functional.forward_kl)):
        torch.testing.assert_close(alpha.alpha_divergence(student, target, order), limit(student, target), **tolerance)
    expected = functional.forward_kl(student, target)
    torch.testing.assert_close(alpha.renyi(student, target, 1 - near), expected, **tolerance)


def test_half_an_alpha_is_the_hellinger_distance():
    student, target = logps(logits_of_kind("ordinary", 4, 6, 0))
    distance = (student.exp().sqrt() - target.exp().sqrt()).square().sum(-1) / 2
    close(alpha.alpha_divergence(student, target, 0.5), 4 * distance)


def test_families_where_the_two_share_nothing():
    close(alpha.alpha_divergence(*NOBODY, 0.3), [1 / (0.3 * 0.7)])
    assert alpha.renyi(*NOBODY, 0.3).tolist() == [math.inf]


@pytest.mark.parametrize(("name", "order"), [("alpha_divergence", -0.1), ("alpha_divergence", 1.1), ("renyi", 0.0)])
def test_orders_out_of_range_are_refused(name, order):
    for call in (getattr(alpha, name), getattr(closed_forms, name)):
        with pytest.raises(ValueError, match=str(order)):
            call(*NOBODY, order)


@pytest.mark.parametrize("make", [lambda: AlphaDivergence(1.1), lambda: AlphaDivergence(math.nan), lambda: Renyi(0.0)])
def test_orders_without_a_divergence_are_refused(make):
    with pytest.raises(ConfigurationError, match=r"\.alpha` must lie in"):
        make()


@given(pair=small)
def test_entropy_against_the_oracle(pair):
    close(entropy(logps(pair)[0]), [oracles.entropy(p) for p in oracles.distributions(pair[0])])


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
def test_mass_on_an_excluded_id_is_infinitely_far(name):
    assert getattr(functional, name)(*NOBODY).tolist() == [math.inf]


@pytest.mark.parametrize(
    ("name", "args", "bound"),
    [
        ("total_variation", (), 1.0),
        ("generalized_jsd", (0.25,), -0.25 * math.log(0.25) - 0.75 * math.log(0.75)),
        ("skew_kl", (0.1,), -math.log(0.1)),
        ("skew_reverse_kl", (0.1,), -math.log(0.1)),
    ],
)
def test_bounds_are_reached_where_the_two_share_nothing(name, args, bound):
    close(getattr(functional, name)(*NOBODY, *args), [bound])


@given(pair=logits_pairs(), weight=weights)
def test_bounds_hold(pair, weight):
    student, target = logps(pair)
    binary_entropy = -weight * math.log(weight) - (1 - weight) * math.log1p(-weight)
    assert functional.generalized_jsd(student, target, weight).max() <= binary_entropy + 1e-9
    assert functional.skew_kl(student, target, weight).max() <= -math.log(weight) + 1e-9
    assert functional.skew_reverse_kl(student, target, weight).max() <= -math.log(weight) + 1e-9
    assert functional.total_variation(student, target).max() <= 1 + 1e-9


@given(pair=logits_pairs())
def test_pinsker_and_bretagnolle_huber(pair):
    student, target = logps(pair)
    distance, divergence = functional.total_variation(student, target), functional.forward_kl(student, target)
    assert (distance <= (divergence.clamp_min(0) / 2).sqrt() + 1e-7).all()
    assert (distance <= (1 - (-divergence).exp()).clamp_min(0).sqrt() + 1e-7).all()


@given(pair=logits_pairs())
def test_jsd_lies_between_two_functions_of_the_variation(pair):
    """Lin's bound from above, and from below the one that Pinsker's gives for both halves."""
    student, target = logps(pair)
    distance, divergence = functional.total_variation(student, target), functional.generalized_jsd(student, target)
    assert (distance.square() / 2 <= divergence + 1e-9).all()
    assert (divergence <= math.log(2) * distance + 1e-9).all()


@given(pair=logits_pairs(), weight=weights)
def test_exchanging_the_roles(pair, weight):
    student, target = logps(pair)
    close(functional.reverse_kl(student, target), functional.forward_kl(target, student))
    close(functional.skew_reverse_kl(student, target, weight), functional.skew_kl(target, student, weight))
    jsd = functional.generalized_jsd
    close(jsd(student, target, weight), jsd(target, student, 1 - weight))
    close(jsd(student, target, 0.5), jsd(target, student, 0.5))
    close(functional.total_variation(student, target), functional.total_variation(target, student))


@given(pair=logits_pairs(), weight=weights)
def test_jsd_is_the_entropy_that_mixing_adds(pair, weight):
    student, target = logps(pair)
    mixture = functional.log_mixture(target, student, weight)
    added = entropy(mixture) - weight * entropy(target) - (1 - weight) * entropy(student)
    close(functional.generalized_jsd(student, target, weight), added, 1e-7)


@given(pair=logits_pairs(kinds=["ordinary", "excluded"]))
def test_jsd_over_its_weight_tends_to_the_kl_at_either_end(pair):
    student, target = logps(pair)
    tiny = 1e-6
    near_zero = functional.generalized_jsd(student, target, tiny) / tiny
    near_one = functional.generalized_jsd(student, target, 1 - tiny) / tiny
    close(near_zero, functional.forward_kl(student, target), 1e-3)
    close(near_one, functional.reverse_kl(student, target), 1e-3)


@given(pair=logits_pairs())
def test_skew_without_skew_is_the_kl_to_the_bit(pair):
    student, target = logps(pair)
    assert torch.equal(functional.skew_kl(student, target, 0.0), functional.forward_kl(student, target))
    assert torch.equal(functional.skew_reverse_kl(student, target, 0.0), functional.reverse_kl(student, target))


@given(pair=logits_pairs(), weights=st.tuples(weights, weights).map(sorted))
def test_skew_falls_with_alpha(pair, weights):
    student, target = logps(pair)
    less, more = (functional.skew_kl(student, target, alpha) for alpha in weights)
    assert (more <= less + 1e-9).all()


@given(pair=logits_pairs(), weight=weights)
def test_kl_is_convex_in_the_student(pair, weight):
    student, target = logps(pair)
    assert (
        functional.skew_kl(student, target, weight) <= (1 - weight) * functional.forward_kl(student, target) + 1e-9
    ).all()


@given(pair=logits_pairs(), weight=st.floats(0, 1))
def test_mixtures_are_normalised_and_keep_what_both_exclude(pair, weight):
    student, target = logps(pair)
    mixture = functional.log_mixture(target, student, weight)
    close(mixture.exp(), weight * target.exp() + (1 - weight) * student.exp())
    assert torch.equal(mixture.isneginf(), student.isneginf())


@pytest.mark.parametrize("name", ["generalized_jsd", "skew_kl", "skew_reverse_kl"])
@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan])
def test_weights_outside_the_unit_interval_are_refused(name, weight):
    with pytest.raises(ValueError, match=str(weight)):
        getattr(functional, name)(*NOBODY, weight)


@pytest.mark.parametrize("make", [lambda: GeneralizedJSD(0.0), lambda: GeneralizedJSD(1.0), lambda: SkewKL(1.0)])
def test_settings_at_which_a_divergence_vanishes_are_refused(make):
    with pytest.raises(ConfigurationError, match=r"must lie"):
        make()


@given(pair=logits_pairs(max_rows=2, max_vocabulary=8), data=st.data())
def test_top_k_with_tail_against_the_oracle(pair, data):
    vocabulary = pair[0].shape[-1]
    ids = data.draw(st.permutations(range(vocabulary)))[: data.draw(st.integers(1, vocabulary - 1))]
    value = top_k_with_tail(logps(pair)[0], torch.tensor([ids] * len(pair[0])))
    close(value, [oracles.top_k_with_tail(p, ids) for p in oracles.distributions(pair[0])])


@pytest.mark.parametrize("of", ["teacher", "student"])
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "generalized_jsd", "total_variation"])
@given(pair=logits_pairs(), data=st.data())
def test_pooling_ids_never_raises_a_divergence(of, name, pair, data):
    """Data processing: what cannot be told apart any more does not differ more; and it stays at least 0."""
    k = data.draw(st.integers(1, pair[0].shape[-1] - 1))
    divergence, full = getattr(functional, name), logps(pair)
    pooled = divergence(*TopK(k, of)(*full))
    assert (pooled <= divergence(*full) + 1e-9).all()
    assert (pooled >= -1e-9).all()


@pytest.mark.parametrize("of", ["teacher", "student"])
@given(pair=logits_pairs(kinds=SMOOTH), data=st.data())
def test_top_k_keeps_the_likeliest_ids_of_the_named_model(of, pair, data):
    k = data.draw(st.integers(1, pair[0].shape[-1] - 1))
    student, teacher = logps(pair)
    kept_student, kept_teacher = TopK(k, of)(student, teacher)
    kept, everything = (kept_teacher, teacher) if of == "teacher" else (kept_student, student)
    assert torch.equal(kept[:, :-1], everything.sort(-1, descending=True).values[:, :k])


@pytest.mark.parametrize("kind", KINDS)
def test_all_ids_but_one_lose_nothing(kind):
    pair = logps(logits_of_kind(kind, 3, 6, 0))
    close(functional.forward_kl(*TopK(5)(*pair)), functional.forward_kl(*pair))

"""Policy-gradient objectives over sampled tokens: expectations by enumeration, in float64, and laws of each credit."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veto_pl.exceptions import ConfigurationError
from veto_pl.explain.scene import one_token, table_models
from veto_pl.functional.advantages import discounted_sum, most_uncertain, reverse_cumsum, reward_floor, row_mean
from veto_pl.functional.divergences import forward_kl, generalized_jsd, reverse_kl
from veto_pl.objectives import (
    IWOPD,
    OPD,
    REOPOLD,
    VOPD,
    Distill,
    DistilledRL,
    ExOPD,
    GammaOPD,
    ListOPD,
    OPDPlus,
    ResOPD,
    TailPenalty,
    UniOPD,
)
from veto_pl.parts.advantages import CentredLogRatio, Extrapolated, LogRatio, RelaxedLogRatio, WithReward
from veto_pl.parts.credit import (
    BoundedWithOutcome,
    DivergenceCredit,
    EarlyWeighted,
    LeastLikely,
    TeacherWeightedReward,
)
from veto_pl.parts.schedules import AtMost, Linear
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.seams import Law, Sequences, Step
from veto_pl.seams.tokens import TokenGrid, TokenRows
from veto_pl.testing.strategies import ragged_grids
from veto_pl.testing.tiny import prompt_batch, tiny_models

IDS = 5
START, END = Step(0, 10), Step(9, 10)
quick = settings(deadline=None, max_examples=15)
seeds = st.integers(0, 2**31 - 1)
numbers = st.floats(-3, 3, allow_nan=False)


def distributions(seed, rows=3, ids=IDS):
    """Log-probabilities of student, teacher and reference."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, ids, generator=generator, dtype=torch.float64).log_softmax(-1)


def drawn(objective, student, teacher, reference=None, step=START, sampler=None):
    """The gradient in the student's logits for every token that can be drawn [V, V], and the chance of each [V].

    One prompt for each token, so that all are scored in one batch and none is another's rival.
    """
    (source,), sampler, ids = objective.sources, student if sampler is None else sampler, len(student)
    rows = Sequences.concatenate([one_token(token, sampler) for token in range(ids)])
    rows = replace(rows, prompt_rows=torch.arange(ids))
    logits, fixed = student.repeat(ids, 1).requires_grad_(), (teacher.expand(ids, ids),)
    models = table_models(logits, *fixed, *(() if reference is None else (reference.expand(ids, ids),)))
    loss = objective.loss({source: rows}, models, step).terms["loss"].total
    return torch.autograd.grad(loss, logits)[0], sampler.exp()


def expected(*arguments, **options):
    gradients, chances = drawn(*arguments, **options)
    return chances @ gradients


def spread(*arguments):
    """The variance of the gradient, summed over the logits."""
    gradients, chances = drawn(*arguments)
    return float(chances @ (gradients - chances @ gradients).square().sum(1))


def gradient_of_kl(student, target, size=1.0):
    """By autograd, of size x KL(student || target)."""
    logits = student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(size * reverse_kl(logits.log_softmax(-1), target), logits)
    return gradient


def close(one, other, tolerance=1e-9):
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


PLAIN = {
    "OPD": OPD(),
    "OPD without weights": OPD(importance_cap=None),
    "OPD discounted": OPD(discount=0.9),
    "OPD with a reward": OPD(reward_weight=0.3),
    "VOPD": VOPD(),
    "VOPD on few ids": VOPD(top_k=2),
    "VOPD on more ids than there are": VOPD(top_k=IDS),
    "ExOPD": ExOPD(extrapolation=1.0),
    "ListOPD": ListOPD(extrapolation=3.0, modal_probability=0.9, warm_start_mass=0.3, importance_cap=1.0),
    "UniOPD": UniOPD(),
    "REOPOLD without a floor": REOPOLD(mixture=1e-9),
    "REOPOLD refining": REOPOLD(mixture=1e-9, switch=0.0),
    "IWOPD at 0": IWOPD(strength=0.0),
    "GammaOPD without outcome": GammaOPD(outcome=False),
    "OPDPlus": OPDPlus(f_divergence="reverse_kl"),
    "ResOPD": ResOPD(k=2),
    "ResOPD on all ids but one": ResOPD(k=IDS - 1),
}


@pytest.mark.parametrize("name", PLAIN)
@given(seed=seeds)
@quick
def test_the_expected_gradient_is_that_of_the_reverse_kl(name, seed):
    """A single token has no future, no rival and no other token of its completion."""
    student, teacher, reference = distributions(seed)
    close(expected(PLAIN[name], student, teacher, reference), gradient_of_kl(student, teacher))


@pytest.mark.parametrize("k", [1, 3])
@given(seed=seeds)
@quick
def test_res_opd_has_the_published_gradient_for_every_sampled_token(k, seed):
    student, teacher, _ = distributions(seed)
    found, _ = drawn(ResOPD(k=k), student, teacher)
    p, q = student.exp(), teacher.exp()
    score = torch.eye(IDS, dtype=torch.float64) - p  # row i: the gradient of log p_i in the logits
    head = q.topk(k).indices
    tail = torch.tensor([i not in head for i in range(IDS)])
    ratio, masses = student - teacher, (p[tail].sum(), q[tail].sum())
    bucket = (masses[0] / masses[1]).log() * (p[tail] @ score[tail]) / masses[0]
    coarse = sum(p[i] * ratio[i] * score[i] for i in head) + masses[0] * bucket
    for token in range(IDS):
        close(found[token], coarse + (ratio[token] * score[token] - bucket if tail[token] else 0.0))


def test_res_opd_warns_of_a_rollout_that_draws_from_another_distribution():
    for sampling, told in ((Sampling(), 0), (Sampling(temperature=0.5), 1), (Sampling(top_p=0.9), 1)):
        mistakes = list(ResOPD(rollout=FromStudent(sampling)).requirements(None, "model.objective"))
        assert [mistake.fatal for mistake in mistakes] == [False] * told


@given(seed=seeds)
@quick
def test_importance_weights_make_up_for_another_sampler(seed):
    """Whole weights do in the mean; truncated ones count the tokens that the sampler neglects too little."""
    student, teacher, sampler = distributions(seed)
    close(expected(OPD(importance_cap=math.inf), student, teacher, sampler=sampler), gradient_of_kl(student, teacher))
    truncated = torch.minimum(student.exp(), 1.5 * sampler.exp())
    credit = truncated * (teacher - student)
    close(
        expected(OPD(importance_cap=1.5), student, teacher, sampler=sampler), credit.sum() * student.exp() - credit
    )  # -sum_y c_y (1[u = y] - p_u)


@given(seed=seeds, strength=st.floats(0, 3))
@quick
def test_exopd_descends_the_kl_to_the_extrapolated_teacher(seed, strength):
    student, teacher, reference = distributions(seed)
    target = (strength * teacher + (1 - strength) * reference).log_softmax(-1)
    found = expected(ExOPD(extrapolation=strength), student, teacher, reference)
    close(found, gradient_of_kl(student, target))
    at_rest = expected(ExOPD(extrapolation=strength), target, teacher, reference)
    close(at_rest, torch.zeros_like(at_rest))


@given(seed=seeds)
@quick
def test_exopd_at_1_is_opd_to_the_bit(seed):
    """For any reference, one that excludes every id included."""
    student, teacher, _ = distributions(seed)
    nowhere = torch.full((2, IDS), -math.inf, dtype=torch.float64)
    grid = TokenGrid(student[None], teacher[None], None, torch.ones(1, IDS).bool(), torch.zeros(1), None, START)
    grid = replace(grid, reference_logp=nowhere[:1])
    assert torch.equal(Extrapolated(1.0)(grid), LogRatio()(grid))
    assert not torch.equal(Extrapolated(1.5)(replace(grid, reference_logp=-student[None])), LogRatio()(grid))


@given(seed=seeds, mixture=st.floats(0.05, 0.95))
@quick
def test_reopold_drops_what_is_below_the_floor_and_later_lifts_it(seed, mixture):
    student, teacher, _ = distributions(seed)
    floor, ratio, p = math.log(mixture / (1 - mixture)), teacher - student, student.exp()
    for step, credit in (
        (START, torch.where(ratio < floor, 0.0, ratio)),
        (END, torch.clamp(ratio, min=floor)),
    ):
        by_hand = (p * credit).sum() * p - p * credit
        close(expected(REOPOLD(mixture=mixture), student, teacher, step=step), by_hand)


@given(seed=seeds, outlier=st.floats(0.1, 3))
@quick
def test_outliers_get_no_credit(seed, outlier):
    student, teacher, _ = distributions(seed)
    p, ratio = student.exp(), teacher - student
    credit = torch.where(ratio.abs() >= outlier, 0.0, ratio)
    close(expected(UniOPD(outlier=outlier), student, teacher), (p * credit).sum() * p - p * credit)


# Whole completions


def two_tokens(first, second):
    """A row of a prompt and two tokens."""
    mask = torch.tensor([[False, True, True]])
    return Sequences(
        input_ids=torch.tensor([[0, first, second]]), attention_mask=torch.ones(1, 3).bool(), loss_mask=mask,
        prompt_rows=torch.zeros(1, dtype=torch.int64), on_policy=torch.ones(1).bool(), sampler_logp=None,
    )  # fmt: skip


@pytest.mark.parametrize("discount", [0.0, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_discount_decides_between_the_kl_of_tokens_and_that_of_completions(discount, seed):
    """At 1 the gradient is that of the KL over completions; at 0 the first token is not told what it leads to."""
    ids = 3
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, ids + 1, ids, generator=generator, dtype=torch.float64)
    objective = OPD(discount=discount, importance_cap=None)
    z = student.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for first, second in product(range(ids), repeat=2):
        rows = [0, 1 + first]
        logp = z.log_softmax(-1)
        chance = (logp[0, first] + logp[1 + first, second]).detach().exp()
        models = table_models(z[rows], teacher[rows])
        loss = objective.loss({objective.rollout: two_tokens(first, second)}, models, START).terms["loss"].total
        total = total + chance * loss
    (found,) = torch.autograd.grad(total, z)
    p, t = z.log_softmax(-1), teacher.log_softmax(-1)
    reach = p[0].exp() if discount else p[0].exp().detach()
    kl = reverse_kl(p[0], t[0]) + (reach * reverse_kl(p[1:], t[1:])).sum()
    close(found, torch.autograd.grad(kl, z)[0])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_reward_of_a_group_of_two_is_half_its_gradient(seed):
    """The mean reward of the group holds the completion itself: of n, (n - 1) / n of the gradient is left."""
    student, teacher, _ = distributions(seed)
    objective = OPD(reward_weight=0.75)
    z = student.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for pair in product(range(IDS), repeat=2):
        rows = [one_token(token, student) for token in pair]
        both = Sequences.concatenate(rows)
        loss = objective.loss({objective.rollout: both}, table_models(z.expand(2, IDS), teacher.expand(2, IDS)), START)
        total = total + student[list(pair)].sum().exp() * loss.terms["loss"].total / 2
    (found,) = torch.autograd.grad(total, z)
    p = z.log_softmax(-1)
    value = reverse_kl(p, teacher) - 0.75 / 2 * p[0].exp()  # the reward is 1 for id 0
    close(found, torch.autograd.grad(value, z)[0])


@given(grid=ragged_grids(), discount=st.floats(0, 1))
def test_the_discounted_sum_against_a_loop(grid, discount):
    values, mask = grid
    found = discounted_sum(values, mask, discount)
    width = values.shape[1]
    for row, (numbers_, counts) in enumerate(zip(values.tolist(), mask.tolist(), strict=True)):
        for t in range(width):
            later = [discount ** (u - t) * numbers_[u] for u in range(t, width) if counts[u]]
            assert float(found[row, t]) == pytest.approx(sum(later) if counts[t] else 0.0, rel=1e-9, abs=1e-9)
    if discount in (0, 1):
        close(found, reverse_cumsum(values, mask) if discount else values.masked_fill(~mask, 0.0))


# Variance


@given(seed=seeds)
@quick
def test_the_baseline_never_raises_the_mean_square_of_the_credit(seed):
    student, teacher, _ = distributions(seed)
    p, ratio = student.exp(), teacher - student
    credit = ratio + reverse_kl(student, teacher)
    close((p * credit).sum(), torch.zeros((), dtype=torch.float64))
    assert float((p * credit.square()).sum()) <= float((p * ratio.square()).sum()) + 1e-12


def test_the_baseline_lowers_the_variance_over_many_ids_but_not_always_over_few():
    """Random pairs over 60 ids, and a pair over two for which the opposite is true: a sure student that is too sure."""
    cases = [distributions(seed, ids=60)[:2] for seed in range(12)]
    assert sum(spread(VOPD(), *case) < 0.8 * spread(OPD(), *case) for case in cases) == 11
    sure, unsure = torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=torch.float64).log()
    assert spread(VOPD(), sure, unsure) > spread(OPD(), sure, unsure)


@given(seed=seeds, top_k=st.integers(1, IDS + 2))
@quick
def test_the_baseline_on_few_ids_is_the_kl_of_what_is_left(seed, top_k):
    student, teacher, _ = distributions(seed)
    rows = TokenRows(student[None], teacher[None], torch.zeros(1, dtype=torch.int64), torch.zeros(1), START)
    kept = student.argsort(descending=True)[:top_k]
    p, t = (logp.exp()[kept] / logp.exp()[kept].sum() for logp in (student, teacher))
    close(CentredLogRatio(top_k).scores(rows)["kl"][0], (p * (p / t).log()).sum())
    assert CentredLogRatio().scores(rows)["kl"] == reverse_kl(student, teacher)


# Tokens of a completion


@given(grid=ragged_grids(max_width=40), percent=st.integers(5, 100))
def test_the_most_uncertain_tokens_are_taken_from_each_row(grid, percent):
    values, mask = grid
    taken = most_uncertain(values, mask, percent / 100)
    assert not (taken & ~mask).any()
    for row, counts, chosen in zip(values, mask, taken, strict=True):
        assert int(chosen.sum()) == -(-percent * int(counts.sum()) // 100)
        left = row[counts & ~chosen]
        assert not len(left) or row[chosen].min() >= left.max()
    means = [v[m].mean() if m.any() else v.new_zeros(()) for v, m in zip(values, mask, strict=True)]
    close(row_mean(values, mask), torch.stack(means))


def test_refinement_credits_uncertain_tokens_alone():
    ratio = torch.tensor([[-5.0, 1.0, -0.5, 2.0]])
    grid = TokenGrid(
        torch.zeros(1, 4), ratio, None, torch.ones(1, 4).bool(), torch.zeros(1), None, END,
        scores={"entropy": torch.tensor([[0.9, 0.1, 0.8, 0.2]])},
    )  # fmt: skip
    assert RelaxedLogRatio()(grid).tolist() == [[pytest.approx(reward_floor(0.2)), 0.0, -0.5, 0.0]]
    assert RelaxedLogRatio()(replace(grid, step=START)).tolist() == [[0.0, 1.0, -0.5, 2.0]]
    assert RelaxedLogRatio(switch=0.95)(grid).tolist() == RelaxedLogRatio()(replace(grid, step=START)).tolist()


# Credit in another shape


def credited(advantage, student, teacher, mask, rewards=None, groups=None):
    """[B, S] the credit of log-probabilities [B, S]."""
    groups = torch.arange(len(mask)) if groups is None else groups
    return advantage(TokenGrid(student, teacher, None, mask, groups, rewards, START))


def ratios(student, teacher, mask):
    """The log-ratios of each row's tokens, as lists."""
    return [(t - s)[m].tolist() for s, t, m in zip(student, teacher, mask, strict=True)]


def logps(mask, seed):
    generator = torch.Generator().manual_seed(seed)
    return -3 * torch.rand(2, *mask.shape, generator=generator, dtype=torch.float64)


@given(grid=ragged_grids(), seed=seeds, strength=st.floats(0, 3))
@quick
def test_earlier_tokens_weigh_more_by_plain_arithmetic(grid, seed, strength):
    mask = grid[1]
    student, teacher = logps(mask, seed)
    found = credited(EarlyWeighted(strength=strength), student, teacher, mask)
    for row, counts, credit in zip(found, mask, ratios(student, teacher, mask), strict=True):
        total, before, expected_ = math.fsum(map(abs, credit)), 0.0, []
        for one in credit:
            expected_.append(one * (1 + strength * (1 - before / total)))
            before += abs(one)
        assert row[counts].tolist() == pytest.approx(expected_)


@given(seed=seeds, strength=st.floats(0, 3))
@quick
def test_the_only_token_of_a_completion_is_the_first(seed, strength):
    student, teacher, _ = distributions(seed)
    close(expected(IWOPD(strength=strength), student, teacher), gradient_of_kl(student, teacher, 1 + strength))


@given(seed=seeds)
@quick
def test_opd_plus_descends_each_divergence(seed):
    """The expectation of the sampled gradient is that of the divergence itself, by autograd over all ids."""
    student, teacher, _ = distributions(seed)
    divergences = {"forward_kl": forward_kl, "jsd": generalized_jsd, "reverse_kl": reverse_kl}
    for name, divergence in divergences.items():
        logits = student.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(divergence(logits.log_softmax(-1), teacher), logits)
        close(expected(OPDPlus(f_divergence=name), student, teacher), gradient)
        at_rest = expected(OPDPlus(f_divergence=name), teacher, teacher)
        close(at_rest, torch.zeros_like(at_rest))


@given(seed=seeds)
@quick
def test_the_credit_of_a_divergence_is_u_times_f_prime_minus_f(seed):
    """Up to a multiple of the constant that a change of f by u - 1 adds."""
    student, teacher, _ = distributions(seed)
    u = (teacher - student).exp().requires_grad_()
    generators = {
        "forward_kl": lambda u: u * u.log(), "reverse_kl": lambda u: -u.log(),
        "jsd": lambda u: 0.5 * (u * u.log() - (1 + u) * ((1 + u) / 2).log()),
    }  # fmt: skip
    for name, f in generators.items():
        value = f(u)
        (slope,) = torch.autograd.grad(value.sum(), u)
        credit = credited(DivergenceCredit(name), student[None], teacher[None], torch.ones(1, IDS).bool())[0]
        constant = (u * slope - value).detach() - credit
        close(constant, constant[:1].expand(IDS))


@given(grid=ragged_grids(), seed=seeds, discount=st.floats(0, 1))
@quick
def test_the_outcome_decides_the_sign_and_the_teacher_the_size(grid, seed, discount):
    mask = grid[1]
    student, teacher = logps(mask, seed)
    rewards = torch.tensor([1.0, 0.5, 0.0]).repeat(len(mask))[: len(mask)]
    found = credited(BoundedWithOutcome(LogRatio(discount)), student, teacher, mask, rewards)
    for row, counts, ratio, reward in zip(found, mask, ratios(student, teacher, mask), rewards, strict=True):
        places = counts.nonzero()[:, 0].tolist()
        credit = [sum(discount ** (q - p) * r for q, r in zip(places, ratio, strict=True) if q >= p) for p in places]
        size = math.fsum(map(abs, credit)) / max(len(credit), 1)
        outcome = 1.0 if reward == 1 else -1.0
        assert row[counts].tolist() == pytest.approx([a / (size + abs(a)) + outcome for a in credit])
        assert (row[counts] * outcome > 0).all()


def test_a_teacher_that_agrees_leaves_the_outcome_alone():
    mask, rewards = torch.ones(2, 3).bool(), torch.tensor([1.0, 0.0])
    same = logps(mask, 0)[0]
    assert credited(BoundedWithOutcome(), same, same, mask, rewards).tolist() == [[1.0] * 3, [-1.0] * 3]


@given(grid=ragged_grids(), seed=seeds, cap=st.floats(1, 20))
@quick
def test_a_teacher_weighs_the_tokens_of_successes_alone(grid, seed, cap):
    """The rewards of a prompt's completions are standardised; the weights of a completion multiply to 1."""
    mask = grid[1]
    student, teacher = logps(mask, seed)
    generator = torch.Generator().manual_seed(seed)
    rewards, groups = torch.rand(len(mask), generator=generator).round(decimals=1), torch.arange(len(mask)) // 3
    found = credited(TeacherWeightedReward(cap), student, teacher, mask, rewards, groups)
    counted = mask.any(1).tolist()
    for i, (row, counts, ratio) in enumerate(zip(found, mask, ratios(student, teacher, mask), strict=True)):
        mine = [float(rewards[j]) for j in range(len(mask)) if groups[j] == groups[i] and counted[j]]
        if not ratio:
            continue
        mean = math.fsum(mine) / len(mine)
        deviation = math.sqrt(math.fsum((r - mean) ** 2 for r in mine) / len(mine))
        better = (float(rewards[i]) - mean) / deviation if deviation > 1e-6 else 0.0
        clipped = [min(max(math.exp(x), 1 / cap), cap) for x in ratio]
        geometric = math.prod(clipped) ** (1 / len(clipped))
        weights_ = [x / geometric for x in clipped] if better > 0 else [1.0] * len(clipped)
        assert row[counts].tolist() == pytest.approx([better * w for w in weights_], rel=1e-4, abs=1e-5)


@given(seed=seeds)
@quick
def test_without_a_teacher_distilled_rl_is_the_standardised_reward(seed):
    mask, groups = torch.ones(4, 3).bool(), torch.tensor([0, 0, 1, 1])
    student, teacher = logps(mask, seed)
    rewards = torch.tensor([1.0, 0.0, 1.0, 1.0])
    alone = credited(TeacherWeightedReward(1.0), student, teacher, mask, rewards, groups)
    assert alone.tolist() == [[1.0] * 3, [-1.0] * 3, [0.0] * 3, [0.0] * 3]
    agreeing = credited(TeacherWeightedReward(), student, student, mask, rewards, groups)
    assert torch.equal(alone, agreeing)


@given(grid=ragged_grids(max_width=40), seed=seeds, percent=st.integers(1, 100))
@quick
def test_the_least_likely_tokens_of_each_row_get_the_credit(grid, seed, percent):
    mask = grid[1]
    student, teacher = logps(mask, seed)
    found = credited(LeastLikely(-0.5, percent / 100), student, teacher, mask)
    assert torch.equal(found, credited(LeastLikely(-0.5, percent / 100), student, student, mask))
    for row, counts, logp in zip(found, mask, student, strict=True):
        wanted = sorted(logp[counts].tolist())[: -(-percent * int(counts.sum()) // 100)]
        assert row[counts].tolist() == [-0.5 if x in wanted else 0.0 for x in logp[counts].tolist()]


@given(seed=seeds, penalty=st.floats(-3, -0.01))
@quick
def test_the_penalty_sharpens_the_student_whoever_the_teacher_is(seed, penalty):
    """Of single tokens each is its completion's least likely, so E a grad log p = 0; of two, the likelier gains."""
    student, teacher, other = distributions(seed)
    objective = TailPenalty(penalty=penalty, importance_cap=None)
    found = expected(objective, student, teacher)
    close(found, torch.zeros_like(found))
    close(drawn(objective, student, teacher)[0], drawn(objective, student, other)[0])
    p, order = student.exp(), student.argsort()
    gradient = torch.zeros_like(p)
    for i, j in product(
        range(IDS), repeat=2
    ):  # half of two tokens, rounded up, is one: the earlier where both are alike
        worse = i if p[i] <= p[j] else j
        gradient += p[i] * p[j] * -penalty * (torch.eye(IDS, dtype=p.dtype)[worse] - p)
    z = student[None].expand(2, IDS)
    half = replace(objective, share=0.5)
    total = torch.zeros_like(p)
    for i, j in product(range(IDS), repeat=2):
        logits = z.clone().requires_grad_()
        models = table_models(logits, teacher[None].expand(2, IDS))
        loss = half.loss({half.rollout: two_tokens(i, j)}, models, START).terms["loss"].total
        total += p[i] * p[j] * torch.autograd.grad(loss, logits)[0].sum(0)
    close(total, gradient)
    assert total[order[0]] > 0, "descent takes from the least likely id"


# What is asked for, and what is refused


def test_each_asks_for_what_it_reads():
    needs = {
        type(x): (x.needs_teacher, x.needs_reference, x.needs_rewards)
        for x in (
            OPD(),
            VOPD(),
            ExOPD(),
            ListOPD(),
            UniOPD(),
            REOPOLD(),
            GammaOPD(),
            IWOPD(),
            OPDPlus(),
            DistilledRL(),
            TailPenalty(),
        )
    }
    assert needs == {
        OPD: (True, False, False), VOPD: (True, False, False), ExOPD: (True, True, False),
        ListOPD: (True, True, False), UniOPD: (True, False, True), REOPOLD: (True, False, False),
        GammaOPD: (True, False, True), IWOPD: (True, False, False), OPDPlus: (True, False, False),
        DistilledRL: (True, False, True), TailPenalty: (False, False, False),
    }  # fmt: skip
    assert OPD(reward_weight=0.1).needs_rewards
    assert WithReward(Extrapolated()).needs_reference
    assert Distill(divergence=None, advantage=WithReward(Extrapolated())).needs_reference
    assert all(Law.SPLIT_INVARIANT in x.laws for x in (OPD(reward_weight=1.0), UniOPD(), REOPOLD()))
    assert UniOPD().rollout == FromStudent(Sampling(num_completions=16))


def test_the_update_is_unlike_that_of_the_student_alone():
    """On real models: VOPD's loss has a baseline, and ExOPD asks the reference."""
    models = tiny_models()
    batch = prompt_batch(models, ["abc>", "d>"], ["cba", "d"])
    rollout = FromStudent(Sampling(max_new_tokens=4))
    rows = rollout(batch, models, START)

    def loss(objective):
        return float(
            replace(objective, rollout=rollout).loss({rollout: rows}, models, START).terms["loss"].total.detach()
        )

    assert loss(ExOPD(extrapolation=1.0)) == loss(OPD())
    assert len({round(loss(x), 5) for x in (OPD(), VOPD(), VOPD(top_k=2), ExOPD(), OPD(discount=1.0))}) == 5


@pytest.mark.parametrize(
    ("cls", "settings_", "message"),
    [
        (OPD, {"discount": 1.5}, r"discount` must lie in \[0, 1\], got 1\.5"),
        (OPD, {"reward_weight": -1.0}, r"`OPD\.reward_weight` must lie in \[0, 1e\+06\], got -1"),
        (WithReward, {"weight": math.nan}, r"`WithReward\.weight` must lie in \[0, 1e\+06\], got nan"),
        (VOPD, {"top_k": 0}, r"top_k` must be at least 1, got 0"),
        (ExOPD, {"extrapolation": math.inf}, r"extrapolation` must lie in \[0, 1e\+06\], got inf"),
        (ListOPD, {"modal_probability": 1.0}, r"`ListOPD\.modal_probability` must lie in \(0, 1\), or be null, got 1"),
        (ListOPD, {"warm_start_mass": 0.0}, r"`ListOPD\.warm_start_mass` must lie in \(0, 1\), got 0"),
        (ListOPD, {"margin": 1.0}, r"`ListOPD\.margin` must lie in \[0, 1\), got 1"),
        (ListOPD, {"modal_probability": 0.9, "importance_cap": 0.5}, r"`ListOPD\.importance_cap` must be at least 1"),
        (UniOPD, {"balance": math.inf}, r"`UniOPD\.balance` must be at least 0 and finite, got inf"),
        (UniOPD, {"margin": -0.1}, r"margin` must lie in \[0, 1e\+06\], got -0\.1"),
        (UniOPD, {"min_retain": 2.0}, r"min_retain` must lie in \[0, 1\], got 2"),
        (UniOPD, {"outlier": 0.0}, r"outlier` must be above 0 and finite, got 0"),
        (GammaOPD, {"discount": 1.5}, r"discount` must lie in \[0, 1\], got 1\.5"),
        (IWOPD, {"strength": math.inf}, "strength` must be at least 0 and finite, got inf"),
        (TailPenalty, {"penalty": 0.0}, r"`TailPenalty\.penalty` must be below 0, got 0"),
        (TailPenalty, {"share": 0.0}, r"share` must lie in \(0, 1\], got 0"),
        (DistilledRL, {"cap": 0.5}, "cap` must be at least 1 and finite, got 0"),
        (REOPOLD, {"mixture": 1.0}, r"mixture` must lie in \(0, 1\), got 1"),
        (REOPOLD, {"keep": 0.0}, r"keep` must lie in \(0, 1\], got 0"),
        (REOPOLD, {"switch": 1.1}, r"switch` must lie in \[0, 1\], got 1\.1"),
    ],
)  # fmt: skip
def test_settings_outside_their_range_are_refused(cls, settings_, message):
    with pytest.raises(ConfigurationError, match=message):
        cls(**settings_)


LARGE = [
    OPD(discount=1.0, reward_weight=1e6, importance_cap=math.inf), VOPD(top_k=2**70), ExOPD(extrapolation=1e6),
    UniOPD(margin=1e6, outlier=1e300, balance=1e300), UniOPD(method="mask", margin=1e6, min_retain=0.0, balance=1e-300),
    REOPOLD(mixture=1e-300), REOPOLD(mixture=1 - 1e-16, keep=1e-300, switch=0.0),
]  # fmt: skip


@pytest.mark.parametrize("objective", LARGE, ids=lambda x: type(x).__name__)
def test_the_largest_numbers_that_are_accepted_are_harmless(objective):
    """The gradient stays finite, in single precision, where one of two completions is correct."""
    student, teacher, reference = (logits.float().expand(2, IDS) for logits in distributions(0))
    rows = Sequences.concatenate([one_token(token, student[0]) for token in (0, 1)])
    logits = student.clone().requires_grad_()
    models = table_models(logits, teacher, reference)
    loss = objective.loss({objective.rollout: rows}, models, START).terms["loss"].total
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()


# The guard


def test_the_guard_caps_numbers_and_schedules():
    free = ListOPD(extrapolation=3.0)
    assert (free.guard, free.capped(3.0), free.extrapolation_at(END)) == (math.inf, 3.0, 3.0)
    guarded = ListOPD(extrapolation=3.0, modal_probability=0.99, margin=0.1)
    assert guarded.guard == pytest.approx(0.9 * 1.352, abs=1e-3)
    assert guarded.advantage == Extrapolated(guarded.guard)
    rising = replace(guarded, extrapolation=Linear(1.0, 2.0))
    assert rising.capped_extrapolation == AtMost(Linear(1.0, 2.0), guarded.guard)
    assert [rising.extrapolation_at(Step(i, 4)) for i in (0, 1, 4)] == [1.0, guarded.guard, guarded.guard]
    assert replace(free, extrapolation=Linear(1.0, 2.0)).capped_extrapolation == Linear(1.0, 2.0)
    assert ListOPD(modal_probability=0.999999, importance_cap=1.2).guard == 1.0  # where the student meets the teacher
    assert ListOPD(modal_probability=0.99, importance_cap=None).guard == math.inf
    assert ListOPD(modal_probability=0.4, warm_start_mass=0.6).guard == math.inf


@pytest.mark.parametrize("seed", [0, 1])
def test_a_guarded_list_opd_is_exopd_at_the_guard(seed):
    student, teacher, reference = distributions(seed)
    guarded = ListOPD(extrapolation=5.0, modal_probability=0.95, importance_cap=2.0)
    plain = ExOPD(extrapolation=guarded.guard, importance_cap=2.0)
    assert torch.equal(expected(guarded, student, teacher, reference), expected(plain, student, teacher, reference))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"importance_cap": 0.5}, r"`ListOPD\.importance_cap` must be at least 1, or null, got 0\.5"),
        ({"extrapolation": math.inf, "modal_probability": 0.9}, "extrapolation` must lie in"),
    ],
)
def test_a_cap_hides_no_mistake(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        ListOPD(**settings)

"""Policy-gradient objectives over sampled tokens: expectations by enumeration, in float64, and laws of each credit."""

import math
from dataclasses import replace
from fractions import Fraction
from itertools import product

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from veto_pl.advantages import CentredLogRatio, Extrapolated, LogRatio, OrderConsistent, RelaxedLogRatio, WithReward
from veto_pl.exceptions import ConfigurationError
from veto_pl.explain.scene import one_token, tabled
from veto_pl.functional.advantages import discounted_sum, most_uncertain, reverse_cumsum, reward_floor, row_mean
from veto_pl.functional.divergences import reverse_kl
from veto_pl.functional.order import balanced, group_gap, margin_mask
from veto_pl.objectives import OPD, REOPOLD, VOPD, Distill, ExOPD, ListOPD, UniOPD
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.schedules import AtMost, Linear
from veto_pl.seams import Law
from veto_pl.testing.strategies import ragged_grids
from veto_pl.testing.tiny import prompt_batch, tiny_models
from veto_pl.tokens import TokenGrid, TokenRows
from veto_pl.types import Sequences, Step

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
    models = tabled(logits, *fixed, *(() if reference is None else (reference.expand(ids, ids),)))
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
    "ListOPD": ListOPD(extrapolation=3.0, modal_probability=0.9, warm_start_mass=0.3, importance_cap=1.0, margin=0.0),
    "UniOPD": UniOPD(),
    "REOPOLD without a floor": REOPOLD(mixture=1e-9),
    "REOPOLD refining": REOPOLD(mixture=1e-9, switch=0.0),
}


@pytest.mark.parametrize("name", PLAIN)
@given(seed=seeds)
@quick
def test_the_expected_gradient_is_that_of_the_reverse_kl(name, seed):
    """A single token has no future, no rival and no other token of its completion."""
    student, teacher, reference = distributions(seed)
    close(expected(PLAIN[name], student, teacher, reference), gradient_of_kl(student, teacher))


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
        models = tabled(z[rows], teacher[rows])
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
        loss = objective.loss({objective.rollout: both}, tabled(z.expand(2, IDS), teacher.expand(2, IDS)), START)
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


# Order within groups

groups_of_rows = st.lists(st.tuples(numbers, st.booleans(), st.integers(0, 2)), min_size=1, max_size=12)
modes = st.sampled_from(["mean", "minmax"])
directions = st.sampled_from(["both", "correct_up", "incorrect_down"])
margins = st.floats(0, 2)


def order_grid(rows):
    """One token per completion, whose log-ratio is the score."""
    scores = torch.tensor([[score] for score, _, _ in rows], dtype=torch.float64)
    rewards = torch.tensor([float(right) for _, right, _ in rows])
    prompts = torch.tensor([prompt for _, _, prompt in rows])
    mask = torch.ones_like(scores, dtype=torch.bool)
    return TokenGrid(torch.zeros_like(scores), scores, None, mask, prompts, rewards, START)


def gaps(scores, rows, mode, kept=None):
    """By a loop: the gap of every prompt that has both classes."""
    found = {}
    for prompt in sorted({p for _, _, p in rows}):
        sides = {True: [], False: []}
        for i, (score, (_, right, p)) in enumerate(zip(scores, rows, strict=True)):
            if p == prompt and (kept is None or kept[i]):
                sides[right].append(score)
        if sides[True] and sides[False]:
            ends = (min, max) if mode == "minmax" else 2 * (lambda values: sum(values) / len(values),)
            found[prompt] = ends[0](sides[True]) - ends[1](sides[False])
    return found


@given(rows=groups_of_rows, mode=modes, direction=directions, margin=margins)
@quick
def test_a_shift_puts_correct_completions_the_margin_above_wrong_ones(rows, mode, direction, margin):
    grid = order_grid(rows)
    credit = OrderConsistent(margin, "shift", mode, direction)(grid)[:, 0].tolist()
    before = gaps([score for score, _, _ in rows], rows, mode)
    after = gaps(credit, rows, mode)
    for (score, right, prompt), new in zip(rows, credit, strict=True):
        missing = max(0.0, margin - before.get(prompt, math.inf))
        up, down = {"both": (0.5, 0.5), "correct_up": (1, 0), "incorrect_down": (0, 1)}[direction]
        assert new == pytest.approx(score + (up if right else -down) * missing, abs=1e-9)
    for prompt, gap in after.items():
        assert gap >= margin - 1e-9
        assert gap == pytest.approx(max(before[prompt], margin), abs=1e-9)


@given(rows=groups_of_rows, mode=modes, margin=margins)
@quick
def test_the_gap_against_a_loop(rows, mode, margin):
    grid = order_grid(rows)
    correct, everybody = grid.rewards == 1, torch.ones(len(rows), dtype=torch.bool)
    found = group_gap(grid.teacher_logp[:, 0], correct, grid.prompt_rows, everybody, mode).tolist()
    by_hand = gaps([score for score, _, _ in rows], rows, mode)
    assert found == pytest.approx([by_hand.get(prompt, math.inf) for _, _, prompt in rows], abs=1e-9)


@given(rows=groups_of_rows, mode=modes, margin=margins, retain=st.floats(0, 1))
@quick
def test_a_mask_leaves_out_no_more_than_it_has_to(rows, mode, margin, retain):
    grid = order_grid(rows)
    kept = (OrderConsistent(margin, "mask", mode, min_retain=retain, outlier=None)(grid)[:, 0] != 0).tolist()
    scores = [score for score, _, _ in rows]
    assume(all(scores))
    before, after = gaps(scores, rows, mode), gaps(scores, rows, mode, kept)
    for prompt in {p for _, _, p in rows}:
        own = [i for i, (_, _, p) in enumerate(rows) if p == prompt]
        if prompt not in before or before[prompt] >= margin:
            assert all(kept[i] for i in own)
            continue
        assert after[prompt] >= before[prompt] - 1e-12
        for right in (True, False):
            members = [i for i in own if rows[i][1] == right]
            stay = [i for i in members if kept[i]]
            assert len(stay) >= max(1, int(retain * len(members)))
            gone = [scores[i] for i in members if not kept[i]]
            worst = [scores[i] if right else -scores[i] for i in stay]
            assert all((g if right else -g) <= min(worst) for g in gone), "the worst go first"


def test_a_mask_stops_as_soon_as_the_margin_is_reached():
    scores = torch.tensor([0.0, 1.0, 2.0, 1.8, 0.9], dtype=torch.float64)
    correct = torch.tensor([True, True, True, False, False])
    everybody, one = torch.ones(5, dtype=torch.bool), torch.zeros(5, dtype=torch.int64)

    def kept(margin, retain):
        return margin_mask(scores, correct, one, everybody, margin, retain, "mean").tolist()

    assert kept(-1.0, 0.25) == [True] * 5
    assert kept(0.1, 0.25) == [False, True, True, True, True]
    assert kept(0.5, 0.25) == [False, False, True, True, True]
    assert kept(0.7, 0.25) == [False, False, True, False, True]
    assert kept(9.0, 0.25) == [False, False, True, False, True]
    assert kept(9.0, 1.0) == [True] * 5


@given(rows=groups_of_rows, seed=seeds, ratio=st.floats(0.1, 8))
@quick
def test_balance_leaves_out_the_surplus_of_one_class(rows, seed, ratio):
    correct, prompts = torch.tensor([r for _, r, _ in rows]), torch.tensor([p for _, _, p in rows])
    lots = torch.rand(len(rows), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kept = balanced(correct, prompts, lots, ratio)
    for prompt in prompts.unique():
        right, wrong = (correct & (prompts == prompt)), (~correct & (prompts == prompt))
        n, m = int(right.sum()), int(wrong.sum())
        allowed = {True: math.floor(m * ratio), False: math.floor(n / ratio)}
        for members, own, limit in ((right, n, allowed[True]), (wrong, m, allowed[False])):
            stay = kept & members
            assert int(stay.sum()) == (limit if own > limit >= 1 else own)
            if stay.any() and (members & ~kept).any():
                assert lots[stay].max() < lots[members & ~kept].min()
    assert torch.equal(balanced(correct, prompts, lots, 0.0), ~correct)


def completions(rewards, prompts=None):
    """Rows of one token."""
    generator = torch.full((IDS,), -math.log(IDS), dtype=torch.float64)
    rows = Sequences.concatenate([one_token(0, generator) for _ in rewards])
    prompts = torch.zeros(len(rewards), dtype=torch.int64) if prompts is None else torch.tensor(prompts)
    return replace(rows, rewards=torch.tensor(rewards), prompt_rows=prompts)


def test_the_balance_is_drawn_anew_at_each_step_and_the_same_for_each_split():
    rewards, prompts = [1.0] * 6 + [0.0] * 2 + [0.5] * 5 + [1.0], [0] * 8 + [1] * 6
    rows = completions(rewards, prompts)
    objective = UniOPD()
    chosen = [objective.select(rows, Step(i, 10)).loss_mask.any(1) for i in range(8)]
    assert all((int(mask[:8].sum()), int(mask[8:].sum())) == (4, 2) for mask in chosen)
    assert len({tuple(mask.tolist()) for mask in chosen}) > 1
    alone = objective.select(rows.rows(rows.prompt_rows == 1), START).loss_mask.any(1)
    assert torch.equal(alone, chosen[0][8:])
    assert torch.equal(objective.select(rows, START).loss_mask.any(1), chosen[0])
    other_seed = [UniOPD().select(rows, Step(0, 10, seed=seed)).loss_mask.any(1) for seed in range(8)]
    assert len({tuple(mask.tolist()) for mask in other_seed}) > 1
    assert objective.select(rows, START).rewards is rows.rewards
    assert UniOPD(balance=None).select(rows, START) is rows
    assert not UniOPD(balance=0.0).select(rows, START).loss_mask[rows.rewards == 1].any()


def test_rows_that_the_balance_leaves_out_do_not_count_in_the_means():
    rows = [(1.0, True, 0), (9.0, True, 0), (0.9, False, 0)]
    grid = order_grid(rows)
    silent = replace(grid, mask=torch.tensor([[True], [False], [True]]))
    assert OrderConsistent()(grid)[:, 0].tolist() == pytest.approx([1.0, 9.0, 0.9])
    assert OrderConsistent()(silent)[[0, 2], 0].tolist() == pytest.approx([1.15, 0.75])


# Tokens of a completion


@given(grid=ragged_grids(), fraction=st.floats(0.05, 1))
def test_the_most_uncertain_tokens_are_taken_from_each_row(grid, fraction):
    values, mask = grid
    taken = most_uncertain(values, mask, fraction)
    assert not (taken & ~mask).any()
    for row, counts, chosen in zip(values, mask, taken, strict=True):
        assert int(chosen.sum()) == math.ceil(fraction * int(counts.sum()))
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


# What is asked for, and what is refused


def test_each_asks_for_what_it_reads():
    needs = {
        type(x): (x.needs_teacher, x.needs_reference, x.needs_rewards)
        for x in (OPD(), VOPD(), ExOPD(), ListOPD(), UniOPD(), REOPOLD())
    }
    assert needs == {
        OPD: (True, False, False), VOPD: (True, False, False), ExOPD: (True, True, False),
        ListOPD: (True, True, False), UniOPD: (True, False, True), REOPOLD: (True, False, False),
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
        (OPD, {"discount": 1.5}, r"`discount` must lie in \[0, 1\], got 1\.5"),
        (OPD, {"reward_weight": -1.0}, r"`OPD\.reward_weight` must lie in \[0, 1e\+06\], got -1"),
        (WithReward, {"weight": math.nan}, r"`WithReward\.weight` must lie in \[0, 1e\+06\], got nan"),
        (VOPD, {"top_k": 0}, r"`top_k` must be at least 1, or null for all ids, got 0"),
        (ExOPD, {"extrapolation": math.inf}, r"`extrapolation` must lie in \[0, 1e\+06\], got inf"),
        (ListOPD, {"modal_probability": 1.0}, r"`ListOPD\.modal_probability` must lie in \(0, 1\), or be null, got 1"),
        (ListOPD, {"warm_start_mass": 0.0}, r"`ListOPD\.warm_start_mass` must lie in \(0, 1\), got 0"),
        (ListOPD, {"margin": 1.0}, r"`ListOPD\.margin` must lie in \[0, 1\), got 1"),
        (ListOPD, {"modal_probability": 0.9, "importance_cap": 0.5}, r"`ListOPD\.importance_cap` must be at least 1"),
        (UniOPD, {"balance": math.inf}, r"`UniOPD\.balance` must be at least 0 and finite, or null, got inf"),
        (UniOPD, {"margin": -0.1}, r"`margin` must lie in \[0, 1e\+06\], got -0\.1"),
        (UniOPD, {"min_retain": 2.0}, r"`min_retain` must lie in \[0, 1\], got 2"),
        (UniOPD, {"outlier": 0.0}, r"`outlier` must be positive and finite, or null, got 0"),
        (REOPOLD, {"mixture": 1.0}, r"`mixture` must lie in \(0, 1\), got 1"),
        (REOPOLD, {"keep": 0.0}, r"`keep` must lie in \(0, 1\], got 0"),
        (REOPOLD, {"switch": 1.1}, r"`switch` must lie in \[0, 1\], got 1\.1"),
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
    loss = objective.loss({objective.rollout: rows}, tabled(logits, teacher, reference), START).terms["loss"].total
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
    assert ListOPD(modal_probability=0.99, importance_cap=None).guard == math.inf
    assert ListOPD(modal_probability=0.4, warm_start_mass=0.6).guard == math.inf


@pytest.mark.parametrize("seed", [0, 1])
def test_a_guarded_list_opd_is_exopd_at_the_guard(seed):
    student, teacher, reference = distributions(seed)
    guarded = ListOPD(extrapolation=5.0, modal_probability=0.95, importance_cap=2.0)
    plain = ExOPD(extrapolation=guarded.guard, importance_cap=2.0)
    assert torch.equal(expected(guarded, student, teacher, reference), expected(plain, student, teacher, reference))


def test_the_balance_keeps_as_many_as_fit_into_the_ratio():
    ratios = (Fraction(3, 5), Fraction(1, 10), Fraction(7, 10), Fraction(3))
    for ratio, right, wrong in product(ratios, (1, 7, 9), (2, 15, 18)):
        total = right + wrong
        correct = torch.arange(total) < right
        kept = balanced(correct, torch.zeros(total, dtype=torch.int64), torch.rand(total), float(ratio))
        most = {True: math.floor(wrong * ratio), False: math.floor(right / ratio)}
        for of, size in ((True, right), (False, wrong)):
            expected = size if most[of] < 1 else min(size, most[of])
            assert int((kept & (correct == of)).sum()) == expected, (ratio, right, wrong, of)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"importance_cap": 0.5}, r"`ListOPD\.importance_cap` must be at least 1, or null, got 0\.5"),
        ({"extrapolation": math.inf, "modal_probability": 0.9}, "`extrapolation` must lie in"),
    ],
)
def test_a_cap_hides_no_mistake(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        ListOPD(**settings)

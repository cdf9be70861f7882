"""Order consistency within the completions of a prompt: UniOPD's margin and balance."""

import math
from dataclasses import replace
from fractions import Fraction
from itertools import product

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from veto_pl.explain.scene import one_token
from veto_pl.functional.order import balance_classes, group_gap, margin_mask
from veto_pl.objectives import UniOPD
from veto_pl.parts.advantages import OrderConsistent
from veto_pl.seams import Sequences, Step
from veto_pl.seams.tokens import TokenGrid

IDS = 5
START, END = Step(0, 10), Step(9, 10)
quick = settings(deadline=None, max_examples=15)
seeds = st.integers(0, 2**31 - 1)
numbers = st.floats(-3, 3, allow_nan=False)


def close(one, other, tolerance=1e-9):
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


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
    kept = balance_classes(correct, prompts, lots, ratio)
    for prompt in prompts.unique():
        right, wrong = (correct & (prompts == prompt)), (~correct & (prompts == prompt))
        n, m = int(right.sum()), int(wrong.sum())
        allowed = {True: math.floor(m * ratio), False: math.floor(n / ratio)}
        for members, own, limit in ((right, n, allowed[True]), (wrong, m, allowed[False])):
            stay = kept & members
            assert int(stay.sum()) == (limit if own > limit >= 1 else own)
            if stay.any() and (members & ~kept).any():
                assert lots[stay].max() < lots[members & ~kept].min()
    assert torch.equal(balance_classes(correct, prompts, lots, 0.0), ~correct)


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


def test_the_balance_keeps_as_many_as_fit_into_the_ratio():
    ratios = (Fraction(3, 5), Fraction(1, 10), Fraction(7, 10), Fraction(3))
    for ratio, right, wrong in product(ratios, (1, 7, 9), (2, 15, 18)):
        total = right + wrong
        correct = torch.arange(total) < right
        kept = balance_classes(correct, torch.zeros(total, dtype=torch.int64), torch.rand(total), float(ratio))
        most = {True: math.floor(wrong * ratio), False: math.floor(right / ratio)}
        for of, size in ((True, right), (False, wrong)):
            expected = size if most[of] < 1 else min(size, most[of])
            assert int((kept & (correct == of)).sum()) == expected, (ratio, right, wrong, of)

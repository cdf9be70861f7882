"""The contrast of hints and the credit of two paths: limits, laws, and plain loops in float64."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veto_pl.functional.contrast import contrast_of_hints, two_path_credit

quick = settings(deadline=None, derandomize=True, max_examples=60)
ROWS, WIDTH = 3, 4
flags = st.lists(st.booleans(), min_size=9, max_size=9)
numbers = st.lists(st.lists(st.floats(-5, -0.01), min_size=WIDTH, max_size=WIDTH), min_size=ROWS, max_size=ROWS)


@given(
    right=numbers, wrong=st.lists(numbers, min_size=1, max_size=3), told=st.lists(st.booleans(), min_size=9, max_size=9)
)
@quick
def test_the_contrast_against_plain_loops(right, wrong, told):
    hints = torch.tensor(wrong, dtype=torch.float64)
    for hint in range(len(wrong)):
        for row in range(ROWS):
            if not told[3 * hint + row]:
                hints[hint, row] = -math.inf
    found = contrast_of_hints(torch.tensor(right, dtype=torch.float64), hints)
    for row in range(ROWS):
        for place in range(WIDTH):
            known = [math.exp(hint[row][place]) for n, hint in enumerate(wrong) if told[3 * n + row]]
            expected = right[row][place] - math.log(sum(known) / len(known)) if known else 0.0
            assert math.isclose(found[row, place], expected, abs_tol=1e-12)


@given(
    outcome=st.lists(st.floats(-2, 2) | st.just(0.0), min_size=ROWS, max_size=ROWS),
    shift=st.lists(st.lists(st.floats(-3, 3), min_size=WIDTH, max_size=WIDTH), min_size=ROWS, max_size=ROWS),
    kinds=st.lists(st.sampled_from(["chosen", "other", "masked"]), min_size=ROWS * WIDTH, max_size=ROWS * WIDTH),
    eta=st.floats(0, 2),
)
@quick
def test_two_paths_are_two_means(outcome, shift, kinds, eta):
    chosen = torch.tensor([kind == "chosen" for kind in kinds]).view(ROWS, WIDTH)
    mask = torch.tensor([kind != "masked" for kind in kinds]).view(ROWS, WIDTH)
    a, e = torch.tensor(outcome, dtype=torch.float64)[:, None], torch.tensor(shift, dtype=torch.float64)
    credit = two_path_credit(a, e, chosen, mask, eta)
    assert credit.isfinite().all()
    assert not credit[~mask].any()
    assert (credit * a >= 0).all(), "the outcome's sign is kept"
    for row in range(ROWS):
        paths = {"chosen": [], "other": []}
        for place in range(WIDTH):
            kind = kinds[WIDTH * row + place]
            if kind == "chosen":
                moved = outcome[row] + shift[row][place]
                paths[kind].append(max(moved, 0) if outcome[row] > 0 else min(moved, 0) if outcome[row] < 0 else 0.0)
            elif kind == "other":
                paths[kind].append(outcome[row])
        means = {kind: sum(values) / len(values) if values else 0.0 for kind, values in paths.items()}
        counted = int(mask[row].sum())
        if counted:
            mean = float(credit[row].sum()) / counted
            assert math.isclose(mean, means["other"] + eta * means["chosen"], abs_tol=1e-9)


def test_nothing_chosen_is_the_outcome():
    mask = torch.tensor([[True, True, False]])
    credit = two_path_credit(torch.tensor([[-0.7]]), torch.zeros(1, 3), torch.zeros_like(mask), mask, 1.0)
    torch.testing.assert_close(credit, torch.tensor([[-0.7, -0.7, 0.0]]))

"""One update however the batch is split: the ledger against the gradient of the whole batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.seams import Stat
from veto_pl.training.normalisation import GradientLedger, merge_terms

ROWS = 6
seeds = st.integers(0, 2**20)
splits = st.lists(st.integers(0, 3), min_size=ROWS, max_size=ROWS).map(
    lambda owners: [[i for i, owner in enumerate(owners) if owner == part] for part in range(4)]
)


def alone(tensor):
    """The sum over a single rank."""
    return tensor


class Toy:
    """Two parameters, of which the second takes part in the second term only, and terms with own denominators."""

    def __init__(self, seed, names):
        generator = torch.Generator().manual_seed(seed)
        self.parameters = [torch.nn.Parameter(torch.randn(3, generator=generator)) for _ in range(2)]
        self.inputs = torch.randn(ROWS, 3, generator=generator)
        self.counts = torch.randint(0, 5, (len(names), ROWS), generator=generator).float()
        self.names = names

    def terms(self, rows):
        first, second = self.parameters
        losses = [(self.inputs @ first).square(), (self.inputs @ (first * second)).exp()]
        return {
            name: Stat((losses[i] * self.counts[i])[rows].sum(), self.counts[i][rows].sum())
            for i, name in enumerate(self.names)
        }

    def expected(self):
        """The gradient of the sum of the means over all rows, in one pass."""
        loss = torch.stack([stat.mean() for stat in self.terms(list(range(ROWS))).values()]).sum()
        return filled(torch.autograd.grad(loss, self.parameters, allow_unused=True), self.parameters)

    def gradients(self):
        return filled([p.grad for p in self.parameters], self.parameters)


def filled(gradients, parameters):
    return [torch.zeros_like(p) if g is None else g.clone() for p, g in zip(parameters, gradients, strict=True)]


def assert_same(ours, expected):
    scale = max(1.0, *(float(g.abs().max()) for g in expected))
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one / scale, other / scale, rtol=0, atol=1e-5)


@given(seed=seeds, split=splits)
def test_one_term_is_summed_in_place_and_scaled_at_the_end(seed, split):
    """As the training loop does it: every backward pass is divided by the number of micro-batches."""
    toy, ledger = Toy(seed, ["loss"]), GradientLedger()
    for rows in split:
        terms = toy.terms(rows)
        ledger.record(terms)
        (terms["loss"].total / len(split)).backward()
    ledger.normalise(toy.parameters, alone, scale=len(split))
    assert_same(toy.gradients(), toy.expected())


@given(seed=seeds, split=splits)
def test_several_terms_are_each_divided_by_their_own_weight(seed, split):
    toy, ledger = Toy(seed, ["one", "other"]), GradientLedger()
    for rows in split:
        terms = toy.terms(rows)
        ledger.record(terms)
        ledger.backward(terms, toy.parameters)
    ledger.normalise(toy.parameters, alone, scale=1.0)
    assert_same(toy.gradients(), toy.expected())


@given(seed=seeds)
def test_one_joined_term_equals_the_ledger(seed):
    toy, ledger = Toy(seed, ["one", "other"]), GradientLedger()
    single = {"joined": merge_terms(toy.terms(list(range(ROWS))), alone, ranks=1)}
    assert single["joined"].weight == 1
    ledger.record(single)
    single["joined"].total.backward()
    ledger.normalise(toy.parameters, alone, scale=1.0)
    assert_same(toy.gradients(), toy.expected())


@given(seed=seeds, split=splits)
def test_ranks_that_average_their_gradients_give_the_whole_batch(seed, split):
    """Each rank's single term, with weights summed over the ranks and gradients averaged by the strategy."""
    toy = Toy(seed, ["loss"])
    weights = [toy.terms(rows)["loss"].weight.double() for rows in split]
    totals = []
    for rows in split:
        ledger, terms = GradientLedger(), toy.terms(rows)
        ledger.record(terms)
        for parameter in toy.parameters:
            parameter.grad = None
        terms["loss"].total.backward()
        ledger.normalise(toy.parameters, lambda _: torch.stack(weights).sum()[None], scale=len(split))
        totals.append(toy.gradients())
    averaged = [torch.stack(parts).mean(0) for parts in zip(*totals, strict=True)]
    assert_same(averaged, toy.expected())


@given(seed=seeds, split=splits)
def test_ranks_that_join_their_terms_give_the_whole_batch(seed, split):
    toy = Toy(seed, ["one", "other"])
    per_rank = [toy.terms(rows) for rows in split]
    weights = torch.stack([torch.stack([stat.weight.double() for stat in terms.values()]) for terms in per_rank])
    parts = [merge_terms(terms, lambda _: weights.sum(0), ranks=len(split)) for terms in per_rank]
    assert sum(float(part.weight) for part in parts) == pytest.approx(1.0)
    torch.stack([part.total for part in parts]).sum().backward()
    assert_same(toy.gradients(), toy.expected())


@pytest.mark.parametrize("names", [["loss"], ["one", "other"]])
def test_a_window_without_tokens_has_no_gradient(names):
    toy, ledger = Toy(0, names), GradientLedger()
    terms = toy.terms([])
    ledger.record(terms)
    if len(names) == 1:
        terms["loss"].total.backward()
    else:
        ledger.backward(terms, toy.parameters)
    ledger.normalise(toy.parameters, alone, scale=1.0)
    assert all((gradient == 0).all() for gradient in toy.gradients())


def test_a_new_window_forgets_the_last():
    toy, ledger = Toy(3, ["one", "other"]), GradientLedger()
    for _ in range(2):
        ledger.reset()
        terms = toy.terms(list(range(ROWS)))
        ledger.record(terms)
        ledger.backward(terms, toy.parameters)
        ledger.normalise(toy.parameters, alone, scale=1.0)
        assert_same(toy.gradients(), toy.expected())


def test_parameters_that_are_not_trained_are_left_alone():
    toy, ledger = Toy(1, ["one", "other"]), GradientLedger()
    toy.parameters[1].requires_grad_(False)
    terms = toy.terms(list(range(ROWS)))
    ledger.record(terms)
    ledger.backward(terms, toy.parameters)
    ledger.normalise(toy.parameters, alone, scale=1.0)
    assert toy.parameters[1].grad is None
    assert toy.parameters[0].grad.abs().max() > 0

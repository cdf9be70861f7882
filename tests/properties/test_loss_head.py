"""The memory-exact head against the dense formula in float64, its products, its memory, and its fallbacks."""

from functools import partial

import pytest
import torch
from head_cases import assert_equal_to_dense, dense, inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from veto_pl.functional import divergences
from veto_pl.functional.chunked import linear_divergence
from veto_pl.functional.heads import FunctionHead, LinearHead, ScaleAndCap
from veto_pl.functional.targets import geometric_bridge
from veto_pl.parts.divergences import ForwardKL, GeneralizedJSD
from veto_pl.parts.schedules import Linear
from veto_pl.parts.targets import GeometricBridge
from veto_pl.seams import Step
from veto_pl.testing.dense import VocabularyProducts, dense_divergence

BRIDGE = partial(geometric_bridge, beta=0.8)


def third_party(student_logp, target_logp):
    """A function that the package does not know: a Hellinger distance."""
    return 1 - (0.5 * (student_logp + target_logp)).exp().sum(-1)


DIVERGENCES = {
    "forward": divergences.forward_kl,
    "reverse": divergences.reverse_kl,
    "jsd": divergences.generalized_jsd,
    "jsd 0.1": partial(divergences.generalized_jsd, beta=0.1),
    "skew": divergences.skew_kl,
    "skew reverse": partial(divergences.skew_reverse_kl, alpha=0.3),
    "variation": divergences.total_variation,
    "third party": third_party,
    "object": GeneralizedJSD(0.3),
}


@pytest.mark.parametrize("target", [None, BRIDGE], ids=["teacher", "bridge"])
@pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)
@settings(deadline=None, max_examples=15)
@given(rows=st.integers(1, 9), chunk=st.integers(1, 10), seed=st.integers(0, 99), scale=st.sampled_from([0.1, 1, 4]))
def test_value_and_gradients_are_those_of_the_dense_formula(divergence, target, rows, chunk, seed, scale):
    weights = torch.linspace(0, 2, rows, dtype=torch.float64)
    assert_equal_to_dense(
        inputs(rows, seed=seed, scale=scale), divergence, 1e-10, chunk, target=target, weights=weights
    )


@pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)
def test_float32_gradients_agree_to_1e_5(divergence):
    for target in (None, BRIDGE):
        given = inputs(300, 500, 32, 24, dtype=torch.float32, scale=0.4)
        assert_equal_to_dense(given, divergence, 1e-5, 128, target=target)


def test_no_row_gives_a_zero_with_a_graph():
    hidden, head, other, other_head = inputs(0)
    stat = linear_divergence(hidden, head, other, other_head, divergences.forward_kl)
    assert (stat.total.item(), stat.weight.item(), stat.mean().item()) == (0.0, 0.0, 0.0)
    stat.total.backward()
    assert hidden.grad.shape == (0, 5)
    assert not head.grad.any()


def test_the_weight_is_the_number_of_rows_or_the_sum_of_the_weights():
    given = inputs()
    assert linear_divergence(*given, divergences.forward_kl).weight == 7
    weights = torch.rand(7, dtype=torch.float64)
    assert linear_divergence(*given, divergences.forward_kl, weights=weights).weight == weights.sum()


def test_a_scheduled_target_gets_the_step():
    given = inputs()
    half_way = linear_divergence(*given, ForwardKL(), target=GeometricBridge(Linear(0.8, 0.0)), step=Step(5, 10)).total
    assert half_way == linear_divergence(*given, ForwardKL(), target=partial(geometric_bridge, beta=0.4)).total


def test_rows_vocabularies_and_chunks_must_fit():
    hidden, head, other, other_head = inputs()
    with pytest.raises(ValueError, match="same rows and vocabulary, got 7 and 6 rows"):
        linear_divergence(hidden, head, other[:6], other_head, divergences.forward_kl)
    with pytest.raises(ValueError, match="11 and 10 ids"):
        linear_divergence(hidden, head, other, other_head[:10], divergences.forward_kl)
    with pytest.raises(ValueError, match="`chunk_rows` must be at least 1, got 0"):
        linear_divergence(hidden, head, other, other_head, divergences.forward_kl, chunk_rows=0)
    with pytest.raises(ValueError, match=r"`vocab_size` must lie in \[0, 11\]"):
        LinearHead(head, vocab_size=12)


def test_gradients_are_used_once():
    stat = linear_divergence(*inputs(), divergences.forward_kl)
    stat.total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="already used"):
        stat.total.backward()


def test_upstream_factors_scale_the_gradient():
    given = inputs()
    linear_divergence(*given, divergences.reverse_kl).total.backward()
    once = given[0].grad.clone()
    given[0].grad = None
    (linear_divergence(*given, divergences.reverse_kl).mean() * 3).backward()
    torch.testing.assert_close(given[0].grad, once * 3 / 7)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_under_autocast_scores_and_weights_are_float32(precision):
    given = inputs(64, 200, 32, 32, dtype=torch.float32, scale=0.3)
    with torch.autocast("cpu", precision):
        stat = linear_divergence(*given, divergences.reverse_kl, chunk_rows=16, weights=torch.full((64,), 1.01))
    assert stat.total.dtype == stat.weight.dtype == torch.float32
    stat.total.backward()
    total, hidden, _ = dense(given, divergences.reverse_kl, weights=torch.full((64,), 1.01).double())
    assert abs(stat.total - total) <= 2e-2 * total
    assert (given[0].grad.double() - hidden).norm() <= 2e-2 * hidden.norm()


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_gets_no_gradient_and_costs_no_product(frozen):
    given = inputs(8)
    given[frozen].requires_grad_(False)
    expected = dense(given, divergences.forward_kl)
    with VocabularyProducts(11) as counter:
        stat = linear_divergence(*given, divergences.forward_kl)
    stat.total.backward()
    assert counter.multiplications == 8 * 11 * (5 + 3 + 5)
    assert given[frozen].grad is None
    torch.testing.assert_close(given[1 - frozen].grad, expected[2 - frozen])


def products(function, vocab=100):
    with VocabularyProducts(vocab) as counter:
        function()
    return counter.multiplications


def test_the_head_makes_four_products_and_no_more():
    given = inputs(64, 100, 16, 16, dtype=torch.float32)
    one = 64 * 100 * 16

    def run():
        linear_divergence(*given, divergences.generalized_jsd, chunk_rows=16).total.backward()

    assert products(run) == 4 * one
    given[1].requires_grad_(False)
    assert products(run) == 3 * one


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)
def test_nothing_of_the_size_of_tokens_times_vocabulary_exists(divergence):
    rows, vocab, width = 512, 300, 4
    given = inputs(rows, vocab, width, width, dtype=torch.float32)
    with Largest() as seen:
        linear_divergence(*given, divergence, chunk_rows=32).total.backward()
    assert seen.elements == max(32 * vocab, vocab * width, rows * width)


HEADS = {
    "bias": {"bias": torch.linspace(-1, 1, 11, dtype=torch.float64)},
    "scale": {"scale_and_cap": ScaleAndCap(scale=0.25)},
    "softcap": {"scale_and_cap": ScaleAndCap(scale=2.0, softcap=1.5)},
    "padding": {"vocab_size": 9},
    "all": {
        "bias": torch.linspace(-1, 1, 11, dtype=torch.float64),
        "scale_and_cap": ScaleAndCap(scale=0.5, softcap=2.0),
        "vocab_size": 8,
    },
}


@pytest.mark.parametrize("kind", ["linear", "function"])
@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
def test_heads_have_bias_scale_softcap_and_padding(options, kind):
    hidden, weight, other, other_head = inputs(7)
    bias = options.get("bias", torch.zeros(11, dtype=torch.float64)).clone().requires_grad_("bias" in options)
    scale_and_cap, vocab = options.get("scale_and_cap", ScaleAndCap()), options.get("vocab_size", 11)
    if kind == "linear":
        head = LinearHead(weight, bias if "bias" in options else None, scale_and_cap, vocab)
    else:
        head = FunctionHead(lambda h: h @ weight.T + bias, [weight, bias], vocab, scale_and_cap)
    trained = [hidden, weight, *([bias] if "bias" in options else [])]
    stat = linear_divergence(hidden, head, other, other_head[:vocab], divergences.reverse_kl, chunk_rows=2)
    mine = torch.autograd.grad(stat.total, trained)
    logits = scale_and_cap(hidden @ weight.T + bias)[:, :vocab]
    total = dense_divergence(logits, other @ other_head[:vocab].T, divergences.reverse_kl)
    torch.testing.assert_close(stat.total, total)
    torch.testing.assert_close(mine, torch.autograd.grad(total, trained))


def test_a_tied_head_adds_up_with_the_embedding():
    _, weight, other, other_head = inputs(7)
    ids = torch.arange(7)

    def gradient(loss):
        weight.grad = None
        loss(torch.tanh(weight[ids])).backward()
        return weight.grad.clone()

    mine = gradient(lambda h: linear_divergence(h, weight, other, other_head, divergences.forward_kl).total)
    dense = gradient(lambda h: dense_divergence(h @ weight.T, other @ other_head.T, divergences.forward_kl))
    torch.testing.assert_close(mine, dense)


def test_a_lora_head_trains_its_adapter_alone():
    torch.manual_seed(0)
    base, down, up = nn.Linear(5, 11, bias=False).double(), nn.Linear(5, 2, bias=False), nn.Linear(2, 11, bias=False)
    base.requires_grad_(False)
    down.double(), up.double()
    hidden, _, other, other_head = inputs(7)
    adapter = [down.weight, up.weight]
    head = FunctionHead(lambda h: base(h) + 0.5 * up(down(h)), adapter, 11)
    total = linear_divergence(hidden, head, other, other_head, divergences.forward_kl, chunk_rows=3).total
    expected = dense_divergence(base(hidden) + 0.5 * up(down(hidden)), other @ other_head.T, divergences.forward_kl)
    mine, theirs = (torch.autograd.grad(value, [hidden, *adapter]) for value in (total, expected))
    torch.testing.assert_close(mine, theirs)


def test_float16_gradients_do_not_underflow():
    hidden, head, other, other_head = inputs(64, 2000, 32, 32, dtype=torch.float16, scale=0.2)
    stat = linear_divergence(hidden, head, other, other_head, divergences.forward_kl, chunk_rows=16)
    stat.total.backward()
    _, of_hidden, of_head = dense((hidden, head, other, other_head), divergences.forward_kl)
    assert (hidden.grad.double() - of_hidden).norm() <= 1e-3 * of_hidden.norm()
    assert (head.grad.double() - of_head).norm() <= 1e-3 * of_head.norm()


def test_a_teacher_without_a_linear_head_needs_no_graph():
    hidden, head, other, other_head = inputs()
    with torch.inference_mode():
        read = other * 1.0
    graphs = []

    def function(rows):
        graphs.append(torch.is_grad_enabled())
        return rows @ other_head.T

    teacher = FunctionHead(function, [], 11)
    total = linear_divergence(hidden, head, read, teacher, divergences.forward_kl, chunk_rows=3).total
    torch.testing.assert_close(total, dense((hidden, head, other, other_head), divergences.forward_kl)[0])
    assert graphs == [False] * 3


def test_bfloat16_is_reduced_in_float32():
    given = inputs(64, 200, 32, 32, dtype=torch.bfloat16, scale=0.3)
    stat = linear_divergence(*given, divergences.forward_kl, chunk_rows=16)
    stat.total.backward()
    total, hidden, head = dense(given, divergences.forward_kl)
    assert (stat.total.dtype, given[0].grad.dtype, given[1].grad.dtype) == (torch.float32, *[torch.bfloat16] * 2)
    assert abs(stat.total - total) <= 5e-3 * total
    assert (given[0].grad.double() - hidden).norm() <= 1e-2 * hidden.norm()
    assert (given[1].grad.double() - head).norm() <= 1e-2 * head.norm()


def test_autocast_forms_the_products_and_leaves_the_gradients_their_dtype():
    given = inputs(64, 200, 32, 32, dtype=torch.float32, scale=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        total = linear_divergence(*given, divergences.forward_kl, chunk_rows=16).total
    total.backward()
    expected, hidden, _ = dense(given, divergences.forward_kl)
    assert given[0].grad.dtype == given[1].grad.dtype == torch.float32
    assert 0 < abs(total - expected) <= 2e-2 * expected
    assert (given[0].grad.double() - hidden).norm() <= 2e-2 * hidden.norm()


def test_without_gradients_only_the_value_is_formed():
    given = inputs(16)
    with torch.no_grad():
        value = linear_divergence(*given, divergences.forward_kl).total
        cost = products(lambda: linear_divergence(*given, divergences.total_variation), 11)
    assert not value.requires_grad
    torch.testing.assert_close(value, dense(given, divergences.forward_kl)[0])
    assert cost == 16 * 11 * (5 + 3)


@pytest.mark.parametrize("shape", [(1,), (20,), (7, 1)])
def test_weights_have_one_entry_per_row(shape):
    with pytest.raises(ValueError, match=r"`weights` must be \[7\]"):
        linear_divergence(*inputs(), divergences.forward_kl, weights=torch.ones(shape))

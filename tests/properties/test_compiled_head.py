"""The compiled loss head: the same numbers as the dense formula, and what the compiler emits for a GPU."""

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from emitted import emitted
from head_cases import assert_equal_to_dense, dense, inputs
from test_loss_head import BRIDGE, DIVERGENCES, HEADS, third_party
from torch.utils._python_dispatch import TorchDispatchMode

from veto_pl.exceptions import ConfigurationError
from veto_pl.functional import chunk_size, compilation, divergences, heads
from veto_pl.functional.alpha import renyi
from veto_pl.functional.chunked import DivergenceKernel, linear_divergence
from veto_pl.functional.expectation import expectation
from veto_pl.functional.heads import FunctionHead, LinearHead, ScaleAndCap
from veto_pl.functional.targets import geometric_bridge
from veto_pl.objectives import Veto
from veto_pl.objectives.token_kernel import TokenKernel
from veto_pl.parts.divergences import AlphaDivergence, GeneralizedJSD, ReverseKL, SkewReverseKL
from veto_pl.parts.schedules import Constant, Linear, value_at
from veto_pl.parts.targets import GeometricBridge
from veto_pl.seams import Schedule, Step, Target
from veto_pl.testing.dense import dense_divergence

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


@pytest.fixture(autouse=True)
def forgetful():
    """Let every test compile anew."""
    yield
    compilation._compiled.cache_clear()
    compilation._uncompiled.clear()
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch):
    """Follow and take apart kernels as the compiler does, and run the operations that are left: that takes no C++."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(compilation, "OPTIONS", None)


@pytest.mark.parametrize("target", [None, pytest.param(BRIDGE, marks=pytest.mark.slow)], ids=["teacher", "bridge"])
@pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)
def test_value_and_gradients_are_those_of_the_dense_formula(divergence, target, traced):
    weights = torch.linspace(0, 2, 10, dtype=torch.float64)
    for chunk in (4, 20):
        assert_equal_to_dense(
            inputs(10), divergence, 1e-12, chunk, target=target, weights=weights, options={"compiled": True}
        )


@pytest.mark.slow
@pytest.mark.parametrize("target", [None, BRIDGE], ids=["teacher", "bridge"])
@pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)
def test_the_real_compiler_agrees_in_float32(divergence, target):
    given = inputs(150, 500, 32, 24, dtype=torch.float32, scale=0.4)
    assert_equal_to_dense(given, divergence, 1e-5, 64, target=target, options={"compiled": True})


def test_the_real_compiler_agrees_on_a_head_with_everything():
    given = inputs(40, 60, 8, 8, dtype=torch.float32, scale=0.4)
    assert_head_equal_to_dense("linear", HEADS["all"], given, rtol=1e-4, atol=1e-5)


def assert_head_equal_to_dense(kind, options, given, **tolerance):
    hidden, weight, other, other_head = given
    rows, dtype = len(weight), weight.dtype
    bias = torch.linspace(-1, 1, rows, dtype=dtype).requires_grad_("bias" in options)
    scale_and_cap, vocab = options.get("scale_and_cap", ScaleAndCap()), rows - (11 - options.get("vocab_size", 11))
    if kind == "linear":
        head = LinearHead(weight, bias if "bias" in options else None, scale_and_cap, vocab)
    else:
        head = FunctionHead(
            lambda h: h @ weight.T + (bias if "bias" in options else 0), [weight, bias], vocab, scale_and_cap
        )
    trained = [hidden, weight, *([bias] if "bias" in options else [])]
    stat = linear_divergence(
        hidden, head, other, other_head[:vocab], divergences.reverse_kl, chunk_rows=3, compiled=True
    )
    mine = torch.autograd.grad(stat.total, trained)
    logits = scale_and_cap(hidden @ weight.T + (bias if "bias" in options else 0))[:, :vocab]
    total = dense_divergence(logits, other @ other_head[:vocab].T, divergences.reverse_kl)
    torch.testing.assert_close(stat.total, total, **tolerance)
    torch.testing.assert_close(mine, torch.autograd.grad(total, trained), **tolerance)


@pytest.mark.parametrize("kind", ["linear", "function"])
@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
def test_heads_have_bias_scale_softcap_and_padding(options, kind, traced):
    assert_head_equal_to_dense(kind, options, inputs(7))


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_no_row_and_a_single_one_are_not_worth_a_compilation(rows, traced):
    given = inputs(rows)
    stat = linear_divergence(*given, third_party, chunk_rows=3, compiled=True)
    stat.total.backward()
    expected, of_hidden, of_head = dense(given, third_party)
    torch.testing.assert_close((stat.total, given[0].grad, given[1].grad), (expected, of_hidden, of_head))


def test_bfloat16_is_reduced_in_float32(traced):
    given = inputs(64, 200, 32, 32, dtype=torch.bfloat16, scale=0.3)
    stat = linear_divergence(*given, divergences.forward_kl, chunk_rows=16, compiled=True)
    stat.total.backward()
    total, hidden, head = dense(given, divergences.forward_kl)
    assert (stat.total.dtype, given[0].grad.dtype, given[1].grad.dtype) == (torch.float32, *[torch.bfloat16] * 2)
    assert abs(stat.total - total) <= 5e-3 * total
    assert (given[0].grad.double() - hidden).norm() <= 1e-2 * hidden.norm()
    assert (given[1].grad.double() - head).norm() <= 1e-2 * head.norm()


def undecided(student_logp, target_logp):
    """A function that no compiler can follow: what it does depends on values."""
    return divergences.forward_kl(student_logp, target_logp) * (2 if student_logp.max() > -1 else 1)


def test_what_cannot_be_compiled_runs_as_it_is_written_with_one_warning(traced):
    with pytest.warns(UserWarning, match="`undecided` cannot be compiled and runs as it is written") as told:
        assert_equal_to_dense(inputs(10), undecided, options={"compiled": True})
    assert len(told) == 1
    assert_equal_to_dense(inputs(10), undecided, options={"compiled": True})


def test_without_a_compiler_the_head_runs_as_it_is_written(monkeypatch):
    monkeypatch.setattr(torch._inductor.config, "fx_graph_cache", False)
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", missing)
    with pytest.warns(UserWarning, match="`generalized_jsd` cannot be compiled .*no-such-compiler"):
        assert_equal_to_dense(inputs(10), divergences.generalized_jsd, options={"compiled": True})


def missing(*args, **kwargs):
    raise torch._inductor.exc.InvalidCxxCompiler("no-such-compiler")


def test_an_error_of_a_kernel_is_raised_as_it_is(traced):
    def refusing(student_logp, target_logp):
        raise ConfigurationError("no")

    with pytest.raises(ConfigurationError, match="no"):
        linear_divergence(*inputs(10), refusing, compiled=True)


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


VALUES = [0.02 + 0.05 * place for place in range(20)]
WEIGHTED = {
    "jsd": lambda value: (partial(divergences.generalized_jsd, beta=value), None),
    "skew": lambda value: (partial(divergences.skew_kl, alpha=value), None),
    "skew reverse": lambda value: (SkewReverseKL(value), None),
    "alpha": lambda value: (AlphaDivergence(value), None),
    "renyi": lambda value: (partial(renyi, alpha=value), None),
    "a part": lambda value: (GeneralizedJSD(value), None),
    "bridge": lambda value: (divergences.forward_kl, partial(geometric_bridge, beta=value)),
    "schedule": lambda value: (ReverseKL(), GeometricBridge(Constant(value))),
}
SOON = ("jsd",)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in SOON else pytest.mark.slow) for n in WEIGHTED])
def test_one_compilation_serves_all_values_of_a_number(name, traced):
    torch._dynamo.utils.counters.clear()
    for index, value in enumerate(VALUES):
        divergence, target = WEIGHTED[name](value)
        options = {"target": target} | ({"step": Step(index, 20)} if name == "schedule" else {})
        given, results = inputs(10, seed=index), []
        for compiled in (True, False):
            stat = linear_divergence(*given, divergence, chunk_rows=4, compiled=compiled, **options)
            results.append((stat.total, *torch.autograd.grad(stat.total, given[:2])))
        torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)
    assert graphs() == 1


def test_a_schedule_that_ends_at_0_is_compiled_once_and_ends_at_the_teacher(traced):
    torch._dynamo.utils.counters.clear()
    for index in range(20):
        options = {"step": Step(index, 19), "target": GeometricBridge(Linear(0.8, 0.0))}
        mine = linear_divergence(*inputs(10), ReverseKL(), **options, compiled=True).total
        torch.testing.assert_close(mine, linear_divergence(*inputs(10), ReverseKL(), **options).total)
    torch.testing.assert_close(mine, linear_divergence(*inputs(10), ReverseKL(), compiled=False).total)
    assert graphs() == 1


@dataclass(frozen=True)
class Deciding(Target):
    """A target of another package that looks at its number."""

    share: float | Schedule = 0.5

    def __call__(self, teacher_logp, student_logp, step):
        share = value_at(self.share, step.index, step.total)
        return teacher_logp if share < 0.5 else divergences.log_mixture(teacher_logp, student_logp, share)


def test_a_part_that_looks_at_its_number_is_compiled_for_the_number(traced):
    for index in range(2):
        options = {"step": Step(index, 2), "target": Deciding(Linear(0.9, 0.1))}
        mine = linear_divergence(*inputs(10), ReverseKL(), **options, compiled=True).total
        torch.testing.assert_close(mine, linear_divergence(*inputs(10), ReverseKL(), **options).total)
    assert graphs() > 0


def powered(student_logp, target_logp, power):
    """A function of another package, whose number the compiler takes for a constant."""
    return math.log(power) * divergences.forward_kl(student_logp, target_logp)


@pytest.mark.slow
def test_a_number_that_the_compiler_takes_for_a_constant_is_not_compiled_forever(traced):
    def sweep():
        for place in range(12):
            assert_equal_to_dense(inputs(10), partial(powered, power=1.5 + place), options={"compiled": True})

    with pytest.warns(UserWarning, match="`powered` cannot be compiled .* too many different numbers") as told:
        sweep()
    assert len(told) == 1


@pytest.mark.parametrize("device", ["cpu", "meta", "xpu", "mps"])
def test_only_cuda_compiles_by_itself(device):
    assert compilation.evaluator("auto", torch.device("cuda")) is compilation.evaluate_compiled
    assert compilation.evaluator("auto", torch.device(device)) is compilation.evaluate
    assert compilation.evaluator(True, torch.device(device)) is compilation.evaluate_compiled
    assert compilation.evaluator(False, torch.device("cuda")) is compilation.evaluate


# What is emitted for a GPU. 28 bytes are three passes over both logits and the gradient.

FAST = ("forward", "third party")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in DIVERGENCES]
)
def test_a_divergence_is_one_kernel_of_28_bytes_per_row_and_id(name):
    emission = emitted(DivergenceKernel(DIVERGENCES[name]))
    assert emission.kernels == 1
    assert emission.bytes_per_id <= 28


TARGETS = {
    "Veto forward": (divergences.forward_kl, torch.bfloat16, 26),
    "Veto reverse": (divergences.reverse_kl, torch.float32, 36),
}


@pytest.mark.parametrize("name", ["Veto forward", pytest.param("Veto reverse", marks=pytest.mark.slow)])
def test_a_target_costs_one_pass_more(name):
    divergence, dtype, budget = TARGETS[name]
    emission = emitted(DivergenceKernel(divergence, BRIDGE), dtype=dtype)
    assert emission.kernels == 1
    assert emission.bytes_per_id <= budget


OBJECTIVES = {
    "forward": (Veto(), torch.bfloat16, 26),
    "forward, float32": (Veto(), torch.float32, 28),
    "reverse": (Veto(divergence=ReverseKL()), torch.bfloat16, 34),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "forward" else pytest.mark.slow) for n in OBJECTIVES]
)
def test_the_metrics_of_an_objective_cost_no_pass_of_their_own(name):
    objective, dtype, budget = OBJECTIVES[name]
    given = {"token_ids": torch.int64, "sequence_rows": torch.int64}
    emission = emitted(TokenKernel(objective, Step(3, 10), differentiate=True), dtype=dtype, given=given)
    assert emission.kernels <= 3  # one reads the columns of the written tokens, one those of no token
    assert emission.bytes_per_id <= budget


# What is left as it is written.


class Operations(TorchDispatchMode):
    """The names of the operations that are no views."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_an_accelerator_sums_an_expectation_once():
    probability, values = torch.empty(2, 3, device="meta"), torch.empty(2, 3, device="meta")
    with Operations() as seen:
        expectation(probability, values)
    assert seen.names == ["eq", "masked_fill", "mul", "sum"]


SIZES = [[torch.float32], [torch.float32, torch.float32], [torch.float32, torch.float32, torch.bfloat16]]


@pytest.mark.parametrize("dtypes", SIZES, ids=len)
def test_chunks_are_powers_of_two_that_grow_with_the_free_memory(dtypes):
    found = [chunk_size.rows_that_fit(2**power, 151936, dtypes) for power in range(20, 50)]
    assert all(rows & (rows - 1) == 0 and 256 <= rows <= 4096 for rows in found)
    assert all(fewer <= more for fewer, more in pairwise(found))
    assert (found[0], found[-1]) == (256, 4096)
    for power, rows in zip(range(20, 50), found, strict=True):
        held = rows * 151936 * sum(dtype.itemsize for dtype in dtypes)
        assert rows == 256 or 16 * held <= 2**power


def test_free_memory_includes_what_is_reserved_and_unused(monkeypatch):
    module = SimpleNamespace(
        mem_get_info=lambda device: (5, 100), memory_reserved=lambda device: 40, memory_allocated=lambda device: 10
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    assert chunk_size.free_bytes(torch.device("cuda")) == 35
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace())
    assert chunk_size.free_bytes(torch.device("cuda")) is None
    assert chunk_size.chunk_size("auto", torch.device("cuda"), 10, [torch.float32]) == 256


@pytest.fixture
def widening(monkeypatch):
    """Let the CPU multiply bfloat16 to float32, as CUDA does: the sums are formed in float32 and rounded nowhere."""

    def mm(left, right, out_dtype):
        return left.to(out_dtype) @ right.to(out_dtype)

    def mm_out(left, right, out_dtype, *, out):
        return out.copy_(mm(left, right, out_dtype))

    def addmm_out(total, left, right, out_dtype, *, beta=1, alpha=1, out):
        assert total.dtype == out.dtype == out_dtype
        product = mm(left, right, out_dtype)
        return out.copy_(product if beta == 0 else beta * total + product)

    monkeypatch.setattr(heads, "widens", lambda device, dtype: dtype == torch.bfloat16)
    with torch.library._scoped_library("aten", "IMPL") as library:
        for name, function in {"mm.dtype": mm, "mm.dtype_out": mm_out, "addmm.dtype_out": addmm_out}.items():
            library.impl(name, function, "CPU")
        yield


@pytest.mark.parametrize("biased", [False, True])
def test_products_of_bfloat16_are_float32_where_the_device_can(biased, widening):
    hidden, weight, other, other_head = inputs(64, 200, 32, 32, dtype=torch.bfloat16, scale=0.3)
    bias = torch.linspace(-1, 1, 200).bfloat16() if biased else None
    head = LinearHead(weight, bias)
    stat = linear_divergence(hidden, head, other, other_head, divergences.forward_kl, chunk_rows=24)
    stat.total.backward()
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    logits = exact[0] @ exact[1].T + (bias.double() if biased else 0)
    total = dense_divergence(logits, other.double() @ other_head.double().T, divergences.forward_kl)
    of_hidden, of_head = torch.autograd.grad(total, exact)
    assert abs(stat.total - total) <= 1e-6 * total  # rounded logits would be off by 1e-3
    assert (hidden.grad.double() - of_hidden).norm() <= 5e-3 * of_hidden.norm()
    assert (weight.grad.double() - of_head).norm() <= 5e-3 * of_head.norm()


def test_the_logits_of_a_chunk_and_their_gradient_have_buffers_that_all_chunks_share(widening):
    hidden, weight, other, other_head = inputs(64, 200, 32, 32, dtype=torch.bfloat16)
    sizes = []

    class Empty(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if "empty" in function.overloadpacket.__name__ and result.shape == (16, 200):
                sizes.append(result.dtype)
            return result

    with Empty():
        linear_divergence(hidden, weight, other, other_head, divergences.forward_kl, chunk_rows=16)
    assert sizes == [torch.bfloat16]

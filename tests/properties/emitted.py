"""The code that the compiler emits for an H200, written down on a machine without one, and what it reads and writes.

The kernel is traced as for any device, its graph is moved to a pretended CUDA device, and the compiler is stopped when
it has written its source. No GPU, no CUDA build of PyTorch and no Triton is needed.
"""

import contextlib
import re
from dataclasses import dataclass
from types import FunctionType, SimpleNamespace
from unittest import mock

import torch
from torch._dynamo import device_interface, maybe_mark_dynamic
from torch._dynamo.backends.common import aot_autograd
from torch._guards import detect_fake_mode
from torch._inductor import config
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.exc import InductorError
from torch._inductor.graph import GraphLowering
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from veto_pl.functional.blocks import Raw, evaluate
from veto_pl.functional.compilation import OPTIONS, as_compiled
from veto_pl.functional.heads import ScaleAndCap

H200 = SimpleNamespace(
    name="NVIDIA H200", gcnArchName="", major=9, minor=0, multi_processor_count=132, warp_size=32,
    regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, max_threads_per_block=1024,
    total_memory=2**37, L2_cache_size=50 * 2**20,
    shared_memory_per_block=49152, shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472,
)  # fmt: skip
BYTES = {"fp32": 4, "bf16": 2, "i64": 8, "i1": 1}
LARGE = 2**20
"""Elements of a tensor that counts: the [n, V] ones."""


class WrittenError(Exception):
    """Ends the compilation where a GPU would be needed."""


@dataclass(frozen=True)
class Emission:
    """What the compiler has written.

    Args:
        kernels: launches, foreign ones included.
        bytes_per_id: read and written of [n, V] tensors, per row and id: each loop over the vocabulary counts anew.
        source: the code.
    """

    kernels: int
    bytes_per_id: int
    source: str


def emitted(kernel, *, rows=1024, vocab=151646, columns=151936, dtype=torch.float32, given=None, differentiate=True):
    """Return the `Emission` of a kernel at the size of a chunk of Qwen2, whose head has rows for no token.

    `dtype` is that of the gradient; the logits are float32. Numbers that change over a run are inputs, as on a device.
    """
    written = []
    wide = [torch.empty(rows, columns) for _ in range(2)]
    student, teacher = (logits[:, :vocab] for logits in wide)
    kernel = as_compiled(kernel, student)
    raw = Raw(student, teacher, wide[0][:, vocab:].clone(), (ScaleAndCap(), ScaleAndCap()))
    into = student if dtype == torch.float32 else torch.empty(rows, columns, dtype=dtype)[:, :vocab]
    given = {name: torch.zeros(rows, dtype=kind) for name, kind in (given or {}).items()}
    for tensor in (student, teacher, raw.padding, into, *given.values()):
        maybe_mark_dynamic(tensor, 0)
    copy = FunctionType(evaluate.__code__.replace(), evaluate.__globals__, argdefs=evaluate.__defaults__)
    backend = aot_autograd(fw_compiler=_for_an_h200(written), decompositions=select_decomp_table())
    compiled = torch.compile(copy, fullgraph=True, backend=backend)
    with torch.no_grad(), config.patch(OPTIONS | {"fx_graph_cache": False}):
        try:
            compiled(kernel, raw, slice(rows), given, into if differentiate else None)
        except InductorError:
            if not written:
                raise
    (source,) = written
    return Emission(len(re.findall(r"\.run\(|extern_kernels\.|torch\.ops\.", _call(source))), _traffic(source), source)


def _for_an_h200(written):
    """Return a backend that compiles a graph of CPU tensors as if they were on an H200, and keeps the source."""

    def compiler(graph, inputs):
        for node in graph.graph.nodes:
            node.kwargs = {k: torch.device("cuda", 0) if k == "device" else v for k, v in node.kwargs.items()}
        with detect_fake_mode(inputs) as mode:
            there = [_on_cuda(x) if isinstance(x, torch.Tensor) else x for x in inputs]
            FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*there)
        with _pretended(written):
            compile_fx_inner(graph, there)

    return compiler


def _on_cuda(x):
    return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device="cuda")


@contextlib.contextmanager
def _pretended(written):
    """Answer what the compiler asks of the device, and stop it when it has written its code."""

    def stop(graph):
        written.append(graph.codegen()[0].value)
        raise WrittenError

    here, cuda = device_interface.CudaInterface, "torch.cuda."
    answers = {
        cuda + "get_device_properties": lambda *a, **k: H200,
        cuda + "get_device_capability": lambda *a: (9, 0),
        cuda + "is_available": lambda: True,
        cuda + "device_count": lambda: 1,
        cuda + "current_device": lambda: 0,
        cuda + "set_device": lambda device: None,
        cuda + "synchronize": lambda *a: None,
        cuda + "_exchange_device": lambda device: 0,
        cuda + "_maybe_exchange_device": lambda device: 0,
        "torch._inductor.scheduler.has_triton": lambda *a: True,
        "torch._dynamo.utils.preserve_rng_state": contextlib.nullcontext,
        "torch.utils._triton.triton_hash_with_backend": lambda: "",
    }
    of_interface = {
        "get_device_properties": lambda *a, **k: H200,
        "is_available": lambda: True,
        "get_compute_capability": lambda *a: 90,
        "current_device": lambda *a: 0,
        "raise_if_triton_unavailable": lambda *a: None,
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(GraphLowering, "compile_to_module", stop))
        for name, answer in answers.items():
            stack.enter_context(mock.patch(name, answer))
        for name, answer in of_interface.items():
            stack.enter_context(mock.patch.object(here, name, staticmethod(answer)))
        stack.enter_context(mock.patch.object(here.Worker, "get_device_properties", staticmethod(lambda *a: H200)))
        yield


def _call(source):
    return source.split("def call(")[1]


def _traffic(source):
    """Sum the bytes that each pass over an [n, V] tensor reads and writes for an element."""
    total = 0
    for text in source.split("async_compile.triton(")[1:]:
        hints = re.search(r"size_hints=\{(.*?)\}", text).group(1)
        elements = 1
        for size in re.findall(r": (\d+)", hints):
            elements *= int(size)
        if elements < LARGE:
            continue
        sizes = dict(re.findall(r"'(\w+)': '\*(\w+)'", re.search(r"'signature': \{(.*?)\}", text).group(1)))
        body = text.split("@triton.jit")[1].split("''',")[0]
        index = r"r0_\d" if "_red_" in body.split("(")[0] else r"x0|x2"
        for loop in re.split(r"\n    for r0_offset in", body):
            inside = "\n".join(line for line in loop.splitlines() if "r0_" not in index or line.startswith("        "))
            for access in ("load", "store"):
                touched = set(re.findall(rf"tl\.{access}\((\w+) \+ \((.*?)\), ", inside))
                total += sum(BYTES[sizes[pointer]] for pointer, place in touched if re.search(index, place))
    return total

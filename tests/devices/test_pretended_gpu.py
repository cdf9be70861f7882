"""The pretended GPU raises where CUDA raises, waits where CUDA waits, counts, and computes what the CPU computes."""

import copy
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.processes import python
from veto_pl.testing.pretended_gpu import PretendedTensor, counted, mixed_precision, pretended_gpu

DEVICE = "gpu:0"


def here(*shape):
    return torch.arange(1.0, 1 + torch.Size(shape).numel(), device=DEVICE).view(shape)


def filled(mask, value):
    tensor = here(4)
    tensor[mask] = value
    return tensor


REFUSED = {
    "a sum over two devices": lambda: here(4) + torch.ones(4),
    "a product over two devices": lambda: here(2, 2) @ torch.ones(2, 2),
    "a number of the host in a product": lambda: torch.addmm(torch.ones(()), here(2, 2), here(2, 2)),
    "a number of the host to stack": lambda: torch.stack([here(1)[0], torch.ones(())]),
    "a table of the host": lambda: torch.nn.functional.embedding(here(2).long(), torch.ones(9, 2)),
    "a mask of the host for attention": lambda: scaled_dot_product_attention(
        *[here(1, 1, 2, 2)] * 3, torch.ones(2, 2).bool()
    ),
    "an index of the device into the host": lambda: torch.ones(9)[here(2).long()],
    "values of the host into the device": lambda: here(4).index_put_((here(2).long(),), torch.ones(2)),
    "a sum into the host": lambda: torch.zeros(()).add_(here(1)[0]),
    "a generator of the host": lambda: torch.rand(3, device=DEVICE, generator=torch.Generator()),
    "an array": lambda: here(2).numpy(),
    "an array by numpy": lambda: np.asarray(here(2)),
    "a product of integers": lambda: here(2, 2).long() @ here(2, 2).long(),
    "attention with a key of the host": lambda: scaled_dot_product_attention(
        here(1, 1, 2, 2), torch.ones(1, 1, 2, 2), here(1, 1, 2, 2)
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cuda_refuses_is_refused(name):
    with pytest.raises((RuntimeError, TypeError)):
        REFUSED[name]()


ALLOWED = {
    "a number of the host in a sum": lambda: (here(2) + torch.ones(())).tolist() == [2, 3],
    "an index of the host": lambda: here(3)[torch.tensor([1])].tolist() == [2],
    "a copy into the host": lambda: torch.zeros(2).copy_(here(2)).tolist() == [1, 2],
    "a number of the host to fill in": lambda: here(2).masked_fill(here(2) > 1, torch.zeros(())).tolist() == [1, 0],
    "a number of the host at an index": lambda: filled(here(1).long(), torch.zeros(())).tolist() == [1, 0, 3, 4],
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_cuda_allows_is_allowed(name):
    assert ALLOWED[name]()


WAITS = {
    "float": (lambda: float(here(1)), ["item"]),
    "bool": (lambda: bool(here(1) > 0), ["item"]),
    "tolist": (lambda: here(3).tolist(), ["copy to the host"]),
    "cpu": (lambda: here(3).cpu(), ["copy to the host"]),
    "cpu, without waiting": (lambda: here(3).to("cpu", non_blocking=True), []),
    "from the host": (lambda: torch.ones(3).to(DEVICE), ["copy to the device"]),
    "from the host, without waiting, not pinned": (
        lambda: torch.ones(3).to(DEVICE, non_blocking=True),
        ["copy to the device"],
    ),
    "from the host, pinned, without waiting": (lambda: torch.ones(3).pin_memory().to(DEVICE, non_blocking=True), []),
    "from the host, pinned": (lambda: torch.ones(3).pin_memory().to(DEVICE), ["copy to the device"]),
    "a tensor of a list": (lambda: torch.tensor([1, 2], device=DEVICE), ["copy to the device"]),
    "a tensor of a number": (lambda: here(1).new_tensor(2.0), ["copy to the device"]),
    "full": (lambda: torch.full((2,), 3.0, device=DEVICE), []),
    "nonzero": (lambda: here(3).nonzero(), ["nonzero"]),
    "an index by a mask": (lambda: here(3)[here(3) > 1], ["index by a mask"]),
    "a value at a mask": (lambda: filled(here(4) > 1, 0.0), []),
    "values at a mask": (lambda: filled(here(4) > 1, here(3)), ["index by a mask"]),
    "an index of the host": (lambda: here(3)[torch.tensor([1])], ["copy to the device"]),
    "an index of the device": (lambda: here(3)[here(2).long()], []),
    "unique": (lambda: here(3).unique(), ["unique"]),
    "repeats of the device": (lambda: torch.repeat_interleave(here(2).long()), ["repeat_interleave"]),
    "a known number of repeats": (lambda: here(2).repeat_interleave(2), []),
    "equal": (lambda: torch.equal(here(2), here(2)), ["equal"]),
    "masked_scatter": (lambda: here(3).masked_scatter(here(3) > 1, here(3)), []),
    "sort": (lambda: here(3).sort(), []),
    "topk": (lambda: here(3).topk(2), []),
    "norm": (lambda: torch.nn.utils.get_total_norm([here(3), here(2)]), []),
}


@pytest.mark.parametrize("name", WAITS)
def test_the_host_waits_where_it_waits_for_cuda(name):
    act, expected = WAITS[name]
    with counted() as work:
        act()
    assert [reason.partition(" at ")[0] for reason in work.waits.elements()] == expected, work.table()


def test_a_wait_is_told_with_its_place():
    from veto_pl.core.step import Step

    with counted() as work:
        Step(0, 1).seeds("a purpose", here(2).long())
    assert [place.partition(".py:")[0] for place in work.waits] == ["copy to the host at veto_pl/core/step"]


def test_prompts_of_the_loader_reach_the_device_without_a_wait_and_stay_known():
    from veto_pl.testing.tiny import prompt_batch, tiny_models

    batch = prompt_batch(tiny_models(), ["abc>", "d>"], ["cba", "d"]).pin_memory()
    with counted() as work:
        there = batch.to(DEVICE)
        again = there.rows(torch.tensor([1, 0, 1]))
        seen = again.on_host
    assert not work.waits, work.table()
    assert there.on_host is batch
    assert again.input_ids.device == torch.device(DEVICE)
    for name in ("input_ids", "attention_mask", "completion_ids", "completion_mask", "numbers"):
        assert torch.equal(getattr(seen, name), getattr(again, name).cpu())
    assert seen.examples == again.examples == tuple(batch.examples[i] for i in (1, 0, 1))


def test_kernels_and_their_bytes_are_counted():
    one, row = here(4, 8), here(8)
    with counted() as outer, counted() as work:
        one + row.expand(4, 8)
    assert dict(work.kernels) == {"add": 1}
    assert work.moved["add"] == 4 * (32 + 8 + 32)
    assert outer.kernels == work.kernels
    with counted() as work:
        one.view(8, 4).T[1:].detach().unsqueeze(0)
        torch.empty(3, device=DEVICE)
    assert not work.kernels
    with counted() as work:
        torch.zeros(3, device=DEVICE)
    assert dict(work.kernels) == {"zero_": 1}
    assert work.moved["zero_"] == 12
    one + one
    assert "add" not in work.kernels, "counting has ended"


def test_attention_is_one_kernel_in_each_direction_and_has_the_cpus_gradient():
    torch.manual_seed(0)
    made = [torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)]
    mask = torch.rand(2, 1, 5, 5) > 0.3
    mask |= torch.eye(5).bool()
    results = []
    for device in ("cpu", DEVICE):
        read = [tensor.to(device).detach().requires_grad_() for tensor in made]
        with counted() as work:
            out = scaled_dot_product_attention(*read, mask.to(device), enable_gqa=True)
            (out * out).sum().backward()
        results.append([out, *(tensor.grad for tensor in read)])
    for ours, of_cpu in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours.cpu(), of_cpu)
    attention = {name: count for name, count in work.kernels.items() if "attention" in name}
    assert attention == {"scaled_dot_product_attention": 1, "scaled_dot_product_attention_backward": 1}


def test_autocast_casts_as_cudas_does():
    layer, one = torch.nn.Linear(4, 4).to(DEVICE), here(2, 4)
    with mixed_precision().forward_context():
        hidden = layer(one)
        assert hidden.dtype == torch.bfloat16
        assert (one @ one.T).dtype == torch.bfloat16
        assert scaled_dot_product_attention(*[one.view(1, 1, 2, 4)] * 3).dtype == torch.bfloat16
        assert {hidden.softmax(-1).dtype, hidden.sum().dtype, hidden.exp().dtype} == {torch.float32}
        assert (hidden + hidden).dtype == torch.bfloat16
        assert (one.double() @ one.double().T).dtype == torch.float64
        hidden.sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert layer(one).dtype == torch.float32


def test_deterministic_algorithms_refuse_what_cuda_has_no_such_kernel_for():
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="deterministic"):
            here(3).cumsum(0)
        assert here(3).long().cumsum(0).tolist() == [1, 3, 6]
    finally:
        torch.use_deterministic_algorithms(False)
    assert here(3).cumsum(0).tolist() == [1, 3, 6]


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(5, 3), torch.nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


def test_tied_weights_stay_tied_there_and_back():
    model = Tied()
    parameter = model.head.weight
    for device in (DEVICE, "cpu", DEVICE):
        model.to(device)
        assert model.head.weight is model.embedding.weight is parameter
        assert model.head.weight.device == torch.device(device)
        assert len(list(model.parameters())) == 1


def test_weights_are_copied_there_and_saved_as_the_hosts():
    model = Tied().to(DEVICE)
    other = copy.deepcopy(model)
    assert isinstance(other.head.weight, PretendedTensor)
    assert isinstance(other.head.weight, torch.nn.Parameter)
    assert other.head.weight is other.embedding.weight is not model.head.weight
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    read = torch.load(file, weights_only=True)
    assert type(read["head.weight"]) is torch.Tensor
    assert torch.equal(read["head.weight"], model.head.weight.detach().cpu())


@pytest.mark.parametrize("mode", ["grad", "inference"])
def test_a_model_computes_what_it_computes_on_the_cpu(mode):
    from veto_pl.testing.tiny import tiny_models

    outputs = []
    for device in ("cpu", DEVICE):
        model = tiny_models("qwen2").student.model.to(device)
        ids, mask = torch.arange(8, device=device).view(2, 4), torch.ones(2, 4, dtype=torch.int64, device=device)
        mask[0, :2] = 0
        with torch.inference_mode(mode == "inference"):
            outputs.append(model(input_ids=ids, attention_mask=mask).logits)
    torch.testing.assert_close(outputs[1].cpu(), outputs[0])


def test_an_optimizer_takes_all_parameters_at_once_as_on_cuda():
    weights = [torch.nn.Parameter(here(3)), torch.nn.Parameter(here(2))]
    optimizer = torch.optim.AdamW(weights, lr=0.1)
    sum((weight**2).sum() for weight in weights).backward()
    with counted() as work:
        optimizer.step()
    assert not work.waits
    assert all(name.startswith(("_foreach", "zero")) for name in work.kernels), work.table()


def test_the_example_of_the_documentation_runs():
    page = (Path(__file__).resolve().parents[2] / "docs" / "plugins.md").read_text()
    (code,) = re.findall(r"```python\n(import torch\nfrom veto_pl.testing.pretended_gpu.*?)```", page, re.DOTALL)
    names = {}
    exec(code, names)
    assert [reason.partition(" at ")[0] for reason in names["work"].waits] == ["item"]


def test_it_can_be_asked_for_again():
    assert pretended_gpu() == torch.device(DEVICE)


def test_a_process_that_had_a_backward_pass_is_told():
    code = (
        "import torch\n"
        "from veto_pl.testing.pretended_gpu import pretended_gpu\n"
        "torch.ones((), requires_grad=True).backward()\n"
        "pretended_gpu()\n"
    )
    result = python("-c", code)
    assert result.returncode == 1
    assert "came too late" in result.stderr

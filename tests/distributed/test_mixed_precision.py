"""FSDP2 in bf16-mixed: parts are float32, weights are gathered in bfloat16, and no copy waits for the backward pass."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from veto_pl.models.causal_lm import CausalLM
from veto_pl.models.sharding import Sharding
from veto_pl.models.weights import load_sharded
from veto_pl.rollouts import FromDataset
from veto_pl.seams import Step
from veto_pl.testing.ranks import run_ranks
from veto_pl.testing.tiny import ALPHABET, prompt_batch, tiny_models, tiny_source

pytestmark = pytest.mark.xdist_group("ranks")
REAL_IDS = len(ALPHABET) + 3


def rows():
    models = tiny_models()
    return FromDataset()(prompt_batch(models, ["abcd>", "bac>"], ["dcbacb", "cab"]), models, Step(0, 1))


def squares(hidden, model):
    return model.project(hidden)[0].square().mean()


def backward(model, *, mixed=True):
    """The loss, its gradients, and the bytes that copies of the layers' matrices take between forward and backward."""
    shapes = {(16, 32), (32, 16)}  # of the feed-forward layers, which nothing else has
    kept = []

    def see(tensor):
        if tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in shapes:
            kept.append(tensor)
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=mixed, cache_enabled=False)
    with autocast, torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        loss = model(rows(), squares)
    held = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}.values())
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in model.named_parameters()}, held


def compare():
    """On two ranks, with the same rows on both: with the policy, without it, and without ranks."""
    dist.init_process_group("gloo")
    mesh, found = init_device_mesh("cpu", (2,)), {}
    for name, dtype in {"mixed": torch.bfloat16, "autocast": None}.items():
        model = load_sharded(tiny_source(), REAL_IDS, Sharding(mesh, torch.device("cpu"), True, dtype))
        assert {weight.to_local().dtype for weight in model.parameters()} == {torch.float32}
        loss, gradients, held = backward(model)
        found[name] = loss, {n: gradient.full_tensor() for n, gradient in gradients.items()}, held
    dist.destroy_process_group()
    return found


def distance(gradients, expected):
    """The norm of all differences, relative to that of all gradients."""
    differences = torch.cat([(gradients[name] - expected[name]).flatten() for name in expected])
    return float(differences.norm() / torch.cat([value.flatten() for value in expected.values()]).norm())


def test_no_rank_keeps_a_copy_and_the_results_are_those_of_autocast():
    whole = CausalLM(tiny_source().load(), REAL_IDS)
    expected, exact, _ = backward(whole, mixed=False)
    whole.zero_grad(set_to_none=True)
    _, rounded, _ = backward(whole)
    assert 0.001 < (noise := distance(rounded, exact)) < 0.1
    for found in run_ranks(compare, 2):
        copies = 2 * 3 * 16 * 32 * 2  # two layers, three matrices, two bytes
        assert found["autocast"][2] == copies, "the test sees what it is about"
        assert found["mixed"][2] == 0
        for loss, gradients, _ in found.values():
            torch.testing.assert_close(loss, expected, rtol=0.03, atol=0)
            assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
            assert distance(gradients, exact) < 2 * noise

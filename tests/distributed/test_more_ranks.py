"""Three ranks, which no dimension of the models is divisible by, four, and what two ranks are not asked for."""

from functools import cache

import pytest
import torch
from runs import OBJECTIVES, SAMPLING, prepare, train_all

from veto_pl.objectives import Distill, Veto
from veto_pl.rollouts import FromStudent, Sampling, TeacherMixed
from veto_pl.testing.ranks import run_ranks
from veto_pl.testing.tiny import DIMENSIONS

pytestmark = pytest.mark.xdist_group("ranks")
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
ARCHITECTURES = {
    "qwen2_moe": DIMENSIONS["llama"] | EXPERTS,
    "gpt_neox": {
        name: value for name, value in DIMENSIONS["llama"].items() if name != "num_key_value_heads"
    },  # biases, an untied head
}
ROLLOUTS = {
    "several completions": Veto(rollout=FromStudent(Sampling(max_new_tokens=6, num_completions=3))),
    "both models write": Distill(rollout=TeacherMixed(sampling=SAMPLING)),
}
CASES = {
    "several completions by experts, layer by layer": (
        {"objective": "several completions", "source": "qwen2_moe"},
        {"gather": (False, False)},
    ),
    "a whole teacher and a student in parts write together": (
        {"objective": "both models write", "source": "gpt_neox"},
        {"gather": (False, True)},
    ),
    "a validation inside a window, and an epoch that ends one early": (
        {"objective": "sum", "accumulate_grad_batches": 2, "limit_train_batches": 3, "val_check_interval": 1},
        {},
    ),
}
RUNS = [*((name, "fsdp2") for name in CASES), (list(CASES)[-1], "ddp")]


def train_more(folder, cases):
    """As `train_all`, with the models and rollouts of this file; each process has to be told of them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, dimensions in ARCHITECTURES.items():
            patch.setitem(DIMENSIONS, name, dimensions)
        for name, objective in ROLLOUTS.items():
            patch.setitem(OBJECTIVES, name, objective)
        return train_all(folder, cases)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """By name and strategy: what so many ranks did, and what one process did."""
    folder = str(tmp_path_factory.mktemp("more"))
    prepare(folder)

    @cache
    def of_ranks(count):
        cases = [
            {**CASES[name][0], **CASES[name][1], "strategy": s, "batch_size": 4, "devices": count} for name, s in RUNS
        ]
        ranks = run_ranks(train_more, count, folder, cases)
        whole = train_more(folder, [{**both, "batch_size": 4 * count} for both, _ in CASES.values()])
        alone = dict(zip(CASES, whole, strict=True))
        return {key: (ranks[0][i], ranks[-1][i], alone[key[0]]) for i, key in enumerate(RUNS)}

    return of_ranks


@pytest.mark.parametrize("count", [3, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "strategy"), RUNS)
def test_ranks_do_what_one_process_does(name, strategy, count, runs):
    first, last, alone = runs(count)[name, strategy]
    assert (alone["curve"][:, 1] > 1e-3).all()
    assert torch.equal(first["curve"], last["curve"])
    torch.testing.assert_close(first["curve"], alone["curve"], rtol=1e-5, atol=1e-5)
    assert len(first["weights"]) > 10
    for weight, value in first["weights"].items():
        torch.testing.assert_close(value, alone["weights"][weight], rtol=0, atol=1e-5, msg=weight)
    validated = {key: value for key, value in alone["metrics"].items() if key.startswith("validation/")}
    assert len(validated) > 5
    assert {key: first["metrics"][key] for key in validated} == pytest.approx(validated, rel=1e-4, abs=1e-5)

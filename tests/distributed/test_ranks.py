"""Two ranks and one process, given the same global batch, log the same and end with the same weights."""

import pytest
import torch
from runs import FAMILY, OBJECTIVES, prepare, train, train_all

from veto_pl.testing.ranks import run_ranks

pytestmark = pytest.mark.xdist_group("ranks")  # the fixtures are dear
STRATEGIES = ("ddp", "fsdp2")
STORED = {"source": {"gradient_checkpointing": True}}
LAYERS_ONE_BY_ONE = {"gather": (False, False)}


def case(objective, *, one=None, two=None, **both):
    """Settings of one process, and of each of two ranks."""
    return {"objective": objective, **both, **(one or {})}, {
        "objective": objective,
        "batch_size": 4,
        **both,
        **(two or {}),
    }


PAPERS = ("SFT", "GKD", "MiniLLM", "Veto")
CASES = {
    **{name: case(name) for name in FAMILY},
    **{
        f"{name}, accumulation": case(name, one={"batch_size": 4}, two={"batch_size": 2}, accumulate_grad_batches=2)
        for name in PAPERS
    },
    **{f"{name}, activation checkpointing": case(name, **STORED) for name in PAPERS},
    **{
        # Rounding depends on how rows are batched, so the one process takes the ranks' micro-batches in turn.
        f"{name}, bf16-mixed": case(
            name, one={"batch_size": 4, "dealt": True, "accumulate_grad_batches": 2}, precision="bf16-mixed"
        )
        for name in ("SFT", "GKD", "Veto")
    },
    # Terms that are kept apart are scaled after the backward pass, joined ones before: bf16 rounds these differently.
    "MiniLLM, not whitened, bf16-mixed": case(
        "MiniLLM, not whitened",
        one={"batch_size": 2, "dealt": True, "accumulate_grad_batches": 4},
        two={"batch_size": 2, "accumulate_grad_batches": 2},
        precision="bf16-mixed",
    ),
    **{name: case(name, shuffle=False) for name in OBJECTIVES if "no " in name},
    **{
        f"{name}, layer by layer": case(name, shuffle=False, two=LAYERS_ONE_BY_ONE)
        for name in OBJECTIVES
        if "no " in name
    },
    "MiniLLM, layer by layer": case("MiniLLM", two=LAYERS_ONE_BY_ONE),
    "MiniLLM, whole teacher": case("MiniLLM", two={"gather": (True, True)}),
    "coin per sample": case("coin per sample"),
    "coin per sample, layer by layer": case("coin per sample", two=LAYERS_ONE_BY_ONE),
    "SFT per sequence": case("SFT per sequence"),
    "sum": case("sum"),
    **{name: case(name) for name in ("OPD, rewarded", "phases")},
    "ListOPD, watched": case("ListOPD", watched=True),
    "sum, accumulation": case("sum", one={"batch_size": 4}, two={"batch_size": 2}, accumulate_grad_batches=2),
    "sum, activation checkpointing": case("sum", **STORED),
    "stored weights": case("Veto", source={}),
    "untied head": case("Veto", source="untied"),
    "soft cap": case("Veto", source="gemma2"),
}  # fmt: skip


SHARDED = (*PAPERS, "ListOPD", "DistiLLM2", "SKD", "BRTS", "SDPO")
"""Of the family: four, and those with a third model, a look ahead, two writers, a second try, another prompt for the
teacher."""
KEYS = [(n, s) for n in CASES for s in STRATEGIES if s == "ddp" or n not in FAMILY or n in SHARDED]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("ranks"))
    prepare(path)
    return path


@pytest.fixture(scope="module")
def both_ranks(folder):
    """Every case under every strategy, in one pair of processes."""
    cases = [CASES[name][1] | {"strategy": strategy} for name, strategy in KEYS]
    first, second = run_ranks(train_all, 2, folder, cases)
    return {key: (a, b) for key, a, b in zip(KEYS, first, second, strict=True)}


@pytest.fixture(scope="module")
def alone(folder):
    """What one process does in each case, found out once."""
    known = {}

    def find_out(name):
        if name not in known:
            known[name] = train(folder, **CASES[name][0])
        return known[name]

    return find_out


@pytest.mark.parametrize(("name", "strategy"), KEYS)
def test_two_ranks_do_what_one_process_does(name, strategy, alone, both_ranks):
    expected, (first, second) = alone(name), both_ranks[name, strategy]
    assert len(expected["curve"]) == 4
    assert torch.equal(first["curve"], second["curve"])
    torch.testing.assert_close(first["curve"], expected["curve"], rtol=1e-5, atol=1e-5)
    assert set(expected["weights"]) >= set(first["weights"])
    for weight, value in first["weights"].items():
        torch.testing.assert_close(value, expected["weights"][weight], rtol=0, atol=1e-5)
    if "bf16" not in name:
        validated = {key: value for key, value in expected["metrics"].items() if key.startswith("validation/")}
        assert len(validated) > 5
        assert {key: first["metrics"][key] for key in validated} == pytest.approx(validated, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ranks_find_the_bounds_of_one_process(strategy, alone, both_ranks):
    name = "ListOPD, watched"
    bounds = alone(name)["bounds"]
    assert len(bounds) > 3
    for found in both_ranks[name, strategy]:
        assert found["bounds"] == pytest.approx(bounds, rel=1e-4)


def test_the_runs_learn_something(alone):
    """Else equal weights would prove nothing."""
    for name in PAPERS:
        curve = alone(name)["curve"]
        assert (curve[:, 1] > 1e-3).all(), name
        assert (curve[1:, 0] != curve[:-1, 0]).all(), name

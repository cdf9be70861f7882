"""Two ranks and one process, given the same global batch, log the same and end with the same weights."""

import pytest
import torch
from runs import FAMILY, OBJECTIVES, PANELS, prepare, train, train_all

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
EMPTY = [name for name in OBJECTIVES if "no " in name]
DEALT = {"one": {"batch_size": 4, "dealt": True, "accumulate_grad_batches": 2}, "precision": "bf16-mixed"}
"""Rounding depends on how rows are batched, so the one process takes the ranks' micro-batches in turn."""
HALVES = {"one": {"batch_size": 4}, "two": {"batch_size": 2}, "accumulate_grad_batches": 2}
CASES = {
    **{name: case(name) for name in (*FAMILY, "OPD, rewarded", "phases", "coin per sample", "SFT per sequence", "sum")},
    **{f"{name}, accumulation": case(name, **HALVES) for name in (*PAPERS, "sum")},
    **{f"{name}, activation checkpointing": case(name, **STORED) for name in (*PAPERS, "sum")},
    **{f"{name}, bf16-mixed": case(name, **DEALT) for name in ("SFT", "GKD", "Veto")},
    "Veto, activation checkpointing, bf16-mixed": case("Veto", **STORED, **DEALT),
    # Terms that are kept apart are scaled after the backward pass, joined ones before: bf16 rounds these differently.
    "MiniLLM, not whitened, bf16-mixed": case(
        "MiniLLM, not whitened",
        one={"batch_size": 2, "dealt": True, "accumulate_grad_batches": 4},
        two={"batch_size": 2, "accumulate_grad_batches": 2},
        precision="bf16-mixed",
    ),
    # The second epoch begins behind a batch of three rows, not four, and the ranks validate twelve rows and eleven.
    "an uneven last batch, read ahead": case("Veto", rows=14, validated=23, workers=1),
    **{name: case(name, shuffle=False) for name in EMPTY},
    **{f"{name}, layer by layer": case(name, shuffle=False, two=LAYERS_ONE_BY_ONE) for name in EMPTY},
    **{f"{name}, layer by layer": case(name, two=LAYERS_ONE_BY_ONE) for name in ("MiniLLM", "coin per sample")},
    "episodes": case("episodes", shuffle=False),
    "episodes, layer by layer": case("episodes", shuffle=False, two=LAYERS_ONE_BY_ONE),
    "MiniLLM, whole teacher": case("MiniLLM", two={"gather": (True, True)}),
    "ListOPD, watched": case("ListOPD", watched=True),
    **{name: case(name, shuffle=False) for name in PANELS if name != "spread, routed"},
    "spread, routed": case("spread, routed", source="stranger", shuffle=False),
    **{f"{name}, layer by layer": case(name, shuffle=False, two=LAYERS_ONE_BY_ONE) for name in ("routed, hinted",)},
    "routed, accumulation": case("routed", shuffle=False, **HALVES),
    "together, bf16-mixed": case("together", **DEALT),
    "spread": case("spread", source="stranger", **HALVES),
    "units": case("units", source="stranger", **HALVES),
    **{name: case(name, source="stranger", shuffle=False) for name in ("spread, no unit", "units, no unit")},
    **{
        f"{name}, layer by layer": case(name, source="stranger", shuffle=False, two=LAYERS_ONE_BY_ONE)
        for name in ("spread, no unit", "units, no unit")
    },
    "spread, adapter": case("spread, adapter", source="adapter and a stranger", **HALVES),
    "stored weights": case("Veto", source={}),
    "untied head": case("Veto", source="untied"),
    "soft cap": case("Veto", source="gemma2"),
    "adapter": case("Veto", source="adapter", **HALVES),
    "adapter, bf16-mixed": case("Veto", source="adapter", **DEALT),
    "adapter and its base": case("sum", source="adapter and its base"),
    "adapter and its average": case("sum", source="adapter and its average"),
}

SHARDED = (*PAPERS, "ListOPD", "DistiLLM2", "SKD", "BRTS", "SDPO", "RLCSD")
"""Of the family: four, and those with a third model, a look ahead, two writers, a second try, another prompt for the
teacher, several such prompts."""
KEYS = [
    (name, strategy)
    for name in CASES
    for strategy in STRATEGIES
    if (name not in FAMILY or name in SHARDED if strategy == "fsdp2" else "gather" not in CASES[name][1])
]
FAST = {
    "ddp": ("Veto", "MiniLLM, accumulation", "sum, accumulation", "Veto, no row", "OPD, rewarded", "SDPO", "phases",
            "ListOPD, watched", "adapter and its average", "routed", "half of the rows", "episodes",
            "debate", "spread", "units, no unit"),
    "fsdp2": ("MiniLLM", "sum, accumulation", "Veto, no token", "Veto, no row, layer by layer", "coin per sample",
              "episodes, layer by layer", "SFT per sequence", "DistiLLM2", "SKD", "BRTS", "ListOPD, watched",
              "MiniLLM, whole teacher", "MiniLLM, not whitened, bf16-mixed",
              "Veto, activation checkpointing, bf16-mixed", "an uneven last batch, read ahead", "stored weights",
              "soft cap", "adapter, bf16-mixed", "adapter and its base", "routed, accumulation",
              "routed, hinted, layer by layer", "half of the rows", "together", "mixture", "its own template",
              "RLCSD", "debate, no row, layer by layer", "debate, no token", "debate of turns", "units",
              "spread, no unit, layer by layer", "spread, routed", "spread, adapter"),
}  # fmt: skip
"""Of each kind a case under a strategy that it matters to; the others show the same with other objectives."""
MARKED = [
    pytest.param(*key, marks=[] if key[0] in FAST[key[1]] else pytest.mark.slow, id="-".join(key)) for key in KEYS
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("ranks"))
    prepare(path)
    return path


@pytest.fixture(scope="module")
def both_ranks(folder, request):
    """Every case that was selected, under its strategy, in one pair of processes."""
    chosen = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    ids = {call.id for call in chosen if call is not None}
    keys = [key for key in KEYS if "-".join(key) in ids or (key[0] == "ListOPD, watched" and key[1] in ids)]
    first, second = run_ranks(train_all, 2, folder, [CASES[name][1] | {"strategy": s} for name, s in keys])
    return {key: (a, b) for key, a, b in zip(keys, first, second, strict=True)}


@pytest.fixture(scope="module")
def alone(folder):
    """What one process does in each case, found out once: in bf16 under FSDP2 too, which rounds in other places."""
    known = {}

    def find_out(name, strategy="auto"):
        if strategy != "fsdp2" or CASES[name][0].get("precision") != "bf16-mixed":
            strategy = "auto"
        if (name, strategy) not in known:
            case = CASES[name][0] | {"strategy": strategy, "devices": 1}
            alone = train(folder, **case) if strategy == "auto" else run_ranks(train_all, 1, folder, [case])[0][0]
            known[name, strategy] = alone
        return known[name, strategy]

    return find_out


@pytest.mark.parametrize(("name", "strategy"), MARKED)
def test_two_ranks_do_what_one_process_does(name, strategy, alone, both_ranks):
    expected, (first, second) = alone(name, strategy), both_ranks[name, strategy]
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


UNEVEN = [("episodes", "ddp"), ("episodes, layer by layer", "fsdp2")]


@pytest.mark.parametrize(("name", "strategy"), [pytest.param(*key, id="-".join(key)) for key in UNEVEN])
def test_one_rank_validates_single_turns_and_the_other_long_episodes(name, strategy, both_ranks):
    """Both have the same metrics, those of turns that only one of them has played too."""
    first, second = (rank["metrics"] for rank in both_ranks[name, strategy])
    validated = {key: value for key, value in first.items() if key.startswith("validation/")}
    assert {key: second[key] for key in validated} == validated
    by_turn = [validated[f"validation/turn_{k}/reverse_kl"] for k in range(1, 10)]
    assert by_turn[0] > 0
    assert sum(value > 0 for value in by_turn) > 2
    assert 1 < validated["validation/turns"] < 9
    assert first["train/played_turns"] > 8


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ranks_find_the_bounds_of_one_process(strategy, alone, both_ranks):
    name = "ListOPD, watched"
    bounds = alone(name)["bounds"]
    assert len(bounds) > 3
    for found in both_ranks[name, strategy]:
        assert found["bounds"] == pytest.approx(bounds, rel=1e-4)


@pytest.mark.parametrize("name", ["Veto", "MiniLLM"])
def test_the_runs_learn_something(name, alone):
    """Else equal weights would prove nothing."""
    curve = alone(name)["curve"]
    assert (curve[:, 1] > 1e-3).all()
    assert (curve[1:, 0] != curve[:-1, 0]).all()

"""Weights in groups by their names: other settings, or another optimizer, under one roof."""

import sys
from copy import deepcopy
from functools import partial
from types import ModuleType
from unittest.mock import patch

import pytest
import torch
from cli.conftest import config, write
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, AdamW, Muon

from veto_pl.cli.build import VetoCLI
from veto_pl.commands.main import main
from veto_pl.exceptions import ConfigurationError
from veto_pl.module import DistillationModule
from veto_pl.plugins import load_plugins
from veto_pl.training.optimizer_groups import OptimizerGroups, ParameterGroup, make_optimizer
from veto_pl.training.optimizers import _set_rate

__all__ = ["config", "write"]

SHAPES = {
    "model.embed_tokens.weight": (5, 4),
    "model.layers.0.mlp.up_proj.weight": (6, 4),
    "model.layers.0.mlp.up_proj.bias": (6,),
    "model.norm.weight": (4,),
    "lm_head.weight": (5, 4),
}
MATRICES = ParameterGroup(dimensions=2, excluding="embed|lm_head", optimizer=partial(Muon, lr=0.02, weight_decay=0.0))
UNDECAYED = ParameterGroup(names="norm|bias", settings={"weight_decay": 0.0})
ADAM = partial(AdamW, lr=0.01, weight_decay=0.1)


def weights(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(shape, generator=draw)) for name, shape in SHAPES.items()}


def give_gradients(named, seed):
    draw = torch.Generator().manual_seed(seed)
    for weight in named.values():
        weight.grad = torch.randn(weight.shape, generator=draw)


def stepped(make, steps=3):
    """The weights after steps of the optimizers that `make` gives for them."""
    named = weights()
    optimizers = make(named)
    for step in range(steps):
        give_gradients(named, step)
        for optimizer in optimizers:
            optimizer.step()
    return named


def grouped(named, groups=(MATRICES, UNDECAYED)):
    return OptimizerGroups(named.items(), ADAM, groups)


def test_a_step_is_that_of_each_optimizer_on_its_own_weights():
    def apart(named):
        up, bias, norm = (named[name] for name in list(SHAPES)[1:4])
        rest = [named["model.embed_tokens.weight"], named["lm_head.weight"]]
        return [Muon([up], lr=0.02, weight_decay=0.0), AdamW([bias, norm], lr=0.01, weight_decay=0.0),
                AdamW(rest, lr=0.01, weight_decay=0.1)]  # fmt: skip

    together = stepped(lambda named: [grouped(named)])
    for name, weight in stepped(apart).items():
        assert torch.equal(together[name], weight), name


def test_its_groups_are_those_of_all_and_a_schedule_reaches_each():
    named = weights()
    optimizer = grouped(named)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2, 1]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0, 0.0]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    give_gradients(named, 0)
    optimizer.step()
    schedule.step()
    before = {name: weight.detach().clone() for name, weight in named.items()}
    optimizer.step()
    assert all(torch.equal(before[name], weight) for name, weight in named.items()), "all rates are 0"


@given(st.integers(0, 3))
def test_a_saved_optimizer_goes_on_to_the_bit(stop):
    whole = stepped(lambda named: [grouped(named)], steps=4)
    named = weights()
    optimizer = grouped(named)
    for step in range(4):
        if step == stop:
            state = deepcopy(optimizer.state_dict())
            optimizer = grouped(named)
            optimizer.load_state_dict(state)
        give_gradients(named, step)
        optimizer.step()
    assert all(torch.equal(whole[name], weight) for name, weight in named.items())


def test_an_optimizer_reads_its_part_of_a_checkpoint_in_its_own_way():
    """As those in 8 bits do, whose states are no numbers of the weights' kind."""

    class Bytes(SGD):
        def load_state_dict(self, state_dict):
            super().load_state_dict(state_dict)
            for state in self.state.values():
                state["momentum_buffer"] = state["momentum_buffer"].byte()

    bytewise = ParameterGroup(names="lm_head", optimizer=partial(Bytes, lr=0.0, momentum=0.5))
    named = weights()
    optimizer = grouped(named, [bytewise])
    give_gradients(named, 0)
    optimizer.step()
    optimizer.load_state_dict(deepcopy(optimizer.state_dict()))
    assert optimizer.state[named["lm_head.weight"]]["momentum_buffer"].dtype == torch.uint8
    assert optimizer.state[named["model.norm.weight"]]["exp_avg"].dtype == torch.float32


def test_other_groups_than_saved_are_refused():
    saved = grouped(weights()).state_dict()
    with pytest.raises(ValueError, match="has 1 groups, and the saved one 3"):
        grouped(weights(), []).load_state_dict(saved)


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"names": "layer_norm"}, r"groups\.0`: no weight that is trained belongs to it.*names `layer_norm`"),
        ({"dimensions": 3}, r"dimensions 3\. There are 5, such as `model\.embed_tokens\.weight` \(2 dimensions\)"),
        ({"settings": {"weigth_decay": 0.0}}, r"`AdamW` has no setting `weigth_decay`\. Did you mean `weight_decay`"),
        ({"names": "("}, r"`ParameterGroup\.names`: given `\(`, expected a regular expression"),
    ],
)
def test_a_group_that_does_nothing_is_refused(group, said):
    with pytest.raises(ConfigurationError, match=said):
        grouped(weights(), [ParameterGroup(**group)])


def test_the_first_group_that_has_a_weight_keeps_it():
    with pytest.raises(ConfigurationError, match=r"groups\.1`: .*or those before it have them all"):
        grouped(weights(), [ParameterGroup(), UNDECAYED])


def test_names_are_given_to_whoever_asks_for_them():
    seen = []

    def with_names(named_parameters):
        seen.extend(named_parameters)
        return ADAM([weight for _, weight in seen])

    def without(params):
        seen.extend(params)
        return ADAM(seen)

    given_to = [(f"student.model.{name}", weight) for name, weight in weights().items()]
    make_optimizer(with_names, given_to)
    assert [name for name, _ in seen] == list(SHAPES), "as transformers calls them"
    seen.clear()
    make_optimizer(without, given_to)
    assert all(isinstance(weight, nn.Parameter) for weight in seen)


def test_a_rate_that_is_found_keeps_the_ratio_of_the_groups():
    optimizer = grouped(weights())
    _set_rate(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.1, 0.2])


NAMED = {
    "class_path": "OptimizerGroups",
    "init_args": {
        "main": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01, "fused": True}},
        "groups": [
            {"dimensions": 2, "excluding": "embed|lm_head",
             "optimizer": {"class_path": "torch.optim.Muon", "init_args": {"lr": 0.02}}},
            {"names": "norm|bias", "settings": {"weight_decay": 0.0}},
        ],
    },
}  # fmt: skip


def test_a_yaml_names_them_and_the_run_goes_on_after_a_stop(config, write, tmp_path):
    """Trained, stopped, resumed, and equal to a run in one go; `--print_config` and config.yaml hold it."""
    config["model"]["optimizer"] = NAMED
    config["trainer"] |= {"limit_val_batches": 0, "max_steps": 4, "check_val_every_n_epoch": 1}
    command = ["fit", "--config", write(config), "--export.folder=null"]
    main([*command, f"--run_dir={tmp_path / 'whole'}"])
    main([*command, f"--run_dir={tmp_path / 'parts'}", "--trainer.max_steps=2"])
    made = []
    original = DistillationModule.configure_optimizers

    def keeping(self):
        found = original(self)
        made.append(found["optimizer"])
        return found

    with patch.object(DistillationModule, "configure_optimizers", keeping):
        main(["fit", f"--config={tmp_path / 'parts' / 'config.yaml'}", f"--run_dir={tmp_path / 'parts'}",
              "--ckpt_path=last", "--trainer.max_steps=4"])  # fmt: skip
    assert [type(one) for one in made[0].optimizers] == [AdamW, Muon]
    assert made[0].param_groups[0]["fused"] is True
    ends = [torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "parts")]
    assert ends[0]["state_dict"].keys() == ends[1]["state_dict"].keys()
    assert all(torch.equal(weight, ends[1]["state_dict"][name]) for name, weight in ends[0]["state_dict"].items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"main": {"class_path": "torch.optim.AdamW", "init_args": {"lr": -1.0}}},
         "`model.optimizer.init_args.main`: given Invalid learning rate"),
        ({"groups": [{"settings": {"momentun": 1}}]},
         "`model.optimizer.init_args.groups.0.optimizer`: given `AdamW` has no setting `momentun`"),
        ({"groups": [{"dimensions": 1, "optimizer": {"class_path": "torch.optim.Muon"}}]},
         "`model.optimizer.init_args.groups.0.optimizer`: given Muon only supports 2D"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_models_are_loaded(change, said, config, write):
    config["model"]["optimizer"] = {**NAMED, "init_args": NAMED["init_args"] | change}
    loading = patch.object(DistillationModule, "configure_model", side_effect=AssertionError("models are loaded"))
    with loading, pytest.raises(SystemExit) as ended:
        main(["fit", "--config", write(config)])
    assert said in str(ended.value.code)


class PagedAdamW8bit(AdamW):
    """As that of bitsandbytes is called."""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--trainer.strategy=fsdp2"],
            "`PagedAdamW8bit` of bitsandbytes with `fsdp2`, expected an optimizer that",
        ),
        ([], "`PagedAdamW8bit` on a CPU, expected a GPU, from whose memory it moves its state. Use `AdamW8bit`."),
    ],
)
def test_an_optimizer_that_cannot_work_where_it_is_to_run_is_refused_by_name(options, said, config, write, monkeypatch):
    monkeypatch.setattr(PagedAdamW8bit, "__module__", "bitsandbytes")
    package = ModuleType("bitsandbytes")
    package.PagedAdamW8bit = PagedAdamW8bit
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    config["model"]["optimizer"] = {"class_path": "bitsandbytes.PagedAdamW8bit", "init_args": {"lr": 0.1}}
    loading = patch.object(DistillationModule, "configure_model", side_effect=AssertionError("models are loaded"))
    with loading, pytest.raises(SystemExit) as ended:
        main(["fit", "--config", write(config), *options])
    assert said in str(ended.value.code)


def test_the_bare_name_is_known(config, write):
    config["model"]["optimizer"] = NAMED
    load_plugins()
    cli = VetoCLI(["--config", write({key: config[key] for key in ("model", "data")})], run=False)
    assert cli.config["model"]["optimizer"]["class_path"] == "veto_pl.training.optimizer_groups.OptimizerGroups"


@pytest.mark.slow
def test_bitsandbytes_itself_keeps_its_bytes_in_a_group():
    """Where it is installed: a state in 8 bits beside one of AdamW's, saved and read."""
    optim = pytest.importorskip("bitsandbytes").optim
    bytewise = ParameterGroup(names="mlp.*weight", optimizer=partial(optim.AdamW8bit, lr=0.01, min_8bit_size=16))
    named = weights()
    optimizer = grouped(named, [bytewise])
    give_gradients(named, 0)
    optimizer.step()
    again = {name: nn.Parameter(weight.detach().clone()) for name, weight in named.items()}
    other = grouped(again, [bytewise])
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    for of in (named, again):
        give_gradients(of, 1)
    optimizer.step()
    other.step()
    assert other.state[again["model.layers.0.mlp.up_proj.weight"]]["state1"].dtype == torch.uint8
    assert all(torch.equal(weight, again[name]) for name, weight in named.items())

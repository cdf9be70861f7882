"""Hostile values in every numeric setting of the command line: refused by path and value, or meant as they stand."""

import inspect
import math
import typing

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer

from veto_pl.checks import numbers
from veto_pl.cli.compact_parser import ROOTS
from veto_pl.commands.main import main
from veto_pl.plugins import load_plugins

from .conftest import changed, tiny_config

HOSTILE = (-1, 0, 0.5, math.nan, math.inf, -math.inf, 1e308, 2**70, -(2**70), True, "", None)


RUNS = {
    "deadline": None,
    "phases": (Phase.explicit, Phase.reuse, Phase.generate),  # a command is dear, and its inputs are small as they are
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}


class Loaded(BaseException):
    """A model was about to be loaded: the configuration was accepted."""


def numeric(owner):
    """The arguments of a class that are numbers."""
    hints = typing.get_type_hints(owner.__init__)
    for name in inspect.signature(owner).parameters:
        hint = hints.get(name)
        if any(kind in (hint, *typing.get_args(hint)) for kind in (int, float)):
            yield name


load_plugins()
SETTINGS = [f"{root}.{name}" for root, owner in ROOTS.items() if owner is not None for name in numeric(owner)]
SETTINGS += ["seed_everything", "model.evaluation.temperature", "model.evaluation.top_p", "model.evaluation.top_k"]
SETTINGS += ["model.evaluation.max_new_tokens", "model.evaluation.num_completions", "data.task.init_args.limit"]
SETTINGS += ["model.student.init_args.seed", "model.optimizer.init_args.lr", "model.optimizer.init_args.weight_decay"]

BELOW_ZERO = {"devices", "max_epochs", "max_steps", "num_sanity_val_steps", "save_top_k", "seed"}
INFINITE = {"gradient_clip_val", "minutes", "temperature"}
TRUE = {"fast_dev_run"}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """What a command does with a value: the message that ends it, or None where it goes on to load a model."""
    folder = tmp_path_factory.mktemp("hostile")
    config = changed(
        tiny_config(folder), {"model.optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1}}}
    )

    def load(*_, **__):
        raise Loaded

    def run(path, value, command="fit"):
        file = folder / "config.yaml"
        file.write_text(yaml.safe_dump(changed(config, {path: value})))
        try:
            main([command, "--config", str(file)])
        except SystemExit as ended:
            return str(ended.code)
        except Loaded:
            return None
        raise AssertionError("the command ran without a model")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("veto_pl.models.RandomWeights.load", load)
        yield run


def spellings(value):
    """How messages write a value."""
    if value in (None, ""):
        return ("nothing", "none", "``", "''", "got value:")
    return (str(value).lower(), str(float(value)))


def judge(path, value, message):
    name = path.rpartition(".")[2]
    if message is not None:
        assert message.startswith("veto-pl: "), message
        assert name in message, message
        assert path.partition(".")[0] in message, message
        assert "It says" in message or any(spelling in message.lower() for spelling in spellings(value)), message
        assert len(message) < 1200
    elif isinstance(value, bool):
        assert name in TRUE
    elif isinstance(value, int | float):
        assert not math.isnan(value)
        assert value >= 0 or (value == -1 and name in BELOW_ZERO), f"{path}: {value} means nothing"
        assert math.isfinite(value) or name in INFINITE, f"{path}: {value} means nothing"
        assert value or name not in NOTHING, f"{path}: with 0 nothing is done"
    elif value is None:
        assert _optional(path)
    else:
        raise AssertionError(f"{path}: a text was accepted for a number")


NOTHING = {"max_steps", "max_epochs", "limit_train_batches", "val_check_interval", "check_val_every_n_epoch"}
NOTHING |= {"accumulate_grad_batches", "batch_size", "train_limit", "every_n_train_steps", "width", "steps", "tokens"}
NOTHING |= {"seconds", "max_new_tokens", "num_completions", "top_p", "skip_limit", "num_nodes", "devices"}


def _optional(path):
    root, _, name = path.partition(".")
    owner = ROOTS.get(root)
    hint = typing.get_type_hints(owner.__init__).get(name) if owner is not None else None
    default = inspect.signature(owner).parameters[name].default if hint is not None else inspect.Parameter.empty
    return type(None) in typing.get_args(hint) or default is None or path == "data.task.init_args.limit"


@given(st.sampled_from(SETTINGS), st.sampled_from(HOSTILE))
@settings(max_examples=10, **RUNS)
def test_a_number_is_refused_by_path_and_value_or_meant(outcome, path, value):
    judge(path, value, outcome(path, value))


@pytest.mark.slow
@pytest.mark.parametrize("path", SETTINGS)
def test_every_setting_with_every_value(path, outcome):
    for value in HOSTILE:
        judge(path, value, outcome(path, value))


NUMBERS = st.integers() | st.floats() | st.sampled_from([x for x in HOSTILE if isinstance(x, int | float)])


@given(st.sampled_from(sorted(numbers.TRAINER)), NUMBERS)
def test_what_the_table_admits_has_a_meaning(name, value):
    """NaN never has; a share lies in (0, 1]; what is below the least is admitted only by name."""
    allowed = numbers.TRAINER[name]
    if allowed.admits(value):
        assert value >= allowed.least or value in allowed.also or (allowed.share and 0 < value <= 1)
        assert value <= allowed.most
        assert not (allowed.share and isinstance(value, float)) or value <= 1 or value == int(value)
    else:
        assert not (allowed.least <= value <= allowed.most and isinstance(value, int))


def test_the_table_has_every_number_that_the_trainer_takes():
    assert set(numbers.TRAINER) == set(numeric(Trainer))


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_command_without_rows_is_refused(command, outcome):
    name = {"validate": "val"}.get(command, command)
    assert f"`trainer.limit_{name}_batches`: given 0" in outcome(f"trainer.limit_{name}_batches", 0, command)
    assert outcome("trainer.limit_train_batches", 0, command) is None, "which only matters to training"


DIMENSIONS = st.sampled_from(["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"])


@given(DIMENSIONS, st.integers(-(2**40), 0))
@settings(max_examples=6, **RUNS)
def test_a_model_without_ids_layers_or_width_is_refused(outcome, name, value):
    message = outcome(f"model.student.init_args.dimensions.{name}", value)
    assert "`model.student`: given " in message
    assert f"{name}: {value}" in message.replace("'", ""), message
    assert "top_k" not in message, "one mistake is named once"


@given(st.integers(max_value=-1) | st.integers(2**32) | st.booleans() | st.none())
@settings(max_examples=5, **RUNS)
def test_a_seed_that_is_none_is_refused(outcome, seed):
    assert "`seed_everything`: given " in outcome("seed_everything", seed)


def test_a_seed_that_another_setting_decides_is_refused(outcome):
    assert "`model.seed`: given `3`, expected nothing, for `seed_everything` decides it" in outcome("model.seed", 3)
    assert "`data.seed`: given nothing" in outcome("data.seed", None)

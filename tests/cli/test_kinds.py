"""A configuration names classes of the right kind only, also where a function or any value is expected."""

import inspect
import sys
import typing
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from torch import nn
from torch.optim import Optimizer

from veto_pl.cli.build import VetoCLI
from veto_pl.cli.compact_parser import ROOTS
from veto_pl.cli.seam_classes import SEAMS
from veto_pl.commands.main import main
from veto_pl.exceptions import ConfigurationError
from veto_pl.plugins import available, load_plugins

from .conftest import changed

CHAT = {"data.template": {"class_path": "ChatTemplate", "init_args": {"arguments": {}}}}
GYM = {"data.task": {"class_path": "ReasoningGym", "init_args": {"dataset": "chain_sum", "arguments": {}}}}
MEMORY, WORDS = ({"model.student": {"class_path": "InMemory", "init_args": {"model": None}}} for _ in range(2))
TOKENIZER = {"model.tokenizer": {"class_path": "InMemoryTokenizer", "init_args": {"tokenizer": None}}}
STORED = {"model.student": {"class_path": "Pretrained", "init_args": {"path": "x", "quantization_config": {}}}}
WORLD = "model.objective.init_args.rollout.init_args.environment"


def played(environment, **arguments):
    """An objective that plays, as settings."""
    world = {"class_path": environment, "init_args": arguments}
    rollout = {"class_path": "Played", "init_args": {"environment": world}}
    return {"model.objective": {"class_path": "OPD", "init_args": {"rollout": rollout}}}


SERVED = played("OpenEnv", url="ws://localhost:1", action="message", more={})
OPEN = {
    ("ChatTemplate", "arguments"): ("data.template.init_args.arguments.x", CHAT),
    ("Gymnasium", "options"): (f"{WORLD}.init_args.options.x", played("Gymnasium", id="CartPole-v1", options={})),
    ("OpenEnv", "more"): (
        f"{WORLD}.init_args.more.x",
        played("OpenEnv", url="ws://localhost:1", action="message", more={}),
    ),
    ("InMemory", "model"): ("model.student.init_args.model", MEMORY),
    ("InMemory", "tokenizer"): ("model.student.init_args.tokenizer", WORDS),
    ("InMemoryTokenizer", "tokenizer"): ("model.tokenizer.init_args.tokenizer", TOKENIZER),
    ("Pretrained", "quantization_config"): ("model.student.init_args.quantization_config.x", STORED),
    ("DistillationModule", "optimizer"): ("model.optimizer", {}),
    ("RandomWeights", "dimensions"): ("model.student.init_args.dimensions.hidden_size", {}),
    ("ReasoningGym", "arguments"): ("data.task.init_args.arguments.x", GYM),
}
"""Settings of the classes that a command builds whose annotation lets more than plain values and classes in."""


def hints(cls):
    try:
        return typing.get_type_hints(cls.__init__)
    except NameError:  # names that only a type checker imports
        return {}


def lets_anything_in(annotation):
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is Callable or annotation in (typing.Any, object, Callable, typing.Callable):
        return True
    return any(lets_anything_in(one) for one in inner if not isinstance(one, list))


def built():
    """Every class whose arguments are settings."""
    load_plugins()
    parts = {cls for kinds in SEAMS.values() for kind in kinds for cls in available(kind)}
    ours = {cls for cls in parts if cls.__module__.startswith("veto_pl.")}  # other tests have classes of their own
    return sorted({*ours, *filter(None, ROOTS.values())}, key=lambda cls: cls.__name__)


def settings():
    for cls in built():
        plain = [p.name for p in inspect.signature(cls).parameters.values() if p.kind is not p.VAR_KEYWORD]
        yield from ((cls.__name__, name) for name in plain if lets_anything_in(hints(cls).get(name)))


def attacks(marker):
    yield {"class_path": "os.system", "init_args": {"command": f"touch {marker}"}}
    yield {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", marker]}}
    yield {"class_path": "subprocess.run", "init_args": {"args": ["touch", marker]}}
    yield {"class_path": "builtins.eval"}
    yield {"class_path": "functools.partial", "init_args": {"func": "os.system"}}


def test_each_setting_that_lets_anything_in_is_known():
    assert set(settings()) == OPEN.keys()
    assert len(built()) > 60


@pytest.mark.parametrize(("path", "around"), [*OPEN.values(), ("trainer.overfit_batches", {})])
def test_no_setting_runs_what_is_of_another_kind(path, around, config, write, tmp_path):
    marker = tmp_path / "PWNED"
    for number, value in enumerate(attacks(str(marker))):
        file = write(changed(config, {**around, path: value}), f"{number}.yaml")
        with pytest.raises(ConfigurationError, match=path.rpartition(".")[0]) as refusal:
            VetoCLI(["--config", file], run=False)
        assert value["class_path"] in str(refusal.value)
        assert not marker.exists()


@pytest.mark.parametrize("given", ["os.system", "builtins.eval", "torch.nn.Linear", "Linear"])
@pytest.mark.parametrize("form", [str, lambda name: {"class_path": name}], ids=["name", "class_path"])
def test_an_optimizer_is_an_optimizer(form, given, config, write):
    with pytest.raises(ConfigurationError) as refusal:
        VetoCLI(["--config", write(changed(config, {"model.optimizer": form(given)}))], run=False)
    assert str(refusal.value).startswith("`model.optimizer`: ")
    assert f"`{given}`" in str(refusal.value)


@pytest.mark.parametrize("value", ["SGD", "torch.optim.Adam", {"class_path": "AdamW", "init_args": {"lr": 0.5}}])
def test_every_optimizer_can_be_named(value, config, write):
    cli = VetoCLI(["--config", write(changed(config, {"model.optimizer": value}))], run=False)
    assert issubclass(type(cli.model.optimizer([nn.Parameter()])), Optimizer)


@pytest.mark.parametrize("value", ["SGD", {"class_path": "AdamW"}], ids=["name", "class_path"])
def test_a_bare_name_is_the_one_of_the_kinds_own_package(value, config, write):
    """bitsandbytes has optimizers of the same names, which an import of peft brings."""
    import bitsandbytes.optim

    assert issubclass(bitsandbytes.optim.SGD, Optimizer)
    cli = VetoCLI(["--config", write(changed(config, {"model.optimizer": value}))], run=False)
    assert type(cli.model.optimizer([nn.Parameter()])).__module__.startswith("torch.optim")


def test_a_bare_name_that_only_others_share_is_refused_with_both(config, write, monkeypatch):
    for package in ("first", "second"):
        made = type("Shared", (Optimizer,), {"__module__": package})
        monkeypatch.setitem(sys.modules, package, SimpleNamespace(Shared=made))
    with pytest.raises(ConfigurationError, match=r"first\.Shared.*second\.Shared"):
        VetoCLI(["--config", write(changed(config, {"model.optimizer": "Shared"}))], run=False)


def test_a_function_of_a_callback_is_made_by_a_class_of_callables(config, write, tmp_path):
    """Lightning's own annotations say no more than that."""
    marker = tmp_path / "PWNED"
    *attacking, harmless = attacks(str(marker))
    assert harmless["class_path"] == "functools.partial", "a class of callables, and a bare name is none"
    for number, value in enumerate(attacking):
        callback = {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"on_fit_start": value}}
        file = write(changed(config, {"trainer.callbacks": [callback]}), f"{number}.yaml")
        with pytest.raises(ConfigurationError, match=r"`trainer\.callbacks\.init_args\.on_fit_start`"):
            VetoCLI(["--config", file], run=False)
    assert not marker.exists()


HELP = {
    "--model.objective.help=Veto": "--model.objective.beta",
    "--data.task.help=JsonLines": "--data.task.verifier",
    "--model.optimizer.help=torch.optim.AdamW": "--model.optimizer.weight_decay",
}


@pytest.mark.parametrize("option", HELP)
def test_the_help_of_a_class_is_shown(option, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fit", option])
    assert ended.value.code in (0, None)
    shown = capsys.readouterr().out
    assert HELP[option] in shown
    assert "Interval(" not in shown, "bounds are told in words"

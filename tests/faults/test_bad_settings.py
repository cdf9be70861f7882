"""Numbers out of range, in every setting of every class behind a seam: refused by name, or harmless."""

import dataclasses
import inspect
import math
import typing
from types import UnionType

import pytest

from veto_pl import seams
from veto_pl.data import JsonLines, PlainTemplate, PromptDataModule
from veto_pl.exceptions import ConfigurationError
from veto_pl.models import Pruned
from veto_pl.objectives import EOPD, OPSD, SDFT, SFT, Distill
from veto_pl.parts.advantages import FutureLogRatio
from veto_pl.parts.contexts import SameText
from veto_pl.parts.schedules import Linear
from veto_pl.parts.targets import GeometricBridge
from veto_pl.parts.weightings import TeacherEntropyAbove
from veto_pl.plugins import available, load_plugins
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.seams import Step
from veto_pl.testing.tiny import prompt_batch, tiny_models, tiny_source

load_plugins()
OTHERS = {
    "Constant": {"value": 1.0},
    "Linear": {"start": 1.0},
    "Cosine": {"start": 1.0},
    "StepWise": {"values": (1.0, 0.0), "boundaries": (0.5,)},
    "AtMost": {"of": Linear(0.0, 2.0), "bound": 1.0},
    "Phases": {"first": SFT(), "then": SFT()},
    "TemplateMixture": {"first": PlainTemplate(), "second": PlainTemplate()},
    "JsonLines": {"train": "rows.jsonl"},
    "CharacterTokenizer": {"alphabet": "ab"},
    "Pretrained": {"path": "x"},
    "PretrainedTokenizer": {"path": "x"},
    "Gguf": {"path": "x"},
    "ReasoningGym": {"dataset": "spell_backward"},
    "PromptDataModule": {"task": JsonLines(train="rows.jsonl")},
    "ChatJudge": {"base_url": "http://localhost", "model": "m"},
    "HumanEval": {"allow_code_execution": True},
    "MBPP": {"allow_code_execution": True},
}
"""What the classes cannot do without."""

WRONG = {
    float: [math.nan, math.inf, -math.inf, -1.0, -1e-300, 1e300],
    int: [-1, -(2**70), 2**70],
}


def numbers_of(cls):
    """The settings of a class that are numbers, with their kind."""
    hints = typing.get_type_hints(cls.__init__ if cls is PromptDataModule else cls)
    names = inspect.signature(cls).parameters
    for name in names:
        hint = hints.get(name)
        kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, UnionType) else (hint,)
        yield from ((name, kind) for kind in (float, int) if kind in kinds)


ABSTRACT = [cls for _, cls in inspect.getmembers(seams, inspect.isabstract) if cls.__module__ == seams.__name__]
CLASSES = sorted(
    {cls for seam in ABSTRACT for cls in available(seam) if cls.__module__.startswith("veto_pl.")}
    | {Sampling, PromptDataModule},
    key=lambda cls: cls.__name__,
)
SETTINGS = [(cls, name, value) for cls in CLASSES for name, kind in numbers_of(cls) for value in WRONG[kind]]


def build(cls, name, value):
    """An instance with one wrong number; what else it needs is given."""
    needed = [p.name for p in inspect.signature(cls).parameters.values() if p.default is inspect.Parameter.empty]
    source = {"source": tiny_source()} if "source" in needed else {}
    rest = {"drop_layers": (0,)} if cls is Pruned else {}
    return cls(**{**source, **rest, **OTHERS.get(cls.__name__, {}), name: value})


@pytest.mark.parametrize("cls", dict.fromkeys(cls for cls, *_ in SETTINGS), ids=lambda cls: cls.__name__)
def test_a_number_is_refused_by_name_or_kept_as_it_is(cls):
    """No other kind of error; and what is no number is never accepted."""
    for name, value in ((name, value) for of, name, value in SETTINGS if of is cls):
        try:
            made = build(cls, name, value)
        except ConfigurationError as refusal:
            message = str(refusal)
            assert f"`{name}`" in message or f".{name}`" in message, (name, value, message)
            assert len(message) < 400
            continue
        assert value == value, f"{name}: NaN would be in every weight after a step"
        if dataclasses.is_dataclass(made):
            assert getattr(made, name) == value


def accepted():
    for cls, name, value in SETTINGS:
        try:
            build(cls, name, value)
        except ConfigurationError:
            continue
        yield name, value


def test_what_is_accepted_is_meant():
    """Infinity switches a bound off, and only numbers without a meaning of their own may be below 0."""
    kept = list(accepted())
    unbounded = {"clip", "importance_cap", "scale", "tau", "temperature"}
    assert {name for name, value in kept if value == math.inf} <= unbounded
    assert not [name for name, value in kept if value == -math.inf]
    assert {name for name, value in kept if value < 0} <= {"seed", "value", "start", "end", "threshold", "bound"}


LARGE = {
    "chunk_rows": Distill(chunk_rows=2**70),
    "loss_cap": OPSD(rollout=FromStudent(Sampling(max_new_tokens=4)), context=SameText(), loss_cap=1e300),
    "skip_tokens": SDFT(rollout=FromStudent(Sampling(max_new_tokens=4)), context=SameText(), skip_tokens=2**70),
    "clip": Distill(clip=math.inf, advantage=FutureLogRatio(clip=math.inf, whitened=False)),
    "importance_cap": Distill(rollout=FromStudent(Sampling(max_new_tokens=4)), importance_cap=math.inf),
    "scale": Distill(advantage=FutureLogRatio(scale=math.inf, whitened=False)),
    "temperature": Distill(temperature=1e300),
    "sampling temperature": Distill(rollout=FromStudent(Sampling(temperature=math.inf, max_new_tokens=4))),
    "top_k": Distill(rollout=FromStudent(Sampling(top_k=2**70, max_new_tokens=4))),
    "tau": EOPD(rollout=FromStudent(Sampling(max_new_tokens=4)), tau=math.inf, k=2**70),
    "threshold": Distill(weighting=TeacherEntropyAbove(-1e300)),
    "beta": Distill(target=GeometricBridge(1e6)),
}


@pytest.mark.parametrize("name", LARGE)
def test_the_largest_numbers_that_are_accepted_are_harmless(name):
    """The loss and every gradient stay finite."""
    models, objective, step = tiny_models(), LARGE[name], Step(0, 10)
    batch = prompt_batch(models, ["abc>", "d>"], ["cba", "d"])
    rollouts = {source: source(batch, models, step) for source in objective.sources}
    loss = objective.loss(rollouts, models, step).terms["loss"].total
    loss.backward()
    assert loss.isfinite()
    gradients = [weight.grad for weight in models.student.parameters() if weight.grad is not None]
    assert gradients
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)

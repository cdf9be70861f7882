"""Optimizers over groups of weights: other settings, or another optimizer, for the weights that a pattern names."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from veto_pl.core.mistakes import did_you_mean
from veto_pl.exceptions import ConfigurationError

Named = tuple[str, nn.Parameter]
FIRST = "named_parameters"
"""What the first parameter of a function or class is called that is given weights with their names."""
INSIDE = "student.model."
"""What the names of the student's weights begin with in the module; they are given without it, as transformers does."""


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Weights that have settings, or an optimizer, of their own.

    Args:
        names: a regular expression that is searched in names such as `model.layers.0.mlp.up_proj.weight`.
        excluding: a regular expression; weights in whose names it is found do not belong to the group. Empty for none.
        dimensions: of the tensor, such as 2 for a matrix; None for any number.
        settings: of the optimizer for this group, such as `weight_decay: 0.0`.
        optimizer: for this group; None takes the main one.

    Raises:
        ConfigurationError: a pattern cannot be read.
    """

    names: str = ""
    excluding: str = ""
    dimensions: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    optimizer: OptimizerCallable | None = None

    def __post_init__(self) -> None:
        _check_pattern("names", self.names)
        _check_pattern("excluding", self.excluding)

    def has(self, name: str, weight: Tensor) -> bool:
        """Return whether a weight belongs to the group."""
        left_out = bool(self.excluding) and re.search(self.excluding, name) is not None
        fits = self.dimensions is None or weight.dim() == self.dimensions
        return fits and not left_out and re.search(self.names, name) is not None


def default_optimizer(parameters: Iterable[Any]) -> Optimizer:
    """Return AdamW at a learning rate of 1e-5, low enough for fine-tuning, without weight decay."""
    return AdamW(parameters, lr=1e-5, weight_decay=0.0)


class OptimizerGroups(Optimizer):
    """One optimizer, or several behind each other, over groups of weights.

    A weight belongs to the first group that has it; the rest is the `main` optimizer's. Checkpoints, schedules,
    clipping and mixed precision see one optimizer, whose groups are those of all.

    Args:
        named_parameters: the weights with their names.
        main: makes the optimizer of all groups without one of their own, and of the rest.
        groups: of weights, in the order in which they are asked.

    Raises:
        ConfigurationError: a group has no weight, or a setting that its optimizer does not know.
    """

    def __init__(
        self,
        named_parameters: Iterable[Named],
        main: OptimizerCallable = default_optimizer,
        groups: Sequence[ParameterGroup] = (),
    ) -> None:
        parted = _parted(list(named_parameters), groups)
        own = [(group, weights) for group, weights in parted if group.optimizer is None]
        self.optimizers = [_made(main, own)] if own else []
        for group, weights in parted:
            if group.optimizer is not None:
                self.optimizers.append(_made(group.optimizer, [(group, weights)]))
        super().__init__([group for one in self.optimizers for group in one.param_groups], {})
        self._share()

    @classmethod
    def trials(
        cls, main: OptimizerCallable = default_optimizer, groups: Sequence[ParameterGroup] = ()
    ) -> Iterator[tuple[str, Callable[[], Optimizer]]]:
        """Yield what makes each optimizer, with its settings, for one weight, and its place among the arguments."""
        yield "main", partial(_made, main, [(ParameterGroup(), [_weight()])])
        for i, group in enumerate(groups):
            weight = _weight(2 if group.dimensions is None else group.dimensions)
            yield f"groups.{i}.optimizer", partial(_made, group.optimizer or main, [(group, [weight])])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Let every optimizer step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for one in self.optimizers:
            one.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give every optimizer its part, as each may read it in a way of its own."""
        saved = state_dict["param_groups"]
        if len(saved) != len(self.param_groups):
            raise ValueError(f"The optimizer has {len(self.param_groups)} groups, and the saved one {len(saved)}.")
        begin = 0
        for one in self.optimizers:
            groups = saved[begin : begin + len(one.param_groups)]
            begin += len(groups)
            ids = {index for group in groups for index in group["params"]}
            state = {index: value for index, value in state_dict["state"].items() if index in ids}
            one.load_state_dict({"state": state, "param_groups": groups})
        self._share()

    def _share(self) -> None:
        """Let this optimizer and those behind it have the same groups and the same state."""
        states = [one.state for one in self.optimizers]
        self.param_groups = [group for one in self.optimizers for group in one.param_groups]
        self.state = defaultdict(dict)
        for state in states:
            self.state.update(state)
        for one in self.optimizers:
            one.state = self.state


def class_of(optimizer: Callable[..., Any]) -> Callable[..., Any]:
    """Return the class whose first arguments are set, here or by a function of jsonargparse; all else as it is."""
    given = (optimizer.func, *optimizer.args) if isinstance(optimizer, partial) else ()
    return next((one for one in given if inspect.isclass(one)), optimizer)


def takes_names(optimizer: Callable[..., Any]) -> bool:
    """Return whether a function or class that makes an optimizer is given weights with their names."""
    made = class_of(optimizer)
    try:
        first = next(iter(inspect.signature(made).parameters), "")
    except (TypeError, ValueError):
        return False
    return first == FIRST


def make_optimizer(optimizer: OptimizerCallable, named_parameters: Iterable[Named]) -> Optimizer:
    """Return the optimizer of weights: given with their names if its first parameter is called `named_parameters`."""
    named = [(name.removeprefix(INSIDE), weight) for name, weight in named_parameters]
    return optimizer(named if takes_names(optimizer) else [weight for _, weight in named])


def trial_optimizers(optimizer: OptimizerCallable) -> Iterator[tuple[str, Callable[[], Optimizer]]]:
    """Yield what makes the optimizer, or each of several, for one weight, and its place in the configuration."""
    trials = getattr(class_of(optimizer), "trials", None)
    if trials is None:
        yield "model.optimizer", partial(make_optimizer, optimizer, [("weight", _weight())])
        return
    settings: Mapping[str, Any] = optimizer.keywords if isinstance(optimizer, partial) else {}
    for place, make in trials(**settings):
        yield f"model.optimizer.init_args.{place}", make


def _check_pattern(setting: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigurationError(
            f"`ParameterGroup.{setting}`: given `{pattern}`, expected a regular expression: {error}. Correct it."
        ) from error


def _parted(
    named: Sequence[Named], groups: Sequence[ParameterGroup]
) -> list[tuple[ParameterGroup, list[nn.Parameter]]]:
    """Return the weights of the rest, if there are any, and those of each group."""
    rest: list[nn.Parameter] = []
    found: list[list[nn.Parameter]] = [[] for _ in groups]
    for name, weight in named:
        place = next((i for i, group in enumerate(groups) if group.has(name, weight)), None)
        (rest if place is None else found[place]).append(weight)
    for i, (group, weights) in enumerate(zip(groups, found, strict=True)):
        if not weights:
            known = ", ".join(f"`{name}` ({weight.dim()} dimensions)" for name, weight in named[:4])
            raise ConfigurationError(
                f"`model.optimizer.init_args.groups.{i}`: no weight that is trained belongs to it, or those before it "
                f"have them all: names `{group.names}`, excluding `{group.excluding}`, dimensions {group.dimensions}. "
                f"There are {len(named)}, such as {known}."
            )
    return [*([(ParameterGroup(), rest)] if rest else []), *zip(groups, found, strict=True)]


def _made(optimizer: OptimizerCallable, groups: Sequence[tuple[ParameterGroup, Sequence[nn.Parameter]]]) -> Optimizer:
    """Return an optimizer of groups, each with its settings."""
    made = optimizer([{"params": list(weights), **group.settings} for group, weights in groups])
    for group, _ in groups:
        if unknown := sorted(group.settings.keys() - made.defaults.keys()):
            hint = did_you_mean(unknown[0], made.defaults) or f"There are: {', '.join(sorted(made.defaults))}."
            raise ConfigurationError(f"`{type(made).__name__}` has no setting `{unknown[0]}`. {hint}")
    return made


def _weight(dimensions: int = 2) -> nn.Parameter:
    return nn.Parameter(torch.zeros([2] * dimensions))

"""What an objective does to a student, by the objective's own code: expected loss, gradient and target."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from veto_pl.core.nested import changed, walk
from veto_pl.exceptions import ConfigurationError, VetoError
from veto_pl.explain.scene import Scene, one_token, table_models
from veto_pl.parts.contexts import read_alike
from veto_pl.parts.panels import OneTeacher
from veto_pl.parts.schedules import scheduled_values
from veto_pl.seams import Advantage, Objective, Panel, Stat, Step, Support, Target
from veto_pl.seams.tokens import TokenRows

STEPS = 100
PARTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the run, at which the target is drawn."""
MAX_DRAWS = 400
COPIES = tuple(2**n for n in range(11))
"""Of the token in a completion, which are tried until one is trained on: an objective may leave out the first ones."""


@dataclass(frozen=True)
class Response:
    """An objective along a scene's sweep, [n] float64 each.

    Args:
        student: the student's probability of the teacher's choice.
        loss: expected over the token that is drawn, in nats.
        gradient: of that loss, with respect to the student's logit of the teacher's choice.
        targets: where in the run, as text -> the target's probability of the teacher's choice; empty where the
            objective has no target but the teacher.
        kept: the likeliest ids that the objective keeps, where the scene has no more than them; else None.
    """

    student: Tensor
    loss: Tensor
    gradient: Tensor
    targets: Mapping[str, Tensor]
    kept: int | None = None

    def pull(self) -> Tensor:
        """Return [n] the relative pull on the probability: minus gradient over probability."""
        return -self.gradient / self.student


def respond(objective: Objective, scene: Scene, part: float = 0.0) -> Response:
    """Return an objective's expected loss, gradient and target at every point of a scene's sweep.

    One token is drawn from every rollout, and the expectation is the exact sum over all ways to draw them. Who writes
    a completion decides what it is drawn from: the student, the teacher (which stands for the references of
    the task as well), or their mixture; temperature and truncation of the sampling are left out. What looks at more
    than one token, such as a return over the future or a comparison with other completions, has nothing to see here.

    Args:
        objective: any objective.
        scene: teacher and sweep.
        part: of the run that is done, in [0, 1]; schedules are read there.

    Raises:
        ConfigurationError: the objective needs more than two distributions and a token, has too many rollouts, or
            trains on no token of a short completion.
    """
    step = Step(round(part * STEPS), STEPS)
    _check(objective, scene)
    kept = max((one.kept_ids() or 0 for one in _supports(objective)), default=0)
    objective = read_alike(objective)  # the scene's numbers hold what the teacher has read
    objective = changed(objective, Panel, lambda _: OneTeacher())  # type: ignore[type-abstract]  # it is each of several
    objective = changed(objective, Advantage, lambda one: one.of_one_token())  # type: ignore[type-abstract]
    # One id must be left for the outcome of all others, so the outcomes are those of the whole vocabulary.
    objective = changed(objective, Support, lambda one: one.keeping(scene.outcomes - 1))  # type: ignore[type-abstract]
    teacher = scene.logp(scene.teacher)
    found = [_expected(objective, scene.logp(probability), teacher, step) for probability in scene.student()]
    losses, gradients = (torch.stack(values) for values in zip(*found, strict=True))
    targets = dict(_targets(objective, scene))
    return Response(scene.student(), losses, gradients, targets, kept if kept >= scene.outcomes else None)


def _supports(objective: Objective) -> list[Support]:
    return [part for _, part in walk(objective, derived=True) if isinstance(part, Support)]


def _check(objective: Objective, scene: Scene) -> None:
    name = type(objective).__name__
    if any(source.stored_teacher for source in objective.sources):
        raise ConfigurationError(f"`{name}` reads a stored teacher, which knows real rows alone. Use a live teacher.")
    if (draws := scene.outcomes ** len(objective.sources)) > MAX_DRAWS:
        raise ConfigurationError(
            f"`{name}` has {len(objective.sources)} rollouts: {draws} ways to draw a token from each, more than "
            f"{MAX_DRAWS}. Use fewer `outcomes`."
        )


def _expected(objective: Objective, student: Tensor, teacher: Tensor, step: Step) -> tuple[Tensor, Tensor]:
    """Return loss and gradient, both scalars, at one point; the [V] log-probabilities serve as logits."""
    objective = objective.active(step)
    for copies in COPIES:
        logits = student[None].clone().requires_grad_()
        with _errors_explained(objective), torch.enable_grad():
            terms = _terms(objective, logits, teacher, copies, step).values()
            if all(float(stat.weight) > 0 for stat in terms):
                loss = sum((stat.total / stat.weight for stat in terms), start=torch.zeros((), dtype=torch.float64))
                (gradient,) = torch.autograd.grad(loss, logits)
                return loss.detach(), gradient[0, 0]
    raise ConfigurationError(
        f"`{type(objective).__name__}` cannot be drawn: it trains on none of the first {COPIES[-1]} tokens of a "
        "completion."
    )


def _terms(objective: Objective, logits: Tensor, teacher: Tensor, copies: int, step: Step) -> dict[str, Stat]:
    """Return the terms of the loss, expected over the drawn tokens; a completion is one token, repeated."""
    student = logits.detach()[0]
    # The reference is where every student starts: undecided.
    undecided = torch.full_like(teacher, -math.log(len(teacher)))
    models = table_models(logits, teacher[None], undecided[None])
    samplers = [source.token_distribution(student, teacher, step) for source in objective.sources]
    expected: dict[str, Stat] = {}
    for tokens in product(range(len(student)), repeat=len(samplers)):
        draws = zip(objective.sources, tokens, samplers, strict=True)
        rollouts = {source: one_token(token, sampler, copies) for source, token, sampler in draws}
        chance = math.exp(sum(float(sampler[token]) for token, sampler in zip(tokens, samplers, strict=True)))
        for name, stat in objective.loss(rollouts, models, step).terms.items():
            drawn = Stat(chance * stat.total.double(), chance * stat.weight.double())
            expected[name] = expected[name] + drawn if name in expected else drawn
    return expected


@contextmanager
def _errors_explained(objective: Objective) -> Iterator[None]:
    """Turn any error but a `VetoError` in the block into a `ConfigurationError` about what cannot be drawn."""
    try:
        yield
    except VetoError:
        raise
    except Exception as error:
        raise ConfigurationError(
            f"`{type(objective).__name__}` cannot be drawn: it asks for more than two distributions and a token "
            f"({type(error).__name__}: {error})."
        ) from error


def _targets(objective: Objective, scene: Scene, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield labels and [n] target probabilities of id 0 along the sweep, where they change during the run."""
    yield from _own_target(objective, scene, prefix)
    parts = getattr(objective, "terms", None)
    if isinstance(parts, Mapping):
        for name, term in parts.items():
            yield from _targets(term, scene, f"{prefix}{name}: ")
    if isinstance(composition := getattr(objective, "composition", None), Objective):
        yield from _targets(composition, scene, prefix)


def _own_target(objective: Objective, scene: Scene, prefix: str) -> Iterator[tuple[str, Tensor]]:
    target, support = getattr(objective, "target", None), getattr(objective, "support", None)
    if not isinstance(target, Target) or not isinstance(support, Support) or target.is_neutral:
        return
    temperature = getattr(objective, "temperature", 1.0)
    swept = scene.student()
    student, teacher = (
        (scene.logp(p) / temperature).log_softmax(-1) for p in (swept, torch.full_like(swept, scene.teacher))
    )
    last = None
    for part in PARTS:
        step = Step(round(part * STEPS), STEPS)
        numbers = torch.arange(len(swept))
        rows = TokenRows(student, teacher, 0 * numbers, numbers, step)
        seen, believed = rows.outcomes(support)
        found = target(believed, seen, step)[:, 0].exp()
        if last is None or not torch.equal(found, last):
            values = ", ".join(f"{name} {value:g}" for name, value in scheduled_values(target, step.index, step.total))
            yield f"{prefix}{values or 'target'}", found
        last = found

"""Several teachers: the laws of readings, weights and routes, for every objective."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veto_pl.core.nested import changed
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.objectives import OPD, SDFT, SFT, Distill, UniOPD
from veto_pl.objectives.token_objective import TokenObjective
from veto_pl.parts.divergences import GeneralizedJSD
from veto_pl.parts.panels import OneTeacher, Routed, Together
from veto_pl.parts.schedules import Linear
from veto_pl.plugins import load_plugins
from veto_pl.rollouts import FromDataset, FromStudent, Sampling
from veto_pl.seams import Example, Objective, Panel, Reading, Step, reading
from veto_pl.testing.examples import installed
from veto_pl.testing.tiny import prompt_batch, tiny_models

load_plugins()
STEP = Step(2, 10)
WORDS = ["abc", "d", "efghij", "ka", "b", "ponm"]
ROUTES = ["maths", "code", "maths", "code", "code", "maths"]
TWICE = Together({"maths": 0.3, "code": 0.7})


@pytest.fixture(scope="module")
def models():
    """A teacher under two names, and another under a third; nobody trains them."""
    plain = tiny_models("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    other = tiny_models("gpt2", teacher_seed=5).teacher
    return replace(plain, teachers={"maths": plain.teacher, "code": plain.teacher, "other": other})


def batch_of(models, routes=ROUTES, words=WORDS):
    rows = prompt_batch(models, [f"{word}>" for word in words], [word[::-1] for word in words])
    named = tuple(
        replace(example, teacher=name, row={"to": name}) for example, name in zip(rows.examples, routes, strict=True)
    )
    return replace(rows, examples=named)


def update(objective, models, batch, rollouts=None):
    """The loss terms, their gradient in the student's weights, the metrics, and the rollouts."""
    if rollouts is None:
        rollouts = {}
        for source in objective.sources:
            rows = source(batch, replace(models, rollouts=rollouts), STEP)
            scored = torch.linspace(0, 1, len(rows)).round() if objective.needs_rewards else None
            sampled = -rows.loss_mask.float() if rows.sampler_logp is None else rows.sampler_logp
            rollouts[source] = replace(rows, rewards=scored, sampler_logp=sampled)
    models.student.zero_grad(set_to_none=True)
    output = objective.active(STEP).loss(rollouts, models, STEP)
    torch.stack([stat.total for stat in output.terms.values()]).sum().backward()
    gradient = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in models.student.parameters()]
    return output, torch.cat([part.flatten() for part in gradient]), rollouts


def with_panel(objective, panel):
    def put(part):
        return replace(part, panel=panel) if isinstance(part, TokenObjective) else part

    return changed(objective, Objective, put)


def assert_alike(one, other, tolerance=1e-5):
    for name, stat in one[0].terms.items():
        torch.testing.assert_close(other[0].terms[name].total, stat.total, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(other[0].terms[name].weight, stat.weight)
    torch.testing.assert_close(other[1], one[1], rtol=tolerance, atol=tolerance * float(one[1].abs().max()))


READ = [
    one
    for one in installed(Objective)
    if one.needs_teacher and all(panel.is_neutral for panel in one.panels) and not getattr(one, "contrasts", ())
]
"""Objectives that ask the one teacher unless they are told otherwise; those with contrasts cannot be told."""


@pytest.mark.parametrize("objective", READ, ids=lambda one: type(one).__name__)
def test_the_same_teacher_twice_is_that_teacher(objective, models):
    batch = batch_of(models)
    once = update(objective, models, batch)
    twice = update(with_panel(objective, TWICE), models, batch, once[2])
    assert_alike(once, twice)
    for name, stat in once[0].metrics.items():
        torch.testing.assert_close(twice[0].metrics[name].total, stat.total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", READ, ids=lambda one: type(one).__name__)
def test_the_same_teacher_by_two_routes_is_that_teacher(objective, models):
    batch = batch_of(models)
    once = update(objective, models, batch)
    assert_alike(once, update(with_panel(objective, Routed()), models, batch, once[2]))


KINDS = {
    "added": Distill(divergence=GeneralizedJSD(0.3), rollout=FromDataset()),
    "sequence": Distill(divergence=GeneralizedJSD(0.3), rollout=FromDataset(), aggregation="sequence", temperature=2.0),
    "coupled": OPD(rollout=FromStudent(Sampling(max_new_tokens=4)), discount=0.9),
    "both": Distill(rollout=FromStudent(Sampling(max_new_tokens=4)), importance_cap=2.0),
}


def rows_of(batch, rollouts, chosen):
    """The rows of a rollout that continue the chosen prompts."""
    return {
        source: rows.rows(torch.isin(rows.prompt_rows, torch.tensor(chosen)).nonzero()[:, 0])
        for source, rows in rollouts.items()
    }


@settings(deadline=None, max_examples=5)
@given(
    routes=st.lists(st.sampled_from(["teacher", "other", "nobody"]), min_size=6, max_size=6),
    kind=st.sampled_from(sorted(KINDS)),
)
def test_a_routed_batch_is_each_row_with_its_own_teacher(routes, kind, models):
    """Shuffled keys, a teacher without rows and rows without a teacher included."""
    batch = batch_of(models, routes)
    objective = with_panel(KINDS[kind], Routed(otherwise="leave"))
    whole = update(objective, models, batch)
    parts = []
    for name in ("teacher", "other"):
        chosen = [row for row, route in enumerate(routes) if route == name]
        alone = replace(objective, panel=OneTeacher(name))
        parts.append(update(alone, models, batch, rows_of(batch, whole[2], chosen)))
    stat = whole[0].terms["loss"]
    torch.testing.assert_close(stat.total, sum(part[0].terms["loss"].total for part in parts), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stat.weight, sum(part[0].terms["loss"].weight for part in parts))
    torch.testing.assert_close(whole[1], parts[0][1] + parts[1][1], rtol=1e-4, atol=1e-5)
    written = sum(rows.predictions.sum() for rows in whole[2].values())
    left = sum(rows.predictions[[r == "nobody" for r in routes]].sum() for rows in whole[2].values())
    assert whole[0].metrics["unread"].total == left
    assert whole[0].metrics["unread"].weight == written


@pytest.mark.parametrize("kind", KINDS)
def test_one_hot_weights_are_that_teacher(kind, models):
    batch = batch_of(models)
    one = update(replace(KINDS[kind], panel=OneTeacher("other")), models, batch)
    two = update(replace(KINDS[kind], panel=Together({"maths": 0.0, "other": 2.0})), models, batch, one[2])
    assert_alike(one, two, 1e-6)


def float64(models):
    for model in (models.student, *models.frozen):
        model.double()
    return models


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_two_teachers_against_plain_loops(aggregation):
    """The weighted losses, token by token, from logits of single rows without padding, in float64."""
    plain = float64(tiny_models())
    other = tiny_models(teacher_seed=5).teacher.double()
    models = replace(plain, teachers={"other": other})
    objective = Distill(
        divergence=GeneralizedJSD(0.3),
        rollout=FromDataset(),
        aggregation=aggregation,
        panel=Together({"teacher": 3.0, "other": 1.0}),
    )
    batch = batch_of(models)
    output, gradient, rollouts = update(objective, models, batch)
    models.student.zero_grad()
    total = 0.0
    read = rollouts[objective.rollout]
    for ids, there, counts in zip(read.input_ids, read.attention_mask, read.loss_mask, strict=True):
        row, counted = ids[there][None], counts[there].nonzero()[:, 0] - 1
        student, *teachers = (
            model.model(row).logits[0, counted, : model.vocab_size].log_softmax(-1)
            for model in (models.student, models.teacher, other)
        )
        for place in range(len(counted)):
            share = 1 / len(counted) if aggregation == "sequence" else 1.0
            for weight, teacher in zip((0.75, 0.25), teachers, strict=True):
                loss = objective.divergence(student[place][None], teacher[place][None].detach())[0]
                total = total + share * weight * loss
    total.backward()
    torch.testing.assert_close(output.terms["loss"].total, total, rtol=1e-9, atol=1e-9)
    expected = torch.cat([p.grad.flatten() for p in models.student.parameters()])
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)  # the shares of a row are float32


def test_a_policy_gradient_sees_the_mean_of_the_teachers_logarithms(models):
    seen = []

    @dataclass(frozen=True, kw_only=True)
    class Watching(OPD):
        def over_sequences(self, losses, grid):
            seen.append(grid.teacher_logp.detach())
            return super().over_sequences(losses, grid)

    sampled, batch = FromStudent(Sampling(max_new_tokens=4)), batch_of(models)
    rollouts = {sampled: sampled(batch, models, STEP)}
    for panel in (OneTeacher(), OneTeacher("other"), Together({"teacher": 1.0, "other": 3.0})):
        update(Watching(rollout=sampled, panel=panel), models, batch, rollouts)
    torch.testing.assert_close(seen[2], 0.25 * seen[0] + 0.75 * seen[1], rtol=1e-5, atol=1e-5)


def test_each_teacher_is_measured_by_its_name(models):
    batch = batch_of(models, ["teacher", "other", "other", "teacher", "other", "teacher"])
    objective = replace(KINDS["added"], panel=Routed())
    output, _, rollouts = update(objective, models, batch)
    shares = {name: output.metrics[f"{name}/share"].mean() for name in models.named_teachers}
    rows = rollouts[objective.rollout].predictions.sum(1).float()
    torch.testing.assert_close(shares["other"], rows[[1, 2, 4]].sum() / rows.sum())
    assert (shares["maths"], shares["code"]) == (0, 0)
    assert output.metrics["maths/kl"].weight == 0
    kl = sum(output.metrics[f"{name}/kl"].total for name in models.named_teachers)
    torch.testing.assert_close(kl, output.metrics["kl"].total)


def test_weights_may_follow_a_schedule(models):
    batch = batch_of(models)
    panel = Together({"teacher": Linear(1.0, 0.0), "other": 0.2})
    scheduled = update(replace(KINDS["added"], panel=panel), models, batch)
    fixed = Together({"teacher": 0.8, "other": 0.2})
    assert_alike(scheduled, update(replace(KINDS["added"], panel=fixed), models, batch), 1e-6)


def test_hints_reach_every_teacher(models):
    (plain, *_) = SDFT.examples()
    batch = batch_of(models)
    once = update(plain, models, batch)
    routed = update(replace(plain, panel=Routed()), models, batch, once[2])
    assert_alike(once, routed)
    assert not torch.allclose(once[1], update(replace(plain, panel=OneTeacher("other")), models, batch, once[2])[1])


@pytest.mark.parametrize(("column", "routes"), [("to", {}), (None, {"maths": "other"})])
def test_a_route_is_read_from_a_column_and_renamed(column, routes, models):
    panel = Routed(column=column, routes=routes, default="other")
    assert panel.named_by(Example("a", teacher="maths", row={"to": "maths"})) == routes.get("maths", "maths")
    assert panel.named_by(Example("a")) == "other"
    assert panel.asks(("teacher",)) == ("teacher", "other")


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        (
            ["maths", "chemistry", *ROUTES[2:]],
            r"`Routed`: row 1 \('d>'\) asks for the teacher `chemistry`. The run has",
        ),
        ([*ROUTES[:5], ""], r"row 5 \('ponm>'\) names no teacher: its `teacher` is missing or empty.*Correct the row"),
    ],
)
def test_a_row_without_a_teacher_is_refused_by_its_number(routes, message, models):
    with pytest.raises(DataError, match=message):
        update(replace(KINDS["added"], panel=Routed()), models, batch_of(models, routes))


@pytest.mark.parametrize("weights", [{"a": -1.0, "b": 2.0}, {"a": 0.0}, {"a": float("inf")}])
def test_weights_that_are_no_shares_are_refused(weights):
    with pytest.raises(
        ConfigurationError, match=r"`Together\.weights` expected numbers of at least 0, one of them above"
    ):
        Together(weights)


@dataclass(frozen=True)
class Wrong(Panel):
    """Gives one reading, wrong in some way."""

    weight: float = 1.0
    teacher: str = "teacher"
    places: int = 0

    def asks(self, named):
        return ("teacher",)

    def __call__(self, sequences, context, models, step):
        one = reading(self.teacher, sequences, context, models, step, weight=self.weight)
        if self.places:
            one = replace(one, places=torch.arange(self.places))
        return (one,)


@pytest.mark.parametrize(
    ("panel", "message"),
    [
        (Wrong(weight=0.9), "`Wrong` gives token 0 of the rollout weights that add up to 0.9 over its readings"),
        (Wrong(teacher="other"), "`Wrong` gave readings of `other`, but it `asks` `teacher`. Give one of each"),
        (Wrong(teacher="third"), "There is no teacher `third`; the run has `teacher`, `maths`, `code`, `other`"),
        (Wrong(places=3), r"`Wrong` gives `teacher` a reading with \d+ tokens, 3 places and \d+ weights"),
    ],
)
def test_a_wrong_reading_is_refused(panel, message, models):
    with pytest.raises(ConfigurationError, match=message):
        update(replace(KINDS["added"], panel=panel), models, batch_of(models))


@dataclass(frozen=True)
class FirstHalf(Panel):
    """A panel of a third party: each row's first tokens are read by one teacher, the later ones by another."""

    def asks(self, named):
        return ("teacher", "other")

    def __call__(self, sequences, context, models, step):
        first = sequences.completion_mask.cumsum(1)[:, 1:] <= 2
        parts = []
        for name, part in (("teacher", first), ("other", ~first)):
            rows = replace(sequences, loss_mask=sequences.loss_mask & torch.nn.functional.pad(part, (1, 0)))
            places = part[sequences.predictions].nonzero()[:, 0]
            parts.append(Reading(name, context(rows, models.taught_by(name), step), places))
        return tuple(parts)


def test_teachers_may_share_a_row(models):
    batch = batch_of(models)
    objective = KINDS["added"]
    both = update(replace(objective, panel=FirstHalf()), models, batch)
    one, other = (update(replace(objective, panel=OneTeacher(n)), models, batch, both[2]) for n in ("teacher", "other"))
    assert both[0].metrics["teacher/share"].total + both[0].metrics["other/share"].total == both[0].terms["loss"].weight
    assert min(one[0].terms["loss"].total, other[0].terms["loss"].total) < both[0].terms["loss"].total
    assert both[0].terms["loss"].total < max(one[0].terms["loss"].total, other[0].terms["loss"].total)


def test_panels_are_found_inside_of_objectives():
    assert OPD(panel=Routed()).panels == (Routed(),)
    assert SFT(panel=Routed()).panels == ()
    assert UniOPD().panels == (OneTeacher(),)

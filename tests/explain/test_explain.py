"""What `veto-pl explain` draws obeys the laws of the objectives, computed from what is drawn."""

import math
import re
from dataclasses import dataclass
from xml.etree import ElementTree

import pytest
import torch

from veto_pl.commands.explain import explain
from veto_pl.environments import House
from veto_pl.exceptions import ConfigurationError
from veto_pl.explain import Scene, respond
from veto_pl.explain.explanation_page import charts
from veto_pl.objectives import (
    BRTS,
    GKD,
    OPD,
    OPSD,
    SDFT,
    SDPO,
    SFT,
    TCOD,
    VOPD,
    Distill,
    ExOPD,
    MiniLLM,
    Phases,
    ShiftMOPD,
    Sum,
    TokenObjective,
    UniOPD,
    Veto,
)
from veto_pl.parts.divergences import ReverseKL, TotalVariation
from veto_pl.parts.schedules import Linear
from veto_pl.parts.supports import TopK
from veto_pl.plugins import available, load_plugins
from veto_pl.rollouts import FromStudent
from veto_pl.seams import Objective

SCENE = Scene(teacher=0.9, outcomes=5, points=9)
FEW = Scene(teacher=0.8, outcomes=3, points=4)


def drawn(objective, scene=SCENE, part=0.0):
    return respond(objective, scene, part)


def same(one, other, tolerance=1e-9):
    torch.testing.assert_close(one.loss, other.loss, rtol=0, atol=tolerance)
    torch.testing.assert_close(one.gradient, other.gradient, rtol=0, atol=tolerance)


def binary(first, second):
    """KL of two distributions that share all but the first id evenly."""
    return first * (first / second).log() + (1 - first) * ((1 - first) / (1 - second)).log()


def test_the_gradient_of_the_forward_kl_is_student_minus_teacher():
    response = drawn(Distill())
    torch.testing.assert_close(response.gradient, response.student - SCENE.teacher, rtol=0, atol=1e-9)
    teacher = torch.full_like(response.student, SCENE.teacher)
    torch.testing.assert_close(response.loss, binary(teacher, response.student), rtol=0, atol=1e-9)


def test_the_gradient_of_the_reverse_kl_is_its_formula():
    response = drawn(Distill(divergence=ReverseKL()))
    s, t = response.student, torch.tensor(SCENE.teacher, dtype=torch.float64)
    torch.testing.assert_close(response.loss, binary(s, t), rtol=0, atol=1e-9)
    torch.testing.assert_close(response.gradient, s * ((s / t).log() - binary(s, t)), rtol=0, atol=1e-9)


def test_veto_without_a_veto_is_the_forward_kl():
    same(drawn(Veto(beta=0.0)), drawn(Distill()))


SAMPLED = [OPD(), OPD(reward_weight=1.0), VOPD(), UniOPD(outlier=None), ExOPD(extrapolation=1.0)]


@pytest.mark.parametrize("objective", SAMPLED, ids=lambda x: type(x).__name__)
def test_sampled_tokens_give_the_gradient_of_the_reverse_kl(objective):
    response, exact = drawn(objective), drawn(Distill(divergence=ReverseKL()))
    torch.testing.assert_close(response.gradient, exact.gradient, rtol=0, atol=1e-9)


@pytest.mark.parametrize("strength", [0.5, 1.5])
def test_extrapolation_from_an_undecided_reference_sharpens_the_teacher(strength):
    """T^lambda, normalised, for the reference says nothing."""
    response = drawn(ExOPD(extrapolation=strength))
    powers = torch.tensor([SCENE.teacher, *4 * [(1 - SCENE.teacher) / 4]], dtype=torch.float64) ** strength
    s, t = response.student, powers[0] / powers.sum()
    torch.testing.assert_close(response.gradient, s * ((s / t).log() - binary(s, t)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("beta", [0.3, 0.8, 1.0])
def test_the_gradient_of_veto_is_student_minus_target(beta):
    response = drawn(Veto(beta=beta))
    (target,) = response.targets.values()
    s, others = response.student, SCENE.outcomes - 1
    blend = SCENE.teacher * s**beta
    blend = blend / (blend + others * (1 - SCENE.teacher) / others * ((1 - s) / others) ** beta)
    torch.testing.assert_close(target, blend, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(response.gradient, s - target, rtol=0, atol=1e-9)


def test_veto_holds_back_what_the_student_does_not_know():
    """The paper's claim: relative to the token's size, the forward KL pulls without bound, and a full veto does not."""
    plain, partial, full = (drawn(Veto(beta=beta)).pull() for beta in (0.0, 0.8, 1.0))
    s = SCENE.student()
    known = s < 0.01
    assert float(plain[0] / plain[s == 0.01]) == pytest.approx(1e4, rel=0.02)  # like 1 / s
    assert 5 < float(partial[0] / partial[s == 0.01]) < 100  # slower: like 1 / s^0.2 at the end
    others = SCENE.outcomes - 1
    bound = SCENE.teacher / (1 - SCENE.teacher) * others
    assert float(full.max()) < bound
    assert float(full[0]) == pytest.approx(bound, rel=0.05)
    assert (plain[known] > partial[known]).all()
    assert (partial[known] > full[known]).all()


def test_a_schedule_is_read_where_the_run_stands():
    moving = Veto(beta=Linear(0.8, 0.0))
    same(drawn(moving), drawn(Veto(beta=0.8)))
    same(drawn(moving, part=1.0), drawn(Distill()))
    assert list(drawn(moving).targets) == ["beta 0.8", "beta 0.6", "beta 0.4", "beta 0.2", "beta 0"]


def test_likelihood_of_the_teachers_words_pulls_like_the_forward_kl():
    """References stand for samples of the teacher, so the expected gradient is the same, the loss its entropy more."""
    likelihood, divergence = drawn(SFT()), drawn(Distill())
    torch.testing.assert_close(likelihood.gradient, divergence.gradient, rtol=0, atol=1e-9)
    teacher = SCENE.logp(SCENE.teacher)
    entropy = -(teacher.exp() * teacher).sum()
    torch.testing.assert_close(
        likelihood.loss - divergence.loss, entropy.expand(len(likelihood.loss)), rtol=0, atol=1e-9
    )


def test_importance_weights_make_minillm_the_reverse_kl():
    """Weights student / mixture undo the mixture in expectation; one token has no future, so nothing else is left."""
    same(drawn(MiniLLM(pretraining_weight=0.0), FEW), drawn(Distill(divergence=ReverseKL()), FEW), 1e-6)


def test_a_sum_adds_over_independent_rollouts():
    terms = {"veto": Veto(beta=0.5), "sft": SFT()}
    total = drawn(Sum(terms=terms, weights={"sft": 0.3}), FEW)
    veto, sft = drawn(terms["veto"], FEW), drawn(terms["sft"], FEW)
    torch.testing.assert_close(total.loss, veto.loss + 0.3 * sft.loss, rtol=0, atol=1e-6)
    torch.testing.assert_close(total.gradient, veto.gradient + 0.3 * sft.gradient, rtol=0, atol=1e-6)
    assert list(total.targets) == ["veto: target"]


@pytest.mark.parametrize(
    "objective",
    [GKD(), Distill(divergence=TotalVariation()), Distill(temperature=2.0), Distill(support=TopK(2)), Veto(), SFT()],
    ids=lambda objective: type(objective).__name__,
)
def test_the_gradient_is_the_slope_of_the_loss_where_the_target_is_fixed(objective):
    """The sweep moves one logit; where target and sampler stay fixed, the loss follows its gradient."""
    if isinstance(objective, Veto):
        objective = Veto(beta=0.0)
    s, step = 0.3, 1e-5
    odds = math.log(s / (1 - s))
    near = [1 / (1 + math.exp(-(odds + shift))) for shift in (-step, 0.0, step)]

    class Near(Scene):
        def student(self):
            return torch.tensor(near, dtype=torch.float64)

    response = respond(objective, Near(teacher=0.9, outcomes=5))
    slope = float(response.loss[2] - response.loss[0]) / (2 * step)
    # d log-odds of the first id is what its logit alone moves.
    assert slope == pytest.approx(float(response.gradient[1]), rel=1e-4, abs=1e-7)


load_plugins()
GIVEN = {
    Phases: {"first": SFT(), "then": SDPO()},
    Sum: {"terms": {"a": SDFT(), "b": SFT()}},
    TCOD: {"environment": House()},
}


@pytest.mark.parametrize("kind", available(Objective), ids=lambda kind: kind.__name__)
def test_every_objective_is_drawn_with_its_defaults(kind):
    objective = kind(**GIVEN.get(kind, {}))
    response = drawn(objective, FEW)
    for values in (response.loss, response.gradient, response.pull(), *response.targets.values()):
        assert values.isfinite().all()
    assert response.gradient.any() or objective.compares_completions  # of which there is one


def test_a_baseline_over_tokens_is_left_out():
    same(drawn(ShiftMOPD()), drawn(OPD()))


def test_a_token_stands_behind_those_that_are_left_out():
    same(drawn(SDFT(skip_tokens=3)), drawn(Distill()))
    same(drawn(SDFT(skip_tokens=100)), drawn(Distill()))
    both = drawn(Sum(terms={"skips": SDFT(), "counts": SFT()}), FEW)
    torch.testing.assert_close(both.gradient, drawn(SDFT(), FEW).gradient + drawn(SFT(), FEW).gradient)
    with pytest.raises(ConfigurationError, match="`SDFT` cannot be drawn: it trains on none of the first 1024 tokens"):
        drawn(SDFT(skip_tokens=1024), Scene(points=2))


def test_more_ids_than_there_are_mean_all_of_them():
    kept = drawn(SDPO(), FEW)
    same(kept, drawn(OPSD(), FEW))
    assert (kept.kept, drawn(Distill(support=TopK(2)), FEW).kept) == (100, None)
    both, forward, reverse = drawn(BRTS(), FEW), drawn(Distill(), FEW), drawn(Distill(divergence=ReverseKL()), FEW)
    torch.testing.assert_close(both.gradient, reverse.gradient + 10 * forward.gradient)
    assert both.kept == 16


@dataclass(frozen=True, kw_only=True)
class Focal(TokenObjective):
    """A third party's objective."""

    def per_token(self, rows):
        return (rows.student_logp - rows.required_teacher_logp()).square().sum(-1)


def test_an_objective_of_a_third_party_is_drawn():
    response = drawn(Focal(rollout=FromStudent()), FEW)
    agreeing = response.student == FEW.teacher
    assert float(response.loss[agreeing]) == pytest.approx(0, abs=1e-9)
    assert (response.loss[~agreeing] > 0.01).all()


def test_what_cannot_be_drawn_says_why(monkeypatch):
    # Patched: a class of its own would join the objectives that other tests try.
    monkeypatch.setattr(SFT, "loss", lambda self, rollouts, models, step: models.tokenizer.decode([0]))
    with pytest.raises(ConfigurationError, match="`SFT` cannot be drawn: it asks for more than two distributions"):
        drawn(SFT())
    with pytest.raises(ConfigurationError, match="2 rollouts: 441 ways"):
        drawn(MiniLLM(), Scene(outcomes=21))


@pytest.mark.parametrize(("settings", "message"), [
    ({"teacher": 0.1, "outcomes": 6}, "`teacher` must lie between 1 / 6"),
    ({"teacher": 1.0}, "`teacher` must lie"),
    ({"outcomes": 1}, "at least 2 `outcomes`"),
])  # fmt: skip
def test_scenes_that_show_nothing_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        Scene(**settings)


def test_every_picture_is_an_svg_that_names_what_it_shows():
    responses = {"a <b>": drawn(Veto()), "c": drawn(Veto(beta=1.0))}
    pictures = charts(responses, SCENE)
    assert list(pictures) == ["loss", "gradient", "pull", "target-0", "target-1"]
    for svg in pictures.values():
        root = ElementTree.fromstring(svg)
        assert root.find("{*}title").text
        assert root.find("{*}desc").text
    assert "a <b>" in "".join(ElementTree.fromstring(pictures["loss"]).itertext())


def test_the_command_draws_what_is_named_and_what_is_in_a_file(tmp_path, capsys):
    config = tmp_path / "mine.yaml"
    config.write_text("model: {objective: {class_path: Distill, init_args: {divergence: {class_path: ReverseKL}}}}\n")
    named = ["--objective", "Veto", "--objective.beta", "1.0", "--objective=Veto", "--objective.beta=0.0"]
    named += ["--objective=SDPO"]
    explain([*named, "--config", str(config), "--out", str(tmp_path / "page.html"), "--svg", str(tmp_path / "svg")])
    page, printed = (tmp_path / "page.html").read_text(), capsys.readouterr().out
    for name in ("Veto (beta 1.0)", "Veto (beta 0.0)", "mine"):
        assert name in page
        assert name in printed
    assert "SDPO keeps the 100 likeliest ids. Here there are 6, and all are compared." in page
    assert page.count("are compared.") == 1
    assert page.count("<script>") == page.count("<script") == 1  # its own, which sorts tables
    assert not re.search(r"(src|href)=\"http", page)
    assert {path.name for path in (tmp_path / "svg").iterdir()} == {
        f"{n}.svg" for n in ("loss", "gradient", "pull", "target-0")
    }
    # The row of a student that knows nothing: plain distillation pulls with the whole teacher.
    assert re.search(r"\b1e-6\W+12\.\d\W+-0\.900", printed)


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "nothing to draw"),
    (["--objective.beta", "1"], "expected `--objective NAME` first"),
    (["--objective", "Vetto"], "Vetto"),
    (["--objective", "Veto", "--objective.bta", "1"], "bta"),
    (["--objective", "Veto", "--objective.beta", "-1"], "beta`: given `-1`, expected a number"),
    (["--objective", "Veto", "--objective", "Veto"], "must differ, got Veto twice"),
    (["--objective", "Veto", "--at", "2"], "`--at` must be a part of the run"),
    (["--config", "nowhere.yaml"], "cannot be read"),
])  # fmt: skip
def test_mistakes_are_named(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=message):
        explain(arguments)
    assert not list(tmp_path.iterdir())

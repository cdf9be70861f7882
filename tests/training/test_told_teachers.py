"""Runs with teachers of every kind by name: models, moving ones, stored scores and servers."""

import json
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.optim import SGD

from tests.judging.chat_server import serving
from tests.offline.conftest import write
from tests.rollouts.teacher_server import TEACHER, answer
from veto_pl import DistillationModule, PromptDataModule
from veto_pl.cli.build import VetoCLI
from veto_pl.data import ExactMatch, Rows
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.models import CharacterTokenizer, MovingAverage
from veto_pl.objectives import AKL, MADOPD, OPD, SFT, VOPD, Distill, ShiftMOPD, Sum, SupervisedKD
from veto_pl.parts.contexts import Privileged
from veto_pl.parts.panels import OneTeacher, Routed, Together
from veto_pl.planning.rollout import Lengths
from veto_pl.planning.shape_models import skeletons
from veto_pl.planning.simulation import Setting, simulate
from veto_pl.rollouts import FromStudent, FromTeacher, Sampling, ServedScores, StoredScores, asked_servers
from veto_pl.testing.tiny import ALPHABET, tiny_models, tiny_source

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
         "enable_checkpointing": False, "num_sanity_val_steps": 0, "use_distributed_sampler": False}  # fmt: skip
SAMPLED = FromStudent(Sampling(max_new_tokens=5))
BASE = ["--config", str(Path(__file__).resolve().parents[2] / "configs" / "debug" / "base.yaml")]
WORDS = ["a", "bcdef", "ab", "ponm", "abcdef", "ccc", "de", "fghi"]


@pytest.fixture(autouse=True)
def _direct(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(asked_servers, "_checked", set())


@pytest.fixture(scope="module")
def models():
    """The student, and the model that is stored and served."""
    return tiny_models()


@pytest.fixture
def stored(models, tmp_path):
    """Scores of every row, of as many ids as there are but one."""
    from veto_pl.data.collate import Collator
    from veto_pl.seams import Example

    rows = Collator(tokenizer=models.tokenizer).encode([Example(f"{w}>", w[::-1]) for w in WORDS])
    write(tmp_path / "scores", models, rows, k=models.teacher.vocab_size - 1)
    return StoredScores(str(tmp_path / "scores"))


@contextmanager
def served(models, broken=lambda request: None):
    def reply(request, number):
        return broken(request) or answer(models.teacher, models.tokenizer, request)

    with serving(reply) as (address, requests):
        yield ServedScores(servers=(address,), model=TEACHER, k=4, retries=0), requests


def fit(objective, teachers, folder, names, *, teacher=None, **trainer):
    path = folder / "rows.jsonl"
    rows = [{"prompt": f"{w}>", "completion": w[::-1], "to": names[i % len(names)]} for i, w in enumerate(WORDS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    module = DistillationModule(
        objective, tiny_source(), teacher, CharacterTokenizer(ALPHABET), lambda p: SGD(p, lr=0.1), teachers=teachers,
        evaluation=Sampling(temperature=0.0, max_new_tokens=4),
    )  # fmt: skip
    task = Rows(train=str(path), validation=str(path), verifier=ExactMatch(), teacher="to")
    data = PromptDataModule(task, batch_size=4, shuffle=False, max_prompt_tokens=16, max_completion_tokens=16)
    runner = L.Trainer(default_root_dir=str(folder), **({"max_steps": 2} | QUIET | trainer))
    runner.fit(module, data)
    return module, {name: float(value) for name, value in runner.callback_metrics.items()}


def test_a_local_a_moving_and_a_served_teacher_share_the_rows_by_name(models, tmp_path):
    names = ["local", "moving", "far", "local"]
    with served(models) as (far, requests):
        teachers = {"local": tiny_source(seed=1), "moving": MovingAverage(tiny_source(), decay=0.5), "far": far}
        module, logged = fit(OPD(rollout=SAMPLED, panel=Routed()), teachers, tmp_path, names)
    asked = [one["body"]["prompt"] for one in requests if not isinstance(one["body"]["prompt"], str)]
    assert len(asked) == 2, "one row of each of two batches; a validation asks nobody"
    assert sum(logged[f"train/{name}/share"] for name in teachers) == pytest.approx(1.0)
    assert all(logged[f"train/{name}/kl"] > 0 for name in ("local", "far"))
    assert logged["train/far/unanswered"] == logged["train/unread"] == 0
    assert "train/far/stored_tail_mass" in logged
    assert list(module.models.named_teachers) == ["local", "moving"]
    assert {f"validation/{name}/forward_kl" for name in ("local", "moving")} <= set(logged)
    assert not any(name.startswith("validation/far/") for name in logged)


def test_a_stored_teacher_of_every_id_trains_as_its_model(models, stored, tmp_path):
    runs = []
    for index, code in enumerate((stored, tiny_source(seed=1))):
        (tmp_path / str(index)).mkdir()
        teachers = {"maths": tiny_source(seed=2), "code": code}
        for panel in (Routed(), Together({"maths": 1.0, "code": 2.0})):
            objective = SupervisedKD(panel=panel)
            runs.append(fit(objective, teachers, tmp_path / str(index), ["maths", "code"], limit_val_batches=0))
    for (one, logged), (other, expected) in zip(runs[:2], runs[2:], strict=True):
        for name in ("train/loss", "train/code/kl", "train/maths/kl", "train/code/share"):
            assert logged[name] == pytest.approx(expected[name], rel=1e-3)
        for mine, theirs in zip(one.student.parameters(), other.student.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_model_teacher_may_be_stored_or_served(models, stored, tmp_path):
    _, logged = fit(SupervisedKD(), None, tmp_path, [""], teacher=stored)
    assert logged["train/kl"] > 0
    assert "validation/forward_kl" not in logged
    assert "validation/accuracy" in logged
    with served(models) as (far, _):
        assert fit(OPD(rollout=SAMPLED), None, tmp_path, [""], teacher=far)[1]["train/kl"] > 0


def test_a_row_that_is_not_answered_leaves_the_step_under_its_teachers_name(models, tmp_path):
    lost = models.tokenizer("b")["input_ids"][0]

    def broken(request):
        prompt = request["body"]["prompt"]
        return (500, "{}", {}) if not isinstance(prompt, str) and prompt[0] == lost else None

    with served(models, broken) as (far, _):
        _, logged = fit(OPD(rollout=SAMPLED, panel=Routed()), {"far": far}, tmp_path, ["far"],
                        max_steps=1, limit_val_batches=0)  # fmt: skip
    assert logged["train/far/unanswered"] == 0.25
    assert 0 < logged["train/unread"] < 1


def test_a_row_that_was_never_scored_is_named(stored, tmp_path):
    word = WORDS[1]
    WORDS[1] = "nnn"
    try:
        with pytest.raises(DataError, match=r"has no scores for the row with the prompt 'nnn>'"):
            fit(SupervisedKD(panel=OneTeacher("code")), {"code": stored}, tmp_path, ["code"])
    finally:
        WORDS[1] = word


def test_servers_are_looked_for_before_any_weights_are_read(models, tmp_path, monkeypatch):
    with (
        served(models, lambda request: (503, "{}", {})) as (far, _),
        pytest.raises(ConfigurationError, match=r"cannot be reached at .* or correct `ServedScores\.servers`"),
    ):
        fit(OPD(rollout=SAMPLED, panel=Routed()), {"far": far}, tmp_path, ["far"])


def test_a_plan_asks_nobody(models):
    far = ServedScores(servers=("http://localhost:1/v1",), model=TEACHER, k=4)
    module = DistillationModule(
        OPD(rollout=SAMPLED, panel=Routed()), tiny_source(), tokenizer=CharacterTokenizer(ALPHABET),
        teachers={"local": tiny_source(seed=1), "far": far},
    )  # fmt: skip
    assert skeletons(module, None, checkpointing=False).teacher_names == ("local", "far")
    assert simulate(module, Setting(Lengths(4, 5, None), prompts=2, validation_prompts=2), module.objective)


FAR = ServedScores(servers=("http://localhost:1/v1",), model=TEACHER)
ASKED = {"panel": OneTeacher("far"), "rollout": SAMPLED}
REFUSED = {
    "every id": (AKL(**ASKED), "`AKL` tells likely ids .* but `model.teachers.far` .`ServedScores`. knows"),
    "an advantage": (
        VOPD(**ASKED),
        "`VOPD` reads more of its teacher than `model.teachers.far`.*Leave out `advantage`",
    ),
    "a temperature": (
        Distill(**ASKED, temperature=2.0),
        "computed at temperature 1.0, but `Distill.temperature` is 2.0",
    ),
    "a context": (Distill(**ASKED, context=Privileged()), "which has read the plain text, but `Distill.context`"),
    "a pool": (Distill(rollout=SAMPLED, panel=Together(combine="target")), "needs the logits of each, but"),
    "shifts": (ShiftMOPD(), "needs the teacher"),
    "a writer": (SFT(rollout=FromTeacher(teacher="far")), "`model.teachers.far` .* tells scores and cannot write"),
    "a debate": (MADOPD(), "tells scores and cannot write"),
    "in a sum": (Sum(terms={"gold": SFT(), "kd": AKL(**ASKED)}), "`AKL` tells likely ids"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_served_teacher_cannot_do_is_refused_before_anything_is_loaded(case):
    objective, message = REFUSED[case]
    with pytest.raises(ConfigurationError, match=message):
        DistillationModule(objective, tiny_source(), teachers={"far": FAR, "local": tiny_source(seed=1)})


def test_what_a_student_writes_is_in_no_store(stored):
    with pytest.raises(ConfigurationError, match="knows what it was asked once, and not what `FromStudent` of `OPD`"):
        DistillationModule(OPD(rollout=SAMPLED, panel=Routed()), tiny_source(), teachers={"code": stored})


def test_a_configuration_names_every_kind(stored):
    """With models beside them, by path or class."""
    teachers = {
        "there": {"class_path": "StoredScores", "init_args": {"path": stored.path}},
        "far": {"class_path": "ServedScores", "init_args": {"servers": ["http://localhost:1/v1"], "model": "m"}},
        "slow": {"class_path": "MovingAverage", "init_args": {"source": {"class_path": "RandomWeights", "init_args": {
            "model_type": "gpt2"}}}},
    }  # fmt: skip
    options = ["--model.objective=SupervisedKD", "--model.objective.panel=Routed", "--model.teacher=org/model"]
    module = VetoCLI([*BASE, *options, f"--model.teachers={json.dumps(teachers)}"], run=False).model
    assert module.teacher_sources["there"] == stored
    assert module.teacher_sources["far"].servers == ("http://localhost:1/v1",)
    assert list(module.model_sources) == ["teacher", "slow"]

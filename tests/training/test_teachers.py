"""Runs with several teachers: what is named is loaded, read, followed, saved, measured and shown by its name."""

import json
import warnings
from dataclasses import replace

import lightning as L
import pytest
import torch

from veto_pl import DistillationModule, PromptDataModule
from veto_pl.callbacks import Checkpoints
from veto_pl.checks import check
from veto_pl.data import ExactMatch, PlainTemplate, Rows
from veto_pl.data.tasks.mixed import DataSet, Mixed
from veto_pl.exceptions import ConfigurationError
from veto_pl.metrics.agreement import ForwardKL
from veto_pl.models import CharacterTokenizer, MovingAverage
from veto_pl.objectives import MADOPD, OPD, SFT, Distill, MiniLLM, Sum
from veto_pl.parts.contexts import SameText
from veto_pl.parts.own_template import OwnTemplate
from veto_pl.parts.panels import OneTeacher, Routed, Together
from veto_pl.rollouts import Debate, FromDataset, FromStudent, FromTeacher, Sampling
from veto_pl.seams import Step
from veto_pl.testing.tiny import ALPHABET, prompt_batch, tiny_models, tiny_source
from veto_pl.training.evaluation import Evaluation

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
QUIET |= {"enable_checkpointing": False}
SAMPLED = FromStudent(Sampling(max_new_tokens=5))
WORDS = ["a", "bcdefgh", "ab", "ponm", "abcdefghij", "ccc", "de", "fghijkl"]
NAMES = ["maths", "code"]
ROUTED = Distill(rollout=SAMPLED, panel=Routed())
AVERAGE = MovingAverage(tiny_source(), decay=0.5)


def task_of(folder, **settings):
    rows = [{"prompt": f"{w}>", "completion": w[::-1], "to": NAMES[place % 2]} for place, w in enumerate(WORDS)]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Rows(train=str(path), validation=str(path), verifier=ExactMatch(), **settings)


def module_of(objective, **settings):
    named = {"maths": tiny_source(seed=1), "code": tiny_source(seed=2)}
    settings = {"teachers": named, "optimizer": lambda p: torch.optim.SGD(p, lr=0.1)} | settings
    settings |= {"evaluation": Sampling(temperature=0.0, max_new_tokens=8)}
    return DistillationModule(objective, tiny_source(), tokenizer=CharacterTokenizer(ALPHABET), **settings)


def fit(module, folder, *, task=None, resume=None, **trainer):
    settings = {"max_steps": 2, "num_sanity_val_steps": 0, "use_distributed_sampler": False} | QUIET
    runner = L.Trainer(default_root_dir=str(folder), **(settings | trainer))
    rows = task_of(folder, teacher="to") if task is None else task
    data = PromptDataModule(rows, batch_size=4, shuffle=False, max_prompt_tokens=16, max_completion_tokens=16)
    runner.fit(module, data, ckpt_path=resume)
    return runner


def test_a_routed_run_measures_each_teacher_and_validates_with_the_rows_own(tmp_path):
    module = module_of(ROUTED)
    metrics = fit(module, tmp_path).callback_metrics
    shares = [float(metrics[f"train/{name}/share"]) for name in NAMES]
    assert sum(shares) == pytest.approx(1.0)
    assert min(shares) > 0.1
    assert float(metrics["train/unread"]) == 0
    assert {"train/maths/kl", "train/code/kl", "train/kl"} <= set(metrics)
    apart = []
    for place in range(2):
        alone = module_of(SFT(), teacher=tiny_source(seed=1 + place), teachers=None)
        alone.configure_model()
        alone.student.load_state_dict(module.student.state_dict())
        rows = task_of(tmp_path).load("validation")[place::2]
        apart.append(validated(alone, rows))
    expected = sum(total for total, _ in apart) / sum(count for _, count in apart)
    assert float(metrics["validation/forward_kl"]) == pytest.approx(expected, rel=1e-5)


class Seen(L.Callback):
    """Keeps the evaluations of a validation."""

    def __init__(self):
        self.evaluations = []

    def on_validation_batch_end(self, trainer, module, outputs, *args):
        self.evaluations.append(outputs["evaluation"])


def test_a_validation_of_a_run_reads_what_the_objective_says(tmp_path):
    for context in (OwnTemplate({"teacher": PlainTemplate("ab{prompt}")}), SameText()):
        module = module_of(Distill(rollout=SAMPLED, context=context), teacher=tiny_source(seed=1), teachers=None)
        fit(module, tmp_path, callbacks=[seen := Seen()])
        assert seen.evaluations
        assert {type(one.context) for one in seen.evaluations} == {type(context)}


def validated(module, rows):
    """The KL to one teacher, summed over the tokens of some rows, and their number."""
    batch = prompt_batch(module.models, [row.prompt for row in rows], [row.completion for row in rows])
    metric, evaluation = ForwardKL(), Evaluation.sample(batch, module.models, module.evaluation, Step(0, 1))
    evaluation.update([metric])
    count = int(evaluation.sequences.predictions.sum())
    return float(metric.compute()) * count, count


@pytest.mark.parametrize(
    "panel", [Together({"maths": 3, "code": 1}), Routed(otherwise="leave", routes={"code": "maths"})]
)
def test_a_validation_takes_any_panel(panel, tmp_path):
    task = task_of(tmp_path, teacher=None if isinstance(panel, Together) else "to")
    metrics = fit(module_of(replace(ROUTED, panel=panel)), tmp_path, task=task).callback_metrics
    assert 0 < float(metrics["validation/forward_kl"]) < float("inf")


def test_rows_that_nobody_reads_are_answered_and_judged_all_the_same(tmp_path):
    """Their tokens have no KL; the student's own metrics count them."""
    module = module_of(replace(ROUTED, panel=Routed(otherwise="leave")), teachers={"maths": tiny_source(seed=1)})
    runner = fit(module, tmp_path)
    assert float(runner.callback_metrics["train/unread"]) > 0
    assert {"validation/student_entropy", "validation/reverse_kl", "validation/accuracy"} <= set(
        runner.callback_metrics
    )


@pytest.mark.parametrize("read", [True, False], ids=["some rows", "no row"])
def test_a_validation_that_no_teacher_reads_says_that_its_kl_is_one_of_nothing(read, tmp_path):
    """Else a KL of 0 looks like a student that has become its teacher."""
    panel = Routed(otherwise="leave")
    named = {"maths" if read else "other": tiny_source(seed=1)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metrics = fit(module_of(replace(ROUTED, panel=panel), teachers=named), tmp_path).callback_metrics
    said = [str(one.message) for one in caught if "0 of nothing" in str(one.message)]
    assert bool(said) == (float(metrics["validation/reverse_kl"]) == 0) == (not read)
    assert all("`forward_kl`, `reverse_kl`" in message for message in said)


def test_a_named_teacher_that_moves_follows_and_is_saved(tmp_path):
    task = task_of(tmp_path, teacher="to")
    options = {"callbacks": [Checkpoints(dirpath=str(tmp_path / "kept"))], "enable_checkpointing": True}
    named = {"maths": tiny_source(seed=1), "code": AVERAGE}
    whole, resumed = (module_of(ROUTED, teachers=named) for _ in range(2))
    fit(whole, tmp_path, task=task, max_steps=4, limit_val_batches=0)
    fit(module_of(ROUTED, teachers=named), tmp_path, task=task, limit_val_batches=0, **options)
    path = tmp_path / "kept" / "last.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in state} == {"student", "teacher-code"}
    fit(resumed, tmp_path, task=task, max_steps=4, limit_val_batches=0, resume=str(path), **options)
    for name in ("student", "teacher-code"):
        pairs = zip(getattr(resumed, name).parameters(), getattr(whole, name).parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs), name
    start = AVERAGE.load().state_dict()
    assert any(not torch.equal(start[n], p) for n, p in whole.models.teachers["code"].model.state_dict().items())


def test_every_row_of_the_samples_names_its_teachers(tmp_path):
    module = module_of(replace(ROUTED, panel=Together({"maths": 3.0, "code": 1.0})))
    seen = []

    class Look(L.Callback):
        def on_validation_batch_end(self, trainer, module, outputs, *args):
            seen.extend(outputs["evaluation"].rows())

    fit(module, tmp_path, callbacks=[Look()])
    assert seen[0]["teachers"] == {"maths": 0.75, "code": 0.25}


REFUSED = {
    "no teacher at all": (
        {"objective": OPD(), "teachers": None},
        r"`OPD` needs a teacher, but `model\.teacher` is not",
    ),
    "a panel's name": (
        {"objective": OPD(panel=OneTeacher("art"))},
        r"`OPD` needs the teacher `art` for its `OneTeacher`, but `model\.teachers\.art` is not set; the run has "
        r"`maths`, `code`",
    ),
    "no panel": ({"objective": OPD()}, r"but `model\.teacher` is not set; the run has `maths`, .* give it a `panel`"),
    "a default": ({"objective": OPD(panel=Routed(default="art"))}, "needs the teacher `art` for its `Routed`"),
    "in a sum": (
        {"objective": Sum(terms={"gold": SFT(), "kd": Distill(panel=Together({"art": 1.0}))})},
        "`Sum` needs the teacher `art` for its `Together`",
    ),
    "a writer": (
        {"objective": Distill(rollout=FromTeacher(), panel=Routed())},
        r"`Distill` needs the teacher `teacher` for its `FromTeacher`, but `model\.teacher` is not set",
    ),
    "a writer without a reader": (
        {"objective": SFT(rollout=FromTeacher(teacher="art"))},
        r"`SFT` needs the teacher `art` for its `FromTeacher`, but `model\.teachers\.art` is not set; the run has",
    ),
    "a debate": (
        {"objective": MADOPD(panel=Debate(("maths", "art")))},
        r"`MADOPD` needs the teacher `art` for its `Debate`, but `model\.teachers\.art` is not set; the run has",
    ),
    "two writers": ({"objective": MiniLLM()}, "`MiniLLM` needs the teacher `teacher` for its `OneTeacher`"),
    "a role": (
        {"objective": ROUTED, "teachers": {"student": tiny_source()}},
        "given the name 'student', expected letters",
    ),
    "a dot": ({"objective": ROUTED, "teachers": {"a.b": tiny_source()}}, r"given the name 'a\.b', expected letters"),
    "no source": ({"objective": ROUTED, "teachers": {"maths": 3}}, r"`model\.teachers\.maths`: given `3` \(int\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_missing_is_named_before_anything_loads(case):
    settings, message = REFUSED[case]
    with pytest.raises(ConfigurationError, match=message):
        module_of(**settings)


def checked(module, task):
    """The settings that are warned of, or the error."""
    data = PromptDataModule(task, batch_size=4, max_prompt_tokens=8, max_completion_tokens=8)
    with warnings.catch_warnings(record=True) as said:
        check(module, data, {"max_steps": 1})
    return [str(one.message) for one in said]


def test_a_teacher_that_nobody_asks_is_told(tmp_path):
    module = module_of(OPD(panel=OneTeacher("maths"), rollout=SAMPLED))
    told = checked(module, task_of(tmp_path))
    assert any("`model.teachers.code`: given a teacher for `OPD`, which does not ask it" in one for one in told)
    assert not any("maths" in one for one in told)


def test_a_panel_that_nobody_asks_is_told(tmp_path):
    told = checked(module_of(SFT(panel=Routed())), task_of(tmp_path))
    assert any(
        "`model.objective.init_args.panel`: given a panel for `SFT`, which reads no teacher" in one for one in told
    )


def test_names_in_the_settings_of_the_data_are_checked_before_the_run(tmp_path):
    sets = {name: DataSet(task=task_of(tmp_path), teacher=name) for name in ("maths", "art")}
    with pytest.raises(ConfigurationError, match=r"rows for the teacher `art`, expected one of `maths`, `code`"):
        checked(module_of(ROUTED), Mixed(sets=sets))


def test_a_stored_teacher_speaks_alone():
    """A rollout that brings its teacher's scores along has no room for a panel."""

    class Stored(FromDataset):
        stored_teacher = True

    with pytest.raises(ConfigurationError, match="has a stored teacher, which is the one that speaks, but"):
        Distill(rollout=Stored(), panel=Routed())


def test_one_teacher_by_another_name_is_that_teacher(tmp_path):
    named = module_of(replace(ROUTED, panel=OneTeacher("maths")), teachers={"maths": tiny_source(seed=1)})
    plain = module_of(replace(ROUTED, panel=OneTeacher()), teacher=tiny_source(seed=1), teachers=None)
    for module in (named, plain):
        fit(module, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(named.student.parameters(), plain.student.parameters(), strict=True))


def test_models_know_their_teachers_by_name():
    models = replace(tiny_models(), teachers={"maths": tiny_models(teacher_seed=4).teacher})
    assert list(models.named_teachers) == ["teacher", "maths"]
    assert models.taught_by("maths").required_teacher() is models.teachers["maths"]
    assert models.taught_by("teacher").teachers == {}
    with pytest.raises(ConfigurationError, match="There is no teacher `art`; the run has `teacher`, `maths`"):
        models.taught_by("art")
    with pytest.raises(ConfigurationError, match=r"A teacher is needed.*`maths` of `model\.teachers` cannot take its"):
        replace(models, teacher=None).required_teacher()

"""What a run from Python knows of itself: its seed, its arguments, and a module that is made from its checkpoint."""

import json
from dataclasses import dataclass
from functools import partial

import lightning as L
import pytest
import torch

import veto_pl.metrics
from veto_pl import DistillationModule, PromptDataModule
from veto_pl.callbacks import Checkpoints
from veto_pl.core.seeds import run_seed, seeded
from veto_pl.data import JsonLines, PlainTemplate
from veto_pl.exceptions import ConfigurationError
from veto_pl.metrics import Accuracy, MetricFamily, TokenMetric, TopKDiagnostic
from veto_pl.metrics.metric_bases import CompletionMetric
from veto_pl.models import CharacterTokenizer, InMemory, Lora, MovingAverage, Pruned, RandomWeights
from veto_pl.objectives import SFT, Sum, Veto
from veto_pl.parts.panels import Together
from veto_pl.parts.schedules import Linear
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.testing.tiny import ALPHABET, tiny_source
from veto_pl.training.arguments import made_again, plain_arguments

FOUR = Sampling(max_new_tokens=4)
OPEN = RandomWeights("llama", tiny_source().dimensions)
QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
         "enable_model_summary": False, "num_sanity_val_steps": 0}  # fmt: skip


def parts(folder, student=OPEN, objective=None, data=(), **settings):
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{a}>", "completion": a}) + "\n" for a in "abcdefgh"))
    module = DistillationModule(
        objective or Veto(rollout=FromStudent(FOUR)), student, tiny_source(seed=9), CharacterTokenizer(ALPHABET),
        **{"evaluation": FOUR} | settings,
    )  # fmt: skip
    limits = {"batch_size": 2, "max_prompt_tokens": 8, "max_completion_tokens": 8}
    return module, PromptDataModule(JsonLines(train=str(rows), validation=str(rows)), **limits, **dict(data))


def fit(folder, *arguments, steps=2, ckpt_path=None, keep=None, **settings):
    module, data = parts(folder, *arguments, **settings)
    kept = {"enable_checkpointing": True, "callbacks": [Checkpoints(dirpath=str(folder / keep))]} if keep else {}
    given = {"max_steps": steps, "limit_val_batches": 0, "default_root_dir": str(folder)}
    trainer = L.Trainer(**QUIET | given | kept)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module, data, trainer


def weights(module):
    return torch.cat([weight.detach().flatten() for weight in module.student.parameters()])


@pytest.mark.parametrize("seed", [0, 3])
def test_an_open_seed_is_that_of_lightning(seed, tmp_path):
    L.seed_everything(seed, verbose=False)
    module, data, _ = fit(tmp_path)
    given, _, _ = fit(tmp_path, RandomWeights("llama", OPEN.dimensions, seed=seed), seed=seed, data={"seed": seed})
    assert torch.equal(weights(module), weights(given))
    assert (module.seed, data.seed, module.hparams.seed) == (seed, seed, seed)
    L.seed_everything(seed + 1, verbose=False)
    other, _, _ = fit(tmp_path)
    assert not torch.equal(weights(module), weights(other))
    assert module.seed == seed, "settled when it was made"


def test_a_named_teacher_has_the_runs_seed_and_is_told_in_checkpoints(tmp_path):
    L.seed_everything(3, verbose=False)
    both = Veto(rollout=FromStudent(FOUR), panel=Together())
    module, _, _ = fit(tmp_path, objective=both, teachers={"other": OPEN}, keep="kept")
    assert module.teacher_sources["other"].seed == 3
    again = DistillationModule.load_from_checkpoint(tmp_path / "kept" / "last.ckpt")
    assert again.teacher_sources == module.teacher_sources
    assert again.models.named_teachers.keys() == {"teacher", "other"}


def test_without_lightnings_seed_it_is_0(monkeypatch):
    assert run_seed() == 0
    assert run_seed(7) == 7
    monkeypatch.setenv("PL_GLOBAL_SEED", "many")
    with pytest.raises(ConfigurationError, match="PL_GLOBAL_SEED"):
        run_seed()


def test_open_seeds_are_settled_at_any_depth_and_others_kept(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    lora = seeded(Lora(Pruned(OPEN, keep_layers=(0,)), seed=2))
    assert (lora.seed, lora.source.source.seed) == (2, 5)
    assert OPEN.seed is None
    closed = MovingAverage(tiny_source(seed=1))
    assert seeded(closed) is closed
    shared = DistillationModule(SFT(), Lora(OPEN), MovingAverage(Lora(OPEN)))
    assert shared.student_source.source == shared.teacher_source.source.source


def test_a_resumed_run_keeps_its_seed_unless_another_is_given(tmp_path, monkeypatch):
    L.seed_everything(3, verbose=False)
    whole, _, _ = fit(tmp_path, OPEN, SFT(), steps=5, keep="whole")
    fit(tmp_path, OPEN, SFT(), steps=3, keep="half")
    monkeypatch.delenv("PL_GLOBAL_SEED")
    last = tmp_path / "half" / "last.ckpt"
    with pytest.warns(UserWarning, match=r"has the seed 3, and goes on with it.*seed_everything\(3\)"):
        resumed, data, _ = fit(tmp_path, OPEN, SFT(), steps=5, keep="rest", ckpt_path=last)
    assert (resumed.seed, data.seed, resumed.hparams.seed) == (3, 3, 3)
    assert torch.equal(weights(resumed), weights(whole))
    given, _, _ = fit(tmp_path, OPEN, SFT(), steps=5, ckpt_path=last, seed=1)
    assert given.seed == 1


def test_a_checkpoint_makes_its_module(tmp_path):
    objective = Sum(terms={"a": SFT(), "b": Veto(beta=Linear(0.5, 0.1), rollout=FromStudent(FOUR))}, weights={"a": 0.5})
    settings = {
        "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.5),
        "metrics": [Accuracy(), TopKDiagnostic(k=3)],
    }
    module, data, trainer = fit(tmp_path, tiny_source(), objective, seed=4, **settings)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = DistillationModule.load_from_checkpoint(tmp_path / "last.ckpt")
    for name in (
        "objective",
        "student_source",
        "teacher_source",
        "tokenizer_source",
        "evaluation",
        "lr_schedule",
        "seed",
    ):
        assert getattr(again, name) == getattr(module, name), name
    assert torch.equal(weights(again), weights(module))
    assert (again.optimizer.func, again.optimizer.keywords) == (torch.optim.SGD, {"lr": 0.1, "momentum": 0.5})
    assert [*again.validation_metrics] == [*module.validation_metrics] == ["accuracy", "overlap_ratio_3"]
    trainers = [L.Trainer(default_root_dir=str(tmp_path), **QUIET) for _ in range(2)]
    found = [one.validate(of, data, verbose=False)[0] for one, of in zip(trainers, (module, again), strict=True)]
    assert found[0] | {"step": 2} == found[1]


@dataclass(frozen=True)
class OfThisModule(SFT):
    """A plug-in, whose module is imported where its checkpoints are read."""


def test_what_is_not_told_is_asked_for_by_name(tmp_path):
    @dataclass(frozen=True)
    class Local(SFT):
        pass

    model = tiny_source().load()
    _, _, trainer = fit(tmp_path, InMemory(model), Local(), optimizer=lambda weights: torch.optim.SGD(weights, lr=0.1))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    load = DistillationModule.load_from_checkpoint
    with pytest.raises(ConfigurationError, match=r"`objective`: .*`student`: .*\(path, objective=..., student=...\)"):
        load(tmp_path / "last.ckpt")
    again = load(tmp_path / "last.ckpt", objective=OfThisModule(), student=tiny_source(seed=5))
    assert torch.equal(weights(again).cpu(), torch.cat([w.detach().flatten() for w in model.parameters()]))
    with pytest.raises(ConfigurationError, match="To train on, pass it"):
        again.optimizer([])
    told = plain_arguments({"objective": OfThisModule(), "student": tiny_source()})
    assert made_again(told, {}, DistillationModule, "x", trusted=False)["objective"] == OfThisModule()


@pytest.mark.parametrize(
    "told",
    [
        {"class": "os.system", "settings": {"command": "true"}},
        {"class": "subprocess.Popen", "settings": {"args": "true"}},
        {"class": "veto_pl.commands.main.main", "settings": {}},
        {"class": "veto_pl.objectives.sft.SFT", "settings": {"rollout": {"class": "antigravity.Part", "settings": {}}}},
        {"class": "not_imported.Part", "settings": {}},
        {"class": 3, "settings": None},
    ],
)
def test_a_checkpoint_imports_and_calls_nothing_but_parts(told):
    with pytest.raises(ConfigurationError, match=r"`objective`: It names .*objective=\.\.\."):
        made_again({"objective": told, "student": None}, {}, DistillationModule, "x", trusted=False)


def test_code_of_models_is_not_asked_for_by_a_checkpoint():
    told = {"class": "veto_pl.models.loading.Pretrained", "settings": {"path": "a/b", "trust_remote_code": True}}
    for trusted in (False, True):
        made = made_again({"student": told}, {"objective": SFT()}, DistillationModule, "x", trusted=trusted)
        assert made["student"].trust_remote_code is trusted


def test_every_metric_of_the_package_is_told():
    kinds = (CompletionMetric, TokenMetric, MetricFamily)
    for name in veto_pl.metrics.__all__:
        cls = getattr(veto_pl.metrics, name)
        if not (isinstance(cls, type) and issubclass(cls, kinds)) or cls in kinds or name in ("WinRate", "BERTScore"):
            continue
        told = plain_arguments({"metrics": [cls()], "objective": SFT(), "student": tiny_source()})
        made = made_again(told, {}, DistillationModule, "x", trusted=False)
        assert type(made["metrics"][0]) is cls


WRONG = {
    "the class of an objective": (lambda: DistillationModule(SFT, tiny_source()), r"the class `SFT`.*`SFT\(\.\.\.\)`"),
    "a text": (lambda: DistillationModule("SFT", tiny_source()), r"`model.objective`: given `SFT` \(str\)"),
    "no list of metrics": (lambda: DistillationModule(SFT(), OPEN, metrics=Accuracy()), "a list of metrics"),
    "the class of a metric": (lambda: DistillationModule(SFT(), OPEN, metrics=[Accuracy]), "the class `Accuracy`"),
    "settings": (lambda: DistillationModule(SFT(), OPEN, evaluation={"temperature": 0}), "expected a `Sampling`"),
    "a rate": (lambda: DistillationModule(SFT(), OPEN, optimizer=1e-3), "`model.optimizer`: given `0.001`"),
    "rows": (lambda: PromptDataModule([{"prompt": "a"}]), "expected a `Task`"),
    "a format": (lambda: PromptDataModule(JsonLines(train="x"), "Q: {prompt}"), r"`PlainTemplate\(format=\.\.\.\)`"),
    "the class of a template": (lambda: PromptDataModule(JsonLines(train="x"), PlainTemplate), "It is the class"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_of_another_kind_is_told_as_what_it_is(case):
    make, message = WRONG[case]
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_the_checks_run_from_python_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(RandomWeights, "load", lambda self: pytest.fail("a model was loaded"))
    module, data = parts(tmp_path, evaluation=Sampling(max_new_tokens=256))
    monkeypatch.setattr(data, "setup", lambda stage: pytest.fail("rows were read"))
    trainer = L.Trainer(max_steps=1, default_root_dir=str(tmp_path), **QUIET)
    for run in (trainer.fit, trainer.validate):
        with pytest.raises(ConfigurationError, match=r"given 8, and 256 for `model\.evaluation\.max_new_tokens`"):
            run(module, datamodule=data)


def test_a_format_may_stand_alone():
    assert PlainTemplate("Q: {prompt}") == PlainTemplate(format="Q: {prompt}")

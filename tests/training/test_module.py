"""The module: one update however the batch is split, a teacher that is nobody's submodule, randomness by purpose."""

import json
from dataclasses import dataclass

import lightning as L
import pytest
import torch

from veto_pl import DistillationModule, PromptDataModule
from veto_pl.data import ExactMatch, JsonLines
from veto_pl.exceptions import ConfigurationError
from veto_pl.models import CharacterTokenizer
from veto_pl.objectives import SFT, Distill, MiniLLM, Sum, SupervisedKD, Veto
from veto_pl.parts.schedules import Linear
from veto_pl.parts.targets import GeometricBridge
from veto_pl.rollouts import DecodeLoop, FromDataset, FromStudent, Sampling
from veto_pl.seams import Example, Task
from veto_pl.testing.tiny import ALPHABET, tiny_source

WORDS = ["a", "bcdefgh", "ab", "ponm", "abcdefghij", "ccc", "de", "fghijkl"]
BRIDGE = Distill(target=GeometricBridge(Linear(0.8, 0.0)))
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
SAMPLED = FromStudent(Sampling(max_new_tokens=5))


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{w}>", "completion": w[::-1]}) + "\n" for w in WORDS))
    return str(path)


def module_of(objective, **settings):
    settings.setdefault("teacher", tiny_source(seed=1))
    settings.setdefault("optimizer", lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    return DistillationModule(objective, tiny_source(), tokenizer=CharacterTokenizer(ALPHABET), **settings)


def fit(module, rows, tmp_path, *, batch_size=8, **trainer):
    task = JsonLines(train=rows, validation=rows, verifier=ExactMatch())
    data = PromptDataModule(task, batch_size=batch_size, shuffle=False, max_prompt_tokens=32, max_completion_tokens=32)
    settings = {"max_steps": 2, "limit_val_batches": 0}
    settings |= {"num_sanity_val_steps": 0, "use_distributed_sampler": False, "default_root_dir": str(tmp_path)}
    runner = L.Trainer(**(settings | QUIET | trainer))
    runner.fit(module, data)
    return runner


def weights(module):
    return torch.cat([p.detach().flatten().double() for p in module.student.parameters()])


OBJECTIVES = {
    "sft": SFT(),
    "per sequence": SFT(aggregation="sequence"),
    "bridge": BRIDGE,
    "sum": Sum(terms={"kd": BRIDGE, "sft": SFT(aggregation="sequence")}, weights={"sft": 0.3}),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_accumulated_micro_batches_give_the_update_of_the_whole_batch(name, batch_size, rows, tmp_path):
    """Completions of 2 to 11 tokens: a mean of the micro-batches' means would be far off."""
    whole = module_of(OBJECTIVES[name])
    fit(whole, rows, tmp_path)
    split = module_of(OBJECTIVES[name])
    fit(split, rows, tmp_path, batch_size=batch_size, accumulate_grad_batches=8 // batch_size)
    start = weights(module_of_loaded(OBJECTIVES[name]))
    assert (weights(whole) - start).abs().max() > 1e-2
    assert torch.allclose(weights(whole), weights(split), atol=1e-6)


def module_of_loaded(objective):
    module = module_of(objective)
    module.configure_model()
    return module


def test_an_incomplete_window_is_divided_by_its_own_tokens(rows, tmp_path):
    """Eight rows in micro-batches of two, six micro-batches per window: the epoch ends after four."""
    whole, cut = module_of(SFT()), module_of(SFT())
    fit(whole, rows, tmp_path, max_steps=1)
    fit(cut, rows, tmp_path, batch_size=2, accumulate_grad_batches=6, max_steps=1)
    assert torch.allclose(weights(whole), weights(cut), atol=1e-6)


def test_a_sums_terms_are_each_divided_by_their_own_weight(rows, tmp_path):
    """Twice the same term with half the weight each is the term."""
    once, twice = (
        module_of(SFT()),
        module_of(Sum(terms={"a": SFT(), "b": SFT(chunk_rows=7)}, weights={"a": 0.5, "b": 0.5})),
    )
    fit(once, rows, tmp_path)
    fit(twice, rows, tmp_path)
    assert torch.allclose(weights(once), weights(twice), atol=1e-6)


def test_clipping_sees_the_normalised_gradient(rows, tmp_path):
    module = module_of(SFT(), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0))
    before = weights(module_of_loaded(SFT()))
    fit(module, rows, tmp_path, max_steps=1, gradient_clip_val=0.01, accumulate_grad_batches=2, batch_size=4)
    assert (weights(module) - before).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_the_teacher_is_no_submodule_and_never_changes(rows, tmp_path):
    module = module_of(Veto(rollout=SAMPLED))
    runner = fit(module, rows, tmp_path)
    path = tmp_path / "run.ckpt"
    runner.save_checkpoint(path)
    state = torch.load(path, weights_only=True)["state_dict"]
    assert set(state) == {f"student.{name}" for name in module.student.state_dict()}
    fresh = tiny_source(seed=1).load()
    teacher = module.models.teacher
    assert all(torch.equal(a, b) for a, b in zip(teacher.model.parameters(), fresh.parameters(), strict=True))
    assert all(p.grad is None for p in teacher.parameters())
    optimized = {id(p) for group in runner.optimizers[0].param_groups for p in group["params"]}
    assert not optimized & {id(p) for p in teacher.parameters()}


def test_looking_does_not_change_the_run(rows, tmp_path):
    """Validation draws random numbers of its own, and metrics hold no graph."""
    blind = module_of(Veto(rollout=SAMPLED), evaluation=Sampling(max_new_tokens=4))
    fit(blind, rows, tmp_path, batch_size=4, max_steps=4)
    watched = module_of(Veto(rollout=SAMPLED), evaluation=Sampling(max_new_tokens=4))
    fit(watched, rows, tmp_path, batch_size=4, max_steps=4, limit_val_batches=1.0, val_check_interval=1)
    assert torch.equal(weights(blind), weights(watched))


def test_beta_zero_is_plain_on_policy_distillation_to_the_bit(rows, tmp_path):
    veto, plain = module_of(Veto(beta=0.0, rollout=SAMPLED)), module_of(Distill(rollout=SAMPLED))
    fit(veto, rows, tmp_path)
    fit(plain, rows, tmp_path)
    assert torch.equal(weights(veto), weights(plain))


def test_global_generators_are_left_alone(rows, tmp_path):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    fit(module_of(Veto(rollout=SAMPLED), evaluation=SAMPLED.sampling), rows, tmp_path, limit_val_batches=1.0)
    assert torch.equal(before, torch.get_rng_state())


@dataclass(frozen=True)
class Bare(Task):
    """Prompts alone."""

    def load(self, split):
        return [Example(f"{word}>") for word in WORDS]

    def reward(self, example, completion):
        return 0.0


def test_rows_without_completions_train_on_nothing(tmp_path):
    module, task = module_of(SFT(), evaluation=SAMPLED.sampling), Bare()
    runner = L.Trainer(max_steps=2, default_root_dir=str(tmp_path), **QUIET)
    runner.fit(module, PromptDataModule(task, batch_size=4, max_prompt_tokens=32, max_completion_tokens=32))
    assert torch.equal(weights(module), weights(module_of_loaded(SFT())))
    assert runner.callback_metrics["train/loss"] == 0


def test_what_is_logged_is_the_mean_over_the_window(rows, tmp_path):
    whole = fit(module_of(BRIDGE), rows, tmp_path, max_steps=1).callback_metrics
    split = fit(
        module_of(BRIDGE), rows, tmp_path, max_steps=1, batch_size=1, accumulate_grad_batches=8
    ).callback_metrics
    for name in ("train/loss", "train/kl", "train/entropy", "train/completion_length", "train/grad_norm"):
        assert split[name] == pytest.approx(float(whole[name]), rel=1e-4), name
    assert whole["train/completion_length"] == pytest.approx(sum(len(w) + 1 for w in WORDS) / 8)
    assert whole["train/beta"] == pytest.approx(0.8)


def test_schedules_follow_optimizer_steps_not_micro_batches(rows, tmp_path):
    seen = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            seen.append(float(trainer.callback_metrics.get("train/beta", -1)))

    module = module_of(BRIDGE, lr_schedule=Linear(1.0, 0.0))
    runner = fit(module, rows, tmp_path, batch_size=2, accumulate_grad_batches=2, max_steps=4, callbacks=[Watch()])
    assert sorted(set(seen) - {-1}, reverse=True) == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert runner.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0)


def test_validation_generates_and_measures(rows, tmp_path):
    module = module_of(SFT(), evaluation=Sampling(num_completions=4, max_new_tokens=4))
    metrics = fit(module, rows, tmp_path, limit_val_batches=1.0, val_check_interval=1).callback_metrics
    for name in (
        "accuracy",
        "pass@4",
        "self_bleu",
        "distinct_2",
        "reverse_kl",
        "forward_kl",
        "eos_rate",
        "top_one_agreement",
    ):
        assert f"validation/{name}" in metrics, name
    bare = module_of(SFT(), teacher=None)
    assert "forward_kl" not in bare.validation_metrics
    assert "student_entropy" in bare.validation_metrics


ASKED = []


@dataclass(frozen=True)
class Recording(DecodeLoop):
    """Notes the temperatures that it samples at."""

    name: str = "rollout"

    def generate(self, prompts, model, sampling, *rest, **marks):
        ASKED.append((self.name, sampling.temperature))
        return super().generate(prompts, model, sampling, *rest, **marks)


@pytest.mark.parametrize("named", [None, "named"])
def test_validation_samples_by_the_engine_of_the_rollout_or_the_one_that_is_named(rows, tmp_path, named):
    ASKED.clear()
    engine = None if named is None else Recording(name=named)
    objective = Distill(rollout=FromStudent(SAMPLED.sampling, Recording()))
    module = module_of(objective, evaluation_engine=engine, evaluation=Sampling(temperature=0.5, max_new_tokens=2))
    fit(module, rows, tmp_path, max_steps=1, limit_val_batches=1)
    assert [("rollout", 1.0), (named or "rollout", 0.5)] == ASKED


def test_mini_llm_trains_with_its_two_denominators(rows, tmp_path):
    module = module_of(MiniLLM(sampling=Sampling(max_new_tokens=4)))
    metrics = fit(module, rows, tmp_path).callback_metrics
    assert {"train/on_policy/loss", "train/pretraining/loss", "train/loss"} <= set(metrics)
    assert (weights(module) - weights(module_of_loaded(SFT()))).abs().max() > 1e-3


def test_a_sum_shares_equal_rollouts():
    objective = Sum(terms={"a": Veto(rollout=SAMPLED), "b": Distill(rollout=SAMPLED), "c": SupervisedKD()})
    assert objective.sources == (SAMPLED, FromDataset())


def test_a_missing_teacher_is_named_before_anything_loads():
    with pytest.raises(ConfigurationError, match=r"`Veto` needs a teacher, but `model\.teacher` is not set"):
        module_of(Veto(), teacher=None)


def test_an_unlimited_run_has_no_schedule(rows, tmp_path):
    with pytest.raises(ConfigurationError, match=r"Set `trainer.max_steps` or\s+`trainer.max_epochs`"):
        fit(module_of(BRIDGE), rows, tmp_path, max_steps=-1, max_epochs=-1)

"""Whole runs on the pretended GPU: nothing mixes devices, and what is computed is what the CPU computes."""

import json

import pytest
import torch

from tests.debug_runs import DEBUG, arguments, debug_run, golden_losses, losses, stopped_at
from tests.marks import fast
from veto_pl.commands.main import main
from veto_pl.seams import Step
from veto_pl.testing.examples import first_examples
from veto_pl.testing.pretended_gpu import PRETENDED
from veto_pl.testing.rows import beginning, tiny_prompts
from veto_pl.testing.tiny import tiny_models

ON_GPU = (f"--trainer.accelerator={PRETENDED}", f"--trainer.strategy={PRETENDED}")


@pytest.mark.parametrize("name", fast(DEBUG, "sum"))
def test_debug_runs_reproduce_the_golden_losses_of_the_cpu(name, tmp_path):
    """With a validation, a checkpoint and an export."""
    log = debug_run(name, tmp_path, *ON_GPU)
    assert losses(log) == pytest.approx(golden_losses(name), rel=1e-3), name
    assert any(key.startswith("validation/") for key in json.loads((tmp_path / "summary.json").read_text()))
    assert (tmp_path / "export" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", fast(DEBUG))
def test_runs_are_deterministic_where_they_have_to_be(name, tmp_path):
    """No kernel that adds in any order; draws in whole numbers give the ids of the CPU."""
    log = debug_run(name, tmp_path, *ON_GPU, "--trainer.deterministic=true")
    assert losses(log) == pytest.approx(golden_losses(name), rel=1e-3), name


OBJECTIVES = first_examples(longest=4)


def one_step(name, device):
    """The loss, and the gradient of each weight, of one micro-batch."""
    objective, models = OBJECTIVES[name], tiny_models()
    models = beginning(objective.sources[0], models)
    for model in (models.student, models.teacher, models.reference):
        model.to(device)
    step, batch, rollouts = Step(1, 10), tiny_prompts(models).to(device), {}
    active = objective.active(step)
    for source in active.sources:
        rollouts[source] = source(batch, models, step)
    if objective.needs_rewards:
        rollouts = {s: (rows.prompts or batch).rewarded(rows, models.tokenizer) for s, rows in rollouts.items()}
    output = active.loss(rollouts, models, step)
    sum(term.total for term in output.terms.values()).backward()
    gradients = [parameter.grad for parameter in models.student.parameters()]
    numbers = {name: stat.total for name, stat in {**output.terms, **output.metrics}.items()}
    return gradients, numbers


KINDS = ("SFT", "Veto", "MiniLLM", "ListOPD", "DistiLLM2", "SKD", "BRTS", "SDPO", "Sum")
"""Added, coupled and several losses; a third model, a look ahead, two writers, a second try, another prompt."""


@pytest.mark.parametrize("name", fast(OBJECTIVES, *KINDS))
def test_every_objective_has_the_cpus_gradient(name):
    (expected, numbers), (found, on_gpu) = (one_step(name, device) for device in ("cpu", "gpu:0"))
    for ours, of_cpu in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), of_cpu, rtol=1e-3, atol=1e-4)
    for key, value in numbers.items():
        torch.testing.assert_close(on_gpu[key].cpu(), value, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize(
    ("first", "then"),
    [(ON_GPU, ()), ((), ON_GPU), (ON_GPU, ON_GPU)],
    ids=["to the cpu", "from the cpu", "on a gpu"],
)
@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_on_either_device(first, then, tmp_path):
    """Memories of replay, optimizer and schedules travel by way of the checkpoint."""
    with stopped_at(4):
        debug_run("distillm", tmp_path, *first)
    log = debug_run("distillm", tmp_path, "--ckpt_path=last", *then)
    assert losses(log) == pytest.approx(golden_losses("distillm"), rel=1e-3)


@pytest.mark.slow
def test_test_and_predict_answer_as_on_the_cpu(tmp_path):
    debug_run("veto", tmp_path / "fit", *ON_GPU)
    told = [*arguments("veto"), f"--ckpt_path={tmp_path}/fit/checkpoints/last.ckpt", "--model.metrics=null"]
    several = "--model.evaluation={temperature: 0.8, top_p: 0.9, num_completions: 4, max_new_tokens: 8}"
    for name, options in {"cpu": (), "gpu": ON_GPU}.items():
        for command in ("test", "predict"):
            main([command, *told, several, f"--run_dir={tmp_path}/{name}-{command}", *options])
    for file in ("test/test.json", "test/answers.jsonl", "predict/predictions.jsonl"):
        folder, _, rest = file.partition("/")
        texts = [(tmp_path / f"{device}-{folder}" / rest).read_text() for device in ("cpu", "gpu")]
        assert texts[0], file
        assert without_numbers(texts[1]) == without_numbers(texts[0]), file


def without_numbers(text):
    """What was written, without what the last digits of a device show in."""
    return [
        {key: value for key, value in json.loads(line).items() if isinstance(value, str)}
        for line in text.splitlines()
        if line.startswith("{") and line.endswith("}")
    ]


@pytest.mark.slow
def test_training_from_a_stored_teacher_is_training_with_the_teacher(tmp_path):
    told = arguments("supervised_kd")
    main(["cache-teacher", *told, *ON_GPU, f"--out={tmp_path}/scores", "--k=55"])
    rollout = {"class_path": "FromCache", "init_args": {"path": f"{tmp_path}/scores"}}
    stored = ("--model.teacher=null", f"--model.objective.init_args.rollout={json.dumps(rollout)}")
    log = debug_run("supervised_kd", tmp_path / "run", *stored, *ON_GPU)
    assert losses(log) == pytest.approx(golden_losses("supervised_kd"), rel=1e-3)


MIXED = (
    '--trainer.plugins={"class_path": "lightning.pytorch.plugins.MixedPrecision", "init_args": '
    '{"precision": "bf16-mixed", "device": "gpu"}}'
)


def test_bf16_mixed_is_close_to_float32(tmp_path):
    log = debug_run("supervised_kd", tmp_path, MIXED, *ON_GPU)
    assert losses(log) == pytest.approx(golden_losses("supervised_kd"), rel=2e-2)
    assert losses(log) != pytest.approx(golden_losses("supervised_kd"), rel=1e-5)


OTHERWISE = {
    "transformers' generate": ("veto", "--model.objective.init_args.rollout.init_args.engine=Transformers"),
    "accumulation of several terms": ("sum", "--trainer.accumulate_grad_batches=2", "--data.batch_size=4"),
    "loader processes": ("sft", "--data.num_workers=1"),
    "stop strings": ("veto", '--model.objective.init_args.rollout.init_args.sampling.stop=["ab", "c"]'),
    "a stack of prefixes": ("veto", "--model.objective.init_args.rollout.init_args.sampling.top_p=0.5"),
}


SHORT = ("--trainer.max_steps=3", "--trainer.limit_val_batches=0", "--export.folder=null")


@pytest.mark.parametrize("name", fast(OTHERWISE, "accumulation of several terms"))
def test_other_settings_give_the_cpus_losses(name, tmp_path):
    run, *options = OTHERWISE[name]
    options += SHORT
    expected = losses(debug_run(run, tmp_path / "cpu", *options))
    assert losses(debug_run(run, tmp_path / "gpu", *options, *ON_GPU)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_an_export_is_loaded_there_and_recomputes_its_activations(tmp_path):
    debug_run("sft", tmp_path / "first", *ON_GPU)
    loaded = {"path": f"{tmp_path}/first/export", "gradient_checkpointing": True}
    student = f"--model.student={json.dumps({'class_path': 'Pretrained', 'init_args': loaded})}"
    expected = losses(debug_run("supervised_kd", tmp_path / "cpu", student, *SHORT))
    found = losses(debug_run("supervised_kd", tmp_path / "gpu", student, *SHORT, *ON_GPU))
    assert found == pytest.approx(expected, rel=1e-3)

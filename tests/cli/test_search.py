"""Lightning's searches for a batch size and a learning rate; modules in other processes and from checkpoints."""

import json
import pickle

import lightning as L
import pytest
from lightning.pytorch.callbacks import BatchSizeFinder
from lightning.pytorch.tuner import Tuner

from veto_pl import DistillationModule, PromptDataModule
from veto_pl.data import JsonLines
from veto_pl.models import CharacterTokenizer
from veto_pl.objectives import SFT
from veto_pl.parts.schedules import Linear
from veto_pl.rollouts import Sampling
from veto_pl.testing.tiny import tiny_source

from .conftest import TINY_MODEL, WORDS

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


@pytest.fixture
def parts(tmp_path):
    from veto_pl.models import RandomWeights

    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{word}>", "completion": word[::-1]}) + "\n" for word in WORDS))
    task = JsonLines(train=str(rows), validation=str(rows))
    student = RandomWeights(**TINY_MODEL["init_args"])
    module = DistillationModule(
        SFT(),
        student,
        tokenizer=CharacterTokenizer(">abc"),
        lr_schedule=Linear(1.0, 0.5),
        evaluation=Sampling(max_new_tokens=4),
    )
    return module, PromptDataModule(task, batch_size=2, max_prompt_tokens=8, max_completion_tokens=8)


def trainer(folder, steps=2, callbacks=()):
    return L.Trainer(
        default_root_dir=folder, max_steps=steps, use_distributed_sampler=False, callbacks=list(callbacks), **QUIET
    )


def test_the_largest_batch_is_found_and_used(parts, tmp_path):
    module, data = parts
    assert Tuner(trainer(tmp_path)).scale_batch_size(module, datamodule=data, max_trials=2, steps_per_trial=1) == 4
    assert data.batch_size == 4


def test_a_search_during_a_validation_leaves_the_student_training(parts, tmp_path):
    module, data = parts
    runner = trainer(tmp_path, callbacks=[BatchSizeFinder(max_trials=2, steps_per_trial=1)])
    runner.validate(module, data, verbose=False)
    runner.fit(module, data)
    assert module.student.training
    assert runner.global_step == 2


def test_the_rate_that_is_found_is_where_the_schedule_starts(parts, tmp_path):
    module, data = parts
    found = Tuner(trainer(tmp_path)).lr_find(module, datamodule=data, num_training=16)
    assert module.lr == found.suggestion() > 0
    runner = trainer(tmp_path)
    runner.fit(module, data)
    assert runner.lr_scheduler_configs[0].scheduler.base_lrs == [module.lr]
    assert module.logged["train/learning_rate"] == pytest.approx(0.75 * module.lr)


def test_a_rate_that_is_set_during_a_run_changes_its_schedule(parts, tmp_path):
    class Sets(L.Callback):
        def on_train_start(self, trainer, pl_module):
            pl_module.lr = 0.125

    module, data = parts
    runner = trainer(tmp_path, callbacks=[Sets()])
    runner.fit(module, data)
    assert runner.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.5 * 0.125)


def test_a_module_can_be_sent_to_another_process():
    module = DistillationModule(SFT(), tiny_source())
    sent = pickle.loads(pickle.dumps(module))
    assert (sent.objective, sent.student_source) == (module.objective, module.student_source)
    assert sent.horizon() == module.horizon()


@pytest.mark.slow
def test_after_a_fit_in_other_processes_it_is_said_where_the_weights_are(parts, tmp_path, capfd):
    module, data = parts
    runner = L.Trainer(
        default_root_dir=tmp_path, max_steps=1, use_distributed_sampler=False, strategy="ddp_fork", devices=2, **QUIET
    )
    runner.fit(module, data)
    assert "They are in the checkpoints" in "".join(capfd.readouterr())

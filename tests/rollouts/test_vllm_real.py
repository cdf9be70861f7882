"""A student that trains on what a real vLLM samples: run by `make test-vllm`, in an environment of its own."""

import gc
from pathlib import Path

import lightning as L
import pytest
import torch
from vllm_runs import ENGINE, SAMPLED, STEPS, STUDENTS, WORDS, Watch, fit, on_rank, source

from veto_pl.environments import TryAgain
from veto_pl.exceptions import ConfigurationError
from veto_pl.models import CharacterTokenizer
from veto_pl.models.assemble import load_models
from veto_pl.rollouts import FromStudent, Played, Sampling, vllm_process
from veto_pl.seams import Step
from veto_pl.testing.ranks import run_ranks
from veto_pl.testing.rows import difference
from veto_pl.testing.tiny import ALPHABET, prompt_batch

pytestmark = pytest.mark.vllm


@pytest.fixture(autouse=True)
def _engines_of_earlier_tests_are_gone():
    gc.collect()


@pytest.fixture(scope="module", params=STUDENTS)
def watched(request, tmp_path_factory):
    watch = Watch()
    student = STUDENTS[request.param]
    fit(tmp_path_factory.mktemp("vllm"), student, callbacks=[watch], limit_val_batches=0)
    return watch.seen


@pytest.mark.parametrize("writer", [0, 1], ids=["student", "moving teacher"])
def test_after_each_update_greedy_texts_are_those_of_the_own_loop(watched, writer):
    assert len(watched) == STEPS
    written = [[rows.completions() for rows in texts[writer]] for texts in watched]
    for theirs, ours in written:
        assert [ids.tolist() for ids in theirs] == [ids.tolist() for ids in ours]
    assert len({str(theirs) for theirs, _ in written}) > STEPS // 2, "the weights did not move"


def test_the_samplers_log_probabilities_are_the_students(watched):
    for *_, own, reported, _ in watched:
        assert torch.allclose(own, reported, atol=1e-3)


def test_each_step_logs_how_far_the_engine_is_from_the_trainer(watched):
    gaps = [logged["train/engine_gap"] for *_, logged in watched]
    assert all(0 <= gap < 1e-4 for gap in gaps)
    assert max(gaps) > 0  # one may be 0 where the student has become certain


@pytest.fixture(scope="module")
def models():
    return load_models(source(0), source(1), CharacterTokenizer(ALPHABET).load())


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.0, max_new_tokens=12, num_completions=2, stop=("b", "cd")),
        Sampling(temperature=0.0, max_new_tokens=3, stop=("b",)),
    ],
)
def test_ends_are_those_of_the_own_loop(models, sampling):
    batch = prompt_batch(models, [f"{word}>" for word in WORDS])
    theirs, ours = (FromStudent(sampling, *engine)(batch, models, Step(0, 1)) for engine in ((ENGINE,), ()))
    assert len(ours.ending.unique()) > 1
    assert difference(theirs, ours) == ""
    assert theirs.texts(models.tokenizer) == ours.texts(models.tokenizer)


def test_greedy_dialogues_are_those_of_the_own_loop(models):
    batch = prompt_batch(models, [f"{word}>" for word in WORDS])
    turns = Sampling(temperature=0.0, max_new_tokens=8, num_completions=2, stop=tuple("acegikmo"))
    ours, theirs = (
        Played(TryAgain(said="no>"), turns, max_turns=4, max_tokens=40, **engine)(batch, models, Step(0, 1))
        for engine in ({}, {"engine": ENGINE})
    )
    assert ours.turn_ids.max() >= 3
    assert (ours.completion_mask & ~ours.loss_mask).any()
    assert difference(theirs, ours) == ""
    assert torch.equal(theirs.loss_mask, ours.loss_mask)
    assert torch.equal(theirs.turn_ids, ours.turn_ids)


def test_a_dialogue_repeats_its_samples_and_rows_stay_their_own(models):
    batch = prompt_batch(models, [f"{word}>" for word in WORDS])
    source = Played(TryAgain(said="no>"), SAMPLED, max_turns=3, max_tokens=50, engine=ENGINE)
    first, again = (source(batch, models, Step(3, 9)) for _ in range(2))
    assert difference(first, again) == ""
    assert (first.engine_log_ratio[~first.loss_mask] == 0).all()
    assert (first.engine_log_ratio.abs() < 1e-3).all()
    part = source(batch.rows(torch.tensor([5, 2])), models, Step(3, 9))
    assert difference(first.rows(first.prompt_rows == 5), part.rows(part.prompt_rows == 0)) == ""


def test_a_step_repeats_its_samples_and_another_draws_others(models):
    batch = prompt_batch(models, [f"{word}>" for word in WORDS])
    first, again, other = (FromStudent(SAMPLED, ENGINE)(batch, models, Step(index, 9)) for index in (0, 0, 1))
    assert difference(first, again) == ""
    assert difference(first, other)
    part = FromStudent(SAMPLED, ENGINE)(batch.rows(torch.tensor([5, 2])), models, Step(0, 9))
    assert difference(first.rows(torch.tensor([10, 11, 4, 5])), part) == ""


def test_an_engine_that_did_not_get_its_weights_is_refused(models, monkeypatch):
    batch = prompt_batch(models, [f"{word}>" for word in WORDS])
    with torch.no_grad():
        models.student.model.get_input_embeddings().weight.mul_(-1)
    monkeypatch.setattr(vllm_process.RunningEngine, "_push", lambda *_: None)
    with pytest.raises(ConfigurationError, match="has not got the weights"):
        FromStudent(SAMPLED, ENGINE)(batch, models, Step(1, 9))


def test_validation_samples_through_the_engine(tmp_path, monkeypatch):
    asked = []
    complete = vllm_process.RunningEngine.complete
    monkeypatch.setattr(
        vllm_process.RunningEngine, "complete", lambda self, *given: asked.append(given) or complete(self, *given)
    )
    trainer, _ = fit(tmp_path, max_steps=2, val_check_interval=1)
    assert [parameters[0].temperature for _, parameters in asked] == [1.0, 0.0] * 2
    assert float(trainer.callback_metrics["validation/completion_length"]) > 1


def test_a_run_that_is_resumed_samples_what_it_would_have_sampled(tmp_path):
    saving = L.pytorch.callbacks.LambdaCallback(
        on_train_batch_end=lambda trainer, *_: (
            trainer.save_checkpoint(tmp_path / "two.ckpt") if trainer.global_step == 2 else None
        )
    )
    _, whole = fit(tmp_path, max_steps=4, limit_val_batches=0, callbacks=[saving])
    _, resumed = fit(tmp_path, max_steps=4, ckpt=str(tmp_path / "two.ckpt"), limit_val_batches=0)
    for one, other in zip(whole.student.parameters(), resumed.student.parameters(), strict=True):
        assert torch.equal(one, other)


def test_in_mixed_precision_the_engine_computes_in_bfloat16(tmp_path):
    trainer, module = fit(tmp_path, max_steps=2, precision="bf16-mixed", limit_val_batches=0)
    assert module.student.model.dtype == torch.float32
    assert 1e-4 < float(trainer.callback_metrics["train/engine_gap"]) < 0.1


@pytest.mark.parametrize(("strategies", "tensor_parallel"), [(("ddp", "fsdp2"), 1), (("ddp",), 2)])
def test_each_rank_samples_from_the_weights_of_its_step(tmp_path, strategies, tensor_parallel):
    for left in Path("/dev/shm").glob(
        "*-tp:*-cpushm_*"
    ):  # vLLM on a CPU does not clear away what its ranks have shared
        left.unlink()
    before = load_models(source(0), None, CharacterTokenizer(ALPHABET).load()).student.model.state_dict()
    ranks = run_ranks(on_rank, 2, str(tmp_path), strategies, tensor_parallel, timeout=300)
    for run in [run for runs in ranks for run in runs]:
        assert run["agree"] == [True] * 4
        assert run["gap"].max() < 1e-3
    for run in ranks[0]:
        assert all(not torch.equal(weight, before[name]) for name, weight in run["weights"].items())

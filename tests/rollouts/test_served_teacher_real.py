"""A teacher behind a real vLLM server on the CPU: run by `make test-vllm`."""

from dataclasses import replace

import pytest
import torch
from vllm_runs import NAME, WORDS, fit_objective, source, stored, vllm_server

from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.supports import top_k_with_tail
from veto_pl.models import CharacterTokenizer
from veto_pl.models.assemble import load_models
from veto_pl.objectives import OPD, ResOPD
from veto_pl.rollouts import FromStudent, Sampling, ServedTeacher
from veto_pl.seams import Step
from veto_pl.testing.tiny import ALPHABET, prompt_batch

pytestmark = pytest.mark.vllm
SAMPLED = FromStudent(Sampling(max_new_tokens=8, num_completions=2))
MOST = 8
"""Log-probabilities that the server gives."""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with vllm_server(stored(tmp_path_factory.mktemp("teacher"), source(1)), "--max-logprobs", str(MOST)) as found:
        yield found


@pytest.fixture
def served(address, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return ServedTeacher(servers=(address,), model=NAME, source=SAMPLED, k=6)


@pytest.fixture(scope="module")
def models():
    return load_models(source(0), source(1), CharacterTokenizer(ALPHABET).load())


def test_the_server_says_what_the_same_model_says_here(models, served):
    rows = served(prompt_batch(models, [f"{word}>" for word in WORDS]), models, Step(0, 9))
    with torch.no_grad():
        logp = models.teacher(rows, lambda hidden, teacher: teacher.project(hidden)[0]).log_softmax(-1)
    told = rows.teacher_scores[rows.loss_mask]
    assert not rows.unanswered.any()
    torch.testing.assert_close(told.logp, top_k_with_tail(logp, told.ids), rtol=0, atol=1e-3)
    torch.testing.assert_close(told.sampled_logp, logp.gather(1, rows.token_ids()[:, None])[:, 0], rtol=0, atol=1e-3)
    kept = logp.gather(1, told.ids)
    torch.testing.assert_close(kept, logp.topk(6).values, rtol=0, atol=1e-3)


def test_more_ids_than_the_server_gives_are_refused(models, served):
    with pytest.raises(ConfigurationError, match=rf"refused with status 400: .*{MOST}"):
        replace(served, k=MOST + 1)(prompt_batch(models, ["abc>"]), models, Step(0, 9))


def test_another_tokenizer_is_refused(served):
    other = CharacterTokenizer(ALPHABET[::-1]).load()
    models = load_models(source(0), None, other)
    with pytest.raises(ConfigurationError, match="reads other ids than this run"):
        replace(served, k=5)(prompt_batch(models, ["abc>"]), models, Step(0, 9))


@pytest.mark.parametrize("objective", [OPD, ResOPD], ids=lambda cls: cls.__name__)
def test_a_student_comes_closer_to_a_teacher_that_it_has_never_loaded(objective, served, models, tmp_path):
    trainer, module = fit_objective(tmp_path, objective(rollout=served), rate=3e-3, max_steps=10, limit_val_batches=0)
    assert float(trainer.callback_metrics["train/unanswered"]) == 0
    assert module.models.teacher is None
    batch = prompt_batch(models, [f"{word}>" for word in WORDS])
    rows = SAMPLED(batch, models, Step(0, 9))
    with torch.no_grad():
        teacher, before, after = (
            model(rows, lambda hidden, model: model.project(hidden)[0]).log_softmax(-1)
            for model in (models.teacher, models.student, module.student)
        )
    kl = [(logp.exp() * (logp - teacher)).sum(-1).mean() for logp in (before, after)]
    assert kl[1] < 0.9 * kl[0]

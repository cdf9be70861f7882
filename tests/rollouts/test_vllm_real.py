"""A student that trains on what a real vLLM samples: run by `make test-vllm`, in an environment of its own."""

import json

import lightning as L
import pytest
import torch

from veto_pl import DistillationModule, PromptDataModule
from veto_pl.data import ExactMatch, JsonLines
from veto_pl.models import CharacterTokenizer
from veto_pl.models.initialisation import RandomWeights
from veto_pl.objectives import Veto
from veto_pl.rollouts import FromStudent, Sampling, Vllm
from veto_pl.seams import Step
from veto_pl.testing.tiny import ALPHABET, prompt_batch

pytestmark = pytest.mark.vllm
WORDS = ["a", "bcdefgh", "ab", "ponm", "abcdefghij", "ccc", "de", "fghijkl"]
ENGINE = Vllm(max_model_len=64, enforce_eager=True)
GREEDY = Sampling(temperature=0.0, max_new_tokens=12)
STEPS = 6


def source(seed):
    """vLLM's kernels want heads of 32 dimensions or more."""
    dimensions = {
        "vocab_size": len(ALPHABET) + 3,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "initializer_range": 0.4,
    }
    return RandomWeights("llama", dimensions, seed=seed)


class Watch(L.Callback):
    """After each update: the greedy texts by vLLM, by the own loop, and what vLLM says of its samples."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, *_):
        models, step = module.models, Step(trainer.global_step, STEPS, seed=5)
        batch = prompt_batch(models, [f"{word}>" for word in WORDS])
        texts = [
            [ids.tolist() for ids in FromStudent(GREEDY, *engine)(batch, models, step).completions()]
            for engine in ((ENGINE,), ())
        ]
        sampled = FromStudent(Sampling(temperature=0.8, max_new_tokens=12), ENGINE)(batch, models, step)
        with torch.no_grad():
            logits = models.student(sampled, lambda hidden, lm: lm.project(hidden)[0])
        own = (logits / 0.8).log_softmax(-1).gather(1, sampled.token_ids()[:, None])[:, 0]
        self.seen.append((*texts, own, sampled.sampled_logp()[sampled.predictions]))


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{w}>", "completion": w[::-1]}) + "\n" for w in WORDS))
    rollout = FromStudent(Sampling(max_new_tokens=8), ENGINE)
    module = DistillationModule(
        Veto(rollout=rollout), source(0), teacher=source(1), tokenizer=CharacterTokenizer(ALPHABET),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
    )  # fmt: skip
    data = PromptDataModule(JsonLines(train=str(rows), validation=str(rows), verifier=ExactMatch()), batch_size=8)
    watch = Watch()
    L.Trainer(
        accelerator="cpu", max_steps=STEPS, limit_val_batches=0, num_sanity_val_steps=0, logger=False,
        callbacks=[watch], use_distributed_sampler=False, enable_checkpointing=False, enable_progress_bar=False,
        default_root_dir=str(folder),
    ).fit(module, data)  # fmt: skip
    return watch.seen


def test_after_each_push_greedy_texts_are_those_of_the_own_loop(watched):
    assert len(watched) == STEPS
    for theirs, ours, *_ in watched:
        assert theirs == ours
    assert len({str(theirs) for theirs, *_ in watched}) > STEPS // 2, "the student did not move"


def test_the_samplers_log_probabilities_are_the_students(watched):
    for _, _, own, reported in watched:
        assert torch.allclose(own, reported, atol=1e-3)

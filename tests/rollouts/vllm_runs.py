"""Small runs that sample with a real vLLM, in one process and on ranks."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch

from veto_pl import DistillationModule, PromptDataModule
from veto_pl.data import ExactMatch, JsonLines
from veto_pl.models import CharacterTokenizer, Lora
from veto_pl.models.averaging import MovingAverage
from veto_pl.models.initialisation import RandomWeights
from veto_pl.models.sharding import full_weights
from veto_pl.objectives import Veto
from veto_pl.rollouts import FromStudent, FromTeacher, Sampling, Vllm
from veto_pl.seams import Step
from veto_pl.testing.tiny import ALPHABET, prompt_batch
from veto_pl.training.fsdp import FullyShard

WORDS = ["a", "bcdefgh", "ab", "ponm", "abcdefghij", "ccc", "de", "fghijkl"]
CACHE = 2**26
"""Bytes: a process holds several engines."""
ENGINE = Vllm(cache_bytes=CACHE, max_model_len=64, enforce_eager=True)
GREEDY = Sampling(temperature=0.0, max_new_tokens=12)
SAMPLED = Sampling(temperature=0.8, top_p=0.9, max_new_tokens=12, num_completions=2)
STEPS = 6


def source(seed, model_type="llama", **dimensions):
    """vLLM's kernels want heads of 32 dimensions or more."""
    sizes = {
        "vocab_size": len(ALPHABET) + 3,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "initializer_range": 0.4,
    }
    return RandomWeights(model_type, sizes | dimensions, seed=seed)


STUDENTS = {
    "llama": source(0),
    "tied, with padding ids": source(0, "qwen2", vocab_size=1200, tie_word_embeddings=True),
    "adapter": Lora(source(0), rank=4, alpha=64.0, dora=True, modules_to_save=("lm_head",)),
}


def fit(folder, student=STUDENTS["llama"], *, engine=ENGINE, **settings):
    """A few steps of Veto with a teacher that follows the student; returns trainer and module."""
    objective = Veto(rollout=FromStudent(Sampling(max_new_tokens=8), engine))
    teacher = MovingAverage(replace(student, seed=1), decay=0.5)
    return fit_objective(folder, objective, student, teacher=teacher, **settings)


def fit_objective(folder, objective, student=STUDENTS["llama"], *, teacher=None, rate=None, ckpt=None, **settings):
    """A few steps, of Adam where a rate is given; returns trainer and module."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{w}>", "completion": w[::-1]}) + "\n" for w in WORDS))
    module = DistillationModule(
        objective,
        student,
        teacher=teacher,
        tokenizer=CharacterTokenizer(ALPHABET),
        optimizer=lambda parameters: torch.optim.Adam(parameters, rate) if rate else torch.optim.SGD(parameters, 0.5),
        evaluation=GREEDY,
    )
    data = PromptDataModule(
        JsonLines(train=str(rows), validation=str(rows), verifier=ExactMatch()),
        batch_size=8,
        max_prompt_tokens=32,
        max_completion_tokens=32,
    )
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    common = {"accelerator": "cpu", "max_steps": STEPS, "num_sanity_val_steps": 0, "use_distributed_sampler": False}
    trainer = L.Trainer(default_root_dir=str(folder), **quiet | common | settings)
    trainer.fit(module, data, ckpt_path=ckpt)
    return trainer, module


class Watch(L.Callback):
    """After each step: texts of student and teacher by vLLM and by the own loop, and what vLLM says of its samples."""

    def __init__(self, engine=ENGINE, writers=2):
        self.engine, self.seen, self.writers = engine, [], (FromStudent, FromTeacher)[:writers]

    def on_train_batch_end(self, trainer, module, *_):
        models, step = module.models, Step(trainer.global_step, STEPS, seed=5)
        batch = prompt_batch(models, [f"{word}>" for word in WORDS])
        texts = [[who(GREEDY, *by)(batch, models, step) for by in ((self.engine,), ())] for who in self.writers]
        rows = FromStudent(SAMPLED, self.engine)(batch, models, step)
        with torch.no_grad():
            logits = models.student(rows, lambda hidden, lm: lm.project(hidden)[0])
        own = SAMPLED.shape(logits).gather(1, rows.token_ids()[:, None])[:, 0]
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.seen.append((*texts, own, rows.sampled_logp()[rows.predictions], logged))


def on_rank(folder, strategies, tensor_parallel):
    """What one of two ranks saw of runs: whether greedy texts agree, log-probabilities, and the weights in the end."""
    return [_watched(folder, strategy, replace(ENGINE, tensor_parallel=tensor_parallel)) for strategy in strategies]


def _watched(folder, strategy, engine):
    watch = Watch(engine)
    _, module = fit(
        Path(folder), engine=engine, max_steps=2, limit_val_batches=1, devices=2, callbacks=[watch],
        strategy=FullyShard() if strategy == "fsdp2" else strategy,
    )  # fmt: skip
    agree = [
        [theirs.tolist() for theirs in texts[0].completions()] == [ours.tolist() for ours in texts[1].completions()]
        for *writers, _, _, _ in watch.seen
        for texts in writers
    ]
    gaps = [(own - reported).abs().max() for _, _, own, reported, _ in watch.seen]
    return {"agree": agree, "gap": torch.stack(gaps), "weights": full_weights(module.student)}


NAME = "served"
"""What the server calls its model."""


def stored(folder, model):
    """The folder, with a model and the tokenizer of these runs in it."""
    folder.mkdir(exist_ok=True)
    model.load().save_pretrained(folder)
    CharacterTokenizer(ALPHABET).load().save_pretrained(folder)
    return folder


@contextmanager
def vllm_server(folder, *options):
    """The address of a server of vLLM on this machine's CPU, with the model of a folder."""
    log = folder.with_suffix(".log")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port),
        "--host", "127.0.0.1", "--served-model-name", NAME, "--max-model-len", "64", "--enforce-eager",
        "--dtype", "float32", "--kv-cache-memory-bytes", str(CACHE), *options,
    ]  # fmt: skip
    environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1", "no_proxy": "127.0.0.1"}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    with open(log, "w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def _wait(url, process, log, seconds=300):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.5)
    raise AssertionError(f"the server did not come up:\n{log.read_text()[-3000:]}")

"""Time of a whole on-policy step: rollout, teacher, student, backward pass and optimizer; veto_pl against TRL.

Each side is the real training loop of its framework, Lightning's `Trainer.fit` with `DistillationModule` and the
`train` of TRL's `DistillationTrainer` and `GKDTrainer`, on copies of one student (33M parameters), one teacher (71M), V
49152, the same prompts in the same order and completions of the same lengths (see `step_models`). Every loop runs in a
thread of its own that waits at the beginning of each step until it is let through, so exactly one of them works at a
time and all take turns, step by step; a step is the time from one gate to the next, data loading and logging included.

All use float32, fused AdamW, clipping at 1, temperature 1 without truncation, and no activation checkpointing. That is
better for TRL than its defaults, which checkpoint and use bfloat16; with checkpointing, GKD also loses its KV cache.
The two TRL trainers and `veto_pl` minimise the same divergence; TRL has no Veto.

    python benchmarks/step.py [--quick] [--steps 5] [--divergence reverse_kl | jsd] [--threads 1]
"""

import argparse
import contextlib
import copy
import io
import logging
import os
import statistics
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}

import lightning as L
import torch
from datasets import Dataset
from measuring import conditions, markdown_table, matrix_rate
from step_models import (
    FIRST,
    LONGEST,
    TEACHER,
    TOKENIZER,
    Countdown,
    arithmetic,
    drawn_lengths,
    geometric_lengths,
    prompt,
    source,
)
from torch.optim import AdamW
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback
from turnstile import LightningGate, Loop, TrlGate, Turnstile

from veto_pl import DistillationModule
from veto_pl.data.collate import Collator
from veto_pl.objectives import GKD, Veto
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.seams import Example, Objective

WIDTH = 64
LEARNING_RATE = 1e-6
BETAS = {"reverse_kl": 1.0, "jsd": 0.5}


@dataclass(frozen=True)
class Work:
    """What all sides are given.

    Args:
        prompts: of all steps, in order.
        lengths: of the completions.
        batch: prompts of a step.
        beta: 1 for the reverse KL, between 0 and 1 for the JSD.
        student: copied by each side.
        teacher: shared.
    """

    prompts: list[str]
    lengths: list[int]
    batch: int
    beta: float
    student: PreTrainedModel
    teacher: PreTrainedModel

    @property
    def steps(self) -> int:
        return len(self.prompts) // self.batch


def veto_pl(work: Work, objective: Objective, phases: list[dict[str, float]]) -> Loop:
    """Lightning's loop; `phases` collects the seconds of each phase, step by step."""
    module = DistillationModule(
        objective,
        Countdown(),
        source(TEACHER, seed=1),
        TOKENIZER,
        optimizer=lambda parameters: AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True),
    )
    examples = [Example(text) for text in work.prompts]
    loader = DataLoader(examples, work.batch, collate_fn=Collator(tokenizer=module.tokenizer))
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}

    def loop(turnstile: Turnstile) -> None:
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=work.steps,
            gradient_clip_val=1.0,
            enable_model_summary=False,
            callbacks=[LightningGate(turnstile, phases)],
            **options,
        )
        trainer.fit(module, loader)

    return loop


def trl_arguments(work: Work, folder: str) -> dict:
    """Settings that both TRL trainers share."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": work.batch,
        "max_steps": work.steps,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "beta": work.beta,
        "temperature": 1.0,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def trl_distillation(work: Work, folder: str) -> Loop:
    from trl import DistillationConfig, DistillationTrainer

    arguments = DistillationConfig(
        **trl_arguments(work, folder), top_p=1.0, top_k=0, max_completion_length=LONGEST, shuffle_dataset=False
    )
    rows = Dataset.from_dict({"prompt": work.prompts})
    return trl_loop(DistillationTrainer, work, arguments, rows)


def trl_gkd(work: Work, folder: str) -> Loop:
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    arguments = GKDConfig(
        **trl_arguments(work, folder), lmbda=1.0, max_new_tokens=LONGEST, train_sampling_strategy="sequential"
    )
    ids = TOKENIZER.load()(work.prompts)["input_ids"]
    # It wants a completion, which it never reads at lmbda = 1.
    masks = [[0] * len(row) + [1] for row in ids]
    columns = {"prompt": work.prompts, "input_ids": [[*row, FIRST] for row in ids], "completion_mask": masks}
    return trl_loop(GKDTrainer, work, arguments, Dataset.from_dict(columns))


def trl_loop(trainer_class: type, work: Work, arguments: object, rows: Dataset) -> Loop:
    trainer = trainer_class(
        copy.deepcopy(work.student), work.teacher, arguments, train_dataset=rows, processing_class=TOKENIZER.load()
    )

    def loop(turnstile: Turnstile) -> None:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(TrlGate(turnstile))
        trainer.train()

    return loop


def sides(work: Work, phases: list[dict[str, float]], folder: str) -> dict[str, Loop]:
    sampling = Sampling(max_new_tokens=LONGEST)
    return {
        "veto_pl": veto_pl(work, GKD(lmbda=1.0, beta=work.beta, sampling=sampling), phases),
        "veto_pl, Veto": veto_pl(work, Veto(rollout=FromStudent(sampling)), []),
        "TRL DistillationTrainer": trl_distillation(work, folder),
        "TRL GKDTrainer": trl_gkd(work, folder),
    }


def compare(work: Work, phases: list[dict[str, float]]) -> dict[str, list[float]]:
    """Seconds of every step but the first and the last, which also set up and take down."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        loops = {name: Turnstile(loop) for name, loop in sides(work, phases, folder).items()}
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        for index in range(work.steps):
            shift = index % len(loops)
            for name in list(loops)[shift:] + list(loops)[:shift]:
                seconds[name].append(loops[name].step())
    return {name: values[1:-1] for name, values in seconds.items()}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the frameworks say about themselves."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def work_of(lengths: list[int], batch: int, beta: float) -> Work:
    generator = torch.Generator().manual_seed(1)
    prompts = [prompt(length, WIDTH, generator) for length in lengths]
    work = Work(prompts, lengths, batch, beta, Countdown().load(), source(TEACHER, seed=1).load().requires_grad_(False))
    ids = torch.tensor(TOKENIZER.load()(prompts[:batch])["input_ids"])
    drawn = drawn_lengths(work.student, ids)
    assert drawn == lengths[:batch], f"completions must have the lengths {lengths[:batch]}, got {drawn}"
    return work


def report(name: str, work: Work, rate: float) -> None:
    phases: list[dict[str, float]] = []
    seconds = compare(work, phases)
    steps = [work.lengths[i : i + work.batch] for i in range(work.batch, len(work.lengths) - work.batch, work.batch)]
    floors = [arithmetic(work.student, work.teacher, WIDTH, lengths) / rate for lengths in steps]
    ours = seconds["veto_pl"]
    rows = [
        [side, statistics.median(own), median_ratio(own, ours), median_ratio(own, floors)]
        for side, own in {**seconds, "arithmetic alone": floors}.items()
    ]
    mean = statistics.mean(length for step in steps for length in step)
    print(f"\n{name}: batch {work.batch}, {WIDTH} + {mean:.1f} tokens (at most {LONGEST}), {len(steps)} steps\n")
    print(markdown_table(["side", "seconds per step", "to veto_pl", "to the arithmetic"], rows))
    # The first reading is empty, and each reading belongs to the step before.
    measured = phases[2:]
    spent = {phase: statistics.median(reading[phase] for reading in measured) for phase in measured[0]}
    spent.pop("data", None)  # waiting at the gate
    shares = [[phase, f"{100 * value / sum(spent.values()):.0f} %"] for phase, value in spent.items()]
    print()
    print(markdown_table(["phase of veto_pl", "share of the wall-clock time"], shares), flush=True)


def median_ratio(seconds: list[float], reference: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(seconds, reference, strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each side")
    parser.add_argument("--quick", action="store_const", dest="steps", const=1)
    parser.add_argument("--divergence", choices=BETAS, default="reverse_kl")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rate, beta = matrix_rate(), BETAS[given.divergence]
    print(conditions("veto_pl", "trl", "transformers", "lightning"))
    models = {"student": Countdown().load(), "teacher": source(TEACHER, seed=1).load()}
    sizes = ", ".join(f"{name} {model.num_parameters() / 1e6:.1f}M" for name, model in models.items())
    print(f"{given.divergence}, {sizes}, matrix products at {rate / 1e9:.0f} GFLOP/s")
    steps = given.steps + 2
    report("equal lengths", work_of([LONGEST] * 4 * steps, 4, beta), rate)
    lengths = geometric_lengths(16 * steps, 24.0, torch.Generator().manual_seed(0))
    report("geometric lengths", work_of(lengths, 16, beta), rate)


if __name__ == "__main__":
    main()

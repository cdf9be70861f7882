"""A whole step by Lightning's own loop: its phases, its memory against the plan, and TRL's step beside it."""

import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import lightning as L
import torch
from gpu_checks.place import FIRST_CHARACTER, Place
from gpu_checks.verdict import Verdict
from torch.utils.data import DataLoader
from veto_pl.divergences import ForwardKL

from veto_pl import DistillationModule
from veto_pl.objectives import Veto
from veto_pl.planning.devices import LAUNCH, Device
from veto_pl.planning.placement import Placement
from veto_pl.planning.rollout import Lengths
from veto_pl.planning.run_plan import plan
from veto_pl.planning.simulation import Setting
from veto_pl.rollouts import FromStudent, Sampling

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
STEPS = 3
PRECISIONS = {"bf16-mixed": "float32", "32-true": "bfloat16"}
"""The dtype of the student's weights, by the trainer's precision: the recipes' and the paper's own."""


def sizes(place: Place) -> tuple[int, int, int]:
    """Prompts of a step, their tokens, and new ones."""
    return (2, 8, 8) if place.smoke else (8, 256, 256)


class Watch(L.Callback):
    """Seconds and the highest memory of each step."""

    def __init__(self, place: Place) -> None:
        self.place, self.seconds, self.peaks, self.start = place, [], [], 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        if not self.place.smoke:
            torch.cuda.reset_peak_memory_stats()
        self.place.wait()
        self.start = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.place.wait()
        self.seconds.append(time.perf_counter() - self.start)
        self.peaks.append(0 if self.place.smoke else torch.cuda.max_memory_allocated())


def measure(place: Place) -> Iterator[Verdict]:
    for precision, dtype in PRECISIONS.items():
        module, watch = _fit(place, precision, dtype)
        phases = {name: seconds for name, seconds in module.logged.items() if "seconds" in name}
        module.models = None  # the plan makes skeletons of its own
        rows, prompt, new = sizes(place)
        setting = Setting(Lengths(prompt, new), rows, 0, 1, precision)
        device = Device("this", 2**40, place.rate, place.rate / 15, place.bandwidth, LAUNCH)
        planned = plan(_module(place, dtype), setting, Placement(), device)
        seconds = sum(part.seconds or 0.0 for part in planned.work)
        measured = watch.peaks[-1] or planned.peak.total  # which is not measured on a CPU
        yield Verdict.judged(
            f"step in {precision}, planned over measured memory", planned.peak.total / measured,
            least=0.85, most=1.15, smoke=place.smoke, planned_gb=planned.peak.total / 1e9, step_s=watch.seconds[-1],
            measured_gb=measured / 1e9, first_step_s=watch.seconds[0], planned_s=seconds, **phases,
        )  # fmt: skip
        del module
        place.empty_cache()


def _module(place: Place, dtype: str) -> DistillationModule:
    sampling = Sampling(max_new_tokens=sizes(place)[2])
    objective = Veto(divergence=ForwardKL(), rollout=FromStudent(sampling))
    models = place.source("0.5B", dtype), place.source("7B", seed=1)
    return DistillationModule(objective, *models, tokenizer=place.tokenizer())


def _fit(place: Place, precision: str, dtype: str) -> tuple[DistillationModule, Watch]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows, prompt, _ = sizes(place)
    module, watch = _module(place, dtype), Watch(place)
    batches = DataLoader([place.prompts(rows, prompt).to("cpu") for _ in range(STEPS)], batch_size=None)
    trainer = L.Trainer(
        accelerator="cpu" if place.smoke else "gpu", devices=1, max_steps=STEPS, precision=precision,
        use_distributed_sampler=False, callbacks=[watch], gradient_clip_val=1.0, **QUIET,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, batches)
    return module, watch


def measure_trl(place: Place) -> Iterator[Verdict]:
    """Measure the step of TRL's `DistillationTrainer`, whose teacher needs a head of the student's size."""
    if find_spec("trl") is None:
        yield Verdict.skipped("step of TRL", "TRL is not installed")
        return
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    rows, prompt, new = sizes(place)
    student = place.network("0.5B")
    teacher = place.network("7B", vocab_size=place.dimensions["0.5B"]["vocab_size"]).requires_grad_(False)
    characters = torch.randint(0, place.ids - 3, (rows * STEPS, prompt)).tolist()
    texts = ["".join(chr(FIRST_CHARACTER + i) for i in row) for row in characters]
    with tempfile.TemporaryDirectory() as folder:
        config = DistillationConfig(
            output_dir=folder, per_device_train_batch_size=rows, max_steps=STEPS, learning_rate=1e-5, beta=0.0,
            temperature=1.0, top_p=1.0, top_k=0, max_completion_length=new, bf16=not place.smoke, use_cpu=place.smoke,
            gradient_checkpointing=False, save_strategy="no", logging_strategy="no", report_to="none",
            disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        data = Dataset.from_dict({"prompt": texts})
        trainer = DistillationTrainer(
            student, teacher, config, train_dataset=data, processing_class=place.tokenizer().load()
        )
        start = time.perf_counter()
        trainer.train()
        place.wait()
    yield Verdict.ran("step of TRL", step_s=(time.perf_counter() - start) / STEPS)

"""Peak memory of each rank when ranks are added: FSDP2, and DDP to compare.

    python benchmarks/ranks.py

A student of 40 million and a teacher of 107 million parameters are loaded from safetensors and make three on-policy
Veto steps with AdamW, two prompts per rank. Counted is anonymous resident memory above the level after a tiny run,
sampled every 5 ms. Files that are mapped into memory do not count, and `malloc` hands blocks above 64 KB back when
they are freed; it would keep the gathered layers otherwise (accelerators have an allocator of their own). "State" is
what arithmetic says: weights, gradients and two moments of the student and the weights of the teacher, divided by the
ranks where they are sharded.
"""

import json
import os
import re
import tempfile
import threading
import time
from pathlib import Path

import lightning as L
import torch
from measuring import markdown_table

from veto_pl import DistillationModule, PromptDataModule
from veto_pl.data import JsonLines
from veto_pl.models import CharacterTokenizer, Pretrained, RandomWeights
from veto_pl.objectives import Veto
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.testing.ranks import run_ranks

ALPHABET = "".join(map(chr, range(0x4E00, 0x4E00 + 8189)))
SIZES = {
    "student": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 12, "num_attention_heads": 8},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "teacher": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 12},
}
RUNS = [("fsdp2", 1), ("fsdp2", 2), ("fsdp2", 4), ("ddp", 1), ("ddp", 2), ("ddp", 4)]
MB = 1e6


class Watch(threading.Thread):
    """The highest anonymous memory of this process, sampled."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.base = self.peak = anonymous()
        self.start()

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, anonymous())
            time.sleep(0.005)

    def lap(self) -> float:
        """The peak since the last lap above the level at the start, in MB."""
        peak, self.peak = self.peak, anonymous()
        return (peak - self.base) / MB


class Loaded(L.Callback):
    """Notes the peak of loading."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.peak = 0.0

    def on_fit_start(self, *args) -> None:
        self.peak = self.watch.lap()


def anonymous() -> int:
    return 1024 * int(re.search(r"RssAnon:\s*(\d+)", Path("/proc/self/status").read_text()).group(1))


def prepare(folder: Path) -> dict[str, int]:
    """Writes models and rows; returns the number of parameters of each model."""
    counts = {}
    for seed, (role, dimensions) in enumerate(SIZES.items()):
        common = {"vocab_size": 8192, "num_key_value_heads": 4, "tie_word_embeddings": True}
        model = RandomWeights("llama", common | dimensions, seed=seed).load()
        counts[role] = sum(p.numel() for p in model.parameters())
        model.save_pretrained(folder / role)
        CharacterTokenizer(ALPHABET).load().save_pretrained(folder / role)
    rows = [json.dumps({"prompt": ALPHABET[i : i + 16], "completion": ALPHABET[:16]}) for i in range(64)]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    return counts


def fit(folder: str, student: str, teacher: str, strategy: str, ranks: int, *callbacks: L.Callback) -> None:
    sources = (Pretrained(str(Path(folder, role))) for role in (student, teacher))
    objective = Veto(rollout=FromStudent(Sampling(max_new_tokens=16)))
    module = DistillationModule(objective, *sources, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-4, foreach=False))
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(
        max_steps=3, accelerator="cpu", devices=ranks, strategy=strategy, limit_val_batches=0, callbacks=[*callbacks],
        use_distributed_sampler=False, default_root_dir=folder, **quiet,
    )  # fmt: skip
    trainer.fit(module, PromptDataModule(JsonLines(train=str(Path(folder, "rows.jsonl"))), batch_size=2))


def run(folder: str, strategy: str, ranks: int) -> dict[str, float]:
    fit(folder, "tiny", "tiny", strategy, ranks)
    watch = Watch()
    loaded = Loaded(watch)
    fit(folder, "student", "teacher", strategy, ranks, loaded)
    return {"loading": loaded.peak, "training": watch.lap()}


def main() -> None:
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000"}
    with tempfile.TemporaryDirectory() as folder:
        counts = prepare(Path(folder))
        whole = 4 * (4 * counts["student"] + counts["teacher"]) / MB
        rows = []
        for strategy, ranks in RUNS:
            peaks = run_ranks(run, ranks, folder, strategy, ranks)
            state = whole / ranks if strategy == "fsdp2" else whole
            highest = [max(peak[phase] for peak in peaks) for phase in ("loading", "training")]
            rows.append([f"{strategy}, {ranks}", *(f"{value:.0f}" for value in (state, *highest))])
            print(rows[-1], flush=True)
    print(f"\nStudent {counts['student'] / 1e6:.0f}M, teacher {counts['teacher'] / 1e6:.0f}M parameters, float32.\n")
    print(markdown_table(["strategy, ranks", "state (MB)", "peak while loading (MB)", "peak in training (MB)"], rows))


if __name__ == "__main__":
    main()

"""Planned against measured peak memory of whole runs on this CPU.

    python benchmarks/plan.py

Each case is a configuration that `veto-pl plan` reads and `veto-pl fit` runs, in a process of its own, for three
optimizer steps on texts of the longest admitted length. A small run of the same kind comes first, so that libraries are
loaded. The peak is the kernel's high-water mark of resident memory above the level before the run.

It is measured twice. With `MALLOC_MMAP_THRESHOLD_` of 64 KiB every tensor is a mapping of its own, which goes back to
the kernel when the tensor dies: that is what a plan predicts. With glibc's defaults freed tensors leave holes in the
heap, and the process keeps them; how large they are depends on the order of sizes, and no plan knows that.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import yaml
from measuring import conditions, markdown_table, measured

MAPPED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000"}
SIZES = {"tiny": (64, 2, 2), "3M": (256, 4, 4), "17M": (512, 4, 8), "57M": (768, 6, 12)}
VALIDATION_ROWS = 32
CHARACTERS = [*range(0x4E00, 0xA000), *range(0xAC00, 0xD7A4)]


@dataclass(frozen=True)
class Case:
    """A configuration; sizes without embeddings."""

    name: str
    student: str = "17M"
    teacher: str | None = None
    objective: str = "sft"
    vocabulary: int = 512
    prompt: int = 64
    completion: int = 64
    batch: int = 8
    accumulate: int = 1
    checkpointing: bool = False
    optimizer: str = "AdamW"
    validation: bool = False
    precision: str = "32-true"

    def small(self) -> "Case":
        """The same code on a few numbers."""
        changed = {"student": "tiny", "teacher": self.teacher and "tiny", "prompt": 8, "completion": 8, "batch": 2}
        return Case(**{**vars(self), **changed, "vocabulary": 64})


ON_POLICY = {"objective": "veto", "teacher": "17M"}
CASES = (
    Case("SFT, 3M", student="3M", batch=16),
    Case("SFT, 17M"),
    Case("SFT, 17M, SGD", optimizer="SGD"),
    Case("SFT, 57M, short", student="57M", prompt=16, completion=16, batch=4),
    Case("SFT, 17M, long", completion=960, batch=2),
    Case("SFT, 17M, long, checkpointing", completion=960, batch=2, checkpointing=True),
    Case("SFT, 17M, 32000 ids", vocabulary=32000),
    Case("SFT, 17M, accumulation over 2", accumulate=2),
    Case("SFT, 17M, bf16-mixed", precision="bf16-mixed"),
    Case("Veto, 17M by 17M", **ON_POLICY),
    Case("Veto, 3M by 57M, long", student="3M", objective="veto", teacher="57M", completion=448, batch=4),
    Case("Veto, 17M by 17M, checkpointing", **ON_POLICY, checkpointing=True),
    Case("Veto, 17M by 17M, 32000 ids", **ON_POLICY, vocabulary=32000, batch=4),
    Case("Veto, 3M by 17M, validation of 32", **(ON_POLICY | {"student": "3M"}), batch=4, validation=True),
    Case("MiniLLM, 17M by 17M", objective="minillm", teacher="17M"),
)


def write(case: Case, folder: Path) -> Path:
    """The case's data and configuration."""
    alphabet = "".join(map(chr, CHARACTERS[: case.vocabulary - 3]))
    steps, text = 3, alphabet * (2 + 2048 // len(alphabet))
    texts = [text[i : i + case.prompt] for i in range(max(case.batch * case.accumulate * steps, VALIDATION_ROWS))]
    rows = [{"prompt": prompt, "completion": text[: case.completion - 1]} for prompt in texts]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    student = _model(case, case.student)
    if case.checkpointing:
        student = _saved(student, folder / "student")
    config = {
        "run_dir": str(folder / "run"),
        "validate_first": case.validation,
        "samples": {"show": False},
        "export": {"folder": None},
        "checkpoint": {"save_last": False, "save_top_k": 0},
        "trainer": {
            "accelerator": "cpu",
            "max_steps": steps,
            "accumulate_grad_batches": case.accumulate,
            "precision": case.precision,
            "limit_val_batches": int(case.validation),
            "check_val_every_n_epoch": None,
            "val_check_interval": steps * case.accumulate,
            "logger": False,
            "enable_model_summary": False,
        },
        "data": {
            "task": _class("JsonLines", train=str(data), validation=str(data), verifier=_class("ExactMatch")),
            "batch_size": case.batch,
            "validation_batch_size": VALIDATION_ROWS,
            "max_prompt_tokens": case.prompt,
            "max_completion_tokens": case.completion,
        },
        "model": {
            "student": student,
            "teacher": case.teacher and _model(case, case.teacher),
            "tokenizer": _class("CharacterTokenizer", alphabet=alphabet),
            "objective": _objective(case),
            "optimizer": _class(f"torch.optim.{case.optimizer}", lr=1e-4),
            "evaluation": {"max_new_tokens": case.completion},
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _class(name: str, **arguments: object) -> dict:
    return {"class_path": name, "init_args": arguments}


def _model(case: Case, size: str) -> dict:
    width, layers, heads = SIZES[size]
    dimensions = {
        "vocab_size": case.vocabulary,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    }
    return _class("RandomWeights", model_type="llama", dimensions=dimensions)


def _saved(model: dict, folder: Path) -> dict:
    from veto_pl.models import RandomWeights

    RandomWeights(**model["init_args"]).load().save_pretrained(folder)
    return _class("Pretrained", path=str(folder), gradient_checkpointing=True)


def _objective(case: Case) -> dict:
    sampling = {"max_new_tokens": case.completion}
    if case.objective == "sft":
        return _class("SFT")
    if case.objective == "minillm":
        return _class("MiniLLM", sampling=sampling)
    return _class("Veto", rollout=_class("FromStudent", sampling=sampling))


def measure(case: Case) -> int:
    """Bytes that the run needed in this process."""
    import torch

    from veto_pl.cli.build import VetoCLI
    from veto_pl.plugins import load_plugins

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    load_plugins()

    def fit(config: Path) -> None:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            VetoCLI(["fit", "--config", str(config)])

    with tempfile.TemporaryDirectory() as folder:
        fit(write(case.small(), Path(folder)))
    with tempfile.TemporaryDirectory() as folder:
        config = write(case, Path(folder))
        return measured(lambda: fit(config))[1]


def measured_apart(name: str, settings: dict[str, str]) -> int:
    """`measure` in a fresh process with these settings of the allocator."""
    command = [sys.executable, __file__, "--measure", name]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return int(done.stdout.split()[-1])


def planned(case: Case) -> dict:
    """What the command says."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "veto_pl", "plan", "--config", write(case, Path(folder)), "--json"]
        command += ["--device", "CPU"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(cases: list[Case]) -> None:
    """Prints one table."""
    rows, errors = [], []
    for case in cases:
        result = planned(case)
        plan = result["peak"]["total"]
        peak, default = measured_apart(case.name, MAPPED), measured_apart(case.name, {})
        errors.append(plan / peak - 1)
        parameters = f"{result['models']['student']['parameters'] / 1e6:.1f}M"
        sizes = [f"{value / 2**20:.0f}" for value in (plan, peak, default)]
        rows.append([case.name, parameters, result["peak"]["phase"], *sizes, f"{plan / peak - 1:+.1%}"])
        print(" | ".join(map(str, rows[-1])), file=sys.stderr)
    print(conditions("lightning", "transformers"))
    heads = ["case", "student", "peak in", "planned MiB", "measured MiB", "with glibc's defaults", "error"]
    print(markdown_table(heads, rows))
    sizes = [abs(error) for error in errors]
    print(f"\nLargest error {max(sizes):.1%}, median {statistics.median(sizes):.1%}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", help="one case, in this process")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    given = parser.parse_args()
    if given.measure:
        print(measure(next(case for case in CASES if case.name == given.measure)))
    else:
        main([case for case in CASES if given.only in case.name])

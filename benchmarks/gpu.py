"""Does veto_pl work on this GPU, and how far is it from what the GPU could do? At most ten minutes, without a network.

    python benchmarks/gpu.py                          # on the first GPU
    python benchmarks/gpu.py --only loss_head,rollout
    python benchmarks/gpu.py --smoke                  # tiny models on the CPU: does the script itself run?

Random weights in the shapes of Qwen2-0.5B and Qwen2-7B. Each check prints a line for each case: PASS, FAIL or SKIP, the
name, its ratio with the bound that the ratio has to keep, and everything that was measured. A check that raises has
failed, and the others go on; one that would begin too late is skipped. With --smoke bounds of speed and memory are not
applied: PASS says that the check ran. The exit status is 1 where a check has failed.
"""

import argparse
import gc
import os
import sys
import time
import traceback

os.environ.update({"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
from gpu_checks import attention, commands, environment, learning, loss_head, recorded, rollout, step
from gpu_checks.place import Place
from gpu_checks.verdict import Verdict

CHECKS = {
    "environment": environment.measure,
    "pretrained": learning.load_without_accelerate,
    "bfloat16_updates": learning.compare_updates,
    "loss_head": loss_head.measure,
    "rollout": rollout.measure,
    "recorded": recorded.measure,
    "attention": attention.measure,
    "step": step.measure,
    "trl_step": step.measure_trl,
    "commands": commands.run,
}
ENOUGH = 30.0
"""Seconds that have to be left for a check to begin."""


def run_check(name: str, place: Place) -> list[Verdict]:
    """Run one check; whatever it raises is a failure."""
    try:
        return list(CHECKS[name](place))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {str(error)[:300]} ({os.path.basename(where.filename)}:{where.lineno})"
        return [Verdict.failed(name, said)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--only", default="", help=f"checks, with commas between them: {', '.join(CHECKS)}")
    parser.add_argument("--minutes", type=float, default=9.5, help="after which no check begins")
    given = parser.parse_args()
    names = [name for name in given.only.split(",") if name] or list(CHECKS)
    if unknown := set(names) - set(CHECKS):
        parser.error(f"unknown checks: {', '.join(sorted(unknown))}")
    place = Place.find(smoke=given.smoke)
    start, found = time.monotonic(), []
    for name in names:
        begun = time.monotonic()
        late = given.minutes * 60 - (begun - start) < ENOUGH
        verdicts = [Verdict.skipped(name, "no time was left")] if late else run_check(name, place)
        for verdict in verdicts:
            print(verdict, flush=True)
        print(f"  {name}: {time.monotonic() - begun:.0f} s", flush=True)
        found += verdicts
        gc.collect()
        place.empty_cache()
    counts = {word: sum(verdict.word == word for verdict in found) for word in ("PASS", "FAIL", "SKIP")}
    print(", ".join(f"{count} {word}" for word, count in counts.items()), f"in {time.monotonic() - start:.0f} s")
    return int(counts["FAIL"] > 0)


if __name__ == "__main__":
    torch.set_num_threads(1 if "--smoke" in sys.argv else torch.get_num_threads())
    sys.exit(main())

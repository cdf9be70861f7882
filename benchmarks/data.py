"""Seconds from a file of short rows to the first batch of a shuffled run, and the memory that this takes.

Each case is a process of its own, and the time of its imports does not count. `floor` reads the file once, `cold` has
no cache, `warm` has one, `streamed` keeps no rows. Times are ratios to the floor of the same round; memory is that of
the process above its level after the imports, in multiples of the file's size and in MB.

    python benchmarks/data.py [--rows 20000 200000] [--rounds 3] [--processes 0] [--quick]
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz ="
CASES = ("floor", "cold", "warm", "streamed")


def write_rows(path: Path, number: int) -> None:
    generator = random.Random(number)
    with path.open("w", encoding="utf-8") as file:
        for i in range(number):
            text = "".join(generator.choices(LETTERS, k=24))
            file.write(json.dumps({"prompt": f"p{text}", "completion": text[::-1], "id": i}) + "\n")


def resident(kind: str) -> int:
    """Bytes of resident memory: `VmHWM`, the peak, `VmRSS`, or `RssAnon`, what is not a file's."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition(f"{kind}:")[2].split()[0])


def first_batch(path: Path, processes: int, streaming: bool) -> None:
    from veto_pl.data import JsonLines, PromptDataModule
    from veto_pl.models import CharacterTokenizer

    tokenizer = CharacterTokenizer(LETTERS).load()
    import datasets

    assert datasets.config.HF_DATASETS_CACHE
    before, start = resident("VmRSS"), time.perf_counter()
    task = JsonLines(train=str(path), streaming=streaming)
    data = PromptDataModule(task, batch_size=8, num_workers=processes)
    data.connect(tokenizer)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert len(batch) == 8
    told = {"seconds": time.perf_counter() - start, "peak": resident("VmHWM") - before}
    print(json.dumps(told | {"whole": resident("VmRSS")}), flush=True)


def floor(path: Path) -> None:
    before, start = resident("VmRSS"), time.perf_counter()
    with path.open("rb") as file:
        while file.read(2**20):
            pass
    told = {"seconds": time.perf_counter() - start, "peak": max(0, resident("VmHWM") - before)}
    print(json.dumps(told | {"whole": resident("VmRSS")}), flush=True)


def measured(case: str, path: Path, processes: int, cache: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", case, "--file", str(path), "--processes", str(processes)]
    environment = os.environ | {"HF_DATASETS_CACHE": str(cache)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(number: int, rounds: int, processes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        write_rows(path, number)
        results: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
        for index in range(rounds):
            for case in CASES:
                cache = Path(folder, f"cache-{index}")
                results[case].append(measured(case, path, processes, cache))
        size = path.stat().st_size
    for case, runs in results.items():
        floors = [run["seconds"] for run in results["floor"]]
        ratio = statistics.median(run["seconds"] / one for run, one in zip(runs, floors, strict=True))
        seconds = statistics.median(run["seconds"] for run in runs)
        peak = max(run["peak"] for run in runs)
        cells = [f"{number}", case, f"{ratio:.0f}", f"{seconds:.2f}", f"{peak / size:.1f}", f"{peak / 1e6:.0f}"]
        print(f"| {' | '.join([*cells, format(max(run['whole'] for run in runs) / 1e6, '.0f')])} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case == "floor":
        floor(given.file)
    elif given.case:
        first_batch(given.file, given.processes, given.case == "streamed")
    else:
        print("| rows | case | time / floor | seconds | peak / file | peak (MB) | process (MB) |")
        print("| ---: | :--- | ---: | ---: | ---: | ---: | ---: |")
        for number in [5000] if given.quick else given.rows:
            report(number, 1 if given.quick else given.rounds, given.processes)


if __name__ == "__main__":
    main()

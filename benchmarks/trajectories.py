"""Does what TCOD and SOD say of agents show with tiny ones, in `House` and with `Abacus`?

    python benchmarks/trajectories.py                          # five seeds; a run that was stopped goes on
    python benchmarks/trajectories.py --write docs/trajectories.md

The rules stand in `docs/trajectories.md`; they were written before the runs. A difference counts where its 95% interval
over seeds excludes 0.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import trajectories_abacus as abacus
import trajectories_house as house
from trajectories_report import abacus_report, house_report, pictures
from trajectories_runs import Finished

BEGIN, END = "<!-- results -->", "<!-- end of results -->"
SEEDS = (1, 2, 3, 4, 5)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="0 is that which the sizes were chosen by")
    parser.add_argument("--out", type=Path, default=Path("runs/trajectories"), help="where models and runs are kept")
    parser.add_argument("--write", type=Path, help="the page whose results are replaced, docs/trajectories.md")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    done = Finished(given.out / "runs.jsonl")
    for seed in given.seeds:  # both studies of a seed before the next one, so that those that are done have all arms
        for study in (house, abacus):
            study.run(done, given.out, [seed], study.Sizes())
    text = "\n".join([*house_report(done), "", *abacus_report(done)])
    print(text)
    if given.write is not None:
        page = given.write.read_text(encoding="utf-8")
        files = pictures(done, given.write.parent / "images")
        text += "".join(f"\n\n![{file.stem}](images/{file.name})" for file in files)
        before, _, rest = page.partition(BEGIN)
        given.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()

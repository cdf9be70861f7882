"""Does what TCOD and SOD say of agents show with tiny ones, in `House`, with `Abacus`, and in games of TextWorld?

    python benchmarks/trajectories.py                          # five seeds; a run that was stopped goes on
    python benchmarks/trajectories.py --write docs/trajectories.md
    python benchmarks/trajectories.py --studies textworld --write docs/reproduction.md    # needs the extra `textworld`

The rules stand on these pages; they were written before the runs. A difference counts where its 95% interval over seeds
excludes 0.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import trajectories_abacus as abacus
import trajectories_house as house
import trajectories_textworld as textworld
from small_study import quietly
from trajectories_report import abacus_report, curriculum_report, pictures
from trajectories_runs import Finished

BEGIN, END = "<!-- trajectories -->", "<!-- end of trajectories -->"
SEEDS = (1, 2, 3, 4, 5)
STUDIES = {"house": house.study, "abacus": abacus.study, "textworld": textworld.study}
TITLES = {"house": "House", "textworld": "TextWorld"}
"""Of the studies of a curriculum."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=["house", "abacus"])
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="0 is that which the sizes were chosen by")
    parser.add_argument("--out", type=Path, default=Path("runs/trajectories"), help="where models and runs are kept")
    parser.add_argument("--write", type=Path, help="the page whose results are replaced")
    given = parser.parse_args(arguments)
    quietly()
    done = Finished(given.out / "runs.jsonl")
    studies = [STUDIES[name](given.out) for name in given.studies]
    for seed in given.seeds:  # all studies of a seed before the next one, so that those that are done have all arms
        for study in studies:
            study.run(done, given.out, [seed])
    text = "\n\n".join("\n".join(report(done, name)) for name in given.studies)
    print(text)
    if given.write is not None:
        replace_results(given.write, f"{text}{''.join(shown_pictures(done, given.studies, given.write.parent))}")


def report(done: Finished, name: str) -> list[str]:
    return curriculum_report(done, name, TITLES[name]) if name in TITLES else abacus_report(done)


def shown_pictures(done: Finished, names: Sequence[str], folder: Path) -> list[str]:
    """Draw the pictures of the studies of a curriculum into a folder of images; returns what shows them."""
    files = [file for name in names if name in TITLES for file in pictures(done, name, TITLES[name], folder / "images")]
    return [f"\n\n![{file.stem}](images/{file.name})" for file in files]


def replace_results(file: Path, text: str) -> None:
    """Put a text in place of what stands between the marks of a page."""
    before, _, rest = file.read_text(encoding="utf-8").partition(BEGIN)
    file.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Does a student learn of each teacher what that teacher knows, where rows name their teacher?

    python benchmarks/routing.py     # 12 trainings, about twenty minutes of one core; a study that was stopped goes on

Two teachers of 110k parameters, letter by letter: one has learnt to spell words of 3 to 5 letters backward, the other
sums of two or three digits (reasoning-gym: `spell_backward`, `chain_sum`). A student of the same size, with new
weights, reads rows of both tasks in equal parts; each row's teacher is the one that its data set names, and its loss
the forward KL to that teacher on the task's answers (`Distill` with `Routed`). In the other arm the two names are
swapped. Tested are 400 held-out rows of each task, greedily.

The rule, written before the runs, over seeds 1 to 5, each a start of the student and an order of the rows of its own:

1. routing works, if on both tasks the lower end of the 95% t interval of the student's accuracy, divided by its
   teacher's, is at least 0.9;
2. it is the routes that do it, if on both tasks the interval of the routed student's accuracy minus that of the swapped
   one lies above 0, and that of the swapped student's share of the teacher's accuracy below 0.9.

The sizes were chosen on seed 0.
"""

from __future__ import annotations

import argparse
import string
from pathlib import Path

from small_study import fitted, llama, quietly, tell_routes

from veto_pl import PromptDataModule
from veto_pl.data import DataSet, Mixed, PlainTemplate, ReasoningGym
from veto_pl.models import CharacterTokenizer, Pretrained
from veto_pl.objectives import SFT, Distill
from veto_pl.parts.divergences import ForwardKL
from veto_pl.parts.panels import Routed

TOKENIZER = CharacterTokenizer("> +-=" + string.digits + string.ascii_letters)
SPLITS = {"seed": 1, "validation_size": 8, "test_size": 400}
SPELLING = ReasoningGym(
    dataset="spell_backward", size=20_000, arguments={"min_word_len": 3, "max_word_len": 5}, **SPLITS
)
SUMS = ReasoningGym(
    dataset="chain_sum", size=40_000, arguments={"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1},
    **SPLITS,
)  # fmt: skip
TASKS = {
    "spelling": DataSet(task=SPELLING, template=PlainTemplate("{metadata[word]}>"), teacher="spelling", weight=1.0),
    "sums": DataSet(task=SUMS, template=PlainTemplate("{metadata[expression]}="), teacher="sums", weight=1.0),
}
ARMS = {"routed": Routed(), "swapped": Routed(routes={"spelling": "sums", "sums": "spelling"})}
STEPS = {"spelling": 400, "sums": 800, "student": 1600}
RATE = 4e-3
SEEDS = (1, 2, 3, 4, 5)


def rows_of(*names: str):
    """Makes the data module of a seed, with rows of these tasks."""
    return lambda seed: PromptDataModule(
        Mixed(sets={name: TASKS[name] for name in names}), batch_size=64, validation_batch_size=400,
        max_prompt_tokens=16, max_completion_tokens=8, seed=seed,
    )  # fmt: skip


def fresh(seed: int):
    return llama(len(TOKENIZER.load().get_vocab()), width=64, layers=2, seed=seed)


def teacher(name: str, out: Path) -> tuple[Path, float]:
    """Where a teacher is, and its accuracy on its own task."""
    place, tested, _ = fitted(
        SFT(), fresh(0), rows_of(name), out / f"teacher-{name}", steps=STEPS[name], rate=RATE, seed=0,
        tokenizer=TOKENIZER,
    )  # fmt: skip
    return place, tested[f"test/{name}/accuracy"]


def student(arm: str, seed: int, teachers: dict[str, Path], out: Path) -> dict[str, float]:
    """The accuracies of a student by task."""
    _, tested, _ = fitted(
        Distill(divergence=ForwardKL(), panel=ARMS[arm]), fresh(100 + seed), rows_of(*TASKS), out / f"{arm}-{seed}",
        steps=STEPS["student"], rate=RATE, seed=seed, tokenizer=TOKENIZER,
        teachers={name: Pretrained(str(place)) for name, place in teachers.items()},
    )  # fmt: skip
    return {name: tested[f"test/{name}/accuracy"] for name in TASKS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/routing"), help="where the models are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    given = parser.parse_args()
    quietly()
    made = {name: teacher(name, given.out) for name in TASKS}
    places, known = (
        {name: place for name, (place, _) in made.items()},
        {name: score for name, (_, score) in made.items()},
    )
    print("teachers:", {name: f"{score:.1%}" for name, score in known.items()}, flush=True)
    found: dict[str, dict[int, dict[str, float]]] = {arm: {} for arm in ARMS}
    for seed in given.seeds:
        for arm in ARMS:
            found[arm][seed] = student(arm, seed, places, given.out)
            print(seed, arm, found[arm][seed], flush=True)
    tell_routes(found, known, ("routing works", "by the routes"))


if __name__ == "__main__":
    main()

"""Does a student of teachers that debate pass each single teacher, and the plain average of both (arXiv 2605.01347)?

    python benchmarks/debate.py                  # teachers, then 5 seeds of 5 methods, on one thread
    python benchmarks/debate.py --seeds 0 --steps 20

Everything is constructed. A prompt is a task and four letters: `n` asks for the letter behind each, `p` for the one
before. Each teacher has been trained on one of the tasks alone, and does it whatever is asked. Both were taught to end
what they say in a debate with 95 on their own task and 05 on the other, and to repeat, in a later round and in front of
the student's answer, what the one with 95 has said. In those lessons the other's answer was four random letters, so
that neither could learn the other's task.

The rules, written before any run. A student's accuracy is that of its greedy answers, the mean over both tasks. Over
five seeds, paired where both sides have seeds, a difference counts where its 95% t interval is above 0:

1. the debate passes each teacher, if its students' accuracy minus the teacher's own mean accuracy is above 0 for both;
2. it passes each single-teacher student, if it is above the students of one teacher alone, for both;
3. it passes plain averaging, if it is above the students of `Together`;
4. its weights matter, if it is above the same debate with equal weights.

All students have the same start for a seed, the same loss (JSD 0.5, every completion alike), prompts and steps.
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from measuring import markdown_table

from veto_pl.compare.results import Estimate
from veto_pl.compare.statistics import contrast
from veto_pl.data.collate import Collator
from veto_pl.models import CharacterTokenizer, RandomWeights
from veto_pl.models.assemble import load_models
from veto_pl.objectives import MADOPD, SFT
from veto_pl.objectives.token_objective import TokenObjective
from veto_pl.parts.panels import OneTeacher, Together
from veto_pl.rollouts import Debate, FromStudent, Sampling
from veto_pl.seams import Example, Models, Step

LETTERS = "abcdefghij"
TASKS = {"n": 1, "p": -1}
"""How far each letter moves."""
NAMES = {"n": "onward", "p": "back"}
TOKENIZER = CharacterTokenizer(LETTERS + "0123456789np:>?|")
SIZES = {
    "vocab_size": 29, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 96, "tie_word_embeddings": True,
}  # fmt: skip
ANSWER = Sampling(temperature=1.0, max_new_tokens=6)
DEBATE = Debate(
    teachers=tuple(NAMES.values()),
    sampling=Sampling(temperature=0.7, top_p=0.8, top_k=20, max_new_tokens=8),
    first="{state}?", following="{debate}{state}?", reading="{debate}{state}", entry="{expert}{text}|",
    confidence=r"(\d\d)",
)  # fmt: skip
METHODS = {
    "onward alone": OneTeacher("onward"),
    "back alone": OneTeacher("back"),
    "average": Together(),
    "debate, equal weights": replace(DEBATE, temperature=1e6),
    "debate": DEBATE,
}
BATCH, TESTED = 32, 200


def word(generator: random.Random) -> str:
    return "".join(generator.choice(LETTERS) for _ in range(4))


def solved(task: str, letters: str) -> str:
    """The answer of a task: every letter moved around the circle of letters."""
    return "".join(LETTERS[(LETTERS.index(letter) + TASKS[task]) % len(LETTERS)] for letter in letters)


def asked(task: str, letters: str) -> str:
    return f"{task}:{letters}>"


def rows(generator: random.Random, count: int) -> list[Example]:
    """Prompts of both tasks in turn, with the right answers."""
    found = []
    for place in range(count):
        task, letters = "np"[place % 2], word(generator)
        found.append(Example(asked(task, letters), solved(task, letters), {"task": task}))
    return found


def lessons(own: str, generator: random.Random, count: int) -> list[Example]:
    """What a teacher of one task is taught: to answer, to speak in two rounds, and to answer behind a debate."""
    return [_lesson(own, generator, place % 4) for place in range(count)]


def _lesson(own: str, generator: random.Random, kind: int) -> Example:
    task, letters, other = generator.choice("np"), word(generator), word(generator)
    mine, sure = solved(own, letters), task == own
    said = [f"{mine}{'95' if sure else '05'}", f"{other}{'05' if sure else '95'}"]
    first = "".join(f"{expert}{text}|" for expert, text in enumerate(said if own == "n" else said[::-1], 1))
    told = mine if sure else other
    again = [f"{told}{'95' if sure else '05'}", f"{told}{'05' if sure else '95'}"]
    second = "".join(f"{expert}{text}|" for expert, text in enumerate(again if own == "n" else again[::-1], 1))
    question = asked(task, letters)
    return [
        Example(question, mine),
        Example(f"{question}?", said[0]),
        Example(f"{first}{question}?", again[0]),
        Example(f"{first}{second}{question}", told),
    ][kind]


def train(
    objective: TokenObjective, models: Models, batches: Iterator[Sequence[Example]], steps: int, rate: float, seed: int
) -> None:
    """Train the student for some steps of AdamW, whose rate falls to 0."""
    optimizer = torch.optim.AdamW(models.student.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    collator = Collator(tokenizer=models.tokenizer)
    for index in range(steps):
        step, batch = Step(index, steps, seed=seed), collator(list(next(batches)))
        rollout = objective.rollout(batch, models, step)
        loss = objective.loss({objective.rollout: rollout}, models, step).terms["loss"]
        optimizer.zero_grad()
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(models.student.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def accuracy(models: Models, teacher: str | None = None) -> dict[str, float]:
    """The share of right greedy answers by task."""
    tested = rows(random.Random("test"), TESTED)
    batch = Collator(tokenizer=models.tokenizer)(tested)
    chosen = models if teacher is None else replace(models, student=models.teachers[teacher])
    source = FromStudent(replace(ANSWER, temperature=0.0))
    texts = source(batch, chosen, Step(0, 1)).texts(models.tokenizer)
    right = [(e.row["task"], text == e.completion) for e, text in zip(tested, texts, strict=True)]
    return {task: sum(ok for t, ok in right if t == task) / (TESTED // 2) for task in TASKS}


def endless(make: Callable[[random.Random], list[Example]], name: str) -> Iterator[list[Example]]:
    generator = random.Random(name)
    while True:
        yield make(generator)


def trained_teachers(steps: int) -> dict[str, torch.nn.Module]:
    """The two teachers, each trained on the lessons of its task."""
    found = {}
    for place, (task, name) in enumerate(NAMES.items()):
        models = load_models(RandomWeights("llama", SIZES, seed=100 + place), None, TOKENIZER.load())
        batches = endless(lambda generator, task=task: lessons(task, generator, 64), f"lessons {name}")
        train(SFT(), models, batches, steps, 4e-3, place)
        found[name] = models.student.requires_grad_(False).eval()
    return found


def student_of(panel, teachers: Mapping[str, torch.nn.Module], seed: int, warm: int, steps: int) -> dict[str, float]:
    """Start a student on a few right answers, let it learn by a panel, and test it."""
    models = load_models(RandomWeights("llama", SIZES, seed=seed), None, TOKENIZER.load())
    models = replace(models, teachers=copy.copy(dict(teachers)))
    train(SFT(), models, endless(lambda g: rows(g, BATCH), f"warm {seed}"), warm, 4e-3, seed)
    if panel is not None:
        objective = MADOPD(rollout=FromStudent(ANSWER), panel=panel)
        train(objective, models, endless(lambda g: rows(g, BATCH), f"train {seed}"), steps, 4e-3, seed)
    return accuracy(models)


def shown(difference: Estimate) -> str:
    return f"{100 * difference.mean:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def report(found: Mapping[str, Mapping[int, float]], teachers: Mapping[str, float]) -> str:
    """The differences of the rules, and what follows."""
    lines = []

    def compared(rule: str, others: Mapping[str, Mapping[int, float]]) -> None:
        parts = {name: contrast(found["debate"], values).difference for name, values in others.items()}
        holds = all(part.low > 0 for part in parts.values())
        told = "; ".join(f"minus {name} {shown(part)} points" for name, part in parts.items())
        lines.append(f"{rule}: {'shown' if holds else 'not shown'} ({told})")

    constant = {f"the {name} itself": dict.fromkeys(found["debate"], value) for name, value in teachers.items()}
    compared("1. passes each teacher", constant)
    compared("2. passes each single-teacher student", {name: found[name] for name in list(METHODS)[:2]})
    compared("3. passes plain averaging", {"average": found["average"]})
    compared("4. weights matter", {"debate, equal weights": found["debate, equal weights"]})
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--lessons", type=int, default=500, help="steps of a teacher's training")
    parser.add_argument("--warm", type=int, default=75, help="steps of a student's start")
    parser.add_argument("--steps", type=int, default=60, help="steps of a student's training")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    teachers = trained_teachers(given.lessons)
    models = load_models(RandomWeights("llama", SIZES, seed=0), None, TOKENIZER.load())
    own = {name: accuracy(replace(models, teachers=teachers), name) for name in teachers}
    print({name: {t: f"{a:.1%}" for t, a in by_task.items()} for name, by_task in own.items()}, flush=True)
    found: dict[str, dict[int, float]] = {}
    tasks: dict[str, list[dict[str, float]]] = {}
    for seed in given.seeds:
        for name, panel in {"start": None, **METHODS}.items():
            by_task = student_of(panel, teachers, seed, given.warm, given.steps)
            found.setdefault(name, {})[seed] = sum(by_task.values()) / 2
            tasks.setdefault(name, []).append(by_task)
            told = {task: f"{share:.1%}" for task, share in by_task.items()}
            print(seed, name, told, f"{time.process_time() - began:.0f} s", flush=True)
    table = [
        [name, *(f"{100 * sum(one[task] for one in tasks[name]) / len(tasks[name]):.1f}" for task in TASKS),
         f"{100 * sum(values.values()) / len(values):.1f}"]
        for name, values in found.items()
    ]  # fmt: skip
    print(markdown_table(["student of", "onward", "back", "mean"], table))
    means = {name: sum(by_task.values()) / 2 for name, by_task in own.items()}
    print(report(found, means))


if __name__ == "__main__":
    main()

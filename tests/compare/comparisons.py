import math
import random

from veto_pl.compare.results import Answer, Comparison, Cost, Search, Trial
from veto_pl.compare.statistics import contrasts, estimate
from veto_pl.metrics import Accuracy, MeanReward, PassAtK, SelfBLEU
from veto_pl.report.columns import Shown
from veto_pl.report.run import Run
from veto_pl.storage.journals import describe_metrics

QUANTITIES = ("greedy/accuracy", "greedy/mean_reward", "sampled/pass@8", "sampled/self_bleu")
SHOWN = {
    name: Shown(**of)
    for name, of in describe_metrics({m.name: m for m in (Accuracy(), MeanReward(), PassAtK(8), SelfBLEU())}).items()
}
WORDS = ("The", " sum", " of", " 12", " and", " 30", " is", " therefore", " 42", ".", "\n", " So", " we", " add", ":")


class Maker:
    """Writes run folders and makes comparisons of them; everything follows from the seed."""

    def __init__(self, folder):
        self.folder, self.noise = folder, random.Random(0)

    def run(self, method, seed, steps, level, more=0):
        folder = self.folder / f"run{len(list(self.folder.iterdir()))}"
        folder.mkdir()
        columns = ("train/loss", "train/grad_norm", "validation/accuracy", "validation/reverse_kl")
        columns += tuple(f"train/more_{i}" for i in range(more))
        lines = [",".join(("epoch", "step", *columns))]
        for step in range(steps + 1):
            loss = 2.5 * math.exp(-4 * step / steps) + abs(self.noise.gauss(0.4, 0.1))
            norm = math.exp(self.noise.gauss(0.3, 0.5)) * (40 if self.noise.random() < 0.004 else 1)
            validated = step % max(1, steps // 10) == 0
            share = level * (1 - math.exp(-3 * step / steps)) + self.noise.gauss(0, 0.015)
            cells = [0, step, *((loss, norm) if step else ("", "")), *((share, 1.2 - share) if validated else ("", ""))]
            cells += [round(loss + self.noise.gauss(0, 0.1), 4) for _ in range(more)]
            lines.append(",".join(map(str, cells)))
        (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
        return Run(f"{method} {seed}", folder)

    def answer(self, j, tokens, reward=0.0, **changes):
        texts = tuple(self.noise.choice(WORDS) for _ in range(tokens))
        kl = [tuple(self.noise.expovariate(rate) ** 1.6 for _ in range(tokens)) for rate in (2.5, 4)]
        return Answer(**({
            "prompt": f"Row {j}: how much is 12 + 30?", "reference": "42", "reward": reward, "tokens": texts,
            "forward_kl": kl[0], "reverse_kl": kl[1],
        } | changes))  # fmt: skip

    def values(self, level, quantities):
        scale = {"sampled/self_bleu": 60.0}
        return {q: scale.get(q, 1.0) * min(1.0, max(0.0, self.noise.gauss(level, 0.02))) for q in quantities}

    def __call__(
        self, methods=("SFT", "GKD", "Veto", "MiniLLM"), seeds=(0, 1, 2, 3, 4), *, steps=100, prompts=3, tokens=40,
        quantities=QUANTITIES, baseline=None, answer=None, more=0, **changes,
    ):  # fmt: skip
        answer = answer or self.answer
        trials = []
        for i, method in enumerate(methods):
            level = 0.4 + 0.3 * math.sin(1 + i)
            for seed in seeds:
                answers = tuple(answer(j, tokens, reward=float((i + j) % 2)) for j in range(prompts))
                cost = Cost(steps, 1000 * steps + 37 * seed, 0.4 * steps + seed)
                values = self.values(level, quantities)
                trials.append(
                    Trial(method, seed, self.run(method, seed, steps, level, more), values, cost, answers, SHOWN)
                )
        baseline = baseline or methods[0]
        fields = {
            "title": "Objectives at equal budget", "intro": "What was asked.\n\nWhat was done.",
            "budget": f"{steps} steps", "baseline": baseline, "methods": tuple(methods), "seeds": tuple(seeds),
            "quantities": tuple(quantities), "frontier": ("sampled/self_bleu", "sampled/pass@8"),
            "trials": tuple(trials), "estimates": estimates(trials, quantities),
            "contrasts": tests_of(trials, quantities, baseline), "command": "veto-pl compare study.yaml --out=out",
        }  # fmt: skip
        return Comparison(**(fields | changes))


def by_method(trials, quantity):
    found = {}
    for trial in trials:
        found.setdefault(trial.method, {})[trial.seed] = trial.values[quantity]
    return found


def estimates(trials, quantities):
    return {
        (method, quantity): estimate(list(values.values()))
        for quantity in quantities
        for method, values in by_method(trials, quantity).items()
    }


def tests_of(trials, quantities, baseline):
    found = {}
    for quantity in quantities:
        values = by_method(trials, quantity)
        pairs = contrasts(values, values.pop(baseline))
        found |= {(method, quantity): pair for method, pair in pairs.items()}
    return found


SEARCHES = {
    "GKD": Search("validation/accuracy", {"beta=0.1": 0.41, "beta=0.5": 0.47, "beta=0.9": 0.44}, "beta=0.5", False),
    "Veto": Search("validation/accuracy", {"beta=0.1": 0.41, "beta=0.5": 0.47, "beta=0.9": 0.54}, "beta=0.9", True),
}

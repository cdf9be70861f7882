"""How the costs of veto_pl grow: time and peak memory as one size after the other grows up to sixteen times.

The loss head alone against the number of tokens N and the vocabulary V, and a whole on-policy step (rollout, teacher,
student forward and backward) against the batch, the length of the completions and the parameters of the student. All
points of a curve are measured in one process, interleaved. The exponent is the slope in a log-log plot: 1 where the
cost grows in proportion, 0 where it does not grow. Peak is memory above the level before the call, gradients included.

    python benchmarks/cost_curves.py [--rounds 3] [--threads 1] [--plot cost_curves.svg]
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from measuring import Case, conditions, fit_exponent, interleaved, markdown_table

from veto_pl.data.collate import Collator
from veto_pl.functional.chunked import linear_divergence
from veto_pl.functional.divergences import generalized_jsd
from veto_pl.models import CharacterTokenizer, RandomWeights
from veto_pl.models.assemble import load_models
from veto_pl.objectives import Veto
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.seams import Example, Step

WIDTH = 256
ALPHABET = "".join(chr(0x4E00 + i) for i in range(8189))


@dataclass(frozen=True)
class Curve:
    """One size that grows.

    Args:
        name: what grows.
        points: its values, as they stand in the table.
        case: makes what is measured at a value.
        scale: turns a value into the quantity that the exponent is fitted to.
    """

    name: str
    points: tuple[int, ...]
    case: Callable[[int], Case]
    scale: Callable[[int], float] = float


def head(rows: int, vocab: int) -> Case:
    """Loss and gradients of `rows` tokens."""
    shapes = ((rows, WIDTH), (vocab, WIDTH))
    hidden, weight, other, other_weight = (0.1 * torch.randn(shape) for shape in shapes * 2)
    hidden.requires_grad_(), weight.requires_grad_()

    def case() -> None:
        linear_divergence(hidden, weight, other, other_weight, generalized_jsd).total.backward()
        hidden.grad = weight.grad = None

    return case


def llama(width: int) -> RandomWeights:
    dimensions = {
        "vocab_size": 8192,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 1024,
    }
    return RandomWeights("llama", dimensions)


def step(batch: int = 4, tokens: int = 32, width: int = 128) -> Case:
    """A whole on-policy step with completions of exactly `tokens`."""
    models = load_models(llama(width), llama(256), CharacterTokenizer(ALPHABET).load())
    models.student.model.generation_config.eos_token_id = None
    models.tokenizer.eos_token = None
    objective = Veto(rollout=FromStudent(Sampling(max_new_tokens=tokens)))
    prompts = Collator(tokenizer=models.tokenizer)([Example(ALPHABET[i : i + 32]) for i in range(batch)])

    def case() -> None:
        rollout = objective.rollout(prompts, models, Step(0, 1))
        objective.loss({objective.rollout: rollout}, models, Step(0, 1)).terms["loss"].mean().backward()
        models.student.zero_grad()

    case()
    return case


def parameters(width: int) -> float:
    return float(sum(p.numel() for p in llama(width).load().parameters()))


CURVES = (
    Curve("loss head, tokens N (V 8192)", (256, 512, 1024, 2048, 4096), lambda rows: head(rows, 8192)),
    Curve("loss head, vocabulary V (N 512)", (8192, 16384, 32768, 65536, 131072), lambda vocab: head(512, vocab)),
    Curve("step, batch", (2, 4, 8, 16), lambda batch: step(batch=batch)),
    Curve("step, completion tokens", (16, 32, 64, 128), lambda tokens: step(tokens=tokens)),
    Curve("step, width of the student", (64, 128, 256, 512), lambda width: step(width=width), parameters),
)


def measure(curve: Curve, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds and peak megabytes at each point."""
    cases = {str(point): curve.case(point) for point in curve.points}
    found = interleaved(cases, rounds, lambda: None)
    return [found[name].seconds for name in cases], [max(found[name].peak, 1) / 1e6 for name in cases]


def rows_of(curve: Curve, seconds: list[float], peaks: list[float]) -> list[list[object]]:
    xs = [curve.scale(point) for point in curve.points]
    ends = f"{curve.points[0]} to {curve.points[-1]}"
    return [
        [curve.name, "seconds", ends, f"{seconds[0]:.3g}", f"{seconds[-1]:.3g}", fit_exponent(xs, seconds)],
        [curve.name, "peak (MB)", ends, f"{peaks[0]:.0f}", f"{peaks[-1]:.0f}", fit_exponent(xs, peaks)],
    ]


def plot(results: dict[Curve, tuple[list[float], list[float]]], path: Path) -> None:
    """Both quantities over each size, relative to the first point, with a line in proportion."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "veto_pl"
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for axis, which, title in zip(axes, (0, 1), ("time", "peak memory"), strict=True):
        for curve, measured in results.items():
            xs = [curve.scale(point) / curve.scale(curve.points[0]) for point in curve.points]
            axis.plot(xs, [y / measured[which][0] for y in measured[which]], marker="o", label=curve.name)
        axis.plot([1, 16], [1, 16], color="0.6", linestyle="--", label="in proportion")
        axis.set(xscale="log", yscale="log", title=title, xlabel="size, relative to the first point")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("cost, relative to the first point")
    axes[1].legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    print(conditions(), "\n")
    results = {curve: measure(curve, given.rounds) for curve in CURVES}
    rows = [row for curve, found in results.items() for row in rows_of(curve, *found)]
    print(markdown_table(["what grows", "cost", "from, to", "first", "last", "exponent"], rows))
    if given.plot:
        plot(results, given.plot)


if __name__ == "__main__":
    main()

"""Time, memory and accuracy of distillation losses from hidden states: veto_pl against the code of its peers.

Every implementation computes the loss and both gradients from the same matrices, D = 576, in one process; the rounds
interleave all of them. Time is the median ratio to the floor, which is the four matrix products that none can do
without; the peak is the process's memory above the inputs, the gradients included. The gradients' error is against the
dense formula in float64, at N = 300 and V = 32768 for every table: it does not depend on the size. `Hellinger` stands
for a third party's function, which veto_pl knows nothing about.

A peer whose peak, in proportion to the same peer at fewer rows, would exceed the limit is left out with that figure.

The standard set takes about eleven minutes; it measures veto_pl on every loss at every size, and the peers on two
losses at the larger sizes, on one at the largest. --full takes over an hour.

    python benchmarks/loss_head.py [--quick | --full] [--threads 1] [--limit-gb 16]
"""

import argparse
from dataclasses import dataclass
from functools import partial

import torch
from measuring import Measured, conditions, interleaved, markdown_table
from peers import FORMULAS, VETO_BETA, LossHead, Matrices, all_errors, floor, forward_backward, hellinger, loss_heads

from veto_pl.functional.chunked import linear_divergence
from veto_pl.functional.divergences import forward_kl, generalized_jsd, reverse_kl
from veto_pl.functional.targets import geometric_bridge

BRIDGE = partial(geometric_bridge, beta=VETO_BETA)
OURS = {
    "forward KL": (forward_kl, None),
    "reverse KL": (reverse_kl, None),
    "JSD(0.5)": (generalized_jsd, None),
    "Veto forward": (forward_kl, BRIDGE),
    "Veto reverse": (reverse_kl, BRIDGE),
    "Hellinger": (hellinger, None),
}
HEADER = ["loss", "time / floor", "seconds", "peak (MB)", "gradients' error"]


@dataclass(frozen=True)
class Size:
    """One table.

    Args:
        vocab: V.
        rows: N.
        rounds: repetitions.
        losses: those that peers are measured on as well.
    """

    vocab: int
    rows: int
    rounds: int
    losses: tuple[str, ...] = tuple(FORMULAS)


Key = tuple[str, str]  # the loss and who computes it
SOME = ("JSD(0.5)", "Veto forward")
QUICK = [Size(32768, 512, 2)]
STANDARD = [
    Size(32768, 512, 2),
    Size(32768, 2048, 1, SOME),
    Size(151936, 512, 1, SOME),
    Size(151936, 2048, 1, SOME[:1]),
]
FULL = [Size(vocab, rows, 3) for vocab in (32768, 151936) for rows in (512, 2048)]


def ours(loss: str) -> LossHead:
    divergence, target = OURS[loss]

    def loss_head(m: Matrices):
        stat = linear_divergence(
            m.student_hidden, m.student_head, m.teacher_hidden, m.teacher_head, divergence, target=target
        )
        return stat.total, len(m.student_hidden)

    return loss_head


def implementations(compared: tuple[str, ...]) -> dict[Key, LossHead]:
    """veto_pl on every loss, and the peers on those that are compared."""
    peers = {loss: loss_heads(loss) if loss in compared else {} for loss in FORMULAS}
    return {(loss, name): head for loss in FORMULAS for name, head in {"veto_pl": ours(loss), **peers[loss]}.items()}


def gradient_errors(losses: tuple[str, ...]) -> dict[Key, float]:
    """The larger error of both gradients of every implementation."""
    matrices = Matrices.random(300, 32768)
    found = {loss: all_errors(loss, {"veto_pl": ours(loss), **loss_heads(loss)}, matrices) for loss in losses}
    return {(loss, name): error for loss in losses for name, (_, error) in found[loss].items()}


def case(loss_head: LossHead, matrices: Matrices) -> None:
    forward_backward(loss_head, matrices)
    matrices.clear()  # gradients of one case are no part of the next one's level


def compare(size: Size, needed: dict[Key, float], limit: float) -> dict[Key, Measured]:
    """Measures what fits; `needed` is the expected peak in bytes per token."""
    matrices = Matrices.random(size.rows, size.vocab)
    cases = {
        key: partial(case, head, matrices)
        for key, head in implementations(size.losses).items()
        if needed.get(key, 0) * size.rows <= limit
    }
    floor(matrices)
    return interleaved(cases, size.rounds, partial(floor, matrices))


def table(size: Size, results: dict[Key, Measured], precision: dict, needed: dict) -> str:
    rows = []
    for key in implementations(size.losses):
        error = f"{precision[key]:.1e}"
        if key in results:
            found = results[key]
            rows.append([", ".join(key), found.ratio, found.seconds, f"{found.peak / 1e6:.0f}", error])
        else:
            rows.append([", ".join(key), "", "", f"would need {needed[key] * size.rows / 1e6:.0f}", error])
    return markdown_table(HEADER, rows)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_const", dest="sizes", const=QUICK, default=STANDARD)
    parser.add_argument("--full", action="store_const", dest="sizes", const=FULL)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit-gb", type=float, default=16)
    return parser.parse_args()


def main():
    given = parse()
    torch.set_num_threads(given.threads)
    print(conditions("trl", "liger-kernel"))
    precision = gradient_errors(tuple(FORMULAS))
    peaks: dict[tuple[int, Key], float] = {}
    for size in given.sizes:
        needed = {key: peak for (vocab, key), peak in peaks.items() if vocab == size.vocab}
        results = compare(size, needed, given.limit_gb * 1e9)
        print(f"\nV {size.vocab}, N {size.rows}, rounds {size.rounds}\n")
        print(table(size, results, precision, needed), flush=True)
        peaks |= {(size.vocab, key): found.peak / size.rows for key, found in results.items()}


if __name__ == "__main__":
    main()

"""What several teachers cost in the loss head: `python benchmarks/head_teachers.py`, half a minute on a core.

Together, each of K teachers reads every token; routed, each token has one of them. The matrix products alone would be
(3 + K) / 4 together, and 1 routed; on top come the loss against each teacher, and a copy of the student's logits.
"""

import time

import torch

from veto_pl.functional.chunked import DivergenceKernel
from veto_pl.functional.heads import LinearHead
from veto_pl.functional.panel_stream import PanelStream, Reader
from veto_pl.parts.divergences import ReverseKL

TOKENS, IDS, WIDTH, REPEATS = 1024, 8000, 256, 6
KERNEL = DivergenceKernel(ReverseKL())


def seconds(hidden, head, readers, weights):
    """The least CPU time of a pass that forms all gradients."""
    found, given = [], [{"weights": weight} for weight in weights]
    for _ in range(REPEATS):
        start = time.process_time()
        PanelStream(hidden, head, readers, chunk_rows=256).gradients(KERNEL, given)
        found.append(time.process_time() - start)
    return min(found)


def main():
    """Print the times relative to one teacher."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    hidden = torch.randn(TOKENS, WIDTH).requires_grad_()
    head = LinearHead(torch.randn(IDS, WIDTH).mul_(0.05).requires_grad_())
    teachers, others = [torch.randn(TOKENS, WIDTH) for _ in range(4)], LinearHead(torch.randn(IDS, WIDTH) * 0.05)
    one = seconds(hidden, head, [Reader(teachers[0], others)], [torch.ones(TOKENS)])
    print(f"one teacher: {one:.3f} s")
    for count in (2, 4):
        everyone = [Reader(teacher, others) for teacher in teachers[:count]]
        together = seconds(hidden, head, everyone, [torch.full((TOKENS,), 1 / count)] * count)
        order = torch.randperm(TOKENS)
        places = [order[k::count].sort().values for k in range(count)]
        own = [Reader(t[where], others, where, where) for t, where in zip(teachers, places, strict=False)]
        routed = seconds(hidden, head, own, [torch.ones(len(where)) for where in places])
        print(f"{count} teachers: together {together / one:.2f}, routed {routed / one:.2f} times as long")


if __name__ == "__main__":
    main()

"""Time and memory of the loss head on this CPU, its kernels compiled and as they are written.

Both run in one process and in turn, on the same matrices, D = 576, forward and backward. Time is the median ratio to
the four matrix products that none can do without; the ratio is that of compiled to written, round by round. `Hellinger`
stands for a third party's function, and the last line is the objective `Veto` with the metrics that it logs. The
compilation itself is not counted: it happens in the first, unmeasured call. For a GPU this says nothing.

    python benchmarks/head_compiled.py [--rounds 5] [--vocab 32768] [--rows 512] [--threads 1]
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
from loss_head import OURS
from measuring import conditions, markdown_table, measured
from peers import Matrices, floor

from veto_pl.functional.chunked import RowStream, linear_divergence
from veto_pl.functional.heads import LinearHead
from veto_pl.objectives import Veto
from veto_pl.objectives.token_kernel import TokenKernel
from veto_pl.seams import Step

Case = Callable[[bool], None]


def alone(loss: str, m: Matrices, compiled: bool) -> None:
    """A divergence without metrics."""
    divergence, target = OURS[loss]
    given = m.student_hidden, m.student_head, m.teacher_hidden, m.teacher_head
    linear_divergence(*given, divergence, target=target, compiled=compiled).total.backward()
    m.clear()


def objective(m: Matrices, compiled: bool) -> None:
    """An objective's kernel, with the scores that are logged."""
    rows = len(m.student_hidden)
    given = {"token_ids": torch.arange(rows), "sequence_rows": torch.zeros(rows, dtype=torch.long)}
    heads = LinearHead(m.student_head), LinearHead(m.teacher_head)
    stream = RowStream(m.student_hidden, heads[0], m.teacher_hidden, heads[1], compiled=compiled)
    scores, gradients = stream.gradients(TokenKernel(Veto(), Step(0, 1), differentiate=True), given)
    gradients.attach(scores["loss"].sum(), m.student_hidden, heads[0]).backward()
    m.clear()


def compare(case: Case, m: Matrices, rounds: int) -> list[object]:
    """Time over the floor, written and compiled; their ratio; both peaks in MB."""
    case(False), case(True)
    found = []
    for turn in range(rounds):
        base = measured(partial(floor, m))[0]
        order = (False, True) if turn % 2 else (True, False)
        taken = {compiled: measured(partial(case, compiled)) for compiled in order}
        found.append([taken[c][0] / base for c in (False, True)] + [taken[True][0] / taken[False][0]])
        peaks = [f"{taken[c][1] / 1e6:.0f}" for c in (False, True)]
    return [*(statistics.median(column) for column in zip(*found, strict=True)), *peaks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 5), ("vocab", 32768), ("rows", 512), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--quick", action="store_const", dest="rounds", const=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(conditions(), f"\n\nV {given.vocab}, N {given.rows}, rounds {given.rounds}\n")
    m = Matrices.random(given.rows, given.vocab)
    cases: dict[str, Case] = {loss: partial(alone, loss, m) for loss in OURS} | {"Veto, metrics": partial(objective, m)}
    rows = [[name, *compare(case, m, given.rounds)] for name, case in cases.items()]
    header = ["loss", "written / floor", "compiled / floor", "compiled / written", "written (MB)", "compiled (MB)"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()

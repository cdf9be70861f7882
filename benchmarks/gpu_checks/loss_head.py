"""The loss head in multiples of its four products, beside other people's kernels."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from gpu_checks.place import Place
from gpu_checks.verdict import Verdict
from peers import Matrices, forward_backward, liger, trl_kernel

from veto_pl.functional.chunked import linear_divergence
from veto_pl.functional.divergences import forward_kl, generalized_jsd, reverse_kl
from veto_pl.functional.heads import LinearHead
from veto_pl.functional.targets import geometric_bridge

LOSSES = {"forward KL": forward_kl, "reverse KL": reverse_kl, "JSD": generalized_jsd}
BETAS = {"forward KL": 0.0, "reverse KL": 1.0, "JSD": 0.5}
MOST = 2.0
"""Multiples of the four products that the loss head may take."""


def measure(place: Place) -> Iterator[Verdict]:
    for student, teacher in (("0.5B", "7B"), ("7B", "7B")):
        matrices = _matrices(place, student, teacher)
        base = place.seconds(lambda m=matrices: floor(m, 32 if place.smoke else 2048))
        ratios = {name: work / base for name, work in _own(place, matrices).items()}
        peers = {name: seconds / base for name, seconds in _peers(place, matrices).items()}
        best = min(ratio for name, ratio in ratios.items() if name.startswith("forward KL"))
        most = min(MOST, peers.get("TRL forward KL", MOST))
        peak = place.peak(partial(own, matrices, place.ids, forward_kl, 1024)) / 1e9
        yield Verdict.judged(
            f"loss_head {student}<-{teacher}", best, most=most, smoke=place.smoke, floor_s=base, peak_gb=peak, **ratios,
            **peers,
        )  # fmt: skip
        del matrices
        place.empty_cache()


def _matrices(place: Place, student: str, teacher: str) -> Matrices:
    rows, sizes = 64 if place.smoke else 8192, place.dimensions
    (hidden, head), (their_hidden, their_head) = (
        (place.randn(rows, d["hidden_size"]), place.randn(d["vocab_size"], d["hidden_size"], scale=0.03))
        for d in (sizes[student], sizes[teacher])
    )
    return Matrices(hidden.requires_grad_(), head.requires_grad_(), their_hidden, their_head)


def floor(matrices: Matrices, rows: int) -> None:
    """The logits of both and the two gradients, in chunks, and nothing else."""
    student, head = matrices.student_hidden.detach(), matrices.student_head.detach()
    logits, theirs = (student.new_empty(rows, len(other)) for other in (head, matrices.teacher_head))
    grad_hidden, grad_head = torch.empty_like(student), torch.empty_like(head)
    for start in range(0, len(student), rows):
        chunk = slice(start, start + rows)
        torch.mm(student[chunk], head.T, out=logits)
        torch.mm(matrices.teacher_hidden[chunk], matrices.teacher_head.T, out=theirs)
        torch.mm(logits, head, out=grad_hidden[chunk])
        torch.mm(logits.T, student[chunk], out=grad_head)


def own(matrices: Matrices, ids: int, loss: Callable, rows: int, target: Callable | None = None) -> None:
    """Loss and gradients by `linear_divergence`."""
    matrices.clear()
    heads = (LinearHead(weight, vocab_size=ids) for weight in (matrices.student_head, matrices.teacher_head))
    student, teacher = heads
    given = (matrices.student_hidden, student, matrices.teacher_hidden, teacher, loss)
    linear_divergence(*given, target=target, chunk_rows=rows).total.backward()


def _own(place: Place, matrices: Matrices) -> dict[str, float]:
    veto = partial(geometric_bridge, beta=0.8)
    found = {}
    for rows in (16, 64) if place.smoke else (256, 1024, 4096):
        for name, loss in LOSSES.items():
            found[f"{name}, {rows} rows"] = place.seconds(partial(own, matrices, place.ids, loss, rows))
        found[f"Veto, {rows} rows"] = place.seconds(partial(own, matrices, place.ids, forward_kl, rows, veto))
    return found


def _peers(place: Place, matrices: Matrices) -> dict[str, float]:
    """The kernels that are installed, on heads of equal rows, which they need."""
    cut = [weight.detach()[: place.ids].clone() for weight in (matrices.student_head, matrices.teacher_head)]
    equal = Matrices(matrices.student_hidden, cut[0].requires_grad_(), matrices.teacher_hidden, cut[1])
    found = {}
    for name, beta in BETAS.items():
        for peer, make in {"TRL": trl_kernel, "Liger": liger}.items():
            try:
                loss_head = make(beta)
            except ImportError:
                continue
            with place.device:  # the adapters make their masks and labels on the default device
                found[f"{peer} {name}"] = place.seconds(partial(forward_backward, loss_head, equal), repeat=2)
    return found

"""Distillation losses from hidden states and head matrices, computed by other people's code, as installed.

Every adapter takes the same four matrices, [N, D] hidden states and [V, D] heads of student and teacher, and leaves
the gradients of the student's two in `.grad`. The adapters call what the packages ship and copy nothing:

- TRL kernel: the loss of `trl.DistillationTrainer`, from hidden states, tiled over the vocabulary;
- TRL GKD: `trl.experimental.gkd`'s `generalized_jsd_loss`, from logits;
- Liger: the chunked JSD of `liger_kernel`, 256 rows a chunk and not compiled (its default compiles anew at every call);
- dense formula: log-softmax and the definition over all rows at once, by autograd;
- floor: the four matrix products that any of them needs, 256 rows at a time, and nothing else.

All peers take beta = 0 for the forward and beta = 1 for the reverse KL. Veto's target is known to the dense formula
only. `python benchmarks/peers.py` checks losses and gradients of all of them against the dense formula in float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from measuring import conditions, markdown_table
from torch import Tensor

CHUNK_ROWS = 256
VETO_BETA = 0.8


@dataclass(frozen=True)
class Matrices:
    """What a loss head reads.

    Args:
        student_hidden: [N, D], trained.
        student_head: [V, D], trained.
        teacher_hidden: [N, D].
        teacher_head: [V, D].
    """

    student_hidden: Tensor
    student_head: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor

    @staticmethod
    def random(rows: int, vocab: int, width: int = 576, seed: int = 0) -> "Matrices":
        """Logits of standard deviation 1.2, student and teacher independent."""
        generator = torch.Generator().manual_seed(seed)
        hidden = [torch.randn(rows, width, generator=generator) for _ in range(2)]
        heads = [torch.randn(vocab, width, generator=generator).mul_(0.05) for _ in range(2)]
        return Matrices(hidden[0].requires_grad_(), heads[0].requires_grad_(), hidden[1], heads[1])

    def double(self) -> "Matrices":
        """The same numbers in float64, as new leaves."""
        student = [m.detach().double().requires_grad_() for m in (self.student_hidden, self.student_head)]
        return Matrices(*student, self.teacher_hidden.double(), self.teacher_head.double())

    def logits(self) -> tuple[Tensor, Tensor]:
        """[N, V] of student and teacher."""
        return self.student_hidden @ self.student_head.T, self.teacher_hidden @ self.teacher_head.T

    def clear(self) -> None:
        """Forgets the gradients."""
        self.student_hidden.grad = self.student_head.grad = None


LossHead = Callable[[Matrices], tuple[Tensor, int]]
"""The loss, with its graph, and what it must be divided by to be the mean over tokens."""


def forward_backward(loss_head: LossHead, matrices: Matrices) -> tuple[float, int]:
    """Leaves gradients in `.grad`; returns the loss and its divisor."""
    matrices.clear()
    loss, divisor = loss_head(matrices)
    loss.backward()
    return loss.item(), divisor


def floor(matrices: Matrices) -> None:
    """Logits of both and the gradients of hidden states and head; the memory of the logits is reused."""
    student, head = matrices.student_hidden.detach(), matrices.student_head.detach()
    grad_hidden, grad_head = torch.empty_like(student), torch.zeros_like(head)
    logits, teacher_logits = (torch.empty(CHUNK_ROWS, len(head)) for _ in range(2))
    for start in range(0, len(student), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        count = len(student[rows])
        torch.mm(student[rows], head.T, out=logits[:count])
        torch.mm(matrices.teacher_hidden[rows], matrices.teacher_head.T, out=teacher_logits[:count])
        torch.mm(logits[:count], head, out=grad_hidden[rows])
        grad_head.addmm_(logits[:count].T, student[rows])


def dense(formula: Callable[[Tensor, Tensor], Tensor]) -> LossHead:
    """A loss of log-probabilities, over all rows at once."""

    def loss_head(matrices: Matrices) -> tuple[Tensor, int]:
        student, teacher = (torch.log_softmax(logits, -1) for logits in matrices.logits())
        return formula(student, teacher).sum(), len(student)

    return loss_head


def trl_kernel(beta: float) -> LossHead:
    """The loss of TRL's `DistillationTrainer`."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    def loss_head(matrices: Matrices) -> tuple[Tensor, int]:
        hidden = matrices.student_hidden[None], matrices.teacher_hidden[None]
        mask = torch.ones(hidden[0].shape[:2], dtype=torch.long)
        return _chunked_divergence_loss(*hidden, matrices.student_head, matrices.teacher_head, mask, beta)[0], 1

    return loss_head


def trl_gkd(beta: float) -> LossHead:
    """The loss of TRL's `GKDTrainer`."""
    from trl.experimental.gkd import GKDTrainer

    def loss_head(matrices: Matrices) -> tuple[Tensor, int]:
        student, teacher = matrices.logits()
        return GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, reduction="batchmean"), 1

    return loss_head


def liger(beta: float) -> LossHead:
    """Liger's chunked JSD without the term of the hard labels."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(0.0, 1.0, beta=beta, compiled=False, chunk_size=CHUNK_ROWS)

    def loss_head(m: Matrices) -> tuple[Tensor, int]:
        labels = torch.zeros(len(m.student_hidden), dtype=torch.long)
        return loss(m.student_hidden, m.student_head, m.teacher_hidden, m.teacher_head, labels), 1

    return loss_head


def plain_forward_kl(student: Tensor, target: Tensor) -> Tensor:
    return (target.exp() * (target - student)).sum(-1)


def plain_reverse_kl(student: Tensor, target: Tensor) -> Tensor:
    return plain_forward_kl(target, student)


def plain_jsd(student: Tensor, target: Tensor) -> Tensor:
    mixture = torch.logaddexp(student, target) - math.log(2)
    return 0.5 * (plain_forward_kl(mixture, target) + plain_forward_kl(mixture, student))


def plain_veto(divergence: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda student, teacher: divergence(student, torch.log_softmax(teacher + VETO_BETA * student.detach(), -1))


def hellinger(student: Tensor, target: Tensor) -> Tensor:
    """Squared Hellinger distance: a third party's function, which no package here knows."""
    return -(0.5 * (student + target)).logsumexp(-1).expm1()


FORMULAS = {
    "forward KL": plain_forward_kl,
    "reverse KL": plain_reverse_kl,
    "JSD(0.5)": plain_jsd,
    "Veto forward": plain_veto(plain_forward_kl),
    "Veto reverse": plain_veto(plain_reverse_kl),
    "Hellinger": hellinger,
}
BETAS = {"forward KL": 0.0, "reverse KL": 1.0, "JSD(0.5)": 0.5}
PEERS = {"TRL kernel": trl_kernel, "TRL GKD": trl_gkd, "Liger": liger}


def loss_heads(loss: str) -> dict[str, LossHead]:
    """Every implementation of a loss that somebody else has."""
    peers = {name: make(BETAS[loss]) for name, make in PEERS.items()} if loss in BETAS else {}
    return {**peers, "dense formula": dense(FORMULAS[loss])}


def mean_and_gradients(loss_head: LossHead, matrices: Matrices) -> list[Tensor]:
    """The mean loss and its gradients for the hidden states and the head."""
    value, divisor = forward_backward(loss_head, matrices)
    gradients = matrices.student_hidden.grad, matrices.student_head.grad
    return [torch.tensor(value, dtype=torch.float64) / divisor, *(gradient / divisor for gradient in gradients)]


def all_errors(loss: str, loss_heads: dict[str, LossHead], matrices: Matrices) -> dict[str, tuple[float, float]]:
    """Relative errors of the loss, and of both gradients (largest difference over largest entry, the worse of the two).

    Args:
        loss: a name in `FORMULAS`; the formula in float64 is the truth.
        loss_heads: what is checked, in float32.
        matrices: of all.
    """
    truth = mean_and_gradients(dense(FORMULAS[loss]), matrices.double())
    found = {}
    for name, loss_head in loss_heads.items():
        pairs = zip(mean_and_gradients(loss_head, matrices), truth, strict=True)
        value, *gradients = (float((given - true).abs().max() / true.abs().max()) for given, true in pairs)
        found[name] = value, max(gradients)
    return found


def main():
    torch.set_num_threads(1)
    matrices = Matrices.random(64, 4096)
    rows = []
    for loss in FORMULAS:
        for name, (value, gradient) in all_errors(loss, loss_heads(loss), matrices).items():
            rows.append([f"{loss}, {name}", f"{value:.1e}", f"{gradient:.1e}"])
    print(conditions("trl", "liger-kernel"))
    print(markdown_table(["loss", "relative error of the loss", "of the gradients"], rows))


if __name__ == "__main__":
    main()

"""One text by two writers: the teacher corrects what the student proposes, or takes the text over."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from veto_pl.core.bounds import Count, NonNegative
from veto_pl.core.sampling import SEVERAL, Sampling, draw_id
from veto_pl.functional.divergences import reverse_kl
from veto_pl.rollouts.decoding import decode
from veto_pl.rollouts.engines import require_decode_loop
from veto_pl.rollouts.token_buffer import Drawn
from veto_pl.seams import Models, PromptBatch, RolloutSource, Sequences, Step, Writing
from veto_pl.seams.rollouts import TEACHER


@dataclass(frozen=True)
class TeacherCorrected(RolloutSource):
    r"""The student proposes each token; the teacher writes it anew unless it is among its `top_k` likeliest.

    .. math:: q(v) = p_S(v)\, 1[v \in K] + \big(1 - p_S(K)\big)\, p_T(v)

    K holds the likeliest ids of the teacher's own distribution; the two samplings shape :math:`p_S` and :math:`p_T`.
    One random number decides: below :math:`1 - p_S(K)` it is a rejection. So a K of all ids is plain sampling from the
    student, and a K of one id with a greedy teacher is greedy decoding by the teacher.

    Args:
        top_k: ids in K; more than there are accept everything.
        sampling: how the student proposes; lengths, counts and stop strings.
        teacher_sampling: temperature and truncation of the teacher's tokens; lengths are the student's.
        teacher: its name in `model.teachers`; `teacher` is `model.teacher`.

    References:
        arXiv 2410.11325
    """

    top_k: Count = 25
    sampling: Sampling = Sampling()
    teacher_sampling: Sampling = Sampling()
    teacher: str = TEACHER

    def __post_init__(self) -> None:
        super().__post_init__()
        _share_lengths(self)

    @classmethod
    def examples(cls) -> tuple["TeacherCorrected", ...]:
        return (cls(3, SEVERAL),)

    def __call__(self, prompts: PromptBatch, models: Models, step: Step) -> Sequences:
        writers = (models.teacher_named(self.teacher), models.student)
        require_decode_loop(type(self).__name__, writers)
        sampling, recordable = self.sampling.ending_with(prompts.stop), partial(self.draw, unread=True)
        return decode(prompts, writers, self.draw, sampling, models, step, on_policy=True, recordable=recordable)

    def draw(self, logits: Sequence[Tensor], uniform: Tensor, rows: Tensor, *, unread: bool = False) -> Drawn:
        """Draw a token for each row; return its log-probability under the mixture and whether the teacher wrote it."""
        teacher = self.teacher_sampling.shape(logits[0], unread=unread).exp()
        student = self.sampling.shape(logits[1], unread=unread).exp()
        kept, refused = self.split(student, logits[0])
        share = refused.to(uniform.dtype)
        by_teacher = (uniform < share) | (kept.sum(-1) == 0)
        rest = torch.where(by_teacher, uniform / share, (uniform - share) / (1 - share)).clamp(0, 1)
        ids, _ = draw_id(torch.where(by_teacher[:, None], teacher, kept), rest)
        mixture = kept + refused[:, None] * teacher
        return Drawn(ids, mixture.gather(1, ids[:, None])[:, 0].log(), by_teacher)

    def writings(self) -> tuple[Writing, ...]:
        return (Writing((self.teacher, "student"), self.sampling),)

    def token_distribution(self, student: Tensor, teacher: Tensor, step: Step) -> Tensor:
        kept, refused = self.split(student.exp(), teacher)
        return (kept + refused * teacher.exp()).log()

    def split(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return the proposals that are accepted, and the probability that one is not.

        Args:
            student: [..., V] probabilities of the proposals.
            teacher: [..., V] the teacher's logits or probabilities.

        Returns:
            [..., V] probabilities of the proposals in K, 0 elsewhere; [...] the probability of all others.
        """
        likeliest = teacher.topk(min(self.top_k, teacher.shape[-1]), -1).indices
        accepted = torch.zeros_like(teacher, dtype=torch.bool).scatter_(-1, likeliest, True)
        # Summed over what is outside, so that it is exactly 0 where nothing is.
        return student.masked_fill(~accepted, 0.0), student.masked_fill(accepted, 0.0).sum(-1)


@dataclass(frozen=True)
class TeacherSwitched(RolloutSource):
    r"""The student writes until it strays from the teacher, who then writes the rest.

    .. math:: d_i = \mathrm{KL}(p_S \Vert p_T)_i > c\, \frac{1}{i - 1} \sum_{j < i} d_j

    hands the text over, from token i on and for good. Both distributions are the models' own, without the shaping of
    the samplings. The first token has nothing to be compared with, and is always the student's. A huge threshold is
    plain sampling from the student.

    Args:
        threshold: c. The paper's value was not found; 3 is this package's choice.
        sampling: how the student writes; lengths, counts and stop strings.
        teacher_sampling: temperature and truncation of the teacher's tokens; lengths are the student's.
        teacher: its name in `model.teachers`; `teacher` is `model.teacher`.

    References:
        arXiv 2510.07842
    """

    threshold: NonNegative = 3.0
    sampling: Sampling = Sampling()
    teacher_sampling: Sampling = Sampling()
    teacher: str = TEACHER

    def __post_init__(self) -> None:
        super().__post_init__()
        _share_lengths(self)

    @classmethod
    def examples(cls) -> tuple["TeacherSwitched", ...]:
        return (cls(1.0, SEVERAL, Sampling()),)

    def __call__(self, prompts: PromptBatch, models: Models, step: Step) -> Sequences:
        writers = (models.teacher_named(self.teacher), models.student)
        require_decode_loop(type(self).__name__, writers)
        sampling = self.sampling.ending_with(prompts.stop)
        strays = DivergenceWatch(
            self.threshold, max(len(prompts), 1) * sampling.num_completions, prompts.input_ids.device
        )

        def draw(logits: Sequence[Tensor], uniform: Tensor, rows: Tensor) -> Drawn:
            teacher, student = (torch.log_softmax(values, -1) for values in logits)
            by_teacher = strays(reverse_kl(student, teacher), rows)
            drawn = (self.teacher_sampling.draw(logits[0], uniform), self.sampling.draw(logits[1], uniform))
            ids, logp = (torch.where(by_teacher, *pair) for pair in zip(*drawn, strict=True))
            return Drawn(ids, logp, by_teacher)

        return decode(prompts, writers, draw, sampling, models, step, on_policy=True)

    def writings(self) -> tuple[Writing, ...]:
        return (Writing((self.teacher, "student"), self.sampling),)

    def token_distribution(self, student: Tensor, teacher: Tensor, step: Step) -> Tensor:
        """Return the student's distribution: the first token is always its own."""
        return student


def _share_lengths(source: TeacherCorrected | TeacherSwitched) -> None:
    """Give both writers one length, so that what is said of lengths elsewhere is true of both."""
    shared = replace(source.teacher_sampling, max_new_tokens=source.sampling.max_new_tokens)
    object.__setattr__(source, "teacher_sampling", shared)


class DivergenceWatch:
    """Remembers of every row of a rollout how far the models were apart, and whether it has been handed over.

    Args:
        threshold: times the mean so far that is too far.
        rows: of the rollout.
        device: where they are.
    """

    def __init__(self, threshold: float, rows: int, device: torch.device) -> None:
        self.threshold, self.tokens = threshold, 0
        self.total = torch.zeros(rows, device=device)
        self.gone = torch.zeros(rows, dtype=torch.bool, device=device)

    def __call__(self, divergence: Tensor, rows: Tensor) -> Tensor:
        """Update the rows `rows` ([L] int64) with the models' divergence there, [L] in nats.

        [L] bool is returned, True where the teacher writes from now on. Every row that is still written has as many
        tokens as the rollout has columns.
        """
        if self.tokens:
            self.gone[rows] |= divergence > self.threshold * (self.total[rows] / self.tokens)
        self.total[rows] += divergence
        self.tokens += 1
        return self.gone[rows]

"""Distillation on texts that student, teacher and task write between them."""

from dataclasses import dataclass, field

from veto_pl.core.bounds import Count, NonNegative, UnitInterval
from veto_pl.objectives.distill import Distill
from veto_pl.parts.schedules import Linear
from veto_pl.rollouts import FromDataset, FromStudent, Mixture, Sampling, TeacherCorrected, TeacherSwitched
from veto_pl.seams import RolloutSource, Schedule

__all__ = ["SKD", "AdaSwitch", "ImitKD"]


@dataclass(frozen=True, kw_only=True)
class SKD(Distill):
    r"""Speculative knowledge distillation: the student proposes tokens, and the teacher replaces those it ranks low.

    .. math:: L = D(p_S, p_T)_t, \qquad y_t \sim p_S(v)\, 1[v \in K] + \big(1 - p_S(K)\big)\, p_T(v)

    with K the teacher's `top_k` likeliest ids. The text drifts from the teacher's to the student's as the student
    learns. The share of replaced tokens is logged as `train/teacher_share`.

    Departures from the published code: it drafts blocks of tokens for speed; token by token, as here, the text has the
    same distribution. The defaults of the sampling are those of the Veto paper's runs.

    Args:
        top_k: ids in K.
        sampling: how the student proposes; lengths and counts.
        teacher_sampling: temperature and truncation of the teacher's tokens; lengths are the student's.

    References:
        arXiv 2410.11325
    """

    top_k: Count = 25
    sampling: Sampling = Sampling(temperature=0.5, top_p=0.5)
    teacher_sampling: Sampling = Sampling(temperature=0.2, top_p=0.5)
    rollout: RolloutSource = field(init=False)

    def __post_init__(self) -> None:
        self.check_bounds()
        rollout = TeacherCorrected(self.top_k, self.sampling, self.teacher_sampling)
        object.__setattr__(self, "teacher_sampling", rollout.teacher_sampling)
        object.__setattr__(self, "rollout", rollout)
        super().__post_init__()

    @classmethod
    def examples(cls) -> tuple["SKD", ...]:
        return (cls(top_k=5, sampling=Sampling(), teacher_sampling=Sampling(temperature=0.5)),)


@dataclass(frozen=True, kw_only=True)
class AdaSwitch(Distill):
    r"""The student writes until it strays from the teacher, who writes the rest; both parts are distilled.

    .. math:: L = D(p_S, p_T)_t, \qquad \text{the teacher writes from the first } i \text{ with } d_i > c\, \bar d_{i-1}

    where :math:`d_i = \mathrm{KL}(p_S \Vert p_T)_i` and the mean is over the tokens before.

    Departures: the published code was not read. The choice of this divergence, the mean over all tokens before, and the
    default of c are this package's.

    Args:
        threshold: c.
        sampling: how the student writes; lengths and counts.
        teacher_sampling: temperature and truncation of the teacher's tokens; lengths are the student's.

    References:
        arXiv 2510.07842
    """

    threshold: NonNegative = 3.0
    sampling: Sampling = Sampling()
    teacher_sampling: Sampling = Sampling()
    rollout: RolloutSource = field(init=False)

    def __post_init__(self) -> None:
        self.check_bounds()
        rollout = TeacherSwitched(self.threshold, self.sampling, self.teacher_sampling)
        object.__setattr__(self, "teacher_sampling", rollout.teacher_sampling)
        object.__setattr__(self, "rollout", rollout)
        super().__post_init__()

    @classmethod
    def examples(cls) -> tuple["AdaSwitch", ...]:
        return (cls(threshold=1.5),)


@dataclass(frozen=True, kw_only=True)
class ImitKD(Distill):
    r"""Imitation of the teacher: each completion is the task's with a probability that falls, else the student's own.

    .. math:: L = D(p_S, p_T)_t, \qquad y \sim \beta\, \text{data} + (1 - \beta)\, p_S

    This is DAgger with the teacher as the expert.

    Departures: the teacher's whole distribution is imitated, by the forward KL unless another `divergence` is given,
    and the share of the task's completions falls linearly.

    Args:
        gold_fraction: beta, a number in [0, 1] or a schedule; each prompt tosses its own coin.
        sampling: how the student samples.

    References:
        arXiv 2009.07253
    """

    gold_fraction: UnitInterval | Schedule = Linear(1.0, 0.0)
    sampling: Sampling = Sampling()
    rollout: RolloutSource = field(init=False)

    def __post_init__(self) -> None:
        self.check_bounds()
        rollout = Mixture(FromDataset(), FromStudent(self.sampling), self.gold_fraction, coin="sample")
        object.__setattr__(self, "rollout", rollout)
        super().__post_init__()

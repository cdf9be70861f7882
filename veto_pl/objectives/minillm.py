"""MiniLLM: the gradient of the sequence-level reverse KL, with its variance reduction."""

from dataclasses import dataclass, field

from veto_pl.core.bounds import AboveZero, NonNegative, UnitInterval
from veto_pl.objectives.combine import Sum
from veto_pl.objectives.distill import Distill
from veto_pl.objectives.supervised_kd import SupervisedKD
from veto_pl.objectives.token_objective import ChunkRows, Compile
from veto_pl.parts.advantages import FutureLogRatio
from veto_pl.parts.divergences import ReverseKL
from veto_pl.rollouts import Sampling, TeacherMixed
from veto_pl.seams import AnyObjective, Law, LossOutput, Models, Objective, Rollouts, RolloutSource, Schedule, Step

__all__ = ["MiniLLM"]


@dataclass(frozen=True, kw_only=True)
class MiniLLM(Objective):
    r"""Single-step reverse KL, long-term policy gradient and a pre-training term, on teacher-mixed samples.

    .. math:: w_t \left[ \mathrm{KL}(p_S \Vert p_T)_t - R_{t+1} \log p_S(y_t) \right] + c\, L_{PT}, \qquad
        w_t = \frac{p_S(y_t)}{\alpha p_T(y_t) + (1 - \alpha) p_S(y_t)}

    with the length-normalised return :math:`R_{t+1}` of `FutureLogRatio`, clipped and whitened.

    Departures: one update per rollout instead of several PPO epochs, so the ratio is 1 and its clipping never binds;
    and no separate pre-training corpus, as the pre-training term reads the task's reference completions.

    The weights approximate the product over the prefix by its last factor, as the paper does.

    Args:
        teacher_fraction: alpha, the teacher's part in the sampling mixture.
        sampling: how both sample.
        advantage: scaling, clipping and whitening of the long-term part.
        clip: clipping of the probability ratio.
        importance_cap: truncation of the weights; alpha bounds them by 1 / (1 - alpha) anyway.
        pretraining_weight: c; 0 removes the term.
        pretraining_gold: the share of the likelihood in the pre-training term, the rest being distillation.
        chunk_rows: tokens whose vocabulary-sized rows are held at a time, or `auto`.
        compile: whether what happens between the matrix products of the head is compiled, or `auto`.

    References:
        arXiv 2306.08543
    """

    teacher_fraction: UnitInterval = 0.2
    sampling: Sampling = Sampling(temperature=1.0)
    advantage: FutureLogRatio = FutureLogRatio()
    clip: AboveZero = 0.2
    importance_cap: AboveZero = 10.0
    pretraining_weight: NonNegative = 1.0
    pretraining_gold: UnitInterval = 0.5
    chunk_rows: ChunkRows = "auto"
    compile: Compile = "auto"
    composition: Sum = field(init=False)

    laws = frozenset[Law]()

    def __post_init__(self) -> None:
        super().__post_init__()
        on_policy = Distill(
            rollout=TeacherMixed(self.teacher_fraction, self.sampling),
            divergence=ReverseKL(),
            advantage=self.advantage,
            clip=self.clip,
            importance_cap=self.importance_cap,
            chunk_rows=self.chunk_rows,
            compile=self.compile,
        )
        pretraining = SupervisedKD(gold_weight=self.pretraining_gold, chunk_rows=self.chunk_rows, compile=self.compile)
        terms: dict[str, AnyObjective] = {"on_policy": on_policy}
        if self.pretraining_weight:
            terms["pretraining"] = pretraining
        weights: dict[str, float | Schedule] = {
            name: self.pretraining_weight for name in terms if name == "pretraining"
        }
        object.__setattr__(self, "composition", Sum(terms=terms, weights=weights))

    @classmethod
    def examples(cls) -> tuple["MiniLLM", ...]:
        return cls(), cls(pretraining_weight=0.0)

    @property
    def sources(self) -> tuple[RolloutSource, ...]:
        """Return the teacher-mixed samples and, for the pre-training term, the task's completions."""
        return self.composition.sources

    def loss(self, rollouts: Rollouts, models: Models, step: Step) -> LossOutput:
        """Compute the terms of the composition."""
        return self.composition.loss(rollouts, models, step)

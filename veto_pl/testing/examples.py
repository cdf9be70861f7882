"""Instances of every class that the conformance suite checks.

A third-party class whose defaults do not make an instance, or not one that fits a vocabulary of two, has a class method
`conformance_example()` that returns one.
"""

from __future__ import annotations

from typing import Any

from veto_pl.advantages import CentredLogRatio, Extrapolated, LogRatio, OrderConsistent, RelaxedLogRatio, WithReward
from veto_pl.contexts import Peer, Privileged
from veto_pl.divergences import AlphaDivergence, Renyi, ReverseKL, SkewKL, SkewReverseKL
from veto_pl.objectives import (
    AKL,
    EOPD,
    OPD,
    OPSD,
    REOPOLD,
    SDFT,
    SDPO,
    SFT,
    VOPD,
    AdaptiveSkew,
    Distill,
    DistiLLM2,
    ExOPD,
    ListOPD,
    MiniLLM,
    Phases,
    Sum,
    SupervisedKD,
    TopKOPD,
    UniOPD,
)
from veto_pl.plugins import available
from veto_pl.rollouts import FromStudent
from veto_pl.schedules import AtMost, Constant, Cosine, Linear, StepWise, WarmUp
from veto_pl.supports import TopK
from veto_pl.targets import GeometricBridge

_ANSWER = Privileged("{completion}>{prompt}")
EXAMPLES: dict[type, tuple[Any, ...]] = {
    Constant: (Constant(0.3),),
    Linear: (Linear(0.8, 0.0), Linear(-1.0, 2.0)),
    Cosine: (Cosine(0.8, 0.1),),
    StepWise: (StepWise((0.8, 0.4, 0.0), (0.5, 0.75)),),
    WarmUp: (WarmUp(), WarmUp(0.0), WarmUp(1.0, Constant(2.0))),
    AtMost: (AtMost(Linear(0.8, 2.0), 1.2),),
    SkewKL: (SkewKL(), SkewKL(0.0)),
    SkewReverseKL: (SkewReverseKL(), SkewReverseKL(0.0)),
    AlphaDivergence: (AlphaDivergence(), AlphaDivergence(0.0), AlphaDivergence(0.9), AlphaDivergence(1.0)),
    Renyi: (Renyi(), Renyi(0.1), Renyi(1.0)),
    TopK: (TopK(k=1), TopK(k=1, of="student")),
    GeometricBridge: (GeometricBridge(), GeometricBridge(0.0), GeometricBridge(Linear(2.0, 0.5))),
    Distill: (
        Distill(),
        Distill(aggregation="sequence", temperature=2.0),
        Distill(support=TopK(k=3), divergence=ReverseKL(), target=GeometricBridge(0.5), importance_cap=2.0),
    ),
    Sum: (
        Sum(
            terms={"on_policy": Distill(rollout=FromStudent()), "gold": SFT(aggregation="sequence")},
            weights={"gold": 0.3},
        ),
    ),
    Phases: (Phases(first=SFT(), then=Distill(rollout=FromStudent())), Phases(first=SFT(), then=SFT(), switch=0.0)),
    SupervisedKD: (SupervisedKD(), SupervisedKD(gold_weight=0.5)),
    MiniLLM: (MiniLLM(), MiniLLM(pretraining_weight=0.0)),
    OPSD: (OPSD(context=_ANSWER), OPSD(context=_ANSWER, loss_cap=0.5)),
    SDFT: (SDFT(context=_ANSWER), SDFT(context=_ANSWER, skip_tokens=1)),
    SDPO: (
        SDPO(context=Peer("{peer}{feedback}{prompt}", "{completion}>", "{prompt}"), support=TopK(3, of="student")),
        SDPO(context=Peer("{peer}{prompt}", "{completion}>", threshold=0.0), support=TopK(3, of="student")),
    ),
    LogRatio: (LogRatio(), LogRatio(0.9), LogRatio(1.0)),
    WithReward: (WithReward(), WithReward(CentredLogRatio(2), 0.5), WithReward(Extrapolated(1.5))),
    CentredLogRatio: (CentredLogRatio(), CentredLogRatio(2)),
    Extrapolated: (Extrapolated(), Extrapolated(Linear(1.0, 2.0))),
    OrderConsistent: (OrderConsistent(), OrderConsistent(method="mask", mode="minmax", outlier=None)),
    RelaxedLogRatio: (RelaxedLogRatio(), RelaxedLogRatio(switch=0.0)),
    OPD: (OPD(), OPD(discount=0.9, reward_weight=0.5)),
    VOPD: (VOPD(), VOPD(top_k=2)),
    ExOPD: (ExOPD(), ExOPD(extrapolation=Linear(1.0, 1.5), temperature=2.0)),
    ListOPD: (ListOPD(), ListOPD(extrapolation=Linear(1.0, 2.0), modal_probability=0.9)),
    UniOPD: (UniOPD(), UniOPD(method="mask", balance=None), UniOPD(mode="minmax", direction="correct_up", balance=0.5)),
    TopKOPD: (
        *(TopKOPD(k=4, support=support) for support in ("student", "teacher", "overlap", "union", "sampled")),
        TopKOPD(k=4, support="symmetric_difference", weights="teacher", temperature=2.0),
        TopKOPD(k=99, weights="none", aggregation="sequence"),
    ),
    EOPD: (EOPD(), EOPD(tau=0.0, k=4, importance_cap=2.0)),
    AKL: (AKL(), AKL(head=0.9)),
    AdaptiveSkew: (AdaptiveSkew(), AdaptiveSkew(direction="reverse", rollout=FromStudent())),
    DistiLLM2: (DistiLLM2(), DistiLLM2(beta=AtMost(Linear(1.0, 2.0), 1.5))),
    REOPOLD: (REOPOLD(), REOPOLD(switch=0.0, keep=0.4)),
}


def examples_of(cls: type) -> tuple[Any, ...]:
    """The class's own `conformance_example()`, the instances listed here, or the one that its defaults make."""
    if hasattr(cls, "conformance_example"):
        return (cls.conformance_example(),)
    return EXAMPLES[cls] if cls in EXAMPLES else (cls(),)


def installed(*seams: type[Any]) -> list[Any]:
    """Instances of everything that is available behind the seams."""
    classes: list[type[Any]] = [cls for seam in seams for cls in available(seam)]
    return [instance for cls in classes for instance in examples_of(cls)]

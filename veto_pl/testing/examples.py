"""Instances of every class that the conformance suite checks.

A third-party class whose defaults do not make an instance, or not one that fits a vocabulary of two, has a class method
`conformance_example()` that returns one.
"""

from __future__ import annotations

from typing import Any

from veto_pl.divergences import ReverseKL, SkewKL, SkewReverseKL
from veto_pl.objectives import SFT, Distill, MiniLLM, Phases, Sum, SupervisedKD
from veto_pl.plugins import available
from veto_pl.rollouts import FromStudent
from veto_pl.schedules import Constant, Cosine, Linear, StepWise, WarmUp
from veto_pl.supports import TopK
from veto_pl.targets import GeometricBridge

EXAMPLES: dict[type, tuple[Any, ...]] = {
    Constant: (Constant(0.3),),
    Linear: (Linear(0.8, 0.0), Linear(-1.0, 2.0)),
    Cosine: (Cosine(0.8, 0.1),),
    StepWise: (StepWise((0.8, 0.4, 0.0), (0.5, 0.75)),),
    WarmUp: (WarmUp(), WarmUp(0.0), WarmUp(1.0, Constant(2.0))),
    SkewKL: (SkewKL(), SkewKL(0.0)),
    SkewReverseKL: (SkewReverseKL(), SkewReverseKL(0.0)),
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

"""Instances of every class that the conformance suite checks.

A third-party class whose defaults do not make an instance, or not one that fits tiny models and a vocabulary of two,
has a class method `conformance_example()` that returns one.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points, packages_distributions
from typing import Any

from veto_pl.data.templates import ChatTemplate, PlainTemplate, TemplateMixture
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
from veto_pl.parts.advantages import (
    CentredLogRatio,
    Extrapolated,
    LogRatio,
    OrderConsistent,
    RelaxedLogRatio,
    WithReward,
)
from veto_pl.parts.contexts import Peer, Privileged
from veto_pl.parts.divergences import AlphaDivergence, Renyi, ReverseKL, SkewKL, SkewReverseKL
from veto_pl.parts.schedules import AtMost, Constant, Cosine, Linear, StepWise, WarmUp
from veto_pl.parts.supports import TopK
from veto_pl.parts.targets import GeometricBridge
from veto_pl.plugins import GROUP, available
from veto_pl.rollouts import (
    AdaptiveReplay,
    BestTeacher,
    FromCache,
    FromDataset,
    FromStudent,
    FromTeacher,
    Mixture,
    Replay,
    Sampling,
    TeacherCorrected,
    TeacherMixed,
    TeacherSwitched,
)

_ANSWER = Privileged("{completion}>{prompt}")
_PEERS = (
    Peer("{peer}{feedback}{prompt}", "{completion}>", "{prompt}"),
    Peer("{peer}{prompt}", "{completion}>", threshold=0.0),
)
_SHORT = Sampling(max_new_tokens=4)
_PAIRS = Sampling(temperature=0.8, top_p=0.9, max_new_tokens=4, num_completions=2)
_STUDENT = FromStudent(_PAIRS)
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
    PlainTemplate: (PlainTemplate(), PlainTemplate(format="Q: {prompt}", add_bos=True, control_words="text")),
    ChatTemplate: (ChatTemplate(), ChatTemplate(system="Be brief.", control_words="tokens")),
    TemplateMixture: (TemplateMixture(first=PlainTemplate(), second=ChatTemplate()),),
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
    SDPO: tuple(SDPO(context=context, support=TopK(3, of="student")) for context in _PEERS),
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
    Privileged: (_ANSWER,),
    Peer: _PEERS,
    FromStudent: (FromStudent(_SHORT), _STUDENT),
    FromTeacher: (FromTeacher(_PAIRS),),
    FromCache: (),
    TeacherMixed: (TeacherMixed(0.5, _PAIRS),),
    TeacherCorrected: (TeacherCorrected(3, _PAIRS),),
    TeacherSwitched: (TeacherSwitched(1.0, _PAIRS, _SHORT),),
    Mixture: (Mixture(_STUDENT, fraction=0.8), Mixture(_STUDENT, coin="sample")),
    BestTeacher: tuple(
        BestTeacher(_PAIRS, FromStudent(_SHORT), top_k=3, hint="{completion}>{prompt}", fallback=fallback)
        for fallback in ("overlap", "skip")
    ),
    Replay: (Replay(_STUDENT, fraction=1.0), Replay(FromDataset(), capacity=6, max_age=1)),
    AdaptiveReplay: (AdaptiveReplay(_STUDENT, start=0.5, increment=0.3), AdaptiveReplay(_STUDENT, start=1.0)),
}
"""An empty entry leaves a class out: a store of scores is tested where it is written."""


def examples_of(cls: type[Any]) -> tuple[Any, ...]:
    """The class's own `conformance_example()`, the instances listed here, or the one that its defaults make.

    Raises:
        AssertionError: there is none; it says what to do.
    """
    own = hasattr(cls, "conformance_example")
    try:
        found = (cls.conformance_example(),) if own else EXAMPLES[cls] if cls in EXAMPLES else (cls(),)
    except Exception as error:
        raise AssertionError(_without_example(cls, own, error)) from error
    for instance in found:
        assert isinstance(instance, cls), f"`{cls.__name__}.conformance_example()` must return one, got {instance!r}."
    return found


def _without_example(cls: type[Any], own: bool, error: Exception) -> str:
    reason = f"{type(error).__name__}: {error}"
    if own:
        return f"`{cls.__name__}.conformance_example()` failed ({reason}), so none of its laws was checked. Repair it."
    return (
        f"`{cls.__module__}.{cls.__name__}` cannot be made from its defaults ({reason}), so none of its laws was "
        "checked. Give it a class method `conformance_example()` that returns an instance for tiny models; the page on "
        "plug-ins shows one."
    )


def installed_classes(*seams: type[Any]) -> list[type[Any]]:
    """Everything behind the seams that comes from an installed package; tests define classes for themselves."""
    return [cls for seam in seams for cls in available(seam) if _root(cls.__module__) in _packages()]


def installed(*seams: type[Any]) -> list[Any]:
    """Instances of everything that is installed; a class without any is reported by a test of its own."""
    return [instance for cls in installed_classes(*seams) for instance in _examples_if_any(cls)]


def _examples_if_any(cls: type[Any]) -> tuple[Any, ...]:
    try:
        return examples_of(cls)
    except AssertionError:
        return ()


@cache
def _packages() -> frozenset[str]:
    announced = (_root(entry.module) for entry in entry_points(group=GROUP))
    return frozenset({"veto_pl", *packages_distributions(), *announced})


def _root(module: str) -> str:
    return module.partition(".")[0]

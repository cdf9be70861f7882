"""Settings that cannot work, and the laws that a composition still promises."""

import pytest

from veto_pl.exceptions import ConfigurationError
from veto_pl.objectives import GKD, SFT, Distill, MiniLLM, Sum, SupervisedKD, Veto
from veto_pl.parts.advantages import FutureLogRatio, LogRatio
from veto_pl.parts.divergences import ForwardKL, GeneralizedJSD, ReverseKL, SkewKL
from veto_pl.parts.schedules import Linear, StepWise, WarmUp
from veto_pl.parts.supports import TopK
from veto_pl.parts.targets import GeometricBridge, Teacher
from veto_pl.rollouts import FromDataset, FromStudent, Mixture, Sampling
from veto_pl.seams import Law


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GKD(beta=1.5), r"`GKD\.beta` must lie in \[0, 1\], got 1\.5"),
        (lambda: GKD(lmbda=-0.1), r"`GKD\.lmbda` must lie in \[0, 1\], got -0\.1"),
        (lambda: GeneralizedJSD(1.0), "Use `ForwardKL` for the limit at 0 and `ReverseKL`"),
        (lambda: SkewKL(1.0), r"`SkewKL\.alpha` must lie in \[0, 1\), got 1\.0"),
        (lambda: Veto(beta=float("nan")), r"lie in \[0, 1e\+06\], got nan"),
        (lambda: Veto(temperature=0.0), r"`Veto\.temperature` must be above 0"),
        (lambda: Distill(divergence=None), "needs a `divergence`, an `advantage`, or both"),
        (lambda: Distill(importance_cap=0.0), "`Distill.importance_cap` must be above 0"),
        (lambda: Distill(chunk_rows=0), r"`Distill\.chunk_rows` must be at least 1"),
        (lambda: SupervisedKD(gold_weight=2.0), r"`SupervisedKD\.gold_weight` must lie in \[0, 1\]"),
        (lambda: Sum(terms={}), "got no terms"),
        (lambda: Sum(terms={"a": SFT()}, weights={"b": 1.0}), r"got \['b'\]; the terms are \['a'\]"),
        (lambda: StepWise((1.0, 0.5), (0.5, 0.2)), "must ascend"),
        (lambda: WarmUp(fraction=1.5), r"`WarmUp\.fraction` must lie in"),
        (lambda: TopK(0), r"`TopK\.k` must be at least 1"),
        (lambda: FutureLogRatio(scale=0.0), "must be above 0"),
    ],
)
def test_settings_that_cannot_work_are_named(build, message):
    with pytest.raises(ConfigurationError, match=message):
        build()


def test_the_papers_defaults():
    assert Veto().beta == Linear(0.8, 0.0)
    assert Veto().target == GeometricBridge(Linear(0.8, 0.0))
    assert (Veto().divergence, Veto().rollout) == (ForwardKL(), FromStudent(Sampling(temperature=0.5, top_p=0.5)))
    assert GKD().rollout == Mixture(FromStudent(Sampling()), FromDataset(), 0.5)
    assert GKD().divergence == GeneralizedJSD(0.5)
    assert SupervisedKD().target == Teacher()
    on_policy = MiniLLM().composition.terms["on_policy"]
    assert (on_policy.divergence, on_policy.advantage) == (ReverseKL(), FutureLogRatio(scale=0.5, clip=100.0))
    assert on_policy.rollout.teacher_fraction == 0.2


@pytest.mark.parametrize(("beta", "divergence"), [(0.0, ForwardKL()), (1.0, ReverseKL()), (0.3, GeneralizedJSD(0.3))])
def test_gkd_goes_over_to_the_kls_at_its_end_points(beta, divergence):
    assert GKD(beta=beta).divergence == divergence


def test_what_couples_rows_promises_no_split_invariance():
    assert Law.SPLIT_INVARIANT in Distill(advantage=LogRatio()).laws
    assert Law.SPLIT_INVARIANT not in Distill(advantage=FutureLogRatio()).laws
    assert Law.SPLIT_INVARIANT in Distill(advantage=FutureLogRatio(whitened=False)).laws
    assert Law.SPLIT_INVARIANT not in Sum(terms={"a": SFT(), "b": Distill(advantage=FutureLogRatio())}).laws
    assert Law.SPLIT_INVARIANT not in MiniLLM().composition.laws


def test_a_sum_needs_a_teacher_if_a_term_does():
    assert not Sum(terms={"a": SFT()}).needs_teacher
    assert Sum(terms={"a": SFT(), "b": Veto()}).needs_teacher

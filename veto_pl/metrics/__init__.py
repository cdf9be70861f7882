"""Metrics of completions and of their tokens, as torchmetrics."""

from veto_pl.metrics.agreement import ForwardKL, ReverseKL, StudentEntropy, TopOneAgreement
from veto_pl.metrics.consensus import DistinctCorrect, MajorityVote
from veto_pl.metrics.diversity import CompletionEntropy, DistinctN, RepetitionRate, SelfBLEU, VendiScore
from veto_pl.metrics.episodes import FailedTurns, LateTurns, TurnKL, Turns
from veto_pl.metrics.form import ParseRate
from veto_pl.metrics.length import CompletionLength, EosRate
from veto_pl.metrics.likelihood import CalibrationError, SequenceLogProb
from veto_pl.metrics.metric_bases import CompletionMetric, MetricFamily, TokenMetric
from veto_pl.metrics.pass_curve import PassBound, PassCurve
from veto_pl.metrics.ratio import TargetRatio
from veto_pl.metrics.reward import Accuracy, MeanReward, PassAtK
from veto_pl.metrics.summaries import BERTScore, Rouge, WinRate
from veto_pl.metrics.target import TargetSharpness
from veto_pl.metrics.top_k import TopKDiagnostic, TopKDiagnostics

__all__ = [
    "Accuracy",
    "BERTScore",
    "CalibrationError",
    "CompletionEntropy",
    "CompletionLength",
    "CompletionMetric",
    "DistinctCorrect",
    "DistinctN",
    "EosRate",
    "FailedTurns",
    "ForwardKL",
    "LateTurns",
    "MajorityVote",
    "MeanReward",
    "MetricFamily",
    "ParseRate",
    "PassAtK",
    "PassBound",
    "PassCurve",
    "RepetitionRate",
    "ReverseKL",
    "Rouge",
    "SelfBLEU",
    "SequenceLogProb",
    "StudentEntropy",
    "TargetRatio",
    "TargetSharpness",
    "TokenMetric",
    "TopKDiagnostic",
    "TopKDiagnostics",
    "TopOneAgreement",
    "TurnKL",
    "Turns",
    "VendiScore",
    "WinRate",
    "default_metrics",
]


def default_metrics(num_completions: int, turns: int = 0) -> list[CompletionMetric | TokenMetric]:
    """Return the metrics of a validation.

    Args:
        num_completions: completions per prompt.
        turns: of the episodes that are measured one by one; 0 for single answers.
    """
    single: list[CompletionMetric | TokenMetric] = [
        Accuracy(),
        MeanReward(),
        DistinctN(2),
        RepetitionRate(4),
        CompletionLength(),
        EosRate(),
        StudentEntropy(),
        ForwardKL(),
        ReverseKL(),
        TopOneAgreement(),
    ]
    if turns:
        single += [Turns(), FailedTurns(), LateTurns(), *TurnKL(turns).members(num_completions)]
    if num_completions == 1:
        return single
    powers = [2**i for i in range(1, num_completions.bit_length()) if 2**i <= num_completions]
    return [*single, SelfBLEU(), VendiScore(), DistinctCorrect(), *(PassAtK(k) for k in powers)]

"""Metrics of completions and of their tokens, as torchmetrics."""

from veto_pl.metrics.agreement import ForwardKL, ReverseKL, StudentEntropy, TopOneAgreement
from veto_pl.metrics.base import CompletionMetric, TokenMetric
from veto_pl.metrics.diversity import DistinctN, RepetitionRate, SelfBLEU
from veto_pl.metrics.length import CompletionLength, EosRate
from veto_pl.metrics.reward import Accuracy, MeanReward, PassAtK
from veto_pl.metrics.target import TargetSharpness

__all__ = [
    "Accuracy",
    "CompletionLength",
    "CompletionMetric",
    "DistinctN",
    "EosRate",
    "ForwardKL",
    "MeanReward",
    "PassAtK",
    "RepetitionRate",
    "ReverseKL",
    "SelfBLEU",
    "StudentEntropy",
    "TargetSharpness",
    "TokenMetric",
    "TopOneAgreement",
    "default_metrics",
]


def default_metrics(num_completions: int) -> list[CompletionMetric | TokenMetric]:
    """The metrics of a validation, by the number of completions per prompt."""
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
    if num_completions == 1:
        return single
    powers = [2**i for i in range(1, num_completions.bit_length()) if 2**i <= num_completions]
    return [*single, SelfBLEU(), *(PassAtK(k) for k in powers)]

"""Batches that the tests of metrics share."""

import math

import torch
from hypothesis import strategies as st
from tiny_bert import tiny_bert

from veto_pl.judging import ReferenceJudge
from veto_pl.metrics import (
    Accuracy,
    BERTScore,
    CalibrationError,
    CompletionEntropy,
    CompletionLength,
    DistinctCorrect,
    DistinctN,
    EosRate,
    FailedTurns,
    ForwardKL,
    LateTurns,
    MajorityVote,
    MeanReward,
    ParseRate,
    PassAtK,
    PassBound,
    RepetitionRate,
    ReverseKL,
    Rouge,
    SelfBLEU,
    SequenceLogProb,
    StudentEntropy,
    TargetRatio,
    TargetSharpness,
    TopKDiagnostic,
    TopOneAgreement,
    Turns,
    VendiScore,
    WinRate,
)
from veto_pl.metrics.generations import Generations
from veto_pl.seams import Example

SAMPLES = 3
VOCABULARY = 5
WORDS = ("a", "river", "of", "small", "stones", "7")  # the last one is JSON
ROW = Example("what is it", "a river of small stones 7", alternatives=("small stones of a river",))

COMPLETION_METRICS = {
    "accuracy": Accuracy,
    "mean_reward": MeanReward,
    "pass@1": lambda: PassAtK(1),
    "pass@2": lambda: PassAtK(2),
    "pass@3": lambda: PassAtK(3),
    "distinct_1": lambda: DistinctN(1),
    "distinct_2": DistinctN,
    "repetition_2": lambda: RepetitionRate(2),
    "repetition_4": RepetitionRate,
    "self_bleu": SelfBLEU,
    "completion_length": CompletionLength,
    "eos_rate": EosRate,
    "turns": Turns,
    "failed_turns": FailedTurns,
    "late_turns": LateTurns,
    "parse_rate": ParseRate,
    "pass@1_low": PassBound,
    "pass@2_high": lambda: PassBound(2, upper=True),
    "vendi_1": lambda: VendiScore(1),
    "vendi_2": VendiScore,
    "completion_entropy": CompletionEntropy,
    "distinct_correct": DistinctCorrect,
    "majority_vote": MajorityVote,
    "sequence_logp": SequenceLogProb,
    "calibration_error": CalibrationError,
    "sequence_calibration_error": lambda: CalibrationError(per_token=False, bins=4),
    "rouge1": lambda: Rouge("rouge1"),
    "rouge2": lambda: Rouge("rouge2"),
    "rougeL": Rouge,
    "bert_score": lambda: BERTScore(tiny_bert()),
    "win_rate": lambda: WinRate(ReferenceJudge()),
}
TOKEN_METRICS = {
    "student_entropy": StudentEntropy,
    "forward_kl": ForwardKL,
    "reverse_kl": ReverseKL,
    "top_one_agreement": TopOneAgreement,
    "target_sharpness": lambda: TargetSharpness(beta=0.5),
    "mean_ratio_0": TargetRatio,
    "largest_ratio_0": lambda: TargetRatio(over="largest"),
    "overlap_ratio_2": lambda: TopKDiagnostic("overlap_ratio", 2),
    "overlap_mass_2": lambda: TopKDiagnostic("overlap_mass", 2),
    "overlap_advantage_3": lambda: TopKDiagnostic("overlap_advantage", 3),
    "entropy_gap": lambda: TopKDiagnostic("entropy_gap"),
    "student_mass_2": lambda: TopKDiagnostic("student_mass", 2),
    "teacher_mass_2": lambda: TopKDiagnostic("teacher_mass", 2),
    "hidden_kl_1": lambda: TopKDiagnostic("hidden_kl", 1),
}
METRICS = COMPLETION_METRICS | TOKEN_METRICS


def generations(tokens, rewards=None, finished=None):
    """G prompts of K completions, given as lists of ids; text and likelihood of a completion follow from its ids."""
    flat = [ids for group in tokens for ids in group]
    likelihoods = torch.tensor([-0.1 * len(ids) - 0.07 * sum(ids) for ids in flat])
    shape = (len(tokens), len(tokens[0]) if tokens else 1)
    return Generations(
        texts=[" ".join(WORDS[i] for i in ids) for ids in flat],
        tokens=flat,
        rewards=torch.zeros(shape) if rewards is None else torch.tensor(rewards).reshape(shape),
        finished=torch.zeros(shape, dtype=torch.bool) if finished is None else torch.tensor(finished).reshape(shape),
        examples=(ROW,) * len(tokens),
        logp=likelihoods.reshape(shape),
        turns=torch.tensor([1 + len(ids) for ids in flat], dtype=torch.int64).reshape(shape),
        failed_turns=torch.tensor([len(ids) // 2 for ids in flat], dtype=torch.int64).reshape(shape),
        late_turns=torch.tensor([int(len(ids) > 3) for ids in flat], dtype=torch.int64).reshape(shape),
    )


def join(prompts):
    """One batch of the prompts that `PROMPTS` describes."""
    tokens, rewards, finished = zip(*prompts, strict=True)
    return generations(list(tokens), list(rewards), list(finished))


def group_of(completion, size=SAMPLES):
    return st.lists(completion, min_size=size, max_size=size)


COMPLETIONS = st.lists(st.integers(0, len(WORDS) - 1), max_size=7)
PROMPT = st.tuples(group_of(COMPLETIONS), group_of(st.sampled_from([0.0, 0.25, 1.0])), group_of(st.booleans()))
PROMPTS = st.lists(PROMPT, min_size=2, max_size=5)


def log_probabilities(generator, rows, excluded=()):
    """[rows, VOCABULARY] normalised; the ids of `excluded` have probability 0."""
    logits = 2 * torch.randn(rows, VOCABULARY, generator=generator)
    logits[:, list(excluded)] = -math.inf
    return logits.log_softmax(-1)


@st.composite
def token_batches(draw):
    """The distributions of student and teacher, [N, VOCABULARY] each, some with an id that both exclude."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rows, excluded = draw(st.integers(2, 6)), draw(st.sampled_from([(), (0,), (2, 4)]))
    return log_probabilities(generator, rows, excluded), log_probabilities(generator, rows, excluded)


def batches_of(name):
    """Items of a batch, as a strategy: prompts, or pairs of rows."""
    return PROMPTS if name in COMPLETION_METRICS else token_batches().map(lambda pair: list(zip(*pair, strict=True)))


def updated(metric, *batches):
    """The metric after one update per batch of items."""
    for items in batches:
        if metric.name in COMPLETION_METRICS:
            metric.update(join(items))
        else:
            student, teacher = zip(*items, strict=True)
            metric.update(torch.stack(student), torch.stack(teacher))
    return metric


def value_of(name, *batches):
    return float(updated(METRICS[name](), *batches).compute())

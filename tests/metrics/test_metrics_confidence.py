"""Intervals of pass@k by simulation, and the student's confidence against torchmetrics' own calibration error."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_cases import generations
from torchmetrics.classification import BinaryCalibrationError

from veto_pl.exceptions import ConfigurationError
from veto_pl.metrics import CalibrationError, PassAtK, PassBound, PassCurve, SequenceLogProb
from veto_pl.metrics.generations import Generations
from veto_pl.rollouts import Sampling
from veto_pl.training.measured import validation_metrics


def of_rewards(rewards):
    rewards = torch.as_tensor(rewards, dtype=torch.float32)
    texts = [""] * rewards.numel()
    return Generations(texts, [[0]] * rewards.numel(), rewards, rewards.bool())


def computed(metric, batch):
    metric.update(batch)
    return float(metric.compute())


def interval(rewards, k, confidence=0.95):
    batch = of_rewards(rewards)
    return tuple(computed(PassBound(k, upper, confidence), batch) for upper in (False, True))


def test_a_single_completion_has_nearly_wilsons_interval():
    """Of 100 prompts 10 correct: Wilson's interval is 0.0552 to 0.1744 (Brown, Cai and DasGupta)."""
    rewards = [[1.0]] * 10 + [[0.0]] * 90
    assert interval(rewards, 1) == pytest.approx((0.0552, 0.1744), abs=1e-3)


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_where_all_is_alike_the_interval_is_not_empty(right):
    low, high = interval([[right] * 4] * 20, 2)
    assert (low, high)[int(right)] == right
    assert high - low == pytest.approx(1.96**2 / (20 + 1.96**2), rel=1e-3)
    low, high = interval([[1.0, 0.0]] * 20, 1)
    assert 0 < high - low < 0.2


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_the_estimate_lies_in_its_interval_and_confidence_widens_it(data):
    rows = st.lists(st.sampled_from([0.0, 1.0]), min_size=3, max_size=3)
    rewards, k = data.draw(st.lists(rows, min_size=1, max_size=8)), data.draw(st.integers(1, 3))
    (low, high), (lower, higher) = interval(rewards, k), interval(rewards, k, 0.99)
    assert 0 <= lower <= low <= computed(PassAtK(k), of_rewards(rewards)) + 1e-6
    assert computed(PassAtK(k), of_rewards(rewards)) - 1e-6 <= high <= higher <= 1


@pytest.mark.parametrize(
    ("shape", "count", "k"), [((0.3, 0.3), 1, 1), ((0.5, 2.0), 4, 1), ((0.3, 0.3), 4, 2), ((0.5, 2.0), 4, 4)]
)
def test_intervals_cover_as_often_as_they_say(shape, count, k):
    """Sixty prompts whose chances are drawn from a beta distribution, three hundred times."""
    random = np.random.default_rng(0)
    truth = 1 - np.prod([(shape[1] + i) / (sum(shape) + i) for i in range(k)])
    covered = 0
    for chances in random.beta(*shape, size=(300, 60, 1)):
        low, high = interval(random.random((60, count)) < chances, k)
        covered += low <= truth <= high
    assert 0.91 <= covered / 300 <= 0.99


def test_a_curve_has_every_k_with_its_bounds():
    metrics = validation_metrics([PassCurve(0.9)], Sampling(num_completions=3), with_teacher=False)
    assert list(metrics) == [f"pass@{k}{bound}" for k in (1, 2, 3) for bound in ("", "_low", "_high")]
    batch = of_rewards([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    values = {name: computed(metric, batch) for name, metric in metrics.items()}
    assert [values[f"pass@{k}"] for k in (1, 2, 3)] == pytest.approx([1 / 3, (2 / 3 + 1) / 3, 2 / 3])
    assert values["pass@2_low"] == interval(batch.rewards, 2, 0.9)[0]
    assert values["pass@2_low"] > interval(batch.rewards, 2, 0.95)[0]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(-6, 0), st.integers(1, 9), st.booleans()), min_size=1, max_size=30), st.integers(1, 20)
)
def test_calibration_is_that_of_torchmetrics(completions, bins):
    """The same bins and sums; torchmetrics keeps every prediction, which does not add up over ranks."""
    logp = torch.tensor([[value] for value, _, _ in completions])
    lengths = torch.tensor([length for _, length, _ in completions])
    right = torch.tensor([correct for _, _, correct in completions])
    batch = Generations(
        [""] * len(right), [[0] * n for n in lengths.tolist()], right[:, None].float(), right, logp=logp
    )
    for per_token in (True, False):
        confidence = (logp[:, 0].double() / (lengths if per_token else 1)).exp()
        edges = confidence * bins
        if ((edges - edges.round()).abs() < 1e-6).any():
            continue  # on an edge, rounding decides
        oracle = BinaryCalibrationError(n_bins=bins, norm="l1")(confidence, right.int())
        assert computed(CalibrationError(per_token, bins), batch) == pytest.approx(float(oracle), abs=1e-6)


def test_calibration_by_hand():
    batch = generations([[[0], [0], [0], [0]]], [[1.0, 0.5, 1.0, 1.0]])  # half right is wrong
    sure = Generations(batch.texts, batch.tokens, batch.rewards, batch.finished, logp=torch.zeros(1, 4))
    assert computed(CalibrationError(), sure) == pytest.approx(1 / 4)
    half = Generations(
        batch.texts, batch.tokens, batch.rewards, batch.finished, logp=torch.full((1, 4), math.log(0.75))
    )
    assert computed(CalibrationError(), half) == pytest.approx(0, abs=1e-6)


def test_sequence_logp_is_a_mean_over_completions():
    batch = generations([[[1, 2], [3]], [[], [0]]])
    assert computed(SequenceLogProb(), batch) == pytest.approx(-(0.41 + 0.31 + 0.0 + 0.1) / 4)


def test_bad_settings_are_refused():
    for make in (PassCurve, lambda c: PassBound(confidence=c)):
        for confidence in (0.0, 1.0, -1.0):
            with pytest.raises(ConfigurationError, match=r"confidence` must lie between 0 and 1"):
                make(confidence)
    with pytest.raises(ConfigurationError, match=r"`CalibrationError\.bins` must be at least 1, got 0"):
        CalibrationError(bins=0)

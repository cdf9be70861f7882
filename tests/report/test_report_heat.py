import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from report.pages import Checker
from veto_pl.report.heat import LEVELS, Scale, tokens_html
from veto_pl.report.quantities import Quantity

VALUES = st.one_of(st.floats(-1, 1e6), st.sampled_from([math.nan, math.inf, 0.0]))


@given(st.lists(VALUES, max_size=60), st.floats(0.5, 0.99))
def test_levels_rise_with_the_value_and_few_values_are_clipped(values, quantile):
    scale = Scale.of("KL", "f", values, quantile)
    finite = sorted(value for value in values if math.isfinite(value))
    levels = [scale.level(value) for value in finite]
    assert levels == sorted(levels)
    assert set(levels) <= set(range(LEVELS + 1))
    assert scale.level(0.0) == 0
    assert sum(value > scale.clip for value in finite) <= (1 - quantile) * len(finite)
    if scale.clip > 1e-9:
        assert [scale.level(scale.clip * share) for share in (0.2, 0.5, 1.0, 7.0)] == [2, 4, 8, 8]


def test_the_legend_names_the_ends_and_the_clipping():
    text = Checker(Scale.of("forward KL", "f", [0.1 * i for i in range(101)]).legend()).text
    assert text.split() == [
        "forward",
        "KL:",
        "0",
        "9.60",
        "nats",
        "and",
        "more",
        "(clipped",
        "at",
        "the",
        "95%",
        "quantile)",
    ]
    unclipped = Scale.of("forward KL", "f", [0.0] * 99 + [3.0])
    assert (unclipped.clip, unclipped.quantile) == (3.0, 1.0)
    assert "(the largest)" in unclipped.legend()


@given(st.lists(st.tuples(st.text(max_size=5), VALUES), max_size=12), st.integers(1, 8))
def test_any_tokens_are_shown_once_with_their_number(tokens, limit):
    texts, values = [text for text, _ in tokens], [value for _, value in tokens]
    scale = Scale.of("KL", "f", values)
    html = tokens_html(texts, {scale: values}, limit=limit)
    tips = re.findall(r'title="KL ([^"]+)"', html)
    assert len(tips) == min(limit, len(tokens))
    for tip, value in zip(tips, values, strict=False):
        assert float(tip.replace("\N{MINUS SIGN}", "-")) == pytest.approx(value, abs=6e-4, nan_ok=True)
    assert ("more tokens" in html) == (len(tokens) > limit)
    Checker(html)


def test_numbers_of_another_length_are_left_out():
    scale = Scale.of("KL", "f", [1.0])
    assert "title" not in tokens_html(["a", "b"], {scale: [1.0]}, limit=9)


@pytest.mark.parametrize(
    ("column", "title", "unit", "factor", "better"),
    [
        ("greedy/accuracy", "Accuracy, greedy", "accuracy (%)", 100, 1),
        ("sampled/pass@16", "Pass@16, sampled", "pass@16 (%)", 100, 1),
        ("sampled/pass@4_low", "Pass@4, low, sampled", "pass@4, low (%)", 100, 1),
        ("greedy/rougeL", "ROUGE-L, greedy", "ROUGE-L (%)", 100, 1),
        ("sampled/vendi_2", "Vendi score, sampled", "Vendi score (completions, by 2-grams)", 1, 1),
        ("sampled/self_bleu", "Self-BLEU, sampled", "self-BLEU (0 to 100)", 1, -1),
        ("validation/accuracy", "Validation accuracy", "accuracy (%)", 100, 1),
        ("validation/forward_kl", "Forward KL in validation", "forward KL (nats/token)", 1, -1),
        ("greedy/my_metric", "My metric, greedy", "my metric", 1, 0),
        ("accuracy", "Accuracy", "accuracy (%)", 100, 1),
        ("train/completion_length", "Training completion length", "completion length (tokens)", 1, 0),
        ("train/seconds/rollout", "Time for rollout", "time (s)", 1, 0),
        ("train/my_metric", "Training my metric", "my metric", 1, 0),
    ],
)
def test_metrics_of_evaluations_have_titles_units_and_directions(column, title, unit, factor, better):
    quantity = Quantity.of(column)
    assert (quantity.title, quantity.unit, quantity.factor, quantity.better) == (title, unit, factor, better)

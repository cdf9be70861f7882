import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.report.axis import LogAxis
from veto_pl.report.bands import band_chart
from veto_pl.report.curve import Curve, drawable
from veto_pl.report.envelope import Envelope

SVG = "{http://www.w3.org/2000/svg}"
REALS = st.floats(-1e6, 1e6)
VALUES = st.one_of(REALS, st.sampled_from([math.nan, math.inf]))
CURVES = st.dictionaries(st.integers(0, 60), VALUES, min_size=1, max_size=40).map(
    lambda points: Curve(tuple(sorted(points)), tuple(points[step] for step in sorted(points)))
)
SEEDS = st.lists(CURVES, min_size=1, max_size=4)


@given(st.lists(st.lists(REALS, min_size=9, max_size=9), min_size=1, max_size=5))
def test_on_common_steps_it_is_the_mean_and_the_range(values):
    envelope = Envelope.of([Curve(tuple(range(9)), tuple(row)) for row in values])
    assert envelope.mean.steps == tuple(range(9))
    assert envelope.mean.values == pytest.approx(np.mean(values, axis=0), abs=1e-8)
    assert envelope.low.values == tuple(np.min(values, axis=0))
    assert envelope.high.values == tuple(np.max(values, axis=0))
    assert envelope.seeds == len(values)


@given(SEEDS, st.integers(1, 20))
def test_the_mean_lies_in_the_range_and_the_range_is_that_of_the_seeds(curves, limit):
    envelope = Envelope.of(curves, limit)
    assert len(envelope.mean) <= limit
    finite = [value for curve in curves for value in curve.values if drawable(value)]
    for low, mean, high in zip(envelope.low.values, envelope.mean.values, envelope.high.values, strict=True):
        if drawable(mean):
            assert low - 1e-6 <= mean <= high + 1e-6
            assert min(finite) <= low <= high <= max(finite)


@given(st.lists(st.lists(REALS, min_size=100, max_size=100), min_size=1, max_size=3), st.integers(1, 30))
def test_stretches_keep_the_extremes(values, limit):
    envelope = Envelope.of([Curve(tuple(range(100)), tuple(row)) for row in values], limit)
    assert min(envelope.low.values) == np.min(values)
    assert max(envelope.high.values) == np.max(values)


def test_a_seed_that_logged_at_other_steps_is_interpolated():
    envelope = Envelope.of([Curve((0, 10, 20), (0.0, 10.0, 20.0)), Curve((5, 15), (0.0, 10.0))])
    assert envelope.mean == Curve((5, 10, 15), (2.5, 7.5, 12.5))


def test_a_seed_that_is_not_finite_ends_the_mean_but_not_the_range():
    envelope = Envelope.of([Curve((0, 1), (1.0, math.nan)), Curve((0, 1), (3.0, 4.0))])
    assert envelope.mean.points() == [(0, 2.0)]
    assert envelope.low.values == (1.0, 4.0)


def test_seeds_without_common_steps_and_no_seeds_at_all():
    assert not Envelope.of([Curve((0, 1), (1.0, 1.0)), Curve((5, 6), (2.0, 2.0))]).mean.points()
    assert Envelope.of([]).seeds == 0
    assert Envelope.of([Curve()]).mean == Curve()


@given(st.lists(st.floats(-140, 140), min_size=1, max_size=20))
def test_log_axes_hold_the_data_and_their_labels_are_the_numbers(values):
    axis = LogAxis.around(values)
    assert axis.low <= min(values) <= max(values) <= axis.high
    ticks, labels = axis.ticks(), axis.labels()
    assert 2 <= len(ticks) <= 10
    assert len(set(labels)) == len(labels) == len(ticks)
    for tick, label in zip(ticks, labels, strict=True):
        assert axis.low - 1e-9 <= tick <= axis.high + 1e-9
        assert float(label.replace(",", "")) == pytest.approx(10**tick, rel=1e-4)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.0, 1.0], ["1", "2", "5", "10"]),
        ([-1.0, 1.0], ["0.1", "0.2", "0.5", "1", "2", "5", "10"]),
        ([0.0, 4.0], ["1", "10", "100", "1,000", "10,000"]),
        ([0.0, 0.04], ["0.9", "1", "1.1", "1.2", "1.3"]),
    ],
)
def test_log_axes_have_round_numbers(values, labels):
    assert LogAxis.around(values).labels() == labels


@given(st.dictionaries(st.text(max_size=30), SEEDS, max_size=4), st.booleans(), st.booleans())
def test_any_data_gives_well_formed_pictures_inside_their_box(series, log, band):
    root = ElementTree.fromstring(band_chart(series, "t", "y", log=log, band=band))
    width, height = (float(number) for number in root.get("viewBox").split()[2:])
    for path in root.iter(f"{SVG}path"):
        if "transform" not in path.attrib and "h26" not in path.get("d"):
            for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", path.get("d")):
                assert -0.1 <= float(x) <= width + 0.1
                assert -0.1 <= float(y) <= height + 0.1


def points(path):
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+),([\d.]+)", path.get("d"))]


def test_bands_reach_from_the_least_to_the_greatest_seed():
    seeds = [Curve((0, 50, 100), (0.0, 2.0, 4.0)), Curve((0, 50, 100), (4.0, 8.0, 10.0))]
    root = ElementTree.fromstring(band_chart({"a": seeds}, "t", "y"))
    texts = list(root.iter(f"{SVG}text"))
    height = {text.text: float(text.get("y")) - 3.8 for text in texts if text.get("text-anchor") == "end"}
    (band,) = [path for path in root.iter(f"{SVG}path") if path.get("fill-opacity") == "0.16"]
    expected = [height[label] for label in ("0", "2", "4", "10", "8", "4")]
    assert [y for _, y in points(band)] == pytest.approx(expected, abs=0.2)
    tips = [title.text for title in root.iter(f"{SVG}title")][1:]
    assert tips == [
        "a, step 0: 2.00 (0 to 4.00)",
        "a, step 50: 5.00 (2.00 to 8.00)",
        "a, step 100: 7.00 (4.00 to 10.0)",
    ]


def test_logarithmic_charts_place_powers_of_ten_evenly_and_average_geometrically():
    seeds = [Curve((0, 1, 2), (0.01, 1.0, 100.0)), Curve((0, 1, 2), (1.0, 1.0, 1.0))]
    root = ElementTree.fromstring(band_chart({"a": seeds, "b": [Curve((0,), (-1.0,))]}, "t", "y", log=True))
    tips = [title.text for title in root.iter(f"{SVG}title")][1:]
    assert tips[0] == "a, step 0: 0.100 (0.0100 to 1.00)"
    ticks = {t.text: float(t.get("y")) for t in root.iter(f"{SVG}text") if t.get("text-anchor") == "end"}
    assert ticks["0.01"] - ticks["1"] == pytest.approx(ticks["1"] - ticks["100"], abs=0.3)


def test_one_method_alone_keeps_the_axes_of_all():
    series = {"a": [Curve((0, 9), (0.0, 1.0))], "b": [Curve((0, 9), (0.0, 100.0))]}
    alone = band_chart(series, "t", "y", only="a")
    assert ">100<" in alone
    assert 'class="m1"' not in alone

import math
import random
import re
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veto_pl.report.curve import Curve
from veto_pl.report.marks import COLOURS, DASHES, Mark
from veto_pl.report.svg import line_chart

SVG = "{http://www.w3.org/2000/svg}"
VALUES = st.one_of(st.floats(), st.sampled_from([0.0, 1.0, math.nan, math.inf]))
CURVES = st.dictionaries(st.integers(0, 10**6), VALUES, max_size=90).map(
    lambda points: Curve(tuple(sorted(points)), tuple(points[step] for step in sorted(points)))
)
NOISE = random.Random(0)
NOISY = Curve(tuple(range(400)), tuple(NOISE.gauss(0, 1) for _ in range(400)))


def parsed(*args, **kwargs):
    return ElementTree.fromstring(line_chart(*args, **kwargs))


def lines(root):
    return [
        path for path in root.iter(f"{SVG}path") if path.get("stroke-width") == "1.8" and "h26" not in path.get("d")
    ]


def dots(root):
    return [path for path in root.iter(f"{SVG}path") if path.find(f"{SVG}title") is not None]


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.text(), CURVES, max_size=4), st.text(), st.text())
def test_any_data_gives_well_formed_accessible_svg_inside_its_box(series, title, label):
    root = parsed(series, title, label)
    assert root.get("role") == "img"
    assert [child.tag for child in root[:2]] == [f"{SVG}title", f"{SVG}desc"]
    width, height = (float(number) for number in root.get("viewBox").split()[2:])
    for path in lines(root):
        for x, y in re.findall(r"([\d.e+-]+),([\d.e+-]+)", path.get("d")):
            assert 0 <= float(x) <= width
            assert 0 <= float(y) <= height
    for text in root.iter(f"{SVG}text"):
        assert 0 <= float(text.get("x")) <= width
        assert 0 <= float(text.get("y")) <= height


def test_points_lie_where_the_ticks_say():
    root = parsed({"a": Curve((0, 50, 100), (0.0, 3.0, 10.0))}, "title", "y")
    texts = list(root.iter(f"{SVG}text"))
    height = {text.text: float(text.get("y")) - 3.8 for text in texts if text.get("text-anchor") == "end"}
    (path,) = lines(root)
    xs, ys = zip(*((float(x), float(y)) for x, y in re.findall(r"([\d.]+),([\d.]+)", path.get("d"))), strict=True)
    assert ys[0] == pytest.approx(height["0"], abs=0.2)
    assert ys[2] == pytest.approx(height["10"], abs=0.2)
    assert ys[1] == pytest.approx(0.7 * ys[0] + 0.3 * ys[2], abs=0.2)
    assert xs[1] == pytest.approx((xs[0] + xs[2]) / 2, abs=0.2)
    (right,) = [float(text.get("x")) for text in texts if text.text == "100"]
    assert xs[2] == pytest.approx(right, abs=0.2)


def test_a_single_point_is_a_dot():
    (dot,) = dots(parsed({"a": Curve((7,), (0.5,))}, "t", "y"))
    assert dot.find(f"{SVG}title").text == "a, step 7: 0.500"


def test_gaps_interrupt_the_line_and_a_lone_point_between_them_is_a_dot():
    values = [1.0] * 30 + [math.nan, 2.0, math.nan] + [1.0] * 30
    root = parsed({"a": Curve(tuple(range(63)), tuple(values))}, "t", "y")
    assert lines(root)[0].get("d").count("M") == 3
    assert "a, step 31: 2.00" in [dot.find(f"{SVG}title").text for dot in dots(root)]


def test_nothing_to_draw_is_said():
    assert "no finite values" in line_chart({"a": Curve((1,), (math.nan,))}, "t", "y")


def test_only_noise_gets_a_faint_line_behind_its_mean():
    ramp = Curve(NOISY.steps, tuple(float(step) for step in NOISY.steps))
    faint = [path for path in parsed({"a": NOISY}, "t", "y").iter(f"{SVG}path") if path.get("stroke-width") == "0.9"]
    assert len(faint) == 1
    assert 'stroke-width="0.9"' not in line_chart({"a": ramp}, "t", "y")


def test_legend_names_the_drawn_runs_and_an_absent_run_keeps_its_look():
    series = {"first": Curve(), "second": Curve((1, 2), (0.0, 1.0)), "third": Curve((1, 2), (1.0, 0.0))}
    root = parsed(series, "t", "y")
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "first" not in texts
    assert {"second", "third"} <= set(texts)
    assert [path.get("stroke") for path in lines(root)] == [Mark(1).colour, Mark(2).colour]


def test_long_legends_wrap_and_shorten_within_the_width():
    series = {f"{i} " + "wide name " * i: Curve((1,), (1.0,)) for i in range(9)}
    root = parsed(series, "t", "y")
    height = float(root.get("viewBox").split()[3])
    legend = list(root.find(f"{SVG}g").iter(f"{SVG}text"))
    assert len(legend) == 9
    assert all(float(text.get("x")) + 6.4 * len(text.text) <= 400.01 for text in legend)
    assert legend[-1].text.endswith("…")
    assert 254 + float(legend[-1].get("y")) <= height


def test_the_first_thirty_looks_differ():
    looks = {(Mark(i).colour, Mark(i).dash, Mark(i).dot(0, 0).split('"')[1]) for i in range(30)}
    assert len(looks) == 30
    assert len({Mark(i).dash for i in range(len(DASHES))}) == len(DASHES)


def linear(colour):
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """WCAG 2.2: (L1 + 0.05) / (L2 + 0.05)."""
    light = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) + 0.05 for c in (one, other))
    return light[1] / light[0]


@pytest.mark.parametrize("page", ["#ffffff", "#15181c"])
@pytest.mark.parametrize("colour", COLOURS)
def test_lines_stand_out_on_both_pages(colour, page):
    assert contrast(colour, page) >= 3


# Machado, Oliveira and Fernandes, 2009, severity 1.
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}


def lab(rgb):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    x, y, z = np.cbrt(xyz / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("matrix", DEFICIENCIES.values(), ids=DEFICIENCIES)
def test_colours_differ_for_colour_blind_readers(matrix):
    seen = {colour: lab(np.clip(np.array(matrix) @ linear(colour), 0, 1)) for colour in COLOURS}
    distances = {(a, b): np.linalg.norm(seen[a] - seen[b]) for a, b in combinations(COLOURS, 2)}
    assert min(distances.values()) >= 15, {pair: d for pair, d in distances.items() if d < 15}

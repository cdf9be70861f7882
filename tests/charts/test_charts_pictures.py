"""What a reader sees of any data: well-formed pictures that name themselves, and marks where the ticks say."""

import math
import re
import subprocess
import sys
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from veto_pl.charts import Cloud, Curve, Row, curve_chart, forest_plot, key, pareto_front, scatter, standalone
from veto_pl.charts.picture import COLOURS, DASHES, MARKERS, look
from veto_pl.exceptions import ConfigurationError

SVG = "{http://www.w3.org/2000/svg}"
NUMBERS = st.one_of(st.floats(), st.sampled_from([0.0, 1.0, math.nan, math.inf]))
CURVES = st.dictionaries(st.integers(0, 10**6), NUMBERS, max_size=40).map(
    lambda points: Curve(tuple(sorted(points)), tuple(points[step] for step in sorted(points)))
)
SERIES = st.dictionaries(st.text(max_size=30), st.lists(CURVES, max_size=2), max_size=3)
GRID = st.tuples(st.integers(0, 5).map(float), st.integers(0, 5).map(float))
few = settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.generate])  # to shrink takes minutes


def parsed(svg):
    """The picture, which names and describes itself, and in which nothing lies outside."""
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert [child.tag for child in root[:2]] == [f"{SVG}title", f"{SVG}desc"]
    assert not [e for e in root.iter() if "id" in e.attrib or "clip-path" in e.attrib]
    width, height = (float(number) for number in root.get("viewBox").split()[2:])
    for x, y in marks(root).values():
        assert -1 <= x <= width + 1
        assert -1 <= y <= height + 1
    return root


def marks(root):
    """Tip -> where its mark is."""
    found = {}
    for path in root.iter(f"{SVG}path"):
        if (tip := path.find(f"{SVG}title")) is not None:
            found[tip.text] = tuple(map(float, re.findall(r"-?[\d.]+", path.get("transform"))))
    return found


def ticks(root, axis):
    """Label -> place along the axis."""
    anchor = {"x": "middle", "y": "end"}[axis]
    return {
        text.text: float(text.get(axis)) - (0 if axis == "x" else 3.8)
        for text in root.iter(f"{SVG}text")
        if f"text-anchor: {anchor}" in text.get("style") and re.fullmatch(r"-?[\d,.]+(e-?\d+)?", text.text)
    }


@few
@given(SERIES, st.text(max_size=9), st.booleans(), st.booleans())
def test_any_curves_give_a_picture(series, title, log, band):
    parsed(curve_chart(series, title, "y", log=log, band=band))


@few
@given(
    st.lists(
        st.tuples(st.text(max_size=80), st.dictionaries(st.integers(0, 9), NUMBERS, max_size=4), NUMBERS),
        min_size=1,
        max_size=3,
    )
)
def test_any_rows_give_a_picture_with_a_mark_per_seed(rows):
    rows = [Row(f"{i}{name}", seeds, mean, mean - 1, mean + 1, "r") for i, (name, seeds, mean) in enumerate(rows)]
    root = parsed(forest_plot(rows, "t", "x", zero=True))
    drawn = [value for row in rows for value in (*row.seeds.values(), row.mean) if abs(value) < 1e100]
    assert sum(path.find(f"{SVG}title") is not None for path in root.iter(f"{SVG}path")) == len(drawn)


def test_points_lie_where_the_ticks_say():
    root = parsed(curve_chart({"a": [Curve((0, 50, 100), (0.0, 3.0, 10.0))]}, "t", "y"))
    found, heights, across = marks(root), ticks(root, "y"), ticks(root, "x")
    first, second, third = (
        found[f"a, step {step}: {value}"] for step, value in ((0, "0"), (50, "3.00"), (100, "10.0"))
    )
    assert second[1] == pytest.approx(0.7 * first[1] + 0.3 * third[1], abs=0.1)
    assert first[1] - second[1] == pytest.approx((heights["0"] - heights["10"]) * 0.3, abs=0.3)
    assert (first[0], third[0]) == pytest.approx((across["0"], across["100"]), abs=0.1)


def test_logarithmic_charts_place_powers_of_ten_evenly_and_average_geometrically():
    seeds = [Curve((0, 1, 2), (0.01, 1.0, 100.0)), Curve((0, 1, 2), (1.0, 1.0, 1.0))]
    root = parsed(curve_chart({"a": seeds, "b": [Curve((0,), (-1.0,))]}, "t", "y", log=True))
    assert "a, step 0: 0.100 (0.0100 to 1.00)" in marks(root)
    heights = ticks(root, "y")
    assert heights["0.01"] - heights["1"] == pytest.approx(heights["1"] - heights["100"], abs=0.1)


def test_a_lone_point_between_gaps_has_a_mark_and_a_tip():
    values = [1.0] * 30 + [math.nan, 2.0, math.nan] + [1.0] * 30
    assert "a, step 31: 2.00" in marks(parsed(curve_chart({"a": [Curve(tuple(range(63)), tuple(values))]}, "t", "y")))


def test_nothing_to_draw_is_said():
    assert "no finite values" in curve_chart({"a": [Curve((1,), (math.nan,))]}, "t", "y")
    assert "no finite values" in scatter({"a": Cloud({}, None)}, "t", ("x", "y"))


def test_a_run_that_logged_nothing_keeps_its_look_and_is_not_in_the_legend():
    line = Curve((1, 2), (0.0, 1.0))
    root = parsed(curve_chart({"first": [], "second": [line], "third": [line.scaled(2)]}, "t", "y"))
    assert {"second", "third"} <= {text.text for text in root.iter(f"{SVG}text")}
    assert "first" not in {text.text for text in root.iter(f"{SVG}text")}
    for i in (1, 2):
        styles = "".join(
            e.get("style", "") for g in root.iter(f"{SVG}g") if g.get("class") == f"m{i}" for e in g.iter()
        )
        assert COLOURS[i] in styles
        assert not any(colour in styles for colour in COLOURS if colour != COLOURS[i])


def test_one_method_alone_keeps_the_axes_of_all():
    series = {"a": [Curve((0, 9), (0.0, 1.0))], "b": [Curve((0, 9), (0.0, 100.0))]}
    alone = curve_chart(series, "t", "y", only="a")
    assert ">100<" in alone
    assert 'class="m1"' not in alone


def test_seeds_lie_where_the_ticks_say_and_do_not_cover_each_other():
    row = Row("m", {0: 1.0, 1: 1.0, 2: 1.0, 3: 3.0}, 2.0, 1.5, 2.5, "2.00")
    root = parsed(forest_plot([row], "t", "x"))
    found, across = marks(root), ticks(root, "x")
    assert (found["m, seed 0: 1.00"][0], found["m, seed 3: 3.00"][0]) == pytest.approx(
        (across["1"], across["3"]), abs=0.1
    )
    assert len({found[f"m, seed {seed}: 1.00"] for seed in range(3)}) == 3


@pytest.mark.parametrize("better", [1, -1])
def test_better_is_right_whatever_the_direction(better):
    clouds = {
        "a": Cloud({0: (0.0, 0.0), 1: (2.0, 4.0)}, (1.0, 2.0)),
        "b": Cloud({0: (4.0, 1.0), 1: (math.nan, 1.0)}, None),
    }
    svg = scatter(clouds, "t", ("x", "y"), better=(better, 1), front=["a"])
    places = marks(parsed(svg))
    order = sorted(places, key=lambda tip: places[tip][0])
    expected = ["a, seed 0: 0, 0", "a, mean: 1.00, 2.00", "a, seed 1: 2.00, 4.00", "b, seed 0: 4.00, 1.00"]
    assert order == expected[::better]
    assert ("axis reversed" in svg) == (better < 0)


@given(st.dictionaries(st.text(max_size=3), GRID, max_size=8), st.sampled_from([(1, 1), (-1, 1), (1, -1), (-1, -1)]))
def test_the_front_is_what_nothing_beats(points, better):
    def beats(a, b):
        gains = [(p - q) * sign for p, q, sign in zip(a, b, better, strict=True)]
        return min(gains) >= 0 and max(gains) > 0

    front = pareto_front(points, better)
    assert set(front) == {n for n, p in points.items() if not any(beats(q, p) for q in points.values())}
    along = [points[name][0] * better[0] for name in front]
    assert along == sorted(along)


def test_the_same_data_give_the_same_bytes_and_no_date():
    def draw():
        return curve_chart({"a": [Curve((0, 1), (0.0, 1.0))], "b": [Curve((0, 1), (0.0, 2.0))]}, "t", "y")

    assert draw() == draw()
    assert not re.search(r"20\d\d-", draw())
    assert ElementTree.fromstring(standalone(draw())).find(f"{SVG}style") is not None


def test_formulas_and_control_characters_stay_text():
    root = parsed(curve_chart({"$x^2$": [Curve((1,), (1.0,))], "_b\x1b": [Curve((1,), (1.0,))]}, "$\\alpha$", "y"))
    assert {"$x^2$", "_b\\x1b", "$\\alpha$"} <= {text.text for text in root.iter(f"{SVG}text")}


def test_a_missing_matplotlib_is_said_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'veto_pl\[report\]'"):
        curve_chart({}, "t", "y")


def test_nothing_is_imported_before_something_is_drawn():
    code = "import sys, veto_pl.charts, veto_pl.pages; print({'matplotlib', 'jinja2', 'torch'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_the_first_thirty_looks_differ_and_a_key_shows_them():
    looks = {str(sorted(look(i, line=True, marker=True).items())) for i in range(30)}
    assert len(looks) == 30
    assert len(COLOURS) * len(DASHES) == len(COLOURS) * len(MARKERS) == 30
    assert ElementTree.fromstring(key(1)).get("aria-hidden") == "true"
    assert COLOURS[1] in key(1)


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

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.report.curve import drawable
from veto_pl.report.forest import Row, forest_plot
from veto_pl.report.marks import Mark
from veto_pl.report.quantities import Quantity
from veto_pl.report.scatter import Cloud, pareto_front, scatter

SVG = "{http://www.w3.org/2000/svg}"
NUMBERS = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([0.0, 1.0, math.nan, math.inf]))
SEEDS = st.dictionaries(st.integers(0, 9), NUMBERS, max_size=6)
GRID = st.tuples(st.integers(0, 5).map(float), st.integers(0, 5).map(float))


def marks(root, start):
    """Tip -> (x, y) of the marks whose tip starts so."""
    found = {}
    for path in root.iter(f"{SVG}path"):
        tip = path.find(f"{SVG}title")
        if tip is not None and tip.text.startswith(start):
            x, y = re.match(r"translate\(([-\d.]+) ([-\d.]+)\)", path.get("transform")).groups()
            found[tip.text] = (float(x), float(y))
    return found


def ticks(root, anchor):
    return [
        (float(text.text.replace(",", "")), float(text.get("x")), float(text.get("y")))
        for text in root.iter(f"{SVG}text")
        if text.get("text-anchor") == anchor and re.fullmatch(r"-?[\d,.]+(e-?\d+)?", text.text)
    ]


@given(st.lists(st.tuples(st.text(max_size=80), SEEDS, NUMBERS), min_size=1, max_size=5), st.booleans())
def test_any_rows_give_a_well_formed_picture_with_a_mark_per_seed(rows, zero):
    rows = [Row(name, Mark(i), seeds, mean, mean - 1, mean + 1, "r") for i, (name, seeds, mean) in enumerate(rows)]
    root = ElementTree.fromstring(forest_plot(rows, "t", "x", zero=zero))
    width, height = (float(number) for number in root.get("viewBox").split()[2:])
    placed = re.findall(r"translate\(([-\d.]+) ([-\d.]+)\)", ElementTree.tostring(root, encoding="unicode"))
    assert len(placed) == sum(sum(map(drawable, row.seeds.values())) + drawable(row.mean) for row in rows)
    assert all(0 <= float(x) <= width and 0 <= float(y) <= height for x, y in placed)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=8), st.floats(0, 100))
def test_marks_lie_where_the_ticks_say(values, mean):
    row = Row("m", Mark(0), dict(enumerate(values)), mean, min(values), max(values), "reading")
    root = ElementTree.fromstring(forest_plot([row], "t", "x"))
    scale = ticks(root, "middle")
    (low, start, _), (high, end, _) = scale[0], scale[1]
    expected = {f"m, seed {seed}": value for seed, value in row.seeds.items()} | {"m: reading": mean}
    for tip, (x, _) in marks(root, "m").items():
        value = expected[tip if tip == "m: reading" else tip.partition(":")[0]]
        assert x == pytest.approx(start + (value - low) / (high - low) * (end - start), abs=0.4)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=3))
def test_up_to_three_seeds_never_cover_each_other(values):
    row = Row("m", Mark(0), dict(enumerate(values)), 0.5, 0.0, 1.0, "reading")
    places = list(marks(ElementTree.fromstring(forest_plot([row], "t", "x")), "m, seed").values())
    for i, (x, y) in enumerate(places):
        assert all(abs(x - a) >= 6.9 or abs(y - b) >= 5.9 for a, b in places[:i])


def test_names_and_readings_do_not_meet():
    rows = [Row("long name " * 20, Mark(0), {}, 1.0, 0.5, 1.5, "▲ +1.00 [0.50, 1.50], p = 0.01", stressed=True)]
    name, reading = [
        text
        for text in ElementTree.fromstring(forest_plot(rows, "t", "x")).iter(f"{SVG}text")
        if text.get("y") == "59.0"
    ]
    assert name.text.endswith("…")
    assert 6.4 * len(name.text) < 400 - 6.4 * len(reading.text)
    assert reading.get("font-weight") == "700"


@given(st.dictionaries(st.text(max_size=3), GRID, max_size=8), st.sampled_from([(1, 1), (-1, 1), (1, -1), (-1, -1)]))
def test_the_front_is_what_nothing_beats(points, better):
    def beats(a, b):
        gains = [(p - q) * sign for p, q, sign in zip(a, b, better, strict=True)]
        return min(gains) >= 0 and max(gains) > 0

    front = pareto_front(points, better)
    assert set(front) == {n for n, p in points.items() if not any(beats(q, p) for q in points.values())}
    along = [points[name][0] * better[0] for name in front]
    assert along == sorted(along)


X, Y = Quantity("x", "X", "x"), Quantity("y", "Y", "y")
CLOUDS = {
    "a": Cloud(Mark(0), {0: (0.0, 0.0), 1: (2.0, 4.0)}, (1.0, 2.0)),
    "b": Cloud(Mark(1), {0: (4.0, 1.0), 1: (math.nan, 1.0)}, None),
}


@pytest.mark.parametrize("better", [1, -1])
def test_better_is_right_whatever_the_direction(better):
    root = ElementTree.fromstring(scatter(CLOUDS, "t", Quantity("x", "X", "x", better=better), Y, front=["a"]))
    places = marks(root, "")
    assert len(places) == 4
    order = sorted(places, key=lambda tip: places[tip][0])
    expected = ["a, seed 0: 0, 0", "a, mean: 1.00, 2.00", "a, seed 1: 2.00, 4.00", "b, seed 0: 4.00, 1.00"]
    assert order == (expected if better > 0 else expected[::-1])
    assert ("axis reversed" in ElementTree.tostring(root, encoding="unicode")) == (better < 0)


def test_the_staircase_passes_through_the_front():
    clouds = {"a": Cloud(Mark(0), {}, (1.0, 5.0)), "b": Cloud(Mark(1), {}, (3.0, 2.0))}
    root = ElementTree.fromstring(scatter(clouds, "t", X, Y, front=["a", "b"]))
    (stairs,) = [path.get("d") for path in root.iter(f"{SVG}path") if path.get("stroke-dasharray") == "4 3"]
    (ax, ay), (bx, by) = marks(root, "a")["a, mean: 1.00, 5.00"], marks(root, "b")["b, mean: 3.00, 2.00"]
    assert f",{ay:.1f}H{ax:.1f}V{by:.1f}H{bx:.1f}V" in stairs


def test_no_points_are_said():
    assert "no finite values" in scatter({"a": Cloud(Mark(0), {}, None)}, "t", X, Y)

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from veto_pl.charts.text import for_terminal, number, printable
from veto_pl.exceptions import ConfigurationError
from veto_pl.pages.escaping import escape, visible
from veto_pl.report import ResultTable

TABLE = ResultTable(["accuracy (%)", "steps", "note"], {"a|b": [58.04, 400, None], "<i>[red]": [0.0, 1200, "x\\|y\n"]})


def rendered_cells(markdown):
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    assert tokens[0].type == "table_open"
    inner = [token for token in tokens if token.type == "inline"]
    return ["".join(child.content for child in token.children) for token in inner]


def test_markdown_shows_each_cell_as_given():
    expected = ["run", "accuracy (%)", "steps", "note", "a|b", "58.0", "400", "—", "<i>[red]", "0", "1,200", "x\\|y\\n"]
    assert rendered_cells(TABLE.markdown()) == expected


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1))
def test_markdown_survives_any_name(name):
    assert rendered_cells(ResultTable(["x"], {name: [1]}).markdown())[2] == name


def test_rich_shows_markup_as_text():
    out = io.StringIO()
    Console(file=out, width=100).print(TABLE.rich())
    assert "<i>[red]" in out.getvalue()
    assert "58.0" in out.getvalue()
    assert ResultTable(["x"], {"a": [-1.5]}).lines() == [["a", "−1.50"]]  # noqa: RUF001
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(file=out).print(ResultTable(["x"], {"a": [-1.5]}).rich())


def test_a_short_row_is_refused():
    with pytest.raises(ConfigurationError, match=r"rows\['a'\]` must have one cell per column \(2\), got 1"):
        ResultTable(["x", "y"], {"a": [1]})


@given(st.floats(-1e300, 1e300))
def test_numbers_keep_three_digits(value):
    shown = float(number(value).replace(",", "").replace("\N{MINUS SIGN}", "-"))
    assert shown == pytest.approx(value, rel=6e-2 if abs(value) < 1e-3 or abs(value) >= 1e15 else 5.1e-3, abs=1e-320)


def test_special_numbers():
    shown = [number(value) for value in (math.nan, -math.inf, -0.0, -12345, -2e-5, -0.5)]
    assert shown == ["nan", "−inf", "0", "−12,345", "−2.0e-5", "−0.500"]  # noqa: RUF001
    assert [for_terminal(text) for text in shown] == ["nan", "-inf", "0", "-12,345", "-2.0e-5", "-0.500"]


@given(st.text(st.characters()))
def test_printable_text_is_plain_utf8(text):
    shown = printable(text)
    assert shown.encode("utf-8").decode().isprintable() or not text.isprintable()
    assert printable(shown) == shown
    assert not set(shown) & set(map(chr, [*range(32), 127, 0x202E, 0x2028]))


def test_hidden_characters_are_seen_and_line_feeds_stay():
    assert visible("\na\x1b\u202e\ud800<") == (
        '\na<span class="control">\\x1b</span><span class="control">\\u202e</span>'
        '<span class="control">\\ud800</span>&lt;'
    )
    assert escape("a\tb\x00", keep="\t") == "a\tb\\x00"
    assert printable("👩\u200d🔬") == "👩\u200d🔬"

import dataclasses
import math
import re
from html.parser import HTMLParser

import pytest
from markdown import markdown as by_mkdocs
from markdown_it import MarkdownIt

from compare.comparisons import SEARCHES
from veto_pl.compare.markdown import markdown
from veto_pl.compare.results import Search


class Parts(HTMLParser):
    """Cells of the table row by row, and the texts of paragraphs, list entries and code."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.parts, self.inside = [], {"p": [], "li": [], "code": []}, []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.inside.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag in self.parts:
            self.parts[tag].append("")

    def handle_endtag(self, tag):
        self.inside.pop()

    def handle_data(self, data):
        for tag in self.inside:
            if tag in ("td", "th"):
                self.rows[-1][-1] += data
            elif tag in self.parts:
                self.parts[tag][-1] += data


def by_github(text):
    return MarkdownIt("gfm-like", {"linkify": False}).render(text)


def by_site(text):
    return by_mkdocs(text, extensions=["tables", "fenced_code", "sane_lists"])


RENDERERS = pytest.mark.parametrize("render", [by_github, by_site], ids=["github", "mkdocs"])
NUMBER = r"[−\d.,]+(?:e-?\d+)?"  # noqa: RUF001


@RENDERERS
def test_the_table_reads_back_as_the_numbers_that_were_given(make, render):
    comparison = make(("SFT", "a|b_c*", "<i>`x`"), steps=2)
    rows = Parts(render(markdown(comparison))).rows
    quantities = [comparison.quantity(name) for name in comparison.quantities]
    assert rows[0][0] == "method"
    assert rows[0][1:5] == [q.heading for q in quantities]
    assert [row[0] for row in rows[1:]] == list(comparison.methods)
    for row in rows[1:]:
        for cell, quantity in zip(row[1:5], quantities, strict=True):
            estimate = comparison.estimates[row[0], quantity.column]
            read = re.match(rf"({NUMBER}) \[({NUMBER}), ({NUMBER})\]", cell).groups()
            expected = [v * quantity.factor for v in (estimate.mean, estimate.low, estimate.high)]
            assert [float(text.replace("\N{MINUS SIGN}", "-")) for text in read] == pytest.approx(expected, rel=0.02)
            contrast = comparison.contrasts.get((row[0], quantity.column))
            sure = contrast is not None and contrast.p < 0.05
            assert ("▲" in cell or "▼" in cell) == sure
            assert ("p =" in cell or "p <" in cell) == (contrast is not None)


@RENDERERS
def test_the_lines_around_the_table_say_what_was_given_searched_and_missing(make, render):
    failures = {"Veto, lr 0.1, seed 2": "RuntimeError: *row* 3\n```\n<b>"}
    comparison = make(("GKD", "Veto"), (0, 1, 2), steps=7, searches=SEARCHES, failures=failures)
    kept = tuple(trial for trial in comparison.trials if (trial.method, trial.seed) != ("Veto", 2))
    parts = Parts(render(markdown(dataclasses.replace(comparison, trials=kept)))).parts
    assert parts["p"][0] == "Unfinished: 1 of 6 runs is missing (Veto: seed 2)."
    assert parts["p"][1] == "Budget of every run: 7 steps. Seeds: 0, 1, 2."
    reading = "Mean over the finished ones of 3 seeds [95% t interval]. Differences are from GKD"
    assert parts["p"][2].startswith(reading)
    assert parts["li"] == [
        "GKD: beta=0.5, chosen of 3 on the validation split with accuracy (%) 47.0.",
        "Veto: beta=0.9, chosen of 3 on the validation split with accuracy (%) 54.0; at the edge of its grid: a better "
        "setting may lie outside.",
        "Veto, lr 0.1, seed 2, failed: RuntimeError: *row* 3\\n```\\n<b>",
    ]
    assert parts["code"] == ["veto-pl compare study.yaml --out=out\n"]


def test_a_single_seed_has_no_interval_and_no_test(make):
    text = markdown(make(("a", "b"), (0,), steps=2))
    assert "[" not in text
    assert "p " not in text.partition("| b |")[2].partition("\n")[0]
    assert "One seed: there are no confidence intervals and no tests." in text


def test_what_speaks_against_a_choice_is_said(make):
    scores = {"lr 0.1": 0.5, "lr 0.2": 0.3 + 0.2, "lr 0.3": math.nan}
    search = Search("validation/accuracy", scores, "lr 0.1", at_edge=True)
    text = markdown(make(("a",), (0,), steps=2, searches={"a": search}))
    assert "lr 0.1, chosen of 2 (of 3, 1 has no score) on the validation split with accuracy (%) 50.0" in text
    assert "; 2 settings tied: the search decided nothing, and the first was taken; at the edge of its grid" in text
    other = dataclasses.replace(search, scores=scores | {"lr 0.4": 0.1}, at_edge=False)
    text = markdown(make(("a",), (0,), steps=2, searches={"a": other}))
    assert "; 2 settings tied: the search did not decide between them, and the first was taken." in text


def test_updates_that_were_left_out_are_counted(make):
    comparison = make(("a", "b"), (0, 1), steps=4)
    broken = [dataclasses.replace(t, cost=dataclasses.replace(t.cost, skipped=3)) for t in comparison.of("b")]
    said = "Updates left out because the loss or its gradient was not finite: b: 6 of 8."
    assert said in markdown(dataclasses.replace(comparison, trials=(*comparison.of("a"), *broken)))
    assert "Updates left out" not in markdown(comparison)


def test_nothing_finished_is_a_table_of_dashes(make):
    comparison = make(("a", "b"), (0, 1), steps=2, trials=(), estimates={}, contrasts={})
    rows = Parts(by_github(markdown(comparison))).rows
    assert rows[1:] == [[name, *["—"] * 7, "0 of 2"] for name in ("a", "b")]


def test_long_reasons_are_cut_with_a_count(make):
    text = markdown(make(("a",), (0,), steps=2, failures={"a, seed 1": "x" * 5000}))
    assert "more characters)" in text
    assert len(text) < 2000


def test_values_without_an_interval_or_a_test_leave_them_out(make):
    comparison = make(("a", "b"), (0, 1), steps=2, quantities=("greedy/accuracy",), frontier=None)
    contrast = comparison.contrasts["b", "greedy/accuracy"]
    comparison = dataclasses.replace(
        comparison, contrasts={("b", "greedy/accuracy"): dataclasses.replace(contrast, p=math.nan)}
    )
    (row,) = [row for row in Parts(by_github(markdown(comparison))).rows if row[0] == "b"]
    assert "p" not in row[1]

import base64
import dataclasses
import hashlib
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report.pages import EVIL, Checker

from compare.comparisons import QUANTITIES, SEARCHES
from veto_pl.charts.picture import COLOURS
from veto_pl.compare.answer_cards import LEVELS, Colours
from veto_pl.compare.cells import difference, direction, duration, p_value, reading
from veto_pl.compare.comparison_page import write_page
from veto_pl.compare.results import Answer, Contrast, Estimate, Search
from veto_pl.report.columns import Quantity
from veto_pl.seams import Line

REALS = st.floats(-1e6, 1e6)


def page_of(comparison, tmp_path):
    path = write_page(comparison, tmp_path / "out" / "comparison.html")
    assert path == tmp_path / "out" / "comparison.html"
    return path.read_text(encoding="utf-8")


def section(page, heading):
    return re.search(rf"<h2>{heading}</h2>\n(.*?)</section>", page, re.DOTALL)[1]


def quickly(make, *arguments, **changes):
    """A comparison with few pictures."""
    return make(*arguments, **({"steps": 2, "quantities": ["greedy/accuracy"], "frontier": None} | changes))


def rows(table):
    lines = re.findall(r"<tr class=\"m\d+\">(.*?)</tr>", table, re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line, re.DOTALL) for line in lines]
    return [[" ".join(Checker(cell.replace("<br>", " ")).text.split()) for cell in line] for line in cells]


def test_the_sections_come_in_the_agreed_order_and_the_contents_lead_to_them(make, tmp_path):
    page = page_of(make(searches=SEARCHES, failures={"GKD, seed 9": "why"}), tmp_path)
    expected = ["What was compared", "Results", "Cost", "Seeds and differences", "Curves", "Gradient norms"]
    expected += ["Reward and diversity", "Completions", "Settings searched", "Failures"]
    assert re.findall(r"<h2>(.*?)</h2>", page) == expected
    targets = re.findall(r'<a href="#([\w-]+)">', page.partition("</nav>")[0])
    assert targets == re.findall(r'<section id="([\w-]+)">', page)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_the_page_needs_nothing_else_and_runs_its_own_script_alone(make, tmp_path):
    page = page_of(make(searches=SEARCHES), tmp_path)
    checker = Checker(page)
    assert not {"img", "link", "iframe"} & set(checker.tags)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page, "the browser runs this text, and no other"
    assert checker.tags.count("script") == 1
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page
    assert "url(" not in page
    assert "@import" not in page


def episode(make, text, **changes):
    """An answer with two turns of two tokens each, and a reply between."""
    lines = (
        Line("user", f"first {text}"), Line("assistant", "not this text", 1, counts=True),
        Line("tool", f"reply {text}", 1, name="look"), Line("assistant", "", 2, counts=True, problem="failed"),
    )  # fmt: skip
    told = {"tokens": (f"a {text}", "b", "c", "d"), "turns": (1, 1, 2, 2), "dialogue": lines}
    return dataclasses.replace(make.answer(0, 4), **(told | changes))


def test_an_episode_is_shown_turn_by_turn_with_the_kl_of_its_tokens(make, tmp_path):
    comparison = quickly(make, prompts=1, answer=lambda *_, **__: episode(make, EVIL))
    trials = [dataclasses.replace(t, cost=dataclasses.replace(t.cost, turns=60 + t.seed)) for t in comparison.trials]
    page = page_of(dataclasses.replace(comparison, trials=tuple(trials)), tmp_path)
    shown = section(page, "Completions")
    methods = len(comparison.methods)
    assert (shown.count('<li class="own">'), shown.count('<li class="read">')) == (2 * methods, methods + 1)
    turns = re.findall(r'<li class="own">(.*?)</li>', shown, re.DOTALL)
    assert [len(re.findall(r'<span class="f\d r\d" title', turn)) for turn in turns] == [2] * len(turns)
    text = Checker(shown).text
    assert "not this text" not in text, "the tokens stand for it"
    assert "tool look, turn 1" in text
    assert text.count(EVIL) >= 2 * methods
    cost = section(page, "Cost")
    headings = re.findall(r'<th scope="col">(.*?)</th>', cost)
    assert headings == ["method", "steps", "completion tokens", "turns", "training time", "runs"]
    assert rows(cost)[0][3] == "62"
    assert '<th scope="col">turns' not in section(page_of(comparison, tmp_path), "Cost")


def test_an_episode_whose_tokens_have_no_turns_is_shown_as_a_text(make, tmp_path):
    page = page_of(quickly(make, prompts=1, answer=lambda *_, **__: episode(make, "x", turns=())), tmp_path)
    assert '<li class="own">' not in page
    assert "a x" in Checker(section(page, "Completions")).text


def test_nothing_from_the_data_becomes_markup(make, tmp_path):
    answer = Answer(EVIL, EVIL, 0.0, (EVIL, "x"), (0.1, math.nan), (0.2, math.inf))
    metric = "greedy/" + EVIL.replace("/", "")
    search = dataclasses.replace(SEARCHES["Veto"], metric=EVIL, scores={EVIL: 1.0, "b": math.nan}, chosen=EVIL)
    other = EVIL + "!"
    comparison = make(
        (EVIL, other), (0, 1), steps=3, quantities=(metric, "x"), frontier=(metric, "x"), title=EVIL, intro=EVIL,
        budget=EVIL, command=EVIL, searches={EVIL: search}, failures={f"{other}, seed 7": EVIL},
        answer=lambda *_, **__: answer,
    )  # fmt: skip
    checker = Checker(page_of(comparison, tmp_path))
    assert (checker.tags.count("script"), checker.tags.count("img")) == (1, 0)
    assert not [name for name, _ in checker.attributes if name.startswith("on") or name == "src"]
    assert checker.text.count(EVIL) > 30


def test_every_picture_is_named_or_an_ornament_and_a_method_has_one_colour_throughout(make, tmp_path):
    page = page_of(make([f"method {i}" for i in range(8)], (0, 1), steps=4), tmp_path)
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) > 20
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        assert root.get("aria-hidden") == "true" or (root[0].tag.endswith("title") and root[1].tag.endswith("desc"))
        for group in root.iter("{http://www.w3.org/2000/svg}g"):
            used = set(re.findall(r"#\w{6}", "".join(e.get("style", "") for e in group.iter())))
            assert used <= {COLOURS[int(group.get("class")[1:]) % len(COLOURS)]}


def test_the_table_holds_means_intervals_differences_and_tests(make, tmp_path):
    quantity, low = "greedy/accuracy", Contrast(Estimate(-0.1, -0.15, -0.05), 0.0004, 5)
    none = Contrast(Estimate(0.02, -0.01, 0.05), 0.25, 5)
    comparison = dataclasses.replace(
        quickly(make, ("A", "B", "C"), range(5)),
        estimates={("A", quantity): Estimate(0.5, 0.4, 0.61), ("B", quantity): Estimate(0.4, 0.35, 0.45)},
        contrasts={("B", quantity): low, ("C", quantity): none},
    )
    table = rows(section(page_of(comparison, tmp_path), "Results"))
    assert table == [
        ["A baseline", "50.0 [40.0, 61.0]"],
        ["B", "40.0 [35.0, 45.0] ▼ −10.0 [−15.0, −5.0] p < 0.001"],  # noqa: RUF001
        ["C", "— +2.00 [−1.00, 5.00] p = 0.25"],  # noqa: RUF001
    ]


@given(st.floats(-9, 9).filter(bool), st.one_of(st.floats(0, 1), st.just(math.nan)), st.floats(0.5, 0.999))
def test_a_difference_is_marked_exactly_where_the_corrected_p_is_small(mean, p, confidence):
    contrast = Contrast(Estimate(mean, mean - 1, mean + 1), p, 5)
    assert direction(contrast, confidence) == ("" if not p < 1 - confidence else "▲" if mean > 0 else "▼")
    assert difference(contrast, Quantity("x", "X", "x"), confidence)[0] in (
        "▲▼" if p < 1 - confidence else "+\N{MINUS SIGN}0"
    )
    assert (p_value(contrast) == "") == math.isnan(p)


def test_a_difference_that_is_marked_is_set_in_bold(make, tmp_path):
    for p in (0.01, 0.2):
        given = {("B", "greedy/accuracy"): Contrast(Estimate(0.1, 0.05, 0.15), p, 3)}
        comparison = dataclasses.replace(quickly(make, ("A", "B"), range(3)), contrasts=given)
        assert ('class="difference sure"' in page_of(comparison, tmp_path)) == (p < 0.05)


@given(REALS, st.floats(0, 1e6), st.floats(0, 1e6), st.booleans())
def test_a_reading_keeps_three_digits_of_the_largest_number(mean, below, above, sign):
    values = (mean, mean - below, mean + above)
    shown = reading(Estimate(*values), Quantity("x", "X", "x"), sign=sign).replace("\N{MINUS SIGN}", "-")
    numbers = re.findall(r"[-+]?[\d.,]*\d(?:e-?\d+)?", shown)
    largest = max(map(abs, values))
    for text, value in zip(numbers, values, strict=True):
        rounding = max(largest, 1e-3) * 0.06 if largest < 1e-3 else max(largest * 0.0051, 0.5 * (largest >= 100))
        assert float(text.replace(",", "")) == pytest.approx(value, abs=rounding)


def test_p_values_keep_two_digits():
    shown = [p_value(Contrast(Estimate(0.0, 0.0, 0.0), p, 5)) for p in (1.0, 0.1, 0.01234, 0.001, 0.0009, math.nan)]
    assert shown == ["p = 1.0", "p = 0.10", "p = 0.012", "p = 0.0010", "p < 0.001", ""]


def test_costs_are_means_over_the_finished_runs(make, tmp_path):
    comparison = quickly(make, ("A", "B"), (0, 2), steps=100)
    kept = tuple(t for t in comparison.trials if (t.method, t.seed) != ("B", 2))
    table = rows(section(page_of(dataclasses.replace(comparison, trials=kept), tmp_path), "Cost"))
    assert table == [["A baseline", "100", "100,037", "41.0 s", "2 of 2"], ["B", "100", "100,000", "40.0 s", "1 of 2"]]
    assert [duration(s) for s in (0.5, 119, 121, 7300)] == ["0.500 s", "119 s", "2.02 min", "2.03 h"]


def test_an_unfinished_study_says_so_at_its_top_and_why(make, tmp_path):
    failures = {"Veto, lr 0.1, seed 1": "x" * 3000 + "the end"}
    comparison = quickly(make, ("SFT", "Veto"), (0, 1, 2), failures=failures)
    kept = tuple(trial for trial in comparison.trials if trial.method == "SFT" or trial.seed == 0)
    page = page_of(dataclasses.replace(comparison, trials=kept), tmp_path)
    assert "Unfinished: 2 of 6 runs are missing (Veto: seeds 1, 2)." in Checker(page).text
    assert page.index("Unfinished") < page.index("<h2>Results")
    failed = Checker(section(page, "Failures")).text
    assert "Veto, lr 0.1, seed 1" in failed
    assert "the end" in failed
    assert "1,007 characters before this" in failed
    assert "Unfinished" not in page_of(comparison, tmp_path)


def test_searches_show_all_settings_and_remark_on_the_edge(make, tmp_path):
    parts = section(page_of(quickly(make, searches=SEARCHES), tmp_path), "Settings searched").split("<details>")
    (inside,), (edge,) = ([part for part in parts if part.startswith(f"<summary><bdi>{m}")] for m in ("GKD", "Veto"))
    assert "edge of its grid" not in inside
    assert edge.partition("</summary>")[0].count("edge of its grid") == 1
    for part, search in ((inside, SEARCHES["GKD"]), (edge, SEARCHES["Veto"])):
        for setting, score in search.scores.items():
            chosen = "✓" if setting == search.chosen else ""
            assert f'<th scope="row">{setting}</th><td>{100 * score:.1f}</td><td>{chosen}</td>' in part


def test_failures_of_a_search_and_updates_that_were_left_out_are_said_at_the_top(make, tmp_path):
    scores = {"lr 0.1": math.nan, "lr 0.2": 0.5, "lr 0.3": 0.5}
    searches = {"SFT": Search("validation/accuracy", scores, "lr 0.2", at_edge=True)}
    comparison = quickly(
        make, ("SFT", "Veto"), (0,), steps=4, searches=searches, failures={"SFT, lr 0.1, seed 9": "no memory"}
    )
    cost = dataclasses.replace(comparison.trials[0].cost, skipped=3)
    trials = (dataclasses.replace(comparison.trials[0], cost=cost), comparison.trials[1])
    page = page_of(dataclasses.replace(comparison, trials=trials), tmp_path)
    top = Checker(section(page, "What was compared")).text
    assert "1 failure: the reasons are under Failures." in top
    assert "Updates left out because the loss or its gradient was not finite: SFT: 3 of 4." in top
    assert "The settings of 1 of 1 method may be doubted: see Settings searched." in top
    searched = Checker(section(page, "Settings searched")).text
    assert "lr 0.2, best of 2 (of 3, 1 has no score) by validation/accuracy ⚠ 2 settings tied ⚠ at the edge" in searched
    assert '<th scope="row">lr 0.1</th><td>—</td><td></td>' in page
    assert "no memory" in Checker(section(page, "Failures")).text


@pytest.mark.parametrize(
    ("across", "drawn"), [("sampled/self_bleu", True), ("sampled/student_entropy", False), ("sampled/novelty", False)]
)
def test_a_front_is_drawn_where_both_directions_are_known(make, tmp_path, across, drawn):
    frontier = (across, "sampled/pass@8")
    comparison = make(("A", "B"), (0, 1), steps=2, quantities=frontier, frontier=frontier)
    shown = section(page_of(comparison, tmp_path), "Reward and diversity")
    assert ("stroke-dasharray: 4,3" in shown) == drawn
    assert ("Right and up is better. The dashed line is the Pareto front" in shown) == drawn
    assert ("is better is not known, so no Pareto front is drawn." in shown) == (not drawn)
    assert ("→" in shown) == drawn
    words = {"sampled/self_bleu": "self-BLEU", "sampled/novelty": "novelty"}.get(across, "student entropy")
    assert f">Pass@8 against {words}</text>" in shown
    assert ">pass@8 (%), sampled ↑</text>" in shown


def test_each_answer_keeps_its_text_and_numbers(make, tmp_path):
    tokens, forward, reverse = (
        (" a", "\n", "<b>", "ש", "👩\u200d🔬", "\x1b"),
        (0, 0.5, 1, 1.5, 2, 9),
        (9, 0, 0, 0, 0, 0),
    )
    answer = Answer("p", None, 1.0, tokens, forward, reverse)
    page = page_of(quickly(make, ("A",), (0,), prompts=1, answer=lambda *_, **__: answer), tmp_path)
    card = section(page, "Completions")
    body = re.search(r'<div class="completion correct">.*?<div class="text" dir="auto">(.*?)</div>', card, re.DOTALL)[1]
    spans = re.findall(r'<span class="(f\d r\d)" title="([^"]*)">(.*?)</span>(?=<span class="f|$)', body, re.DOTALL)
    assert "".join(Checker(text).text for *_, text in spans) == " a↵\n<b>ש👩\u200d🔬\\x1b"
    assert [tip for _, tip, _ in spans] == [
        f"forward KL {f:.3f}, reverse KL {r:.3f}" for f, r in zip(forward, reverse, strict=True)
    ]
    assert [classes for classes, *_ in spans] == ["f0 r8", "f0 r0", "f1 r0", "f1 r0", "f2 r0", "f8 r0"]
    listed = re.search(r"<pre[^>]*>(.*?)</pre>", card, re.DOTALL)[1].split("\n")
    assert listed[0].split() == ["forward", "KL", "reverse", "KL"]
    assert [line.split()[:2] for line in listed[1:]] == [
        [f"{f:.3f}", f"{r:.3f}"] for f, r in zip(forward, reverse, strict=True)
    ]


def test_seeds_and_their_differences_from_the_baseline_are_drawn(make, tmp_path):
    comparison = quickly(make, ("A", "B"), (4, 7))
    values = {(trial.method, trial.seed): 100 * trial.values["greedy/accuracy"] for trial in comparison.trials}
    own, differences = section(page_of(comparison, tmp_path), "Seeds and differences").split("<figure>")[1:]
    plain = [figure.replace("\N{MINUS SIGN}", "-") for figure in (own, differences)]
    tips = [re.findall(r"<title>(\w), seed (\d): (-?[\d.e-]+)", figure) for figure in plain]
    assert {(m, int(seed)): float(v) for m, seed, v in tips[0]} == pytest.approx(values, rel=6e-3)
    expected = {("B", seed): values["B", seed] - values["A", seed] for seed in (4, 7)}
    assert {(m, int(seed)): float(v) for m, seed, v in tips[1]} == pytest.approx(expected, rel=6e-3, abs=1e-4)


def test_pass_at_k_is_drawn_over_k_where_there_are_three(make, tmp_path):
    quantities = [f"sampled/pass@{k}" for k in (1, 2, 4, 8)] + ["sampled/pass@2_low", "greedy/pass@1", "greedy/pass@2"]
    comparison = make(("A", "B"), (0, 1), steps=2, quantities=quantities, frontier=None)
    figures = section(page_of(comparison, tmp_path), "Reward and diversity").split("<figure>")[1:]
    assert len(figures) == 1
    tips = re.findall(r"<title>A, k (\d): ([\d.]+)", figures[0])
    means = [comparison.estimates["A", f"sampled/pass@{k}"].mean for k in (1, 2, 4, 8)]
    assert [int(k) for k, _ in tips] == [1, 2, 4, 8]
    assert [float(value) for _, value in tips] == pytest.approx([100 * mean for mean in means], rel=5e-3)


def test_answers_are_of_the_seed_that_most_methods_finished(make, tmp_path):
    comparison = quickly(make, ("A", "B", "C"), (3, 1, 2), tokens=3)
    kept = [t for t in comparison.trials if (t.method, t.seed) not in {("A", 3), ("B", 2)}]
    card = section(page_of(dataclasses.replace(comparison, trials=tuple(kept)), tmp_path), "Completions")
    assert "runs of seed 1." in card
    assert "No answer." not in card


@pytest.mark.slow
def test_twelve_methods_with_long_runs_and_answers_stay_below_three_megabytes(make, tmp_path):
    comparison = make([f"method {i}" for i in range(12)], range(5), steps=250, prompts=8, tokens=1000, more=20)
    page = page_of(comparison, tmp_path)
    assert len(page.encode()) < 3e6
    assert page.count("875 more tokens") == 12 * 8


def test_huge_texts_are_cut_with_a_count(make, tmp_path):
    answer = Answer("p" * 5000, "r" * 4001, 0.0, ("t" * 1200,) * 30_000)
    page = page_of(quickly(make, ("A",), (0,), prompts=1, answer=lambda *_, **__: answer), tmp_path)
    assert all(text in page for text in ("1,000 more characters", "1 more characters", "18,000 more tokens"))
    assert "The answers come without the KL of their tokens." in page


@pytest.mark.parametrize(
    "given",
    [
        {"methods": ("only",), "seeds": (0,)},
        {"methods": ("a", "b"), "seeds": (4,), "prompts": 0, "frontier": None},
        {"methods": ("a", "b"), "seeds": (0, 1), "trials": (), "estimates": {}, "contrasts": {}},
        {"methods": ("a", "b"), "seeds": (0, 1), "quantities": (), "frontier": None},
    ],
    ids=["one method and seed", "one seed, no answers", "nothing finished", "no quantities"],
)
def test_small_studies_are_shown(make, tmp_path, given):
    page = page_of(make(steps=2, **given), tmp_path)
    Checker(page)
    assert "nan" not in page
    if len(given["seeds"]) == 1:
        assert "One seed: there are no confidence intervals and no tests." in page
    assert ("<h2>Completions" in page) == bool(given.get("prompts", 3) and given.get("trials", 1))


def test_values_that_are_not_finite_are_shown_as_such(make, tmp_path):
    comparison = make(("a", "b"), (0, 1), steps=2)
    broken = [dataclasses.replace(t, values=dict.fromkeys(QUANTITIES, math.nan)) for t in comparison.of("b")]
    nothing = Estimate(math.nan, math.nan, math.nan)
    comparison = dataclasses.replace(
        comparison,
        trials=(*comparison.of("a"), *broken),
        estimates={k: v for k, v in comparison.estimates.items() if k[0] == "a"}
        | {("b", q): nothing for q in QUANTITIES},
        contrasts={("b", q): Contrast(nothing, math.nan, 2) for q in QUANTITIES},
    )
    page = page_of(comparison, tmp_path)
    assert rows(section(page, "Results"))[1] == ["b", *["—"] * 4]
    assert "The dashed line is the Pareto front of the means: a." in Checker(page).text


def test_writing_twice_gives_the_same_bytes(make, tmp_path):
    comparison = quickly(make, searches=SEARCHES)
    assert page_of(comparison, tmp_path) == page_of(comparison, tmp_path)


VALUES = st.one_of(st.floats(-1, 1e6), st.sampled_from([math.nan, math.inf, 0.0]))


@given(st.lists(VALUES, max_size=60), st.floats(0.5, 0.99))
def test_colours_deepen_with_the_value_and_few_values_are_clipped(values, quantile):
    colours = Colours.of("KL", values, quantile)
    finite = sorted(value for value in values if math.isfinite(value))
    levels = [colours.level(value) for value in finite]
    assert levels == sorted(levels)
    assert set(levels) <= set(range(LEVELS + 1))
    assert colours.level(0.0) == 0
    assert sum(value > colours.clip for value in finite) <= (1 - quantile) * len(finite)
    if colours.clip > 1e-9:
        assert [colours.level(colours.clip * share) for share in (0.2, 0.5, 1.0, 7.0)] == [2, 4, 8, 8]


def test_a_few_large_values_set_the_scale_where_all_others_are_0():
    colours = Colours.of("forward KL", [0.0] * 99 + [3.0])
    assert (colours.clip, colours.quantile) == (3.0, 1.0)


def test_numbers_of_another_length_than_the_tokens_are_left_out(make, tmp_path):
    answer = Answer("p", None, 1.0, ("a", "b"), (1.0,), (1.0,))
    card = section(
        page_of(quickly(make, ("A",), (0,), prompts=1, answer=lambda *_, **__: answer), tmp_path), "Completions"
    )
    assert " title=" not in card


def test_times_and_what_stays_as_it_is_are_folded_and_nothing_empty_is_drawn(make, tmp_path):
    """The stand-in logs losses, times and a norm; here also a constant, and a quantity of which no run has a value."""
    made = make(("A", "B"), (0,), steps=6, quantities=("greedy/accuracy", "greedy/nowhere"))
    known = [{"greedy/accuracy": trial.values["greedy/accuracy"]} for trial in made.trials]
    trials = [dataclasses.replace(trial, values=values) for trial, values in zip(made.trials, known, strict=True)]
    made = dataclasses.replace(made, trials=tuple(trials))
    for trial in made.trials:
        path = trial.run.folder / "metrics.csv"
        header, *lines = path.read_text().splitlines()
        more = [f"{line},0.5,nan,{i}" for i, line in enumerate(lines)]
        path.write_text("\n".join([f"{header},train/still,train/never,train/seconds/rollout", *more]) + "\n")
    page = page_of(made, tmp_path)
    curves = section(page, "Curves")
    folded = dict(re.findall(r"<summary>(.*?) \(\d+\)</summary>(.*?)</details>", curves, re.DOTALL))
    assert "Training: still" in folded["What stayed as it was"]
    assert "Time for rollout" in folded["Times"]
    assert "still" not in folded["Curves of the training"]
    assert "never" not in page
    assert "nowhere" not in section(page, "Seeds and differences").lower()


def test_a_doubtful_search_is_told_before_the_results(make, tmp_path):
    page = page_of(quickly(make, searches=SEARCHES), tmp_path)
    assert '<a href="#settings-searched">' in section(page, "What was compared")
    assert "Settings searched" not in section(page_of(quickly(make), tmp_path), "What was compared")

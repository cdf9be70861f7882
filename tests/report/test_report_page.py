import json
import re
from xml.etree import ElementTree

import pytest

from report.pages import EVIL, Checker
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.pages import write_text
from veto_pl.report import ResultTable, Run, write_report
from veto_pl.report.run_report import first_and_last


@pytest.fixture
def make_run(tmp_path):
    def make(name, metrics="", samples=(), config="", shown=""):
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        files = {
            "metrics.csv": metrics,
            "samples.jsonl": "\n".join(map(json.dumps, samples)),
            "config.yaml": config,
            "quantities.json": shown,
        }
        for file, text in files.items():
            if text:
                (folder / file).write_text(text, encoding="utf-8")
        return Run.read(folder, name)

    return make


def sample(step, prompt, completion, reward=0.0, reference=None):
    return {"step": step, "prompt": prompt, "completion": completion, "reference": reference, "reward": reward}


def page_of(runs, tmp_path, **kwargs):
    path = write_report(runs, tmp_path / "out" / "report.html", **({"title": "Report"} | kwargs))
    assert path == tmp_path / "out" / "report.html"
    return path.read_text(encoding="utf-8")


def test_nothing_from_the_data_becomes_markup(make_run, tmp_path):
    column = "train/" + EVIL.replace('"', "")
    run = make_run(EVIL, f"step,{column}\n1,2\n2,3\n", [sample(1, EVIL, EVIL, 1.0, EVIL)], f"a: {EVIL}\n")
    other = make_run("other", f"step,{column}\n1,2\n")
    table = ResultTable([EVIL], {EVIL: [EVIL]}, label=EVIL)
    page = page_of([run, other], tmp_path, title=EVIL, intro=EVIL, table=table)
    checker = Checker(page)
    assert (checker.tags.count("script"), checker.tags.count("img")) == (1, 0), "its own"
    assert not [name for name, _ in checker.attributes if name.startswith("on") or name in {"src", "href"}]
    assert checker.text.count(EVIL) >= 12


def test_the_page_needs_nothing_else(make_run, tmp_path):
    page = page_of([make_run("a", "step,train/loss\n1,2\n2,3\n")], tmp_path)
    assert "prefers-color-scheme: dark" in page
    assert "@import" not in page
    assert "url(" not in page
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page


def test_every_picture_is_xml_and_named_or_hidden(make_run, tmp_path):
    metrics = "step,train/loss,validation/accuracy\n1,2,\n2,nan,0.5\n3,1,0.6\n"
    runs = [make_run(name, metrics, [sample(1, "p", "c")]) for name in ("a", "b & c")]
    pictures = re.findall(r"<svg.*?</svg>", page_of(runs, tmp_path), re.DOTALL)
    assert len(pictures) == 4
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        named = root.get("role") == "img" and root[0].tag.endswith("title") and root[1].tag.endswith("desc")
        assert named or root.get("aria-hidden") == "true"


SHOWN = {
    "accuracy": {"title": "accuracy", "unit": "%", "higher_is_better": True},
    "forward_kl": {"title": "forward KL", "unit": "nats/token", "higher_is_better": False},
}


def test_the_default_table_holds_first_and_last_values_as_the_metrics_say(make_run):
    metrics = "step,validation/forward_kl,validation/accuracy,validation/mine,train/seconds\n"
    metrics += "0,0.5,0.25,1,1\n9,0.125,0.5,2,61\n"
    runs = [make_run("a", metrics, shown=json.dumps(SHOWN)), make_run("b", "step,validation/accuracy\n0,1\n")]
    table = first_and_last(runs)
    assert table.columns == ["accuracy (%)", "forward KL (nats/token)", "mine", "time (s)"]
    assert table.rows == {
        "a": ["25.0 → 50.0", "0.500 → 0.125", "1.00 → 2.00", "61.0"], "b": ["100", None, None, None],
    }  # fmt: skip


def test_a_test_is_a_number_of_the_table_and_no_curve(make_run, tmp_path):
    metrics = "step,validation/accuracy,test/accuracy\n0,0.25,\n9,0.5,\n9,,0.75\n"
    run = make_run("a", metrics, shown=json.dumps(SHOWN))
    table = first_and_last([run])
    assert table.columns == ["accuracy (%)", "accuracy (%), test"]
    assert table.rows == {"a": ["25.0 → 50.0", "75.0"]}
    assert "Accuracy, test" not in page_of([run], tmp_path)


def test_completions_of_the_last_step_stand_side_by_side(make_run, tmp_path):
    first = make_run("first", samples=[sample(1, "p", "early"), sample(5, "p", "\tright\x07  \n", 1.0, "ref")])
    second = make_run("second", samples=[sample(7, "p", "partly", 0.5), sample(7, "only here", "c")])
    page = page_of([first, second], tmp_path)
    text = Checker(page).text
    assert "early" not in text
    assert "\\t\tright\\x07  \n" in text
    assert page.count("<article>") == 2
    card = text[text.index("Prompt\np\n") : text.index("only here")]
    places = [card.index(word) for word in ("ref", "first step 5", "✓ correct, reward 1.00", "second step 7")]
    assert places == sorted(places)
    assert "○ not correct, reward 0.500" in card
    assert "No completion of this prompt." in text[text.index("only here") :]


def dialogue(text):
    """An episode of two turns, in which everything that is said is `text`."""
    call = {"name": text, "arguments": {text: text}}
    return [
        {"role": "user", "content": f"first {text}"},
        {"role": "assistant", "content": f"one {text}", "turn": 1, "counts": True, "thought": text, "calls": [call]},
        {"role": "tool", "name": text, "content": f"reply {text}", "turn": 1},
        {
            "role": "assistant",
            "content": "",
            "turn": 2,
            "counts": True,
            "calls": [{"text": text}],
            "problem": text,
            "cut": True,
        },
    ]


def test_an_episode_is_shown_line_by_line_and_escaped(make_run, tmp_path):
    runs = [
        make_run(
            name, samples=[sample(1, "p", "one", 1.0, "ref") | {"dialogue": dialogue(text)}, sample(1, "q", "plain")]
        )
        for name, text in (("a", "x"), ("b", "x"), ("c", EVIL))
    ]
    page = page_of(runs, tmp_path)
    text = Checker(page).text
    assert "one" in text
    assert page.count("<article>") == 3, "episodes of a prompt that begin otherwise are told apart"
    assert page.count('<li class="own">') == 3 * 2
    assert page.count('<li class="read">') == 2 + 3, "what is said first once for those that share it"
    said = ["first x", "assistant, turn 1, counted", 'x({"x": "x"})', "tool x, turn 1", "reply x"]
    places = [text.index(words) for words in (*said, "assistant, turn 2, counted ⚠ failed: x ⚠ cut off")]
    assert places == sorted(places)
    checker = Checker(page)
    assert checker.tags.count("script") == 1
    assert "img" not in checker.tags
    assert checker.text.count(EVIL) >= 6
    assert "which alone counts in a loss" in text
    alone = page_of([make_run("plain", samples=[sample(1, "q", "plain")])], tmp_path)
    assert "which alone counts in a loss" not in alone


def test_what_teachers_said_of_a_completion_is_folded_beside_it_and_escaped(make_run, tmp_path):
    note = {"turn": 1, "texts": [f"I say {EVIL}", "and again"], "confidence": 0.9, "weight": 0.645656, "out": EVIL}
    run = make_run("a", samples=[sample(1, "p", "one") | {"said": {EVIL: [note]}}, sample(1, "q", "two")])
    page = page_of([run], tmp_path)
    checker = Checker(page)
    assert page.count("<summary>What the teachers said</summary>") == 1
    assert f"{EVIL}: turn 1, confidence 0.9, weight 0.6457, out {EVIL}" in checker.text
    assert f"I say {EVIL}" in checker.text
    assert "and again" in checker.text
    assert checker.tags.count("script") == 1
    assert "img" not in checker.tags


def test_many_prompts_are_cut_and_the_cut_is_said(make_run, tmp_path):
    page = page_of([make_run("a", samples=[sample(1, f"p{i}", "c") for i in range(30)])], tmp_path)
    assert page.count("<article>") == 24
    assert "24 of 30 prompts." in page


def test_what_is_missing_is_said(make_run, tmp_path):
    text = Checker(
        page_of([make_run("empty"), make_run("full", "step\n1\n", [sample(1, "p", "c")], "a: 1")], tmp_path)
    ).text
    assert "No validation results were logged." in text
    for file in ("metrics.csv", "samples.jsonl", "config.yaml"):
        assert f"No {file} in: empty." in text


def test_config_is_shown_in_full_and_folded(make_run, tmp_path):
    page = page_of([make_run("a", config="model:\n\tbeta: 0.5\n")], tmp_path)
    (folded,) = re.findall(r"<details>.*?</details>", page, re.DOTALL)
    assert Checker(folded).text == "a\nmodel:\n\tbeta: 0.5\n"


def test_the_intro_has_paragraphs(make_run, tmp_path):
    page = page_of([make_run("a")], tmp_path, intro="One\nline.\n\nTwo & three.")
    assert "<p>One line.</p>\n<p>Two &amp; three.</p>" in page


def test_writing_twice_gives_the_same_bytes(make_run, tmp_path):
    run = make_run("a", "step,train/loss\n1,2\n", [sample(1, "p", "c")])
    assert page_of([run], tmp_path) == page_of([run], tmp_path)


def test_runs_must_be_given_and_differ_in_name(make_run, tmp_path):
    with pytest.raises(ConfigurationError, match="at least one run"):
        write_report([], tmp_path / "x.html", title="t")
    with pytest.raises(ConfigurationError, match=r"got `a` more than once\. .*`--names`"):
        write_report([make_run("a"), make_run("a")], tmp_path / "x.html", title="t")


def test_a_page_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="could not be written"):
        write_text("page", tmp_path / "file" / "page.html")


def test_times_and_constants_are_folded_and_nothing_empty_is_drawn(make_run, tmp_path):
    metrics = "step,train/loss,train/skipped,train/seconds/data,train/tokens_per_second,train/never\n"
    metrics += "1,2,0,1,5,nan\n2,1,0,2,6,nan\n"
    page = page_of([make_run("a", metrics), make_run("b", "step,train/loss,train/skipped\n1,2,1\n2,3,1\n")], tmp_path)
    folded = dict(re.findall(r"<summary>(.*?) \((\d)\)</summary>", page))
    assert folded == {"Times": "2", "What stayed as it was": "1"}
    first, times, constants = page.split("<summary>")[:3]
    assert "Training: loss" in first
    assert "Training: throughput" in times
    assert "Training: skipped" in constants
    assert "never" not in page


def test_a_single_value_is_a_result_and_no_constant(make_run, tmp_path):
    page = page_of([make_run("a", "step,validation/accuracy\n0,0.5\n")], tmp_path)
    assert "What stayed as it was" not in page

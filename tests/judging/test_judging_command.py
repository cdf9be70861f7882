import json

import pytest
from chat_server import message, serving

from veto_pl.commands.judge import judge_files
from veto_pl.exceptions import ConfigurationError, DataError

ROWS = [
    ("<user>one", "the cat sat", "a dog", "the cat sat down"),
    ("<user>two", "rain", "it rained today", "it rained"),
    ("<user>two", "it rained", "it rained", "it rained"),
    ("<user>three", "b", "c", "a"),
]


def row(prompt, completion, reference, **more):
    return {"prompt": prompt, "completion": completion, "reference": reference, "reward": 0.5} | more


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(one) + "\n" for one in rows))
        return name

    return write


@pytest.fixture
def files(write):
    """Two runs that answered the same rows, in another order."""
    first = write("a.jsonl", [row(prompt, ours, reference) for prompt, ours, _, reference in ROWS])
    second = write("b.jsonl", [row(ROWS[i][0], ROWS[i][2], ROWS[i][3]) for i in (3, 1, 0, 2)])
    return first, second


def test_a_table_says_who_wins(files, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    judge_files(files)
    shown = capsys.readouterr().out
    assert "a.jsonl against b.jsonl, by ReferenceJudge" in shown
    assert "50.0% (95%: 15.0 to 85.0)" in shown
    assert "1, 2, 1" in shown
    assert "0 of 4" in shown


def test_json_says_the_same_to_scripts(files, capsys, tmp_path):
    judge_files([*files, "--json", "--out", "new/found.json"])
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "new" / "found.json").read_text())
    assert (found["wins"], found["ties"], found["losses"], found["win_rate"]) == (1, 2, 1, 0.5)
    assert found["verdicts"] == [1.0, 0.0, 0.5, 0.5]
    assert (found["first"], found["second"], found["judge"]) == (*files, "ReferenceJudge")


def test_the_settings_of_a_judge_are_options(files, capsys):
    judge_files([*files, "--json", "--judge", "ReferenceJudge", "--judge.margin", "0.99"])
    assert json.loads(capsys.readouterr().out)["ties"] == 4


def test_a_judge_from_a_file(files, capsys, tmp_path):
    (tmp_path / "judge.yaml").write_text("judge: {class_path: ReferenceJudge, init_args: {margin: 0.99}}\njson: true\n")
    judge_files([*files, "--config", "judge.yaml"])
    assert json.loads(capsys.readouterr().out)["ties"] == 4


def test_a_chat_judge_is_asked_in_both_orders_and_its_failures_are_shown(files, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    texts = iter(["Verdict: A", "Verdict: B", "Verdict: A", "Verdict: A", "who knows"])
    with serving(lambda *_: message(next(texts))) as (address, requests):
        chat = ["--judge", "ChatJudge", f"--judge.base_url={address}", "--judge.model=m", "--judge.concurrency=1"]
        judge_files([*files, *chat])
    shown = capsys.readouterr().out
    assert "1, 2, 0" in shown
    assert "1 of 3" in shown
    assert "1: not understood" in shown
    assert len(requests) == 5


def test_one_order_halves_the_cost(files, capsys):
    with serving(lambda *_: message("tie")) as (address, requests):
        chat = ["--judge", "ChatJudge", f"--judge.base_url={address}", "--judge.model=m"]
        judge_files([*files, "--one_order", "--json", *chat])
    assert len(requests) == 3
    assert json.loads(capsys.readouterr().out)["ties"] == 4


def test_several_references_are_used_where_the_file_has_them(write, capsys):
    several = {"references": ["it rained", "there was rain"]}
    first = write("a.jsonl", [row("p", "there was rain", "it rained", **several)])
    second = write("b.jsonl", [row("p", "it was raining", "it rained", **several)])
    judge_files([first, second, "--json"])
    assert json.loads(capsys.readouterr().out)["wins"] == 1


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (
            [("p", "a", "r"), ("q", "a", "r")],
            [("p", "b", "r")],
            r"b\.jsonl: expected .* lacks 1 rows.*answer 1 to str 'q'",
        ),
        (
            [("p", "a", "r")],
            [("p", "b", "r"), ("p", "c", "r")],
            r"a\.jsonl: expected .* lacks 1 rows.*answer 2 to str 'p'",
        ),
        (
            [("p", "a", "r")],
            [("p", "b", "s")],
            r"b\.jsonl: expected the references of a\.jsonl, got others for str 'p'",
        ),
        ([("p", "a", 3)], [("p", "b", 3)], r"a\.jsonl: field `reference` expected a string, got int 3"),
        ([("p", "a", None)], [("p", "b", None)], r"no verdict on any of 1 pairs: no reference to compare with \(1\)"),
        ([("p", 4, "r")], [("p", "b", "r")], r"a\.jsonl:1: field `completion` expected a string, got int 4"),
        ([], [], "expected one or more rows"),
    ],
)
def test_files_that_do_not_match_are_named(write, first, second, says):
    names = [write(name, [row(*one) for one in rows]) for name, rows in (("a.jsonl", first), ("b.jsonl", second))]
    with pytest.raises(DataError, match=says):
        judge_files(names)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--judge", "Nobody"], "`veto-pl judge`: .*Nobody"),
        (["--judge", "ChatJudge"], "`veto-pl judge`: .*base_url"),
        (["--judge.margin", "2"], "margin"),
        (["--colour"], "`veto-pl judge`: .*--colour"),
    ],
)
def test_options_that_cannot_work(files, options, says):
    with pytest.raises(ConfigurationError, match=says):
        judge_files([*files, *options])


def test_a_missing_file_is_named(files):
    with pytest.raises(DataError, match=r"nothing\.jsonl: expected a readable JSON Lines file"):
        judge_files([files[0], "nothing.jsonl"])


def test_a_configuration_that_multiplies_is_refused(tmp_path):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    (tmp_path / "judge.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigurationError, match="more than 100000 entries"):
        judge_files(["first.jsonl", "second.jsonl", "--config", str(tmp_path / "judge.yaml")])


def test_a_place_that_cannot_be_written_is_told_before_a_judge_is_asked(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"found\.json` could not be written: .* another place"):
        judge_files(["first.jsonl", "second.jsonl", "--out", str(tmp_path / "file" / "found.json")])

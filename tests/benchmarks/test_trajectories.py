"""The studies of trajectories: what the experts say, what is measured, and a run of everything that goes on."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veto_pl.environments import Abacus
from veto_pl.seams import Example, Sequences

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
LEVELS = st.integers(0, 1 << 31)


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import trajectories
        import trajectories_report
        import trajectories_runs

        yield SimpleNamespace(**(vars(trajectories_runs) | vars(trajectories_report) | vars(trajectories)))


@settings(deadline=None, max_examples=30)
@given(level=LEVELS)
def test_the_route_of_a_row_is_what_its_expert_does(script, level):
    house = script.house
    example, tokenizer = house.expert(level), house.tokenizer()
    episode, words = house.visit(level), house.route(level).split()
    said = example.conversation.messages
    assert len(words) == house.TURNS
    for place, word in zip(example.conversation.turns, words, strict=False):
        assert said[place]["content"].removeprefix("go ").split()[0] == word
        episode.reply(said[place])
    assert episode.reward() == 1.0
    assert set(words[len(example.conversation.turns) :]) <= {"nothing"}
    assert tokenizer.unk_token_id not in tokenizer(" ".join(one["content"] for one in said))["input_ids"]


@settings(deadline=None, max_examples=30)
@given(number=LEVELS, slips=st.floats(0, 0.5))
def test_the_expert_of_sums_is_answered_as_by_the_calculator(script, number, slips):
    abacus = script.abacus
    said, tokenizer = abacus.expert(number, slips).conversation.messages, abacus.tokenizer()
    episode = Abacus().begin(Example(""), 0)
    from veto_pl.data.tool_calls import tagged_calls

    for turn, reply in zip(said[1::2], said[2::2], strict=False):
        answered = episode.reply(tagged_calls(turn["content"]))
        assert answered.failed == reply["content"].startswith("Error")
        if not answered.failed:
            assert answered.messages[0]["content"] == reply["content"]
    assert int(said[-1]["content"]) == eval(said[0]["content"].rstrip("="))
    for one in said:
        ids = tokenizer(one["content"])["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert one["role"] == "tool" or tokenizer.decode(ids) == one["content"]


@settings(deadline=None, max_examples=50)
@given(slope=st.floats(-3, 3), heights=st.lists(st.floats(-2, 2), min_size=1, max_size=5), data=st.data())
def test_the_slope_within_episodes_is_that_of_their_lines(script, slope, heights, data):
    """However high each begins and wherever it ends."""
    there = torch.zeros(len(heights), 6, dtype=torch.bool)
    for row in range(len(heights)):
        there[row, : data.draw(st.integers(2, 6))] = True
    lines = torch.tensor(heights, dtype=torch.float64)[:, None] + slope * torch.arange(6, dtype=torch.float64)
    noise = torch.randn(lines.shape, dtype=torch.float64)
    assert script.abacus.slope(torch.where(there, lines, noise), there) == pytest.approx(slope, abs=1e-9)
    assert script.rise([*lines[0].tolist(), math.nan]) == pytest.approx(slope, abs=1e-9)


def test_sums_by_turn_and_failed_calls_are_those_of_a_loop(script):
    """Two rows: the reply to the first turn of the second one is an error, and turns have other lengths."""
    turns = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 0], [0, 1, 1, 1, 2, 2, 2, 3]])
    own = torch.tensor([[0, 0, 1, 1, 0, 1, 1, 0], [0, 1, 1, 0, 1, 1, 0, 1]]).bool()
    ids, rows = torch.arange(16).view(2, 8), torch.arange(2)
    written = Sequences(ids, turns.cumsum(1) > 0, own, rows, rows > -1, turn_ids=turns, episodes=rows)
    ratio = torch.randn(int(own.sum()), generator=torch.Generator().manual_seed(0))
    seen = script.abacus.Seen(written, torch.zeros(len(ratio), 1), ratio[:, None])
    sums, tokens = seen.turns(ratio, 3)
    values, first, expected = iter(ratio.tolist()), {}, []
    for row, turn in [(row, int(turns[row, at])) for row, at in own.nonzero().tolist()]:
        first.setdefault((row, turn), []).append(next(values))
    for (row, turn), said in first.items():
        assert sums[row, turn - 1] == pytest.approx(sum(said), abs=1e-6)
        assert tokens[row, turn - 1] == len(said)
        size = [sum(map(abs, one)) / len(one) for one in (first[row, 1], said)]
        weight = 1.0 if turn == 1 else min((size[0] + 1e-6) / (size[1] + 1e-6), 1 + script.abacus.CAP)
        expected += [weight] * len(said)
    assert script.abacus.weights_of(seen, ratio).tolist() == pytest.approx(expected, rel=1e-5)
    failed = script.abacus.failed_calls(seen, lambda told: "Error" if 11 in told.tolist() else "7")
    assert failed.nonzero().tolist() == [[1, 0]]


def test_areas_and_times_are_those_of_straight_lines(script):
    looks = [{"turns": t, "kl": kl, "success": s} for t, kl, s in ((0, 4.0, 0.1), (10, 2.0, 0.3), (40, 2.0, 0.9))]
    assert script.area(looks) == pytest.approx((10 * 3 + 30 * 2) / 40)
    assert script.turns_to(looks, 0.5) == pytest.approx(20)
    assert script.turns_to(looks, 0.1) == 0
    assert script.turns_to(looks, 0.95) == 40
    assert script.turns_to([looks[2], looks[1] | {"turns": 50}], 0.9) == 0, "it was there, and then fell"


def test_runs_that_are_done_are_not_run_again(script, tmp_path):
    done = script.Finished(tmp_path / "runs.jsonl")
    done.add("house", "OPD", 3, lambda: {"looks": [1]})
    again = script.Finished(tmp_path / "runs.jsonl")
    again.add("house", "OPD", 3, lambda: pytest.fail("it was done"))
    assert again.of("house", "OPD")[3]["looks"] == [1]
    assert not again.of("house", "back to front")


@pytest.mark.slow
def test_the_script_runs_goes_on_and_writes_its_page(script, tmp_path, monkeypatch, capsys):
    short = script.Size(width=8, steps=2, rows=20)
    for name, own in (("house", {"budget": 40, "every": 20}), ("abacus", {"updates": 1})):
        study = replace(script.STUDIES[name](tmp_path), teacher=short, student=short, held_out=4, batch=2, **own)
        monkeypatch.setitem(script.STUDIES, name, lambda _, study=study: study)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{script.BEGIN}\n{script.END}\nbehind", encoding="utf-8")
    (tmp_path / "images").mkdir()
    script.main(["--out", str(tmp_path / "runs"), "--seeds", "1"])
    assert "1 seeds are done" in capsys.readouterr().out
    script.main(["--out", str(tmp_path / "runs"), "--seeds", "1", "2", "--write", str(page)])
    written = page.read_text(encoding="utf-8")
    assert written.startswith("before")
    assert written.endswith("behind")
    assert "](images/trajectories-house-kl.svg)" in written
    assert "(a) Slope" in written
    assert "(g) success" in written
    assert len((tmp_path / "runs" / "runs.jsonl").read_text().splitlines()) == 2 + 2 * (3 + 2)

"""The study of TextWorld: its games, what the expert says in them, and a run of everything."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.worlds
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    pytest.importorskip("textworld", reason="run by `make test-worlds`")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import trajectories
        import trajectories_textworld

        patch.setattr(trajectories_textworld, "TRAINING", 12)
        patch.setattr(trajectories_textworld, "FRESH", 6)
        folder = tmp_path_factory.mktemp("textworld")
        study = trajectories_textworld.study(folder)
        own = {"study": study, "folder": folder, "world": study.arms["OPD"].rollout.environment}
        yield SimpleNamespace(**(vars(trajectories) | vars(trajectories_textworld) | own))


def test_fresh_games_are_no_games_to_learn_from(script):
    learnt = {script.asked(number).row["level"] for number in range(10**8, 10**8 + 100)}
    fresh = {script.asked(script.HELD_OUT + number).row["level"] for number in range(100)}
    assert learnt == set(range(12))
    assert fresh == set(range(12, 18))
    assert len(script.world.files) == 18


@pytest.mark.parametrize("slips", [0.0, 0.4])
def test_the_expert_wins_whatever_went_wrong_and_every_word_is_known(script, slips):
    tokenizer, failed = script.study.tokenizer, 0
    for number in range(18):
        example = script.expert(script.world, number, slips)
        said, own = example.conversation.messages, example.conversation.turns
        episode = script.begun(script.world, number)
        replies = [episode.reply(message) for message in said[1::2]]
        failed += sum(reply.failed for reply in replies)
        if len(replies) < script.TURNS and not slips:
            assert episode.reward() == 1.0
        for place in own:
            assert tokenizer.decode(tokenizer(said[place]["content"])["input_ids"]) == said[place]["content"]
            assert not replies[place // 2].failed
        ids = tokenizer(" ".join(message["content"] for message in said))["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert len(ids) + 2 * len(own) < script.study.room
    assert bool(failed) == bool(slips)


def test_the_script_plays_all_arms_and_writes_its_page(script, tmp_path, monkeypatch):
    short = type(script.study.teacher)(width=8, steps=1, rows=4)
    study = replace(script.study, teacher=short, student=short, held_out=2, batch=2, budget=8, every=8)
    monkeypatch.setitem(script.STUDIES, "textworld", lambda _: study)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{script.BEGIN}\n{script.END}\nbehind", encoding="utf-8")
    (tmp_path / "images").mkdir()
    script.main(["--studies", "textworld", "--out", str(tmp_path / "runs"), "--seeds", "1", "2", "--write", str(page)])
    written = page.read_text(encoding="utf-8")
    assert "**TextWorld**, 2 seeds" in written
    assert (tmp_path / "images" / "trajectories-textworld-kl.svg").is_file()

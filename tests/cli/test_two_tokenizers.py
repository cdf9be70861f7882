"""Runs by the command line whose teacher has another tokenizer."""

import csv

import pytest

from veto_pl.commands.main import main
from veto_pl.models.vocabulary import real_ids
from veto_pl.testing.tiny import tiny_source
from veto_pl.testing.tokenizer_kinds import tokenizer_of

from .conftest import changed

SAMPLED = {"class_path": "FromStudent", "init_args": {"sampling": {"max_new_tokens": 6, "num_completions": 2}}}


def saved(folder, tokenizer, **dimensions):
    """Where a random model is that reads with a tokenizer."""
    place = str(folder / "teacher")
    tiny_source(seed=1, vocab_size=real_ids(tokenizer) + 2, **dimensions).load().save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def objective(name, **settings):
    return {"class_path": name, "init_args": {"rollout": SAMPLED, **settings}}


@pytest.fixture
def run(config, tmp_path, write):
    """The tiny run with a teacher of byte pairs and the objective that is named."""

    def of(chosen, **changes):
        teacher = {"model.teacher": saved(tmp_path, tokenizer_of("bytes"))}
        return write(changed(config, {"model.objective": chosen, **teacher, **changes}))

    return of


def logged(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["SimCT", "SimpleOPD"])
def test_a_run_learns_from_its_teachers_bytes_and_resumes_to_the_bit(name, run, tmp_path):
    path = run(objective(name, units="minimal"))
    with pytest.warns(UserWarning, match=r"`teacher` reads ids of its own.*left out: .*`forward_kl`"):
        main(["fit", "--config", path])
    rows = [row for row in logged(tmp_path / "run") if row["train/loss"]]
    assert len(rows) == 3
    assert all(0 < float(row["train/aligned"]) <= 1 for row in rows)
    assert all(float(row["train/grad_norm"]) > 0 for row in rows)
    assert not any("forward_kl" in column for column in rows[0] if column.startswith("validation/"))
    assert "validation/accuracy" in rows[0]

    main(["fit", "--config", path, f"--run_dir={tmp_path / 'half'}", "--trainer.max_steps=2"])
    half = tmp_path / "half"
    main(["fit", "--config", path, f"--run_dir={half}", "--ckpt_path=last"])
    again = [row for row in logged(half) if row["train/loss"]]
    assert again[-1]["train/loss"] == rows[-1]["train/loss"]


def test_an_objective_that_compares_ids_is_refused_before_weights_are_read(run, tmp_path):
    path = run(objective("Distill"))
    (tmp_path / "teacher" / "model.safetensors").unlink()
    with pytest.raises(SystemExit, match=r"different tokenizers.*`SimCT`, or a policy gradient"):
        main(["fit", "--config", path])


@pytest.mark.parametrize("command", ["headroom", "cache-teacher"])
def test_commands_that_compare_ids_refuse_by_name(command, run, tmp_path):
    more = {"cache-teacher": ["--out", str(tmp_path / "store"), "--k=2"]}.get(command, [])
    with pytest.raises(SystemExit, match=rf"`veto-pl {command}` compares ids, but `teacher` reads"):
        main([command, "--config", run(objective("SimCT")), *more])


def test_a_checkpoint_cannot_follow_what_is_left_out(run):
    path = run(objective("SimCT"), **{"checkpoint.monitor": "validation/forward_kl"})
    with pytest.raises(SystemExit, match=r"A callback follows `validation/forward_kl`.*but `teacher` reads ids"):
        main(["fit", "--config", path])


def test_a_run_with_two_tokenizers_is_planned(run, capsys):
    main(["plan", "--config", run(objective("OPD"))])
    assert "teacher's scoring" in capsys.readouterr().out

"""`headroom` on episodes: both models play the same ones, and the teacher goes on behind turns of the student's."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.rollouts.test_played import Says
from veto_pl.commands.headroom import BEHIND, STUDENT, TEACHER
from veto_pl.commands.main import main
from veto_pl.data import JsonLines
from veto_pl.data.collate import Collator
from veto_pl.exceptions import ConfigurationError
from veto_pl.rollouts import Played, Sampling
from veto_pl.seams import Example, Reply, Step
from veto_pl.testing.rows import difference
from veto_pl.testing.tiny import tiny_models
from veto_pl.training.headroom_probe import HeadroomProbe

DEBUG = Path(__file__).resolve().parents[2] / "configs" / "debug"
SAMPLING = Sampling(max_new_tokens=8, num_completions=2, stop=tuple("acegikmo"))


def again(turn, seed):
    return Reply(({"role": "user", "content": "no>" if seed % 2 else "n>"},), done=turn >= 2 + seed % 3)


def probe(models, share, worth=lambda: 1.0):
    playing = Played(Says(again, worth), SAMPLING, max_turns=6, max_tokens=100, timeout=20.0)
    collator = Collator(tokenizer=models.tokenizer, task=JsonLines(train="none.jsonl"))
    return HeadroomProbe(
        models=models, collator=collator, sampling=SAMPLING, share=share, playing=playing, device=torch.device("cpu"),
        precision=torch.no_grad,
    )  # fmt: skip


def rows(models):
    return Collator(tokenizer=models.tokenizer).encode([Example(f"{word}>", word) for word in ("abc", "ca", "b")])


def played(models, share):
    looking = probe(models, share)
    return looking._played(looking.collator.pad(rows(models)), Step(0, 1))


def turns(rows):
    """The agent's tokens of each turn of each episode."""
    grid = zip(rows.input_ids, rows.turn_ids, rows.loss_mask, strict=True)
    return [[ids[(of == k) & own].tolist() for k in range(1, int(of.max()) + 1)] for ids, of, own in grid]


def test_without_a_beginning_of_the_students_it_is_the_teacher_alone():
    _, teacher, behind = played(tiny_models(), 0.0)
    assert difference(teacher, behind) == ""


@pytest.mark.parametrize("share", [0.4, 0.7])
def test_the_first_turns_are_the_students_and_what_follows_is_the_teachers(share):
    models = tiny_models()
    student, teacher, behind = played(models, share)
    assert max(map(len, turns(student))) > 2
    for own, both in zip(turns(student), turns(behind), strict=True):
        kept = int(share * len(own))
        assert both[:kept] == own[:kept]
    assert difference(behind, teacher)
    assert difference(behind, student)
    same = played(replace(models, teacher=models.student), share)
    assert difference(same[0], same[2]) == ""


def test_rewards_are_those_of_the_environment_and_none_is_refused():
    models = tiny_models()
    found = probe(models, 0.5, lambda: 0.25).look([rows(models)])
    assert found.rewards == {name: [0.25] * 3 for name in (STUDENT, TEACHER, BEHIND)}
    assert found.mean("reverse_kl") > 0
    with pytest.raises(ConfigurationError, match=r"6 of 6 completions have none: no environment gave one"):
        probe(models, 0.5, lambda: None).look([rows(models)])


def test_the_debug_run_of_episodes_is_played(capsys):
    """Its task has no verifier, and needs none."""
    run = ["headroom", *(f"--config={DEBUG / name}.yaml" for name in ("base", "episodes"))]
    main([*run, "--prompts=4", "--json"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["prompts"] == 4
    assert set(told["rewards"]) == {STUDENT, TEACHER, BEHIND}

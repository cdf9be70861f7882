"""`veto-pl headroom`: what it measures, against loops written out, and what it concludes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from veto_pl.commands.headroom import BEHIND, STUDENT, TEACHER, gains, verdict
from veto_pl.commands.main import main
from veto_pl.data import ExactMatch, JsonLines
from veto_pl.data.collate import Collator
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.seams import Example, Step
from veto_pl.testing.tiny import tiny_models
from veto_pl.training.headroom_probe import Headroom, HeadroomProbe, token_distances

DEBUG = Path(__file__).resolve().parents[2] / "configs" / "debug"
RUN = ["headroom", f"--config={DEBUG / 'base.yaml'}", f"--config={DEBUG / 'veto.yaml'}"]


def probe(models, **settings):
    task = JsonLines(train="none.jsonl", verifier=ExactMatch())
    collator = Collator(tokenizer=models.tokenizer, task=task)
    sampling = settings.pop("sampling", Sampling(max_new_tokens=6))
    return HeadroomProbe(
        models=models,
        collator=collator,
        sampling=sampling,
        device=torch.device("cpu"),
        precision=torch.no_grad,
        **settings,
    )


def rows(models, *words):
    return Collator(tokenizer=models.tokenizer).encode([Example(f"{word}>", word[::-1]) for word in words])


def test_a_teacher_that_is_the_student_gains_nothing_and_is_nowhere_else():
    models = tiny_models()
    same = replace(models, teacher=models.student)
    found = probe(same, sampling=Sampling(temperature=0.0, max_new_tokens=6)).look([rows(models, "abc", "cab", "bb")])
    assert found.rewards[TEACHER] == found.rewards[STUDENT] == found.rewards[BEHIND]
    assert found.mean("reverse_kl") == pytest.approx(0, abs=1e-6)
    assert found.mean("overlap_ratio") == 1.0


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_a_greedy_teacher_goes_on_from_the_beginning_as_it_would_alone(share):
    """Its end behind the student's beginning is what it writes behind that text as a prompt."""
    models = tiny_models()
    greedy = Sampling(temperature=0.0, max_new_tokens=8)
    looking = probe(models, sampling=greedy, share=share)
    encoded = rows(models, "abc", "cab", "bbca")
    prompts = looking.collator.pad(encoded)
    by_student = FromStudent(greedy)(prompts, models, Step(0, 1))
    whole = looking._continued(encoded, prompts, by_student, Step(0, 1)).completion_ids()
    for prompt, own, written in zip(encoded, by_student.completion_ids(), whole, strict=True):
        ids = [*prompt.prompt_ids, *own[: int(share * len(own))]]
        for _ in range(8 - int(share * 8)):
            with torch.no_grad():
                logits = models.teacher.model(torch.tensor([ids])).logits[0, -1, : models.teacher.vocab_size]
            ids.append(int(logits.argmax()))
            if ids[-1] in models.eos_ids:
                break
        assert written == ids[len(prompt.prompt_ids) :]


def test_distances_are_those_of_a_float64_loop():
    models = tiny_models()
    prompts = Collator(tokenizer=models.tokenizer).pad(rows(models, "abc", "ca"))
    sequences = FromStudent(Sampling(max_new_tokens=5, num_completions=2))(prompts, models, Step(0, 1))
    found = token_distances(sequences, models)
    place = 0
    for ids, mask, loss in zip(sequences.input_ids, sequences.attention_mask, sequences.loss_mask, strict=True):
        text, ends = ids[mask], loss[mask].nonzero()[:, 0].tolist()
        p, q = (
            torch.log_softmax(model.model(text[None]).logits[0, :, : model.vocab_size].double(), -1)
            for model in (models.student, models.teacher)
        )
        for end in ends:
            a, b = p[end - 1], q[end - 1]
            expected = {
                "reverse_kl": (a.exp() * (a - b)).sum(),
                "forward_kl": (b.exp() * (b - a)).sum(),
                "entropy_gap": (a.exp() * a).sum() - (b.exp() * b).sum(),
            }
            for name, value in expected.items():
                assert float(found[name][place]) == pytest.approx(float(value), abs=1e-5), name
            place += 1
    assert place == len(found["reverse_kl"]) > 4


SCORES = st.lists(st.floats(0, 1), min_size=3, max_size=8)


@given(SCORES, st.floats(0.1, 1), st.floats(0.1, 1))
def test_the_verdict_follows_from_the_intervals(own, alone, behind):
    def of(first, second):
        return Headroom({STUDENT: own, TEACHER: [x + first for x in own], BEHIND: [x + second for x in own]})

    assert verdict(of(alone, behind)).startswith("The teacher helps")
    assert verdict(of(-alone, behind)).startswith("The teacher answers worse")
    assert verdict(of(0.0, behind)).startswith("No difference is shown")
    assert "worse behind" in verdict(of(alone, -behind))
    assert "no gain is shown behind" in verdict(of(alone, 0.0))
    assert gains(of(alone, behind))[TEACHER].mean == pytest.approx(alone)


def test_the_command_tells_a_script_and_a_person_the_same(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main([*RUN, "--prompts=6", "--json"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["prompts"] == 6
    assert set(told["rewards"]) == {STUDENT, TEACHER, BEHIND}
    main([*RUN, "--prompts=6"])
    shown = capsys.readouterr().out
    assert told["verdict"] in shown
    assert f"{told['distances']['reverse_kl']:.3f}" in shown
    assert list(tmp_path.iterdir()) == [], "nothing is written"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.teacher=null", "--model.objective=SFT"], "`model.teacher` is not set"),
        (["--prompts=1"], "`headroom.prompts` must be 2 or more, got 1"),
        (["--share=1"], r"`--share` must lie in \[0, 1\), got 1.0"),
    ],
)
def test_what_cannot_be_asked_is_refused(options, message):
    with pytest.raises(SystemExit, match=message):
        main([*RUN, *options])


def test_answers_that_nobody_scores_are_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "ab>", "completion": "ba"}\n' * 3)
    task = {"class_path": "JsonLines", "init_args": {"train": str(tmp_path / "rows.jsonl")}}
    with pytest.raises(SystemExit, match=r"`data.task.init_args.verifier`: given `NoReward`, expected a verifier"):
        main([*RUN, f"--data.task={json.dumps(task)}"])

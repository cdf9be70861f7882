"""A fit says what a teacher's own template would change, once, and only where it would."""

import re
import warnings

import lightning as L
import pytest
import torch

from tests.training.test_teachers import QUIET
from veto_pl import DistillationModule, PromptDataModule
from veto_pl.checks import check
from veto_pl.data import ChatTemplate, ExactMatch, PlainTemplate, Rows
from veto_pl.exceptions import ConfigurationError
from veto_pl.models import CharacterTokenizer, InMemory
from veto_pl.objectives import SFT, Distill, Phases
from veto_pl.parts.contexts import Privileged
from veto_pl.parts.own_template import OwnTemplate
from veto_pl.parts.panels import Together
from veto_pl.rollouts import FromStudent, Sampling
from veto_pl.testing.tiny import ALPHABET, tiny_source

OURS, THEIRS = (f"{{% for m in messages %}}{{{{ m['content'] ~ '{mark}' }}}}{{% endfor %}}" for mark in (">", "ab>"))
REFUSES = "{{ raise_exception('no such row') }}"
SAMPLED = FromStudent(Sampling(max_new_tokens=5))
SAYS = "writes prompts otherwise than the student"


def tokenizer(template):
    made = CharacterTokenizer(ALPHABET).load()
    made.chat_template = template
    return made


def teacher_of(template, seed=1):
    return InMemory(tiny_source(seed=seed).load(), tokenizer(template))


def run(tmp_path, objective=Distill(rollout=SAMPLED), template=ChatTemplate(), **teachers):
    """The warnings of a fit of two steps about templates, and its weights."""
    path = tmp_path / "rows.jsonl"
    words = ("ab", "c", "def", "g")
    path.write_text("".join(f'{{"prompt": "{word}", "completion": "{word[::-1]}"}}\n' for word in words))
    module = DistillationModule(
        objective, tiny_source(), tokenizer=tokenizer(OURS), optimizer=lambda p: torch.optim.SGD(p, lr=0.1), **teachers
    )
    data = PromptDataModule(Rows(train=str(path), verifier=ExactMatch()), template, batch_size=2, max_prompt_tokens=16,
                            max_completion_tokens=8, shuffle=False)  # fmt: skip
    trainer = L.Trainer(max_steps=2, limit_val_batches=0, use_distributed_sampler=False, **QUIET)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.fit(module, data)
    told = [
        str(one.message)
        for one in said
        if "prompts otherwise" in str(one.message) or "brings another" in str(one.message)
    ]
    return told, [p.detach().clone() for p in module.student.parameters()]


def test_figures_and_what_to_set_are_said_once(tmp_path):
    told, _ = run(tmp_path, teacher=teacher_of(THEIRS))
    assert len(told) == 1
    assert told[0].startswith(f"`model.teacher` {SAYS}, and reads the student's. On 2 rows its entropy is ")
    assert told[0].endswith("To let it read its own, set `context: OwnTemplate` in the objective.")
    plain, own, apart, nearer = (float(n) for n in re.findall(r"\d+\.\d+", told[0]))
    assert plain != own
    assert apart != nearer


def test_looking_changes_nothing(tmp_path):
    told, weights = run(tmp_path, teacher=teacher_of(THEIRS))
    quiet, alike = run(tmp_path, teacher=teacher_of(OURS))
    assert (len(told), len(quiet)) == (1, 0)
    assert all(torch.equal(a, b) for a, b in zip(weights, alike, strict=True)), "it has read the student's prompts"


@pytest.mark.parametrize(
    ("objective", "template", "written"),
    [
        (Distill(rollout=SAMPLED), ChatTemplate(), OURS),
        (Distill(rollout=SAMPLED, context=OwnTemplate()), ChatTemplate(), THEIRS),
        (Distill(rollout=SAMPLED, context=Privileged("{completion}>{prompt}")), ChatTemplate(), THEIRS),
        (Distill(rollout=SAMPLED), PlainTemplate("{prompt}>"), THEIRS),
        (SFT(), ChatTemplate(), THEIRS),
    ],
    ids=["equal", "set", "hinted", "plain", "no teacher asked"],
)
def test_where_there_is_nothing_to_say_nothing_is_said(objective, template, written, tmp_path):
    assert run(tmp_path, objective, template, teacher=teacher_of(written))[0] == []


def test_each_teacher_that_is_asked_is_named(tmp_path):
    named = {"maths": teacher_of(THEIRS, 1), "code": teacher_of(OURS, 2), "art": teacher_of(THEIRS, 3)}
    objective = Distill(rollout=SAMPLED, panel=Together({"maths": 1.0, "code": 1.0}))
    told, _ = run(tmp_path, objective, teachers=named)
    assert [one.split(" writes")[0] for one in told] == ["`model.teachers.maths`"]


def test_a_template_that_cannot_be_compared_does_not_end_the_run(tmp_path):
    told, weights = run(tmp_path, teacher=teacher_of(REFUSES))
    assert len(told) == 1
    assert (
        "`model.teacher` brings another chat template than the student's, by which it cannot read the rows" in told[0]
    )
    assert "no such row" in told[0]
    assert all(torch.equal(a, b) for a, b in zip(weights, run(tmp_path, teacher=teacher_of(OURS))[1], strict=True))


def test_a_run_by_the_own_template_trains_and_differs(tmp_path):
    told, own = run(tmp_path, Distill(rollout=SAMPLED, context=OwnTemplate()), teacher=teacher_of(THEIRS))
    _, plain = run(tmp_path, teacher=teacher_of(OURS))
    assert not told
    assert not all(torch.equal(a, b) for a, b in zip(own, plain, strict=True))


def test_a_run_whose_first_phase_asks_no_teacher_is_told_all_the_same(tmp_path):
    objective = Phases(first=SFT(), then=Distill(rollout=SAMPLED), switch=0.5)
    told, _ = run(tmp_path, objective, teacher=teacher_of(THEIRS))
    assert len(told) == 1


def test_a_template_for_nobody_is_refused_before_the_run(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "ab", "completion": "ba"}\n')
    context = OwnTemplate({"maths": ChatTemplate()})
    module = DistillationModule(Distill(context=context), tiny_source(), tiny_source(seed=1), tokenizer=tokenizer(OURS))
    with pytest.raises(
        ConfigurationError, match="given a template for the teacher `maths`, expected names among `teacher`"
    ):
        check(module, PromptDataModule(Rows(train=str(path)), batch_size=1), {"max_steps": 1})

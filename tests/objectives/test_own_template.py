"""A teacher that reads its own way: its own template, its own ends, and what of it a validation sees."""

import copy
from dataclasses import replace

import pytest
import torch

from veto_pl.data import ChatTemplate, Collator, PlainTemplate
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.own_ends import Ends
from veto_pl.metrics.agreement import ForwardKL
from veto_pl.models import CharacterTokenizer, InMemory
from veto_pl.models.assemble import load_models
from veto_pl.objectives import OPD, Distill
from veto_pl.parts.contexts import SameText
from veto_pl.parts.divergences import ReverseKL
from veto_pl.parts.own_template import OwnTemplate
from veto_pl.parts.panels import OneTeacher, Routed, Together
from veto_pl.rollouts import FromDataset, FromStudent, Sampling
from veto_pl.seams import Conversation, Example, Step
from veto_pl.testing.tiny import ALPHABET, tiny_source
from veto_pl.training.evaluation import Evaluation
from veto_pl.training.measured import read_in_validation

pytestmark = pytest.mark.filterwarnings("ignore:Student and teacher end their texts differently")
STEP = Step(0, 10)
OURS, THEIRS = (f"{{% for m in messages %}}{{{{ m['content'] ~ '{mark}' }}}}{{% endfor %}}" for mark in (">", "ab>"))
LATER = OURS.replace("'>'", "'>' ~ loop.index0 * 'b'")
"""Writes a first message as `OURS` does, and all others otherwise."""
REFUSES = "{{ raise_exception('no such row') }}"
WORDS = ["cde", "f", "ghij"]
SAMPLED = FromStudent(Sampling(max_new_tokens=6, num_completions=2))


def tokenizer(template=OURS, eos=None):
    made = CharacterTokenizer(ALPHABET).load()
    made.chat_template = template
    if eos is not None:
        made.eos_token = eos
    return made


def models_of(seed=1, named=None, **theirs):
    """A student and a teacher that brings a tokenizer, and perhaps named ones."""
    model = tiny_source(seed=seed).load()
    if "eos" in theirs:
        model.generation_config.eos_token_id = None
    sources = {
        n: InMemory(tiny_source(seed=7 + k).load(), tokenizer(t)) for k, (n, t) in enumerate((named or {}).items())
    }
    return load_models(
        tiny_source(), InMemory(model, tokenizer(**theirs)), tokenizer(), teachers=sources, objective=Distill()
    )


def batch_of(models, template=ChatTemplate(), words=WORDS):
    collator = Collator(tokenizer=models.tokenizer, template=template)
    return collator([Example(word, word[::-1], {"prompt": word}) for word in words])


def texts(models, rows):
    grids = zip(rows.input_ids, rows.attention_mask, rows.completion_mask, strict=True)
    return [models.tokenizer.decode(ids[mask & ~written]) for ids, mask, written in grids]


def update(objective, models, rows):
    models.student.zero_grad(set_to_none=True)
    output = objective.loss({objective.rollout: rows}, models, STEP)
    output.terms["loss"].total.backward()
    return output, torch.cat([p.grad.flatten() for p in models.student.parameters()])


def test_the_teacher_reads_its_own_prompt_and_the_students_ids():
    models = models_of(template=THEIRS)
    rows = SAMPLED(batch_of(models), models, STEP)
    told = OwnTemplate()(rows, models, STEP)
    assert texts(models, rows) == [f"{word}>" for word in WORDS for _ in range(2)]
    assert texts(models, told) == [f"{word}ab>" for word in WORDS for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(told.completions(), rows.completions(), strict=True))


def test_a_template_that_is_the_students_changes_nothing_to_the_bit():
    models = models_of()
    rows = SAMPLED(batch_of(models), models, STEP)
    assert OwnTemplate()(rows, models, STEP) is rows
    same = OwnTemplate({"teacher": ChatTemplate(template=OURS)})
    assert same(rows, models, STEP) is rows, "prompts are compared, not templates"
    plain, own = (update(Distill(rollout=SAMPLED, context=c), models, rows) for c in (SameText(), same))
    assert torch.equal(plain[0].terms["loss"].total, own[0].terms["loss"].total)
    assert torch.equal(plain[1], own[1])


def test_without_its_own_template_it_reads_as_ever():
    models = models_of(template=THEIRS)
    rows = SAMPLED(batch_of(models), models, STEP)
    assert SameText()(rows, models, STEP) is rows
    plain = batch_of(models, PlainTemplate(format="{prompt}>"))
    rows = SAMPLED(plain, models, STEP)
    assert OwnTemplate()(rows, models, STEP) is rows, "a plain template has nothing that is the tokenizer's"


def test_every_teacher_has_its_own():
    models = models_of(template=THEIRS, named={"maths": OURS, "code": OURS.replace("'>'", "'k>'")})
    rows = SAMPLED(batch_of(models), models, STEP)
    context = OwnTemplate({"maths": ChatTemplate(system="o")})
    readings = Together()(rows, context, models, STEP)
    assert [one.teacher for one in readings] == ["teacher", "maths", "code"]
    first = [texts(models, one.sequences)[0] for one in readings]
    assert first == ["cdeab>", "o>cde>", "cdek>"]


@pytest.mark.parametrize("objective", [Distill(divergence=ReverseKL()), OPD()], ids=["distil", "policy"])
@pytest.mark.parametrize("eos", [None, "p"], ids=["one end", "another end"])
def test_the_loss_against_plain_loops(objective, eos):
    """Each row of the teacher's own prompt is read alone, in float64; where the ends differ they change places."""
    models = models_of(template=THEIRS, **({} if eos is None else {"eos": eos}))
    for model in (models.student, models.teacher):
        model.double()
    objective = replace(objective, rollout=FromDataset(), context=OwnTemplate())
    if isinstance(objective, OPD):
        objective = replace(objective, importance_cap=None)
    rows = FromDataset()(batch_of(models), models, STEP)
    output, gradient = update(objective, models, rows)
    models.student.zero_grad()
    total, ends = 0.0, (models.tokenizer.eos_token_id, models.tokenizer.convert_tokens_to_ids("p"))
    for word in WORDS:
        answer = [*models.tokenizer(word[::-1])["input_ids"], ends[0]]
        asked, told = (models.tokenizer(f"{word}{mark}")["input_ids"] for mark in (">", "ab>"))
        student, teacher = (
            model.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1, : model.vocab_size]
            for model, prompt in ((models.student, asked), (models.teacher, told))
        )
        teacher = teacher.detach().clone()
        if eos is not None:
            teacher[:, list(ends)] = teacher[:, [ends[1], ends[0]]]
        p, q = student.log_softmax(-1), teacher.log_softmax(-1)
        for place, token in enumerate(answer):
            if isinstance(objective, OPD):
                total = total - (q[place, token] - p[place, token]).detach() * p[place, token]
            else:
                total = total + sum(p[place, v].exp() * (p[place, v] - q[place, v]) for v in range(p.shape[1]))
    total.backward()
    expected = torch.cat([p.grad.flatten() for p in models.student.parameters()])
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8)
    if not isinstance(objective, OPD):
        torch.testing.assert_close(output.terms["loss"].total, total.detach(), rtol=1e-9, atol=1e-9)


def test_an_end_is_an_end_by_whatever_id():
    """The student's end gets the probability of the teacher's end, and not the one of the student's id."""
    models = models_of(eos="p")
    rows = FromDataset()(batch_of(models), models, STEP)
    eos, own = models.tokenizer.eos_token_id, models.tokenizer.convert_tokens_to_ids("p")
    assert OwnTemplate().ends(models) == Ends((eos,), (own,))
    ends = rows.token_ids() == eos
    assert int(ends.sum()) == len(WORDS)
    for context, column in ((SameText(), eos), (OwnTemplate(), own)):
        objective = OPD(rollout=FromDataset(), context=context, importance_cap=None)
        found = objective.loss({FromDataset(): rows}, models, STEP).tokens["loss"].values["teacher_logp"][ends]
        for value, ids, mask in zip(found, rows.input_ids, rows.attention_mask, strict=True):
            logits = models.teacher.model(ids[mask][None]).logits[0, -2, : models.teacher.vocab_size]
            torch.testing.assert_close(value, logits.log_softmax(-1)[column], rtol=1e-4, atol=1e-4)


def test_the_same_ends_are_left_alone():
    assert OwnTemplate().ends(models_of(template=THEIRS)) is None


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_rows_and_chunks_do_not_matter(aggregation):
    """One row at a time, and one token at a time, give the whole batch."""
    models = models_of(template=THEIRS, eos="p")
    objective = Distill(rollout=SAMPLED, context=OwnTemplate(), aggregation=aggregation, chunk_rows=64)
    rows = SAMPLED(batch_of(models), models, STEP)
    whole = update(objective, models, rows)
    parts = [update(objective, models, rows.rows(torch.tensor([i]))) for i in range(len(rows))]
    torch.testing.assert_close(whole[1], sum(one[1] for one in parts), rtol=1e-4, atol=1e-5)
    cut = update(replace(objective, chunk_rows=1), models, rows)
    torch.testing.assert_close(whole[1], cut[1], rtol=1e-4, atol=1e-5)


def test_a_validation_reads_the_same():
    models = models_of(template=THEIRS, eos="p")
    objective = Distill(rollout=SAMPLED, context=OwnTemplate())
    assert read_in_validation(objective) == OwnTemplate()
    assert read_in_validation(Distill()) == SameText()
    batch, sampling = batch_of(models), Sampling(temperature=0.0, max_new_tokens=5)
    metrics = {}
    for context in (SameText(), OwnTemplate()):
        metric = ForwardKL()
        evaluation = Evaluation.sample(batch, models, sampling, STEP, context=context).update([metric])
        metrics[type(context)] = float(metric.compute())
    rows = evaluation.sequences
    total = Distill(rollout=SAMPLED, context=OwnTemplate()).loss({SAMPLED: rows}, models, STEP).terms["loss"]
    assert metrics[OwnTemplate] == pytest.approx(float(total.mean().detach()), rel=1e-5)
    assert metrics[OwnTemplate] != pytest.approx(metrics[SameText], rel=1e-3)


def test_a_template_that_raises_is_named():
    models = models_of(template=REFUSES)
    rows = SAMPLED(batch_of(models), models, STEP)
    with pytest.raises(ConfigurationError, match="The chat template refused the conversation: no such row"):
        OwnTemplate()(rows, models, STEP)


def test_a_template_sees_the_rows_of_its_teacher_alone():
    """One that refuses a word reads the rows of a routed batch in which it does not stand."""
    fussy = "{% for m in messages %}{% if m['content'] == 'f' %}{{ raise_exception('no f') }}{% endif %}"
    models = models_of(template=fussy + "{{ m['content'] ~ 'k>' }}{% endfor %}", named={"maths": THEIRS})
    batch = batch_of(models)
    named = [replace(one, teacher="maths" if one.prompt == "f" else "teacher") for one in batch.examples]
    rows = SAMPLED(replace(batch, examples=tuple(named)), models, STEP)
    with pytest.raises(ConfigurationError, match="no f"):
        OwnTemplate()(rows, models, STEP)
    first, second = Routed()(rows, OwnTemplate(), models, STEP)
    assert texts(models, first.sequences) == ["cdek>", "cdek>", "ghijk>", "ghijk>"]
    assert texts(models, second.sequences) == ["fab>", "fab>"]
    nobody = Routed()(rows.rows(torch.tensor([0, 1])), OwnTemplate(), models, STEP)
    assert [len(one.sequences) for one in nobody] == [2, 0]


def test_no_room_is_told_with_the_lengths():
    models = models_of(template=OURS.replace("'>'", f"'{'a' * 300}>'"))
    rows = SAMPLED(batch_of(models), models, STEP)
    positions = models.teacher.positions
    with pytest.raises(ConfigurationError, match=f"As `OwnTemplate` has the teacher read them.*{positions} positions"):
        OwnTemplate()(rows, replace(models, teacher=cut_to(models.teacher, 128)), STEP)


def cut_to(model, positions):
    short = copy.copy(model)
    short.model.config.max_position_embeddings = positions
    return short


def test_a_dialogue_is_refused_where_the_templates_differ():
    models = models_of(template=THEIRS)
    rows = SAMPLED(batch_of(models), models, STEP)
    played = replace(rows, turn_ids=2 * rows.completion_mask.long())
    with pytest.raises(ConfigurationError, match="these rows are dialogues"):
        OwnTemplate()(played, models, STEP)
    alike = models_of()
    assert OwnTemplate()(played, alike, STEP) is played


@pytest.mark.parametrize(
    "own", [{}, {"teacher": ChatTemplate(template=OURS.replace("'>'", "'>' ~ loop.index0 * 'b'"))}]
)
def test_dialogues_are_refused_also_where_their_prompts_happen_to_be_the_same(own):
    """Another template may write a first message alike, and what stands between turns otherwise."""
    models = models_of(template=OURS if own else LATER)
    rows = SAMPLED(batch_of(models), models, STEP)
    assert OwnTemplate(own)(rows, models, STEP) is rows
    played = replace(rows, turn_ids=2 * rows.completion_mask.long())
    with pytest.raises(ConfigurationError, match="these rows are dialogues"):
        OwnTemplate(own)(played, models, STEP)


def test_prompts_that_nobody_can_make_anew_are_refused():
    models = models_of(template=THEIRS)
    rows = SAMPLED(replace(batch_of(models), template=None), models, STEP)
    with pytest.raises(ConfigurationError, match=r"`OwnTemplate` has a teacher with another.*no examples"):
        OwnTemplate()(rows, models, STEP)


def test_conversations_are_shown_by_it_too():
    models = models_of(template=THEIRS)
    said = Conversation(({"role": "user", "content": "cd"}, {"role": "assistant", "content": "e"},
                         {"role": "user", "content": "f"}))  # fmt: skip
    batch = Collator(tokenizer=models.tokenizer, template=ChatTemplate())([Example("f", conversation=said)])
    rows = SAMPLED(batch, models, STEP)
    assert texts(models, rows)[0] == "cd>e>f>"
    assert texts(models, OwnTemplate()(rows, models, STEP))[0] == "cdab>eab>fab>"


def test_other_names_of_one_teacher_are_that_teacher():
    models = models_of(named={"maths": THEIRS})
    rows = SAMPLED(batch_of(models), models, STEP)
    named = update(Distill(rollout=SAMPLED, context=OwnTemplate(), panel=OneTeacher("maths")), models, rows)
    alone = replace(models, teacher=models.teachers["maths"], teachers={}, brought={"teacher": models.brought["maths"]})
    plain = update(Distill(rollout=SAMPLED, context=OwnTemplate()), alone, rows)
    assert torch.equal(named[1], plain[1])

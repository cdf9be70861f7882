"""Which of the teacher's answers is trained on."""

from dataclasses import dataclass, replace

import pytest
import torch

from veto_pl.data import PlainTemplate
from veto_pl.exceptions import ConfigurationError
from veto_pl.objectives import BRTS, Distill
from veto_pl.rollouts import BestTeacher, FromStudent, FromTeacher, Sampling
from veto_pl.rollouts.best_teacher import likeliest, overlaps
from veto_pl.seams import Step, Task
from veto_pl.testing.tiny import prompt_batch, tiny_models

STEP = Step(3, 10, seed=5)
PROMPTS, REFERENCES = ["abc>", "d>", "hgfed>", "pp>", "ka>"], ["cba", "d", "defgh", "pp", "ak"]
STUDENT = FromStudent(Sampling(max_new_tokens=7))
TRIES = Sampling(temperature=0.9, max_new_tokens=7, num_completions=4)
HINT = "{completion}>{prompt}"


@dataclass(frozen=True)
class Accepts(Task):
    """These completions of these prompts are correct."""

    right: frozenset = frozenset()

    def load(self, split):
        return []

    def reward(self, example, completion):
        return float((example.prompt, completion) in self.right)


@pytest.fixture(scope="module")
def models():
    return tiny_models()


def judged(models, right=()):
    return replace(prompt_batch(models, PROMPTS, REFERENCES), task=Accepts(frozenset(right)))


def said(models, sequences):
    """The prompt and the completion of each row, as text."""
    texts = models.tokenizer.batch_decode(sequences.completions(), skip_special_tokens=True)
    return [
        (sequences.prompts.examples[i].prompt, t) for i, t in zip(sequences.prompt_rows.tolist(), texts, strict=True)
    ]


def overlap(models, prompt, completion, own, k):
    """By the definition: one plain forward pass of the student for each place."""
    hits = 0
    for place, token in enumerate(completion[: len(own)]):
        with torch.no_grad():
            logits = models.student.model.eval()(torch.tensor([prompt + own[:place]])).logits[0, -1]
        hits += token in logits[: models.student.vocab_size].topk(k).indices.tolist()
    return hits / len(completion)


def rows_of(sequences):
    grids = zip(sequences.input_ids, sequences.attention_mask, sequences.loss_mask, strict=True)
    return [(ids[a & ~c].tolist(), ids[c].tolist()) for ids, a, c in grids]


def test_the_overlap_is_that_of_its_definition(models):
    batch = judged(models)
    own, tried = STUDENT(batch, models, STEP), FromTeacher(TRIES)(batch, models, STEP)
    found = overlaps(tried, own, likeliest(models.student, own, 3))
    expected = [
        overlap(models, prompt, completion, rows_of(own)[row][1], 3)
        for (prompt, completion), row in zip(rows_of(tried), tried.prompt_rows.tolist(), strict=True)
    ]
    assert found.tolist() == pytest.approx(expected)
    assert len(set(expected)) > 3


def test_all_ids_overlap_as_far_as_the_students_text_goes(models):
    batch = judged(models)
    own, tried = STUDENT(batch, models, STEP), FromTeacher(TRIES)(batch, models, STEP)
    found = overlaps(tried, own, likeliest(models.student, own, 10**9))
    lengths, reach = tried.loss_mask.sum(1), own.loss_mask.sum(1)[tried.prompt_rows]
    torch.testing.assert_close(found, torch.minimum(lengths, reach) / lengths)


@pytest.mark.parametrize("share", [2, 3])
def test_the_closest_of_the_correct_completions_is_taken(models, share):
    """Some completions are declared correct; where a prompt has any, the best of them wins, else the best of all."""
    batch = judged(models)
    own, tried = STUDENT(batch, models, STEP), FromTeacher(TRIES)(batch, models, STEP)
    scores = overlaps(tried, own, likeliest(models.student, own, 3)).tolist()
    every = said(models, tried)
    right = {pair for i, pair in enumerate(every) if i % share == 0 and i >= 4}
    # The hinted answers are wrong: they are none of the completions that were tried.
    source = BestTeacher(TRIES, STUDENT, top_k=3, hint=HINT)
    chosen = source(judged(models, right), models, STEP)
    assert chosen.prompt_rows.tolist() == list(range(len(PROMPTS)))
    for row, pair in enumerate(said(models, chosen)):
        mine = [(every[i] in right, scores[i], i) for i in range(len(every)) if tried.prompt_rows[i] == row]
        correct, score, _ = max(mine, key=lambda entry: entry[:2])
        assert pair in [every[i] for is_right, s, i in mine if (is_right, s) == (correct, score)]
        assert float(chosen.rewards[row]) == correct
    assert 0 < float(chosen.rewards.sum()) < len(PROMPTS)
    assert not chosen.on_policy.any()


GREEDY = Sampling(temperature=0.0, max_new_tokens=7)


def hinted(models):
    """What the greedy teacher says when it is told the reference."""
    told = prompt_batch(models, [f"{r}>{p}" for p, r in zip(PROMPTS, REFERENCES, strict=True)])
    answers = FromTeacher(GREEDY)(told, models, STEP)
    return models.tokenizer.batch_decode(answers.completions(), skip_special_tokens=True)


@pytest.mark.parametrize("fallback", ["overlap", "skip"])
def test_a_teacher_who_was_told_the_answer_is_believed_if_it_is_right(models, fallback):
    """Its answer stands behind the plain prompt; where it is wrong as well, the fallback decides."""
    plain = [text for _, text in said(models, FromTeacher(GREEDY)(judged(models), models, STEP))]
    told = hinted(models)
    assert all(one != other for one, other in zip(plain, told, strict=True))
    right = {(PROMPTS[0], told[0]), (PROMPTS[2], told[2]), (PROMPTS[4], plain[4])}
    source = BestTeacher(GREEDY, STUDENT, hint=HINT, fallback=fallback)
    chosen = source(judged(models, right), models, STEP)
    assert chosen.rewards.tolist() == [1.0, 0.0, 1.0, 0.0, 1.0]
    expected = [told[0], plain[1], told[2], plain[3], plain[4]]
    counts = [True, fallback == "overlap", True, fallback == "overlap", True]
    assert chosen.loss_mask.any(1).tolist() == counts
    assert torch.equal(chosen.loss_mask, chosen.completion_mask & torch.tensor(counts)[:, None])
    assert said(models, chosen) == list(zip(PROMPTS, expected, strict=True))
    starts = [
        ids[mask][: len(p)] for ids, mask, p in zip(chosen.input_ids, chosen.attention_mask, PROMPTS, strict=True)
    ]
    assert models.tokenizer.batch_decode(starts) == PROMPTS


def test_a_prompt_without_a_reference_gets_no_hint(models):
    batch = replace(prompt_batch(models, ["abc>", "d>"]), task=Accepts())
    chosen = BestTeacher(GREEDY, STUDENT, hint=HINT)(batch, models, STEP)
    assert said(models, chosen) == said(models, FromTeacher(GREEDY)(batch, models, STEP))


def test_the_students_rollout_is_written_once(models, monkeypatch):
    batch = judged(models)
    source = BestTeacher(TRIES, STUDENT, top_k=3, hint=HINT)
    expected = source(batch, models, STEP)
    known = replace(models, rollouts={STUDENT: STUDENT(batch, models, STEP)})
    monkeypatch.setattr(FromStudent, "__call__", lambda *_: pytest.fail("it has been written already"))
    assert torch.equal(source(batch, known, STEP).input_ids, expected.input_ids)


def test_teacher_and_student_draw_apart_and_so_does_the_second_try(models):
    """With equal weights and equal numbers they would write the same text."""
    same = replace(models, teacher=models.student)
    batch, step = prompt_batch(same, ["abc>", "d>", "efghij>"] * 4), Step(0, 1)
    sampling = Sampling(max_new_tokens=8)
    texts = [
        [ids.tolist() for ids in source(batch, same, at).completions()]
        for source, at in (
            (FromTeacher(sampling), step),
            (FromTeacher(sampling), step.aside("second try")),
            (FromStudent(sampling), step),
        )
    ]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert sum(a == b for a, b in zip(texts[one], texts[other], strict=True)) < 6


def test_no_prompts_give_no_rows(models):
    batch = judged(models).rows(torch.arange(0))
    assert len(BestTeacher(TRIES, STUDENT, hint=HINT)(batch, models, STEP)) == 0


def test_a_hint_that_the_template_does_not_show_is_refused(models):
    batch = replace(judged(models), template=PlainTemplate(format="x>"))
    with pytest.raises(ConfigurationError, match=r"The hint of `BestTeacher` does not reach the teacher"):
        BestTeacher(GREEDY, STUDENT, hint=HINT)(replace(batch, **same_text(models, batch)), models, STEP)
    chosen = BestTeacher(GREEDY, STUDENT, hint=HINT, template=PlainTemplate())(batch, models, STEP)
    assert len(chosen) == len(PROMPTS)


def same_text(models, batch):
    """The tensors of prompts that are all `x>`."""
    ids = torch.tensor([models.tokenizer("x>")["input_ids"]] * len(batch))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids).bool()}


def pooled(logp, ids):
    """Log-probabilities of the ids and of all others together."""
    return torch.cat([logp[ids], (1 - logp[ids].exp().sum()).clamp_min(1e-12).log()[None]])


def test_the_loss_is_that_of_its_formula(models):
    """Reverse KL on the student's text, ten times the forward KL on the teacher's, in float64."""
    objective = BRTS(sampling=STUDENT.sampling, teacher_sampling=TRIES, top_k=4, hint=HINT)
    batch = judged(models)
    rollouts = {}
    for source in objective.sources:
        rollouts[source] = source(batch, replace(models, rollouts=rollouts), STEP)
    output = objective.loss(rollouts, models, STEP)
    own, best = (rows_of(rows) for rows in rollouts.values())
    expected = {"student": 0.0, "teacher": 0.0}
    for name, rows in (("student", own), ("teacher", best)):
        for prompt, completion in rows:
            with torch.no_grad():
                ids = torch.tensor([prompt + completion])
                both = [m.model.eval()(ids).logits[0, len(prompt) - 1 : -1] for m in (models.student, models.teacher)]
            for s, t in zip(*(x[:, : models.student.vocab_size].double().log_softmax(-1) for x in both), strict=True):
                writer, other = (s, t) if name == "student" else (t, s)
                kept = writer.topk(4).indices
                p, q = pooled(writer, kept), pooled(other, kept)
                expected[name] += float((p.exp() * (p - q)).sum())
    assert float(output.terms["student/loss"].total.detach()) == pytest.approx(expected["student"], rel=1e-4)
    assert float(output.terms["teacher/loss"].total.detach()) == pytest.approx(10 * expected["teacher"], rel=1e-4)
    assert float(output.metrics["teacher_correct"].mean()) == 0.0


def test_a_weight_of_0_leaves_the_students_term(models):
    objective = BRTS(sampling=STUDENT.sampling, teacher_weight=0.0)
    assert objective.sources == (STUDENT,)
    rollouts = {STUDENT: STUDENT(judged(models), models, STEP)}
    assert set(objective.loss(rollouts, models, STEP).terms) == {"student/loss"}
    assert [type(term) for term in objective.composition.terms.values()] == [Distill]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BestTeacher(top_k=0), r"`BestTeacher\.top_k` must be at least 1, got 0"),
        (lambda: BestTeacher(hint="{"), r"`BestTeacher\.hint` is malformed"),
        (lambda: BRTS(teacher_weight=float("inf")), r"`BRTS\.teacher_weight` must be at least 0 and finite, got inf"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()

"""SimCT: student and teacher with tokenizers of their own, against whole logits under autograd."""

import copy
from dataclasses import replace

import pytest
import torch

from tests.objectives.two_tokenizers import (
    COMPLETIONS,
    PROMPTS,
    STEP,
    close,
    logits_of,
    model_of,
    models_of,
    reading,
    update,
    written,
)
from veto_pl.data import PlainTemplate
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.unit_outcomes import listed_units, unit_divergence
from veto_pl.functional.units import unit_sums
from veto_pl.models.tokenizers import CharacterTokenizer
from veto_pl.objectives import Distill, SimCT
from veto_pl.parts.contexts import Privileged
from veto_pl.parts.divergences import ForwardKL, GeneralizedJSD, ReverseKL, TotalVariation
from veto_pl.rollouts import FromDataset
from veto_pl.seams import Models
from veto_pl.testing.tokenizer_kinds import tokenizer_of

OBJECTIVES = {
    "defaults": SimCT(),
    "two rows at a time": SimCT(chunk_rows=2),
    "raw logits": SimCT(score="logit", divergence=ForwardKL()),
    "colder, by completion": SimCT(temperature=0.7, aggregation="sequence", divergence=GeneralizedJSD(0.3)),
    "raw logits, colder": SimCT(score="logit", temperature=0.7, divergence=TotalVariation()),
    "one to one": SimCT(units="one_to_one"),
}
each = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


@pytest.fixture(scope="module", params=[("bytes", "characters"), ("sentence pieces", "bytes")], ids=" to ".join)
def models(request):
    return models_of(*request.param)


def dense(objective, sequences, models):
    """The same from whole logits, in one graph."""
    rows, units = reading(models, sequences)
    units = units.only(units.single) if objective.units == "one_to_one" else units
    ids, of_row = sequences.tokens()
    student, teacher = (
        logits_of(model, read) / objective.temperature
        for model, read in ((models.student, sequences), (models.teacher, rows))
    )
    losses = unit_divergence(student, teacher, ids, rows.token_ids(), units, objective.divergence, objective.score)
    if objective.aggregation == "token":
        return losses.sum()
    lengths = torch.bincount(of_row)
    return (losses / lengths[of_row[units.first[0]]]).sum()


@each
def test_loss_and_gradient_are_those_of_whole_logits(objective, models):
    sequences = written(models)
    output, gradients = update(objective, sequences, models)
    models.student.zero_grad()
    whole = dense(objective, sequences, models)
    whole.backward()
    close(output.terms["loss"].total.double(), whole)
    for found, parameter in zip(gradients, models.student.parameters(), strict=True):
        close(found, parameter.grad)


def test_the_denominator_is_the_students_tokens_or_its_completions(models):
    sequences = written(models)
    tokens, rows = (update(SimCT(aggregation=how), sequences, models)[0] for how in ("token", "sequence"))
    assert float(tokens.terms["loss"].weight) == int(sequences.predictions.sum())
    assert float(rows.terms["loss"].weight) == 3


def test_the_likeliest_shared_ids_of_the_student_alone(models):
    """2610.08448: units of one token, the reverse KL over the student's k likeliest shared ids."""
    sequences = written(models)
    rows, units = reading(models, sequences)
    student, teacher = logits_of(models.student, sequences), logits_of(models.teacher, rows)
    mine, theirs = units.shared
    total = torch.zeros((), dtype=torch.float64)
    for u in units.single.nonzero()[:, 0].tolist():
        own, other = student[units.first[0][u]][mine], teacher[units.first[1][u]][theirs]
        chosen = own.topk(3).indices
        p, q = own[chosen].log_softmax(-1), other[chosen].log_softmax(-1)
        assert listed_units(sequences.token_ids(), rows.token_ids(), units)[u]
        total = total + (p.exp() * (p - q)).sum()
    output, gradients = update(SimCT(units="one_to_one", shared=3), sequences, models)
    models.student.zero_grad()
    total.backward()
    close(output.terms["loss"].total.double(), total)
    for found, parameter in zip(gradients, models.student.parameters(), strict=True):
        close(found, parameter.grad)


@pytest.mark.parametrize("divergence", [ReverseKL(), GeneralizedJSD(0.3)], ids=["reverse KL", "JSD"])
@pytest.mark.parametrize("score", ["logp", "logit"])
def test_identical_tokenizers_are_the_divergence_over_every_id(divergence, score):
    apart = models_of("bytes", "bytes")
    together = replace(apart, tokenizers={})
    sequences = written(apart)
    by_units, gradients = update(SimCT(divergence=divergence, score=score), sequences, apart)
    by_tokens, same = update(SimCT(divergence=divergence, score=score), sequences, together)
    close(by_units.terms["loss"].total, by_tokens.terms["loss"].total)
    for name in ("kl", "forward_kl", "agreement", "entropy"):
        close(by_units.metrics[name].mean(), by_tokens.metrics[name].mean())
    for one, other in zip(gradients, same, strict=True):
        close(one, other)


def test_one_tokenizer_for_both_is_the_reverse_kl_over_every_id(models):
    models = replace(models, teacher=model_of(models.tokenizer, 3).eval(), tokenizers={})
    sequences = written(models)
    one, gradients = update(SimCT(), sequences, models)
    other, same = update(Distill(divergence=ReverseKL()), sequences, models)
    close(one.terms["loss"].total, other.terms["loss"].total)
    for found, wanted in zip(gradients, same, strict=True):
        close(found, wanted)


def renumbered(model, tokenizer, alphabet):
    """The same model and tokenizer with other ids for the characters."""
    other = CharacterTokenizer(alphabet).load()
    moved, place = copy.deepcopy(model), other.get_vocab()
    order = torch.tensor([old for _, old in sorted((place[word], i) for word, i in tokenizer.get_vocab().items())])
    for matrix in {id(m.weight): m.weight for m in (moved.model.get_input_embeddings(), moved.model.lm_head)}.values():
        matrix.data[: len(order)] = matrix.data[order]
    return moved, other


@pytest.mark.parametrize("score", ["logp", "logit"])
def test_a_teacher_whose_vocabulary_is_numbered_anew_changes_nothing(score):
    alphabet = "".join(sorted(set("".join(PROMPTS + COMPLETIONS))))
    tokenizer, student = CharacterTokenizer(alphabet).load(), tokenizer_of("bytes")
    teacher = model_of(tokenizer, 1).eval()
    moved, other = renumbered(teacher, tokenizer, alphabet[::-1])
    plain = Models(model_of(student, 0), teacher, student, tokenizers={"teacher": tokenizer})
    sequences = written(plain)
    found = [
        update(SimCT(score=score), sequences, replace(plain, teacher=model, tokenizers={"teacher": of}))
        for model, of in ((teacher, tokenizer), (moved, other))
    ]
    close(*(output.terms["loss"].total for output, _ in found))
    for one, same in zip(*(gradients for _, gradients in found), strict=True):
        close(one, same)


def test_rows_do_not_depend_on_their_batch(models):
    sequences = written(models)
    whole, gradients = update(SimCT(), sequences, models)
    parts = [update(SimCT(), sequences.rows(torch.tensor(rows)), models) for rows in ([2], [0, 1])]
    close(whole.terms["loss"].total, sum(output.terms["loss"].total for output, _ in parts))
    for together, *apart in zip(gradients, *(grads for _, grads in parts), strict=True):
        close(together, sum(apart))


def test_the_teacher_reads_its_own_prompt_and_its_own_eos_and_a_cut_row_gets_none(models):
    rows, units = reading(models, written(models))
    teacher = models.teacher_tokenizer
    told = [teacher.decode(ids[there]) for ids, there in zip(rows.input_ids, rows.attention_mask, strict=True)]
    wanted = [prompt + text + end for prompt, text, end in zip(PROMPTS, COMPLETIONS, ("</s>", "</s>", ""), strict=True)]
    assert [text.removeprefix(" ") for text in told] == wanted
    assert (units.student >= 0).all()


def test_a_unit_counts_if_all_its_tokens_of_the_student_do(models):
    sequences = written(models)
    whole, units = reading(models, sequences)
    counted = sequences.loss_mask.clone()
    place = int(sequences.prediction_index[5]) % sequences.predictions.shape[1] + 1
    counted[0, place] = False
    rows, fewer = reading(models, replace(sequences, loss_mask=counted))
    assert len(fewer.student) == len(units.student) - 1
    assert fewer.count == units.count - 1
    assert (
        int(rows.loss_mask.sum())
        == len(fewer.teacher)
        == len(whole.token_ids()) - int(units.sizes[1][units.student[5]])
    )
    update(SimCT(), replace(sequences, loss_mask=counted), models)


def test_tokens_that_cannot_be_aligned_have_no_loss_and_stay_in_the_denominator():
    models = models_of("bytes", "characters")
    plain = written(models, COMPLETIONS[:1], ends=(False,))
    ids = plain.input_ids.clone()
    ids[tuple(plain.loss_mask.nonzero()[-1])] = models.tokenizer.get_vocab()["Ã"]  # the first byte of a character
    output, _ = update(SimCT(), replace(plain, input_ids=ids), models)
    whole, _ = update(SimCT(), plain, models)
    assert float(output.metrics["aligned"].mean()) == pytest.approx(1 - 1 / len(plain.token_ids()))
    assert float(whole.metrics["aligned"].mean()) == 1
    assert output.terms["loss"].weight == whole.terms["loss"].weight


@pytest.mark.parametrize("rows", [[], [0]], ids=["no rows", "no units"])
def test_nothing_to_compare_is_nothing_to_learn(rows):
    models = models_of("bytes", "characters")
    sequences = written(models, [" it"], ends=(False,))  # a character that the row is cut in
    cut = models.tokenizer.convert_tokens_to_ids(["ð", "Ł", "Ļ"])[: int(sequences.loss_mask.sum())]
    ids = sequences.input_ids.masked_scatter(sequences.loss_mask, torch.tensor(cut))
    sequences = replace(sequences, input_ids=ids)
    sequences = sequences.rows(torch.tensor(rows, dtype=torch.int64))
    output, gradients = update(SimCT(), sequences, models)
    assert float(output.terms["loss"].total) == 0
    assert all((gradient == 0).all() for gradient in gradients)


def test_without_gradients_the_loss_is_the_same(models):
    sequences = written(models)
    with torch.no_grad():
        quiet = SimCT().loss({SimCT().rollout: sequences}, models, STEP)
    close(quiet.terms["loss"].total, update(SimCT(), sequences, models)[0].terms["loss"].total)


def test_metrics_are_per_token_of_the_student_and_shares_per_unit(models):
    sequences = written(models)
    rows, units = reading(models, sequences)
    output, _ = update(SimCT(), sequences, models)
    student = logits_of(models.student, sequences)
    mass = student.softmax(-1)[units.first[0]][:, units.shared[0]].sum(-1).mean()
    close(output.metrics["shared_mass"].mean().double(), mass)
    close(output.metrics["kl"].mean(), output.terms["loss"].mean().detach())
    assert float(output.metrics["one_to_one"].mean()) == pytest.approx(float(units.single.double().mean()))
    close(output.metrics["entropy"].mean().double(), torch.special.entr(student.softmax(-1)).sum(-1).mean())
    assert float(unit_sums(torch.ones(len(rows.token_ids())), units.teacher, units.count).sum()) == len(units.teacher)


def test_what_cannot_be_aligned_is_refused_by_name():
    models = models_of("bytes", "characters")
    sequences = written(models)
    no_template = replace(sequences, prompts=replace(sequences.prompts, template=None))
    with pytest.raises(ConfigurationError, match=r"`SimCT` has a teacher with another tokenizer.*no template"):
        update(SimCT(), no_template, models)
    with pytest.raises(ConfigurationError, match=r"`SimCT\.context` is `Privileged`, but the teacher `teacher`"):
        update(SimCT(context=Privileged("{prompt}!")), sequences, models)
    pieces = replace(models, tokenizers={"teacher": tokenizer_of("word pieces")})
    with pytest.raises(ConfigurationError, match="cannot be aligned with another tokenizer"):
        update(SimCT(), sequences, pieces)
    short = models_of("bytes", "characters", max_position_embeddings=8)
    with pytest.raises(ConfigurationError, match=r"As `SimCT` has the teacher read them.*more than the teacher's 8"):
        update(SimCT(), sequences, short)


def test_an_objective_that_compares_ids_refuses_a_teacher_with_others_and_names_what_does_not(models):
    with pytest.raises(ConfigurationError, match=r"`Distill` compares ids, but `teacher` reads.*Take `SimCT`, or"):
        update(Distill(), written(models), models)


def test_the_teachers_prompt_is_made_by_the_template_of_the_data(models):
    sequences = written(models)
    template = PlainTemplate(format="Q: {prompt}")
    asked = replace(sequences, prompts=replace(sequences.prompts, template=template))
    rows, _ = reading(models, asked)
    first = rows.input_ids[0][rows.attention_mask[0]]
    assert models.teacher_tokenizer.decode(first).removeprefix(" ").startswith("Q: Paris is where")


def test_a_stored_teacher_is_refused(monkeypatch):
    monkeypatch.setattr(FromDataset, "stored_teacher", True)
    with pytest.raises(ConfigurationError, match="`SimCT` needs a live teacher"):
        SimCT(rollout=FromDataset())

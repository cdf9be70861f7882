"""Policy gradients of every kind across tokenizers: what a teacher says of a unit, spread over the student's tokens."""

import json
import math
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.objectives.two_tokenizers import (
    COMPLETIONS,
    PROMPTS,
    close,
    logits_of,
    model_of,
    models_of,
    reading,
    update,
    written,
)
from veto_pl import objectives
from veto_pl.exceptions import ConfigurationError
from veto_pl.objectives import (
    IWOPD,
    OPD,
    REOPOLD,
    SOD,
    TCOD,
    Distill,
    DistilledRL,
    ExOPD,
    GammaOPD,
    ListOPD,
    OPDPlus,
    SimpleOPD,
    UniOPD,
)
from veto_pl.objectives.policy_gradient import PolicyGradient
from veto_pl.parts.advantages import CentredLogRatio, LogRatio, WithReward
from veto_pl.parts.panels import OneTeacher, Routed, Together
from veto_pl.rollouts import FromDataset
from veto_pl.rollouts.episode_rows import EpisodeRow, WrittenTurn, as_rollout
from veto_pl.seams import Ending, Models, Sequences
from veto_pl.testing.examples import examples_of
from veto_pl.testing.tiny import prompt_batch

ROLLOUT = {"rollout": FromDataset(), "importance_cap": None}
FAMILY = {
    "OPD": OPD(discount=0.9, reward_weight=0.5, **ROLLOUT),
    "GammaOPD": GammaOPD(**ROLLOUT),
    "IWOPD": IWOPD(**ROLLOUT),
    "OPDPlus": OPDPlus(**ROLLOUT),
    "DistilledRL": DistilledRL(**ROLLOUT),
    "ExOPD": ExOPD(**ROLLOUT),
    "ListOPD": ListOPD(**ROLLOUT),
    "UniOPD": UniOPD(balance=None, **ROLLOUT),
    "SOD": SOD(**ROLLOUT),
    "REOPOLD": REOPOLD(switch=0.0, **ROLLOUT),
    "SimpleOPD": SimpleOPD(units="minimal", silent=(), **ROLLOUT),
    "by hand": Distill(divergence=None, advantage=LogRatio(0.5), aggregation="sequence"),
}
ALIGNED = {OPD, GammaOPD, IWOPD, OPDPlus, DistilledRL, ExOPD, ListOPD, UniOPD, SOD, TCOD, REOPOLD, SimpleOPD}
each = pytest.mark.parametrize("objective", FAMILY.values(), ids=FAMILY)


@pytest.fixture(scope="module")
def models():
    return models_of("bytes", "sentence pieces")


def with_reference(models):
    return replace(models, reference=model_of(models.tokenizer, 5).requires_grad_(False).eval())


def prompts_fit(models):
    """Rows that continue the prompts which they say: the first two, twice each."""
    batch = prompt_batch(models, PROMPTS[:2], COMPLETIONS[:2])
    twice = batch.rows(torch.tensor([0, 0, 1, 1]))
    others = prompt_batch(models, ["x"] * 4, [COMPLETIONS[0], " it is", COMPLETIONS[1], " + 5?"])
    rows = torch.tensor([0, 0, 1, 1])
    made = Sequences.join(twice, others.completion_ids, others.completion_mask, prompts=batch, prompt_rows=rows)
    return replace(made, rewards=torch.tensor([1.0, 0.0, 0.5, 1.0]))


def test_every_policy_gradient_aligns_that_reads_no_more_than_the_sampled_tokens():
    found = {
        kind
        for kind in map(vars(objectives).get, dir(objectives))
        if isinstance(kind, type) and issubclass(kind, PolicyGradient) and kind is not PolicyGradient
    }
    examples = {kind: examples_of(kind) for kind in found}
    found = {kind for kind in found if all(one.panel.is_neutral for one in examples[kind])}
    told = {kind: {one.aligns_tokenizers for one in examples[kind]} for kind in found}
    assert {kind for kind, says in told.items() if says == {True}} == ALIGNED
    assert {kind.__name__ for kind in found - ALIGNED} == {"RLCSD", "VOPD", "TailPenalty"}
    assert not Distill(divergence=None, advantage=WithReward(CentredLogRatio())).aligns_tokenizers
    assert not Distill(advantage=LogRatio()).aligns_tokenizers


@each
@pytest.mark.parametrize("kind", ["bytes", "sentence pieces"])
def test_with_the_students_own_tokenizer_it_is_what_it_was(objective, kind):
    apart = with_reference(models_of(kind, kind))
    together = replace(apart, tokenizers={})
    sequences = prompts_fit(apart)
    one, gradients = update(objective, sequences, apart)
    other, same = update(objective, sequences, together)
    close(one.terms["loss"].total, other.terms["loss"].total)
    for found, wanted in zip(gradients, same, strict=True):
        close(found, wanted)


def spread_by_loops(sequences, models):
    """[N] float64: log-ratios of the student's tokens, from whole logits, unit by unit."""
    rows, units = reading(models, sequences)
    ids, theirs = sequences.token_ids(), rows.token_ids()
    student = logits_of(models.student, sequences).log_softmax(-1).detach()
    teacher = logits_of(models.teacher, rows).log_softmax(-1)
    mine = [float(student[i, ids[i]]) for i in range(len(ids))]
    ratios = [0.0] * len(ids)
    for u in range(units.count):
        here = [i for i, unit in enumerate(units.student.tolist()) if unit == u]
        there = [j for j, unit in enumerate(units.teacher.tolist()) if unit == u]
        gap = sum(float(teacher[j, theirs[j]]) for j in there) - sum(mine[i] for i in here)
        for i in here:
            ratios[i] = gap / len(here)
    return ratios, mine


def discounted(ratios, rows, gamma):
    out = []
    for i, row in enumerate(rows):
        later = [(j, ratio) for j, ratio in enumerate(ratios) if rows[j] == row and j >= i]
        out.append(sum(gamma ** (j - i) * ratio for j, ratio in later))
    return out


def credits_by_loops(objective, ratios, mine, sequences, models):
    """The credit of each token as the class's docstring has it."""
    rows, rewards = sequences.tokens()[1].tolist(), sequences.rewards.tolist()
    if isinstance(objective, ExOPD):
        base = logits_of(models.reference, sequences).log_softmax(-1)
        theirs = [float(base[i, token]) for i, token in enumerate(sequences.token_ids().tolist())]
        strength = objective.extrapolation
        return [strength * (r + m - b) - (m - b) for r, m, b in zip(ratios, mine, theirs, strict=True)]
    if isinstance(objective, OPDPlus):  # forward KL: u f'(u) - f(u) = u, less its value where the models agree
        return [math.exp(r) - 1 for r in ratios]
    if isinstance(objective, IWOPD):
        out = []
        for i, row in enumerate(rows):
            own = [abs(r) for r, of in zip(ratios, rows, strict=True) if of == row]
            before = [abs(r) for j, r in enumerate(ratios) if rows[j] == row and j < i]
            out.append(ratios[i] * (1 + objective.strength * (1 - sum(before) / sum(own))))
        return out
    means = [sum(rewards[:2]) / 2] * 2 + [sum(rewards[2:]) / 2] * 2
    return [
        ratio + objective.reward_weight * (rewards[row] - means[row])
        for ratio, row in zip(discounted(ratios, rows, objective.discount), rows, strict=True)
    ]


@pytest.mark.parametrize("name", ["OPD", "ExOPD", "IWOPD", "forward KL"])
def test_loss_and_gradient_are_those_of_plain_loops(name, models):
    models = with_reference(models)
    objective = FAMILY.get(name, OPDPlus(f_divergence="forward_kl", **ROLLOUT))
    sequences = prompts_fit(models)
    output, gradients = update(objective, sequences, models)
    ratios, mine = spread_by_loops(sequences, models)
    credit = credits_by_loops(objective, ratios, mine, sequences, models)
    assert float(output.terms["loss"].total) == pytest.approx(-sum(credit), rel=1e-4)
    models.student.zero_grad()
    logp = logits_of(models.student, sequences).log_softmax(-1)
    loss = sum(-c * logp[i, token] for i, (c, token) in enumerate(zip(credit, sequences.token_ids(), strict=True)))
    loss.backward()
    for found, parameter in zip(gradients, models.student.parameters(), strict=True):
        close(found, parameter.grad)


def test_the_log_ratios_of_all_units_add_up_to_those_of_the_texts(models):
    sequences = written(models)
    output, _ = update(OPD(**ROLLOUT), sequences, models)
    rows, _ = reading(models, sequences)
    whole = [
        logits_of(model, read).log_softmax(-1).gather(1, read.token_ids()[:, None]).sum()
        for model, read in ((models.teacher, rows), (models.student, sequences))
    ]
    assert float(output.metrics["aligned"].mean()) == 1
    assert float(output.terms["loss"].total) == pytest.approx(float(whole[1] - whole[0]), rel=1e-4)


def permuted(models):
    """The same teacher with its ids in another order, and the tokenizer that says so."""
    own = models.teacher_tokenizer
    said = json.loads(own.backend_tokenizer.to_str())
    ids = sorted(said["model"]["vocab"].values())
    special = {one["id"] for one in said["added_tokens"]}
    free = [i for i in ids if i not in special]
    order = dict(zip(free, reversed(free), strict=True))
    said["model"]["vocab"] = {text: order.get(i, i) for text, i in said["model"]["vocab"].items()}
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(said)), clean_up_tokenization_spaces=False,
        **{name: getattr(own, name) for name in ("eos_token", "bos_token", "unk_token", "pad_token")},
    )  # fmt: skip
    teacher = model_of(own, 1)
    ends = (teacher.model.get_input_embeddings(), teacher.model.get_output_embeddings())
    with torch.no_grad():
        for matrix in {id(one.weight): one.weight for one in ends}.values():
            old = matrix.clone()
            for i, j in order.items():
                matrix[j] = old[i]
    return replace(models, teacher=teacher.requires_grad_(False).eval(), tokenizers={"teacher": other})


@pytest.mark.parametrize("name", ["OPD", "UniOPD", "SimpleOPD"])
def test_the_order_of_the_teachers_ids_changes_nothing(name, models):
    sequences = prompts_fit(models)
    plain = replace(models, teacher=model_of(models.teacher_tokenizer, 1).requires_grad_(False).eval())
    one, gradients = update(FAMILY[name], sequences, plain)
    other, same = update(FAMILY[name], sequences, permuted(models))
    close(one.terms["loss"].total, other.terms["loss"].total)
    for found, wanted in zip(gradients, same, strict=True):
        close(found, wanted)


def several(kinds=("bytes", "sentence pieces", "characters")):
    """A student, and a teacher with each of these tokenizers; the first is the student's own."""
    one = models_of(kinds[0], kinds[1])
    shared = model_of(one.tokenizer, 7).requires_grad_(False).eval()
    third = models_of(kinds[0], kinds[2])
    return Models(
        one.student, shared, one.tokenizer, teachers={"other": one.teacher, "third": third.teacher},
        tokenizers={"other": one.teacher_tokenizer, "third": third.teacher_tokenizer},
    )  # fmt: skip


def test_weights_mix_teachers_of_several_tokenizers():
    models = several()
    sequences = written(models)
    shares = {"teacher": 0.5, "other": 0.3, "third": 0.2}
    whole, gradients = update(OPD(panel=Together(shares), **ROLLOUT), sequences, models)
    sums, total = [torch.zeros_like(one) for one in gradients], 0.0
    for name, share in shares.items():
        one, own = update(OPD(panel=OneTeacher(name), **ROLLOUT), sequences, models)
        total += share * float(one.terms["loss"].total)
        sums = [before + share * gradient for before, gradient in zip(sums, own, strict=True)]
        assert float(whole.metrics[f"{name}/share"].mean()) == pytest.approx(share)
    assert float(whole.terms["loss"].total) == pytest.approx(total, rel=1e-4)
    for found, wanted in zip(gradients, sums, strict=True):
        close(found, wanted)


@pytest.mark.parametrize("routes", [("teacher", "other", "third"), ("third", "third", "other"), ("other", "", "third")])
def test_a_routed_row_has_its_own_teacher_alone(routes):
    models = several()
    sequences = written(models)
    examples = [replace(one, teacher=name) for one, name in zip(sequences.prompts.examples, routes, strict=True)]
    sequences = replace(sequences, prompts=replace(sequences.prompts, examples=examples))
    whole, gradients = update(OPD(panel=Routed(otherwise="leave"), **ROLLOUT), sequences, models)
    sums, total, weight = [torch.zeros_like(one) for one in gradients], 0.0, 0.0
    for row, name in enumerate(routes):
        if name:
            one, own = update(OPD(panel=OneTeacher(name), **ROLLOUT), sequences.rows(torch.tensor([row])), models)
            total, weight = total + float(one.terms["loss"].total), weight + float(one.terms["loss"].weight)
            sums = [before + gradient for before, gradient in zip(sums, own, strict=True)]
    assert float(whole.terms["loss"].total) == pytest.approx(total, rel=1e-4)
    assert float(whole.terms["loss"].weight) == weight
    assert set(whole.metrics) >= {"aligned", "unread", "teacher/share", "other/share", "third/share"}
    for found, wanted in zip(gradients, sums, strict=True):
        close(found, wanted)


def episode(models, opening, turns, replies):
    """A row of an episode that begins with an opening: what the student wrote, and what it was told."""
    ids = {text: models.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (opening, *turns, *replies)}
    row = EpisodeRow(ids[opening], 0, 0)
    for number, turn in enumerate(turns, 1):
        row.write(WrittenTurn(ids[turn], [-1.0] * len(ids[turn]), None, Ending.STOP, 0), number)
        if number <= len(replies):
            row.hear(ids[replies[number - 1]], number)
    return as_rollout([row], prompt_batch(models, ["Paris is"], ["it is"]), [1.0])


OPENED = ("Paris is where it is. ", ["4 and", " + 5?"], [" There. "])


@pytest.mark.parametrize("objective", [SOD(reward_weight=0.0), OPD(aggregation="turn")], ids=["SOD", "OPD"])
def test_a_teacher_reads_a_whole_dialogue_and_speaks_of_the_students_turns_alone(objective):
    models = models_of("bytes", "characters")
    sequences = episode(models, *OPENED)
    rows, units = reading(models, sequences)
    texts = [
        models.teacher_tokenizer.decode(rows.input_ids[0][mask[0]]) for mask in (rows.attention_mask, rows.loss_mask)
    ]
    opening, (first, second), (reply,) = OPENED
    assert texts == [opening + first + reply + second, first + second]
    assert int((units.student >= 0).sum()) == int(sequences.loss_mask.sum())
    output, gradients = update(objective, sequences, models)
    assert float(output.metrics["aligned"].mean()) == 1
    assert any(gradient.any() for gradient in gradients)


def test_a_dialogue_that_the_teacher_cannot_read_is_refused():
    models = models_of("bytes", "characters")
    sequences = episode(models, "Paris <unk> where it is. ", *OPENED[1:])
    with pytest.raises(ConfigurationError, match="`OPD` has a teacher with another tokenizer, which cannot read what"):
        update(OPD(), sequences, models)

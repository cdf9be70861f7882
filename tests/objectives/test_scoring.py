"""Objectives through the memory-exact head against the dense road: same loss, same gradients, fewer products."""

import math
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import nn

from veto_pl.core.scores import TopKScores
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.supports import top_k_with_tail
from veto_pl.objectives import (
    IWOPD,
    OPD,
    SFT,
    Distill,
    ExOPD,
    OPDPlus,
    ResOPD,
    SupervisedKD,
    TokenObjective,
    Veto,
)  # fmt: skip
from veto_pl.parts.advantages import CentredLogRatio, FutureLogRatio, LogRatio
from veto_pl.parts.divergences import GeneralizedJSD, ReverseKL
from veto_pl.parts.supports import FullVocabulary, TopK
from veto_pl.parts.weightings import TeacherEntropyAbove, Uniform
from veto_pl.seams import RolloutSource
from veto_pl.testing.dense import VocabularyProducts, dense_loss
from veto_pl.testing.test_objectives import OBJECTIVES, STEP, name, written
from veto_pl.testing.tiny import tiny_models

TOKEN_OBJECTIVES = [objective for objective in OBJECTIVES if isinstance(objective, TokenObjective)]
COMPOSED = [
    Distill(temperature=1.7, divergence=GeneralizedJSD(0.3), weighting=TeacherEntropyAbove(0.5)),
    Distill(divergence=None, advantage=LogRatio(), importance_cap=1.5),
    Distill(divergence=ReverseKL(), advantage=FutureLogRatio(), temperature=0.7, aggregation="sequence"),
    Veto(beta=0.5, aggregation="sequence", support=TopK(k=4)),
    SupervisedKD(gold_weight=0.3, support=TopK(k=4)),
    SupervisedKD(gold_weight=0.3, temperature=2.0),
]


ARCHITECTURES = ("llama", "gpt2", "gemma2")
NO_DROPOUT = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0)
CASES = [
    # Each objective with small and with large chunks, on one architecture after another.
    pytest.param(objective, chunk_rows, ARCHITECTURES[(place + turn) % 3], id=f"{name(objective)}-{chunk_rows}")
    for place, objective in enumerate(TOKEN_OBJECTIVES + COMPOSED)
    for turn, chunk_rows in enumerate((3, 1000))
]


@cache
def models_of(architecture):
    """Shared by all tests of this file that leave them as they are."""
    return tiny_models(architecture, **(NO_DROPOUT if architecture == "gpt2" else {}))


def gradients(loss, models):
    models.student.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in models.student.named_parameters() if p.grad is not None}


def assert_as_the_dense_road(objective, models):
    """Same loss, same gradients; returns the names of what has one."""
    rollouts = {objective.rollout: written(models, 0)}
    expected = dense_loss(objective, rollouts, models, STEP)
    total = objective.loss(rollouts, models, STEP).terms["loss"].total
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
    mine, theirs = gradients(total, models), gradients(expected, models)
    assert mine.keys() == theirs.keys()
    scale = max(float(gradient.abs().max()) for gradient in theirs.values())
    for parameter, gradient in theirs.items():
        torch.testing.assert_close(mine[parameter], gradient, rtol=1e-4, atol=2e-6 * scale, msg=parameter)
    return mine.keys()


@pytest.mark.parametrize(("objective", "chunk_rows", "architecture"), CASES)
def test_loss_and_gradients_are_those_of_the_dense_road(objective, chunk_rows, architecture):
    assert_as_the_dense_road(replace(objective, chunk_rows=chunk_rows), models_of(architecture))


@dataclass(frozen=True, kw_only=True)
class HalfVeto(Veto):
    """What a third party would write: nothing but `per_token`."""

    def per_token(self, rows):
        return 0.5 * super().per_token(rows)


@dataclass(frozen=True, kw_only=True)
class Coupled(Distill):
    """Divides by a length, which is known once the batch is."""

    def over_sequences(self, losses, grid):
        return super().over_sequences(losses, grid) / grid.mask.sum(1, keepdim=True)


class Half:
    """A mixin."""

    def per_token(self, rows):
        return 0.5 * super().per_token(rows)


@dataclass(frozen=True, kw_only=True)
class MixedVeto(Half, Veto):
    """The mixin comes before the class with the closed form."""


@dataclass(frozen=True, kw_only=True)
class MixedSFT(Half, SFT):
    """The same."""


@dataclass(frozen=True)
class Triple(Uniform):
    """A weighting that is a `Uniform` by name only."""

    def __call__(self, rows):
        return 3 * super().__call__(rows)


@dataclass(frozen=True)
class Flat(FullVocabulary):
    """A support that is a `FullVocabulary` by name only."""

    def __call__(self, student_logp, teacher_logp):
        return (0.5 * student_logp).log_softmax(-1), (0.5 * teacher_logp).log_softmax(-1)


@dataclass(frozen=True, kw_only=True)
class Reversed(Distill):
    """Exchanges what is compared."""

    def _student_and_target(self, rows):
        student, target = super()._student_and_target(rows)
        return (0.7 * student).log_softmax(-1), target


@dataclass(frozen=True, kw_only=True)
class Patched(SFT):
    """`per_token` is replaced after the class was made."""


Patched.per_token = lambda self, rows: -2.0 * rows.token_logp()

OVERRIDDEN = [
    HalfVeto(), Coupled(), MixedVeto(), MixedSFT(), Distill(weighting=Triple()), Distill(support=Flat()), Reversed(),
    Patched(),
]  # fmt: skip


@pytest.mark.parametrize("objective", OVERRIDDEN, ids=name)
def test_what_a_third_party_overrides_is_what_is_differentiated(objective):
    assert_as_the_dense_road(objective, models_of("llama"))


class Adapted(nn.Linear):
    """A frozen head with a low-rank adapter, as LoRA makes it."""

    def __init__(self, head):
        super().__init__(head.in_features, head.out_features, bias=False)
        self.weight = head.weight
        self.requires_grad_(False)
        self.down, self.up = nn.Linear(head.in_features, 2, bias=False), nn.Linear(2, head.out_features, bias=False)

    def forward(self, hidden):
        return super().forward(hidden) + self.up(self.down(hidden))


@pytest.mark.parametrize("objective", [Veto(chunk_rows=3), Distill(divergence=None, advantage=LogRatio())], ids=name)
def test_adapters_on_both_heads_are_read_through_their_forward(objective):
    torch.manual_seed(0)
    models = tiny_models()
    for model in (models.student.model, models.teacher.model):
        model.set_output_embeddings(Adapted(model.get_output_embeddings()))
    trained = assert_as_the_dense_road(objective, models)
    assert {"model.lm_head.down.weight", "model.lm_head.up.weight"} <= trained


def products(objective, chunk_rows):
    """Matrix products of N x V x D in the head, forward and backward."""
    width, vocab = 32, 2003
    models = tiny_models(vocab_size=vocab, hidden_size=width)
    teacher = tiny_models(vocab_size=vocab, hidden_size=width, student_seed=3).student
    models = replace(models, teacher=teacher)
    for model in (models.student, teacher):
        model.vocab_size = vocab
    sequences = written(models, 0)
    assert models.student.supports_packing
    assert teacher.supports_packing
    with VocabularyProducts(vocab) as counter:
        total = replace(objective, chunk_rows=chunk_rows).loss({objective.rollout: sequences}, models, STEP)
        total.terms["loss"].total.backward()
    return counter.multiplications / (int(sequences.predictions.sum()) * vocab * width)


@pytest.mark.parametrize(
    ("objective", "chunk_rows", "count"),
    [
        (SFT(), 4, 3),
        (Distill(), 4, 4),
        (Veto(aggregation="sequence"), 4, 4),
        (Distill(divergence=None, advantage=LogRatio()), 1000, 4),
        (Distill(divergence=None, advantage=LogRatio()), 4, 5),
        (Distill(divergence=ReverseKL(), importance_cap=2.0), 4, 6),
    ],
)
def test_the_head_makes_as_few_products_as_the_objective_allows(objective, chunk_rows, count):
    assert products(objective, chunk_rows) == count


def test_under_no_grad_only_values_are_formed():
    models = models_of("llama")
    objective = Veto()
    rollouts = {objective.rollout: written(models, 0)}
    with torch.no_grad():
        total = objective.loss(rollouts, models, STEP).terms["loss"].total
    assert not total.requires_grad
    torch.testing.assert_close(total, objective.loss(rollouts, models, STEP).terms["loss"].total.detach())


@dataclass(frozen=True)
class Stored(RolloutSource):
    """A rollout with what a stored teacher says."""

    stored_teacher = True

    def __call__(self, prompts, models, step):
        raise NotImplementedError


def with_stored_scores(sequences, models, k, temperature=1.0):
    teacher = models.required_teacher()
    with torch.no_grad():
        logits = teacher.model.eval()(
            sequences.input_ids,
            attention_mask=sequences.attention_mask.long(),
            position_ids=sequences.position_ids,
        ).logits[..., : teacher.vocab_size]
    logp = torch.log_softmax(logits / temperature, -1)
    # Scores stand at the token's own position, one after the one that predicts it.
    logp = torch.cat([logp[:, :1], logp[:, :-1]], 1)
    ids = logp.topk(k).indices
    sampled = logp.gather(2, sequences.input_ids[..., None])[..., 0]
    return replace(sequences, teacher_scores=TopKScores(ids, top_k_with_tail(logp, ids), temperature, sampled))


@pytest.mark.parametrize("target_beta", [None, 0.5])
def test_a_stored_teacher_gives_the_loss_of_the_live_one_on_its_outcomes(target_beta):
    models = models_of("llama")
    sequences = written(models, 0)
    options = {} if target_beta is None else {"beta": target_beta}
    make = Distill if target_beta is None else Veto
    live = make(support=TopK(k=4), temperature=1.3, **options)
    stored = make(rollout=Stored(), temperature=1.3, **options)
    assert (live.needs_teacher, stored.needs_teacher) == (True, False)
    expected = live.loss({live.rollout: sequences}, models, STEP)
    given = with_stored_scores(sequences, models, 4, 1.3)
    mine = stored.loss({stored.rollout: given}, replace(models, teacher=None), STEP)
    torch.testing.assert_close(mine.terms["loss"].total, expected.terms["loss"].total)
    left = gradients(mine.terms["loss"].total, models)
    right = gradients(expected.terms["loss"].total, models)
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
    assert 0 < mine.metrics["stored_tail_mass"].mean() < 1


@pytest.mark.parametrize(
    "objective",
    [
        OPD(discount=0.5), ExOPD(extrapolation=1.5), IWOPD(), OPDPlus(), ResOPD(k=4),
        Distill(divergence=ReverseKL(), support=TopK(k=4), advantage=LogRatio(), aggregation="sequence"),
    ],
    ids=name,
)  # fmt: skip
def test_policy_gradients_of_a_stored_teacher_are_those_of_the_live_one(objective):
    models = models_of("llama")
    sequences = written(models, 0)
    options = {"support": FullVocabulary()} if type(objective) is Distill else {}
    stored = replace(objective, rollout=Stored(), **options)
    expected = objective.loss({objective.rollout: sequences}, models, STEP).terms["loss"].total
    given = {stored.rollout: with_stored_scores(sequences, models, 4)}
    mine = stored.loss(given, replace(models, teacher=None), STEP).terms["loss"].total
    torch.testing.assert_close(mine, expected)
    torch.testing.assert_close(gradients(mine, models), gradients(expected, models), rtol=1e-4, atol=1e-5)


def test_scores_without_the_sampled_token_teach_no_policy_gradient():
    models = models_of("llama")
    objective = OPD(rollout=Stored())
    given = with_stored_scores(written(models, 0), models, 4)
    given = replace(given, teacher_scores=replace(given.teacher_scores, sampled_logp=None))
    assert objective.loss({objective.rollout: given}, models, STEP).terms["loss"].total.isnan()


def test_a_stored_teacher_of_another_temperature_is_refused():
    models = models_of("llama")
    objective = Distill(rollout=Stored(), temperature=2.0)
    given = {objective.rollout: with_stored_scores(written(models, 0), models, 4, 1.0)}
    with pytest.raises(ConfigurationError, match=r"temperature 1\.0.*is 2\.0"):
        objective.loss(given, models, STEP)


@pytest.mark.parametrize(
    "options", [{"advantage": CentredLogRatio()}, {"support": TopK(k=2)}, {"weighting": TeacherEntropyAbove()}]
)
def test_compositions_that_need_the_whole_teacher_refuse_a_stored_one(options):
    with pytest.raises(ConfigurationError, match="or use a live teacher"):
        Distill(rollout=Stored(), **options)


def test_a_stored_teacher_without_scores_is_named():
    models = models_of("llama")
    objective = Distill(rollout=Stored())
    with pytest.raises(ConfigurationError, match="`Stored` has `stored_teacher`, but"):
        objective.loss({objective.rollout: written(models, 0)}, models, STEP)


def with_engine(sequences, ratio):
    ratio = torch.as_tensor(ratio).expand(sequences.loss_mask.shape)
    return replace(sequences, engine_log_ratio=ratio.masked_fill(~sequences.loss_mask, 0.0))


UNCAPPED = [(Veto(), 1.5, 2.0, 1.5), (Veto(), 9.0, None, 1.0)]


@pytest.mark.parametrize(
    ("objective", "probable", "cap", "weight"), [*((one, 9.0, 3.0, 3.0) for one in TOKEN_OBJECTIVES[::3]), *UNCAPPED]
)
def test_what_the_trainer_finds_more_probable_than_the_engine_weighs_more_up_to_a_cap(objective, probable, cap, weight):
    models = models_of("llama")
    objective = replace(objective, engine_cap=cap)
    plain = {objective.rollout: written(models, 0)}
    engine = {objective.rollout: with_engine(written(models, 0), math.log(probable))}
    one, other = (objective.loss(rollouts, models, STEP).terms["loss"] for rollouts in (plain, engine))
    weight = 1.0 if objective.weighs_samples else weight
    torch.testing.assert_close(other.total, weight * one.total)
    assert other.weight == one.weight
    left, right = gradients(one.total, models), gradients(other.total, models)
    largest = max(float(value.abs().max()) for value in right.values())
    for key, value in left.items():  # rounding is relative to what is summed up
        torch.testing.assert_close(right[key] / largest, weight * value / largest, rtol=0, atol=1e-5)


POLICY = Distill(divergence=None, advantage=LogRatio())


@pytest.mark.parametrize("objective", [Veto(), Distill(advantage=LogRatio()), POLICY])
def test_a_token_that_the_trainer_could_not_have_drawn_leaves_the_sum(objective):
    models = models_of("llama")
    rows = written(models, 0)
    kept = rows.loss_mask & (torch.arange(rows.loss_mask.shape[1]) % 2 == 0)
    fewer = objective.loss({objective.rollout: replace(rows, loss_mask=kept)}, models, STEP).terms["loss"]
    marked = with_engine(rows, torch.zeros(rows.loss_mask.shape).masked_fill(~kept, -math.inf))
    weighted = objective.loss({objective.rollout: marked}, models, STEP).terms["loss"]
    torch.testing.assert_close(weighted.total, fewer.total)
    left, right = gradients(weighted.total, models), gradients(fewer.total, models)
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


@dataclass(frozen=True, kw_only=True)
class Forgetful(SFT):
    """Has a metric for some tokens only."""

    def token_metrics(self, rows):
        return {"odd": rows.token_logp()} if int(rows.token_ids[0]) % 2 else {}


def test_metrics_that_come_and_go_are_refused(monkeypatch):
    monkeypatch.setattr("veto_pl.functional.panel_stream.BLOCK_ELEMENTS", 1)
    models = models_of("llama")
    objective = Forgetful()
    with pytest.raises(ValueError, match="same scores"):
        objective.loss({objective.rollout: written(models, 0)}, models, STEP)


def test_under_autocast_the_weight_is_the_number_of_tokens():
    models = models_of("llama")
    objective = Veto()
    with torch.autocast("cpu", torch.bfloat16):
        stat = objective.loss({objective.rollout: written(models, 0)}, models, STEP).terms["loss"]
    assert stat.total.dtype == stat.weight.dtype == torch.float32
    assert stat.weight == written(models, 0).predictions.sum()

"""A teacher that has been told more: what it reads, and that it teaches nothing but what it was told."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veto_pl.checks.objective_settings import use_of_the_models
from veto_pl.checks.setup import RunSetup
from veto_pl.core.memory import Memories
from veto_pl.data import Collator, JsonLines, PlainTemplate, PromptDataModule
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.closed_forms import reverse_kl
from veto_pl.functional.targets import geometric_mean
from veto_pl.module import DistillationModule
from veto_pl.objectives import OPSD, SDFT, SDPO, SFT, DemoPSD, Distill, Phases, Sum
from veto_pl.parts.contexts import Peer, Privileged, SameText, behind, read_alike
from veto_pl.parts.divergences import ForwardKL
from veto_pl.parts.supports import FullVocabulary, TopK
from veto_pl.parts.targets import DisagreementBridge
from veto_pl.rollouts import FromDataset, FromStudent, Replay, Sampling
from veto_pl.seams import Example, Step
from veto_pl.seams.tokens import TokenRows
from veto_pl.testing.strategies import SMOOTH, logits_pairs
from veto_pl.testing.tiny import prompt_batch, tiny_models, tiny_source

STEP = Step(0, 10)
PROMPTS, REFERENCES = ["abc>", "d>", "hgfed>"], ["cba", "d", "defgh"]
ROLLOUT = FromStudent(Sampling(max_new_tokens=6, num_completions=2))
WITHOUT_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
ANSWER = Privileged("{completion}>{prompt}")
quick = settings(deadline=None, derandomize=True, max_examples=20)


@pytest.fixture(scope="module")
def models():
    return tiny_models("gpt2", **WITHOUT_DROPOUT)


@pytest.fixture(scope="module")
def own():
    """The teacher is the student."""
    return tiny_models("gpt2", teacher_seed=0, **WITHOUT_DROPOUT)


@pytest.fixture(scope="module")
def rows(models):
    return ROLLOUT(prompt_batch(models, PROMPTS, REFERENCES), models, STEP)


def texts(models, sequences):
    """What the model reads in each row."""
    grids = zip(sequences.input_ids, sequences.attention_mask, strict=True)
    return models.tokenizer.batch_decode([ids[mask] for ids, mask in grids])


def said(models, sequences):
    return models.tokenizer.batch_decode(sequences.completions())


def loss(objective, rows, models):
    return objective.loss({objective.rollout: rows}, models, STEP).terms["loss"]


def logp(model, ids, places):
    """[n, V] float64 by a plain forward pass over one text, at the places that predict its last n tokens."""
    with torch.no_grad():
        logits = model.model.eval()(torch.tensor([ids])).logits[0, -places - 1 : -1, : model.vocab_size]
    return logits.double().log_softmax(-1)


@given(seed=st.integers(0, 2**31), keep=st.floats(0, 1))
@quick
def test_the_completions_move_behind_other_prompts_token_by_token(models, rows, seed, keep):
    """Whatever of them counts; the text that does not count is read all the same."""
    drawn = torch.rand(rows.loss_mask.shape, generator=torch.Generator().manual_seed(seed)) < keep
    some = replace(rows, loss_mask=rows.loss_mask & drawn)
    longer = prompt_batch(models, ["k>abc>", "mmmm>d>", "hgfed>"]).rows(rows.prompt_rows)
    moved = behind(longer, some)
    assert torch.equal(moved.token_ids(), some.token_ids())
    assert torch.equal(moved.predictions.sum(1), some.predictions.sum(1))
    new = [["k>abc>", "mmmm>d>", "hgfed>"][i] for i in rows.prompt_rows.tolist()]
    assert texts(models, moved) == [p + c for p, c in zip(new, said(models, rows), strict=True)]
    back = behind(rows.prompts.rows(rows.prompt_rows), moved)
    assert texts(models, back) == texts(models, rows)
    assert torch.equal(back.token_ids(), some.token_ids())


def test_the_hint_stands_in_the_place_of_the_prompt(models, rows):
    told = ANSWER(rows, models, STEP)
    hints = [f"{REFERENCES[i]}>{PROMPTS[i]}" for i in rows.prompt_rows.tolist()]
    assert texts(models, told) == [h + c for h, c in zip(hints, said(models, rows), strict=True)]


def test_the_hint_is_templated_as_the_data_is(models):
    collator = Collator(tokenizer=models.tokenizer, template=PlainTemplate(format="a{prompt}>"))
    batch = collator([Example("bc", "cb", {"word": "p", "deep": {"er": "k"}})])
    rows = ROLLOUT(batch, models, STEP)
    (first, _) = texts(models, Privileged("{completion}{word}{deep[er]}{prompt}")(rows, models, STEP))
    assert first.startswith("acbpkbc>")
    (first, _) = texts(models, Privileged("{word}>", PlainTemplate(format="e{prompt}"))(rows, models, STEP))
    assert first.startswith("ep>" + said(models, rows)[0])


def test_a_hint_that_the_template_does_not_show_is_refused(models):
    batch = Collator(tokenizer=models.tokenizer, template=PlainTemplate(format="{word}>"))([
        Example("bc", "cb", {"word": "bc"})
    ])  # fmt: skip
    rows = ROLLOUT(batch, models, STEP)
    with pytest.raises(ConfigurationError, match=r"The hint of `Privileged` does not reach the teacher"):
        ANSWER(rows, models, STEP)
    (first, _) = texts(models, Privileged("{completion}>{word}>", PlainTemplate())(rows, models, STEP))
    assert first.startswith("cb>bc>")


def test_a_hint_that_a_row_cannot_fill_is_refused(models):
    rows = ROLLOUT(prompt_batch(models, ["abc>"]), models, STEP)
    with pytest.raises(ConfigurationError, match=r"`Privileged\.hint` names the field `completion`"):
        ANSWER(rows, models, STEP)
    with pytest.raises(ConfigurationError, match="the batch has no template"):
        Privileged("a{prompt}")(replace(rows, prompts=replace(rows.prompts, template=None)), models, STEP)


@pytest.mark.parametrize("divergence", [None, ForwardKL()])
def test_a_teacher_that_was_told_nothing_teaches_nothing(own, divergence):
    """The student's start, with the plain prompt: zero loss and zero gradient. With the answer there is something."""
    change = {} if divergence is None else {"divergence": divergence}
    rows = ROLLOUT(prompt_batch(own, PROMPTS, REFERENCES), own, STEP)
    silent = loss(OPSD(rollout=ROLLOUT, context=Privileged("{prompt}"), **change), rows, own)
    assert abs(float(silent.total.detach())) < 1e-5
    gradients = torch.autograd.grad(silent.total, own.student.parameters(), allow_unused=True)
    assert max(float(g.abs().max()) for g in gradients if g is not None) < 1e-4
    assert float(loss(OPSD(rollout=ROLLOUT, context=ANSWER, **change), rows, own).mean().detach()) > 0.01


def told_and_plain(models, rows):
    """[n, V] float64 of student and teacher for each row: the teacher's prompt holds the answer."""
    for i, completion in zip(rows.prompt_rows.tolist(), rows.completions(), strict=True):
        ids = completion.tolist()
        plain, hint = (models.tokenizer(text)["input_ids"] for text in (PROMPTS[i], f"{REFERENCES[i]}>{PROMPTS[i]}"))
        yield logp(models.student, plain + ids, len(ids)), logp(models.teacher, hint + ids, len(ids))


def test_opsd_is_the_divergence_to_the_teacher_that_knows_the_answer(models, rows):
    expected = 0.0
    for s, t in told_and_plain(models, rows):
        middle = (0.5 * s.exp() + 0.5 * t.exp()).log()
        expected += float(0.5 * ((t.exp() * (t - middle)).sum() + (s.exp() * (s - middle)).sum()))
    found = loss(OPSD(rollout=ROLLOUT, context=ANSWER), rows, models)
    assert float(found.total.detach()) == pytest.approx(expected, rel=1e-4)


@given(seed=st.integers(0, 2**31), cap=st.sampled_from([None, 0.05, 0.3, 1e300]), forward=st.booleans())
@quick
def test_the_capped_loss_has_the_gradient_of_autograd(seed, cap, forward):
    generator = torch.Generator().manual_seed(seed)
    s, t = torch.randn(2, 6, 9, generator=generator, dtype=torch.float64).mul(2).log_softmax(-1)
    index = torch.arange(6)
    rows = TokenRows(s, t, index, index, STEP)
    objective = OPSD(loss_cap=cap, **({"divergence": ForwardKL()} if forward else {}))
    closed, automatic = objective.with_gradient(rows), objective.by_autograd(rows)
    plain = OPSD(**({"divergence": ForwardKL()} if forward else {})).per_token(rows)
    torch.testing.assert_close(closed[0], plain.clamp(max=min(cap or 1e9, 1e9)))
    for one, other in zip(closed, automatic, strict=True):
        torch.testing.assert_close(one, other)
    assert (closed[1].abs().sum(1) > 0).tolist() == (plain <= (cap or 1e9)).tolist()


@given(skip=st.integers(0, 9))
@quick
def test_the_first_tokens_are_read_and_do_not_count(models, rows, skip):
    """The tokens that count have the losses that they have without skipping; so the teacher reads the same text."""
    found = loss(SDFT(rollout=ROLLOUT, context=ANSWER, skip_tokens=skip), rows, models)
    left = [max(len(ids) - skip, 0) for ids in rows.completions()]
    expected = 0.0
    for (s, t), count in zip(told_and_plain(models, rows), left, strict=True):
        expected += float((t.exp() * (t - s)).sum(-1)[len(s) - count :].sum())
    assert float(found.weight) == sum(left)
    assert float(found.total.detach()) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@given(
    prompt_rows=st.lists(st.integers(0, 2), min_size=6, max_size=6),
    rewards=st.lists(st.sampled_from([0.0, 0.4, 0.5, 1.0]), min_size=6, max_size=6),
)
@quick
def test_a_peer_is_the_first_other_row_of_the_prompt_that_succeeded(rows, prompt_rows, rewards):
    some = replace(rows, prompt_rows=torch.tensor(prompt_rows), rewards=torch.tensor(rewards))
    expected = [
        next((j for j in range(6) if j != i and prompt_rows[i] == prompt_rows[j] and rewards[j] >= 0.5), -1)
        for i in range(6)
    ]
    assert Peer().peers(some).tolist() == expected
    objective = SDPO(rollout=ROLLOUT, support=TopK(3))
    kept = objective.select(some, STEP)
    assert kept.loss_mask.any(1).tolist() == [row >= 0 for row in expected]
    assert torch.equal(kept.loss_mask[[row >= 0 for row in expected]], rows.loss_mask[[row >= 0 for row in expected]])


def test_the_teacher_reads_the_peer_and_the_feedback(models):
    examples = [Example("abc>", "cba", {"said": "fe"}), Example("d>", "d", {"said": None}), Example("hg>", "gh", {})]
    batch = Collator(tokenizer=models.tokenizer)(examples)
    rows = replace(ROLLOUT(batch, models, STEP), rewards=torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0, 0.0]))
    spoken = [text.removesuffix("<eos>") for text in said(models, rows)]
    context = Peer("{peer}{feedback}{prompt}", "{completion}>", "{said}>")
    hints = [f"{spoken[1]}>fe>abc>", "fe>abc>", "d>", f"{spoken[2]}>d>", "hg>", "hg>"]
    expected = [hint + text for hint, text in zip(hints, said(models, rows), strict=True)]
    assert texts(models, context(rows, models, STEP)) == expected
    assert context.informed(rows).tolist() == [True, True, False, True, False, False]
    # Leaving rows out of the loss must not leave them out of what their peers read.
    kept = SDPO(rollout=ROLLOUT, context=context).select(rows, STEP)
    assert texts(models, context(kept, models, STEP)) == expected
    silent = replace(rows, rewards=torch.zeros(6))
    assert texts(models, Peer()(silent, models, STEP)) == texts(models, rows), "nobody has anything to tell"


def test_sdpo_compares_the_students_likeliest_ids_and_weighs_by_the_sampler(models, rows):
    """By the formula, in float64, for rows that are all shown the answer."""
    judged = replace(rows, rewards=torch.zeros(6))
    context = Peer("{feedback}{prompt}", feedback="{prompt}")
    found = loss(SDPO(rollout=ROLLOUT, context=context, support=TopK(4, of="student")), judged, models)
    expected = 0.0
    for i, completion, sampler, mask in zip(
        rows.prompt_rows.tolist(), rows.completions(), rows.sampler_logp, rows.loss_mask, strict=True
    ):
        ids = completion.tolist()
        plain, hint = (models.tokenizer(text)["input_ids"] for text in (PROMPTS[i], PROMPTS[i] * 2))
        both = logp(models.student, plain + ids, len(ids)), logp(models.teacher, hint + ids, len(ids))
        for s, t, token, drawn in zip(*both, ids, sampler[mask].double(), strict=True):
            kept = s.topk(4).indices
            p, q = (torch.cat([x.exp()[kept], 1 - x.exp()[kept].sum()[None]]) for x in (s, t))
            middle = (p + q) / 2
            jsd = 0.5 * ((q * (q / middle).log()).sum() + (p * (p / middle).log()).sum())
            expected += float(jsd * (s[token] - drawn).exp().clamp(max=2.0))
    assert float(found.total.detach()) == pytest.approx(expected, rel=1e-4)


def test_a_context_that_reads_rewards_has_them_made():
    assert SDPO().needs_rewards
    assert Distill(context=Peer()).needs_rewards
    assert not OPSD().needs_rewards


def test_a_hint_that_says_nothing_is_refused(models, rows):
    with pytest.raises(ConfigurationError, match=r"`Privileged` makes an empty text.*Let it say `\{prompt\}`"):
        Privileged("", template=PlainTemplate())(rows, models, STEP)


def test_a_hint_beyond_the_teachers_positions_is_refused(models, rows):
    long = Privileged("{prompt}" * 99, template=PlainTemplate())
    room = models.teacher.model.config.max_position_embeddings
    with pytest.raises(ConfigurationError, match=rf"`Privileged` .* a prompt .* more than the .*{room} positions"):
        long(rows, models, STEP)


@pytest.mark.parametrize("objective", [OPSD, SDFT, lambda **given: Distill(context=ANSWER, **given)])
def test_a_stored_teacher_has_been_told_nothing(objective, monkeypatch):
    monkeypatch.setattr(FromDataset, "stored_teacher", True)
    with pytest.raises(ConfigurationError, match=r"has read the plain text, but .*\.context` is `Privileged`"):
        objective(rollout=FromDataset())


def test_the_share_of_selected_tokens_is_logged(models, rows):
    rewarded = replace(rows, rewards=torch.zeros(len(rows)))
    found = {
        objective: objective.loss({objective.rollout: rewarded}, models, STEP).metrics.get("selected")
        for objective in (
            OPSD(rollout=ROLLOUT, context=ANSWER),
            SDFT(rollout=ROLLOUT, context=ANSWER, skip_tokens=2),
            SDPO(rollout=ROLLOUT, support=TopK(4, of="student")),
        )
    }
    none, some, nothing = found.values()
    lengths = rows.predictions.sum(1)
    assert none is None
    assert float(some.mean()) == pytest.approx(float((lengths - 2).clamp_min(0).sum() / lengths.sum()))
    assert float(nothing.mean()) == 0.0


def test_replayed_rows_can_be_told_more(models):
    own, batch = replace(models, memories=Memories()), prompt_batch(models, PROMPTS, REFERENCES)
    source = Replay(ROLLOUT, fraction=1.0)
    source(batch, own, STEP)
    own.memories.end_step()
    again = source(batch, own, Step(1, 10))
    prompts = [again.prompts.examples[row].prompt for row in again.prompt_rows.tolist()]
    hints = [f"{REFERENCES[PROMPTS.index(prompt)]}>{prompt}" for prompt in prompts]
    expected = [hint + text for hint, text in zip(hints, said(models, again), strict=True)]
    assert texts(models, ANSWER(again, own, STEP)) == expected


def test_replayed_rows_have_their_peers(models):
    own, batch = replace(models, memories=Memories()), prompt_batch(models, PROMPTS, REFERENCES)
    objective = SDPO(rollout=Replay(ROLLOUT, fraction=1.0), support=TopK(4, of="student"))
    weights = []
    for index in range(2):
        rows = objective.rollout(batch, own, Step(index, 10))
        rows = replace(rows, rewards=torch.ones(len(rows)))
        weights.append(float(objective.loss({objective.rollout: rows}, own, Step(index, 10)).terms["loss"].weight))
        own.memories.end_step()
    assert weights[0] == weights[1] > 0


def test_no_rows_are_no_trouble(models, rows):
    none = replace(rows.rows(torch.arange(0)), rewards=torch.zeros(0))
    for context in (ANSWER, Peer()):
        assert len(context(none, models, STEP)) == 0


def test_a_plan_and_a_picture_let_the_teacher_read_what_the_student_reads():
    opsd = OPSD(context=ANSWER)
    for objective in (Sum(terms={"a": opsd, "b": SFT()}), Phases(first=SFT(), then=opsd)):
        alike = read_alike(objective)
        parts = list(alike.terms.values()) if isinstance(alike, Sum) else [alike.first, alike.then]
        assert all(isinstance(part.context, SameText) for part in parts)
    assert read_alike(opsd) == replace(opsd, context=SameText())
    assert read_alike(SFT()) == SFT()


def complaints(objective, same):
    module = DistillationModule(objective, tiny_source(), tiny_source() if same else tiny_source(seed=1))
    data = PromptDataModule(JsonLines(train="rows.jsonl"))
    return [mistake.path for mistake in use_of_the_models(RunSetup(module, data, {}))]


def test_a_teacher_that_equals_the_student_may_know_more():
    assert complaints(Distill(), same=True) == ["model.teacher"]
    assert complaints(Distill(), same=False) == []
    assert complaints(OPSD(), same=True) == []
    assert complaints(Sum(terms={"own": SDPO(), "gold": SFT()}), same=True) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Privileged("{completion"), r"`Privileged\.hint` is malformed"),
        (lambda: Privileged("{}"), r"`Privileged\.hint` expected named fields"),
        (lambda: Peer(peer="{0}"), r"`Peer\.peer` expected named fields"),
        (lambda: Peer(threshold=float("nan")), r"`Peer\.threshold` must be finite, got nan"),
        (lambda: OPSD(loss_cap=0.0), r"`OPSD\.loss_cap` must be above 0 and finite, got 0\.0"),
        (lambda: SDFT(skip_tokens=-1), r"`SDFT\.skip_tokens` must be at least 0, got -1"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


# DemoPSD


def share_by_hand(student, teacher, beta, alpha_max):
    """Alpha of one token, from two lists of log-probabilities."""
    pairs = [(math.exp(s), math.exp(t)) for s, t in zip(student, teacher, strict=True)]
    parts = [x * math.log(2 * x / (s + t)) / 2 for s, t in pairs for x in (s, t) if x > 0]
    return 2 * alpha_max * (1 / (1 + math.exp(-beta * math.fsum(parts))) - 0.5)


@given(pair=logits_pairs(SMOOTH, max_vocabulary=6), beta=st.floats(0, 200), alpha_max=st.floats(0, 1))
@quick
def test_the_pull_of_each_token_is_one_minus_alpha_times_that_of_the_teacher(pair, beta, alpha_max):
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    objective = DemoPSD(beta=beta, alpha_max=alpha_max, support=FullVocabulary(), context=SameText())
    index = torch.arange(len(student))
    losses, gradient = objective.with_gradient(TokenRows(student, teacher, 0 * index, index, STEP))
    plain, pull = reverse_kl(student, teacher)
    for i, (s, t) in enumerate(zip(student.tolist(), teacher.tolist(), strict=True)):
        alpha = share_by_hand(s, t, beta, alpha_max)
        assert gradient[i].tolist() == pytest.approx(((1 - alpha) * pull[i]).tolist(), abs=1e-7)
        mixed = [math.exp((1 - alpha) * b + alpha * a) for a, b in zip(s, t, strict=True)]
        target = [math.log(x / math.fsum(mixed)) if x else -math.inf for x in mixed]
        by_hand = math.fsum(math.exp(a) * (a - b) for a, b in zip(s, target, strict=True) if math.exp(a) and b > -700)
        assert float(losses[i]) == pytest.approx(by_hand, rel=1e-6, abs=1e-6)
        assert losses[i] <= plain[i] + 1e-9


@given(pair=logits_pairs(SMOOTH, max_vocabulary=6), share=st.floats(0, 1), seed=st.integers(0, 2**31))
@quick
def test_the_geometric_mean_is_nearest_to_both(pair, share, seed):
    """Of all distributions it has the smallest (1 - a) KL(q || teacher) + a KL(q || student)."""
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    weight = torch.full((len(student),), share, dtype=torch.float64)
    mean = geometric_mean(teacher, student, weight)
    other = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log_softmax(-1)

    def distance(q):
        return (q.exp() * (q - (1 - share) * teacher - share * student)).sum(-1)

    assert (distance(mean) <= distance(other) + 1e-9).all()
    assert mean.logsumexp(-1).abs().max() < 1e-9


@given(pair=logits_pairs(max_vocabulary=6))
@quick
def test_a_bridge_without_disagreement_is_the_teacher(pair):
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    for off in (DisagreementBridge(beta=0.0), DisagreementBridge(alpha_max=0.0)):
        assert off(teacher, student, STEP) is teacher
    torch.testing.assert_close(DisagreementBridge()(teacher, teacher, STEP), teacher)
    assert DisagreementBridge(1e9, 0.3).share(torch.tensor([0.0, math.log(2)])).tolist() == pytest.approx([0.0, 0.3])


def test_an_id_that_one_model_excludes_is_excluded_as_far_as_it_counts():
    teacher = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    student = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64).log()
    for share, left in ((0.0, [0.5, 0.5, 0.0]), (0.4, [1.0, 0.0, 0.0]), (1.0, [0.5, 0.0, 0.5])):
        mean = geometric_mean(teacher, student, torch.tensor(share))
        assert mean.exp().tolist() == pytest.approx(left)


def test_demopsd_is_sdpo_with_the_reverse_kl_where_disagreement_does_not_count(models):
    settings_ = {"rollout": ROLLOUT, "context": SameText(), "support": TopK(4, of="student")}
    rows = ROLLOUT(prompt_batch(models, PROMPTS, REFERENCES), models, STEP)
    mine = DemoPSD(beta=0.0, **settings_)
    plain = SDPO(divergence=mine.divergence, importance_cap=None, **settings_)
    assert float(loss(mine, rows, models).total.detach()) == float(loss(plain, rows, models).total.detach())
    stronger = float(loss(DemoPSD(alpha_max=0.5, **settings_), rows, models).total.detach())
    assert 0 < stronger < float(loss(plain, rows, models).total.detach())


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"beta": math.nan}, "beta` must be at least 0 and finite"),
        ({"alpha_max": 1.1}, r"alpha_max` must lie in \[0, 1\]"),
    ],
)
def test_settings_of_the_bridge_are_checked(settings_, message):
    with pytest.raises(ConfigurationError, match=message):
        DemoPSD(**settings_)

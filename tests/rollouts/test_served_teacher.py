"""A teacher behind a server says what a local one says, and what it does not say is not made up."""

import json
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import anyio
import lightning as L
import pytest
import torch
from teacher_server import TEACHER, answer

from tests.judging.chat_server import serving
from veto_pl import DistillationModule, PromptDataModule
from veto_pl.data import ExactMatch, JsonLines
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.functional.supports import top_k_with_tail
from veto_pl.metrics.rollout_numbers import rollout_numbers
from veto_pl.models import CharacterTokenizer
from veto_pl.objectives import OPD, VOPD, Distill, ResOPD, Sum, Veto
from veto_pl.parts.supports import TopK
from veto_pl.rollouts import FromDataset, FromStudent, Mixture, Sampling, ServedTeacher, asked_servers
from veto_pl.seams import ModelSource, PromptBatch, Step
from veto_pl.testing.rows import difference
from veto_pl.testing.tiny import ALPHABET, prompt_batch, tiny_models, tiny_source

STEP = Step(0, 9)
PROMPTS = ["abc>", "d>", "efghij>", "ka>"]
SAMPLED = FromStudent(Sampling(max_new_tokens=6, num_completions=2))


@pytest.fixture(autouse=True)
def _direct_and_at_once(monkeypatch):
    """No proxy, no pause between attempts, no server that was compared before."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(asked_servers, "_checked", set())

    async def sleep(delay):
        """Does not wait."""

    monkeypatch.setattr(anyio, "sleep", sleep)


@pytest.fixture(scope="module")
def models():
    return tiny_models()


@contextmanager
def teachers(models, *broken, count=1, **settings):
    """So many servers, and a source that asks them; `broken(request, number)` may answer first."""
    tokenizer = models.tokenizer
    with ExitStack() as stack:

        def reply(request, number):
            found = next((told for one in broken if (told := one(request, number)) is not None), None)
            return answer(models.teacher, tokenizer, request) if found is None else found

        servers = [stack.enter_context(serving(reply)) for _ in range(count)]
        source = ServedTeacher(servers=tuple(address for address, _ in servers), model=TEACHER, k=4, **settings)
        yield source, [requests for _, requests in servers]


def local_logp(models, rows):
    with torch.no_grad():
        logits = models.teacher(rows, lambda hidden, teacher: teacher.project(hidden)[0])
    return logits.log_softmax(-1)


@pytest.mark.parametrize("source", [SAMPLED, FromDataset()], ids=["sampled", "references"])
def test_what_the_server_says_is_what_a_local_teacher_says(models, source):
    batch = prompt_batch(models, PROMPTS, ["cba", None, "jihgfe", "ak"])
    with teachers(models, source=source) as (served, (requests,)):
        rows = served(batch, models, STEP)
    plain = source(batch, models, STEP)
    assert torch.equal(rows.input_ids, plain.input_ids)
    assert torch.equal(rows.loss_mask, plain.loss_mask)
    logp, told = local_logp(models, rows), rows.teacher_scores[rows.loss_mask]
    assert torch.equal(told.ids, logp.topk(4).indices)
    torch.testing.assert_close(told.logp, top_k_with_tail(logp, told.ids), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(told.sampled_logp, logp.gather(1, rows.token_ids()[:, None])[:, 0], rtol=1e-5, atol=1e-5)
    assert not rows.unanswered.any()
    asked = [request["body"]["prompt"] for request in requests if not isinstance(request["body"]["prompt"], str)]
    assert len(asked) == int(rows.loss_mask.any(1).sum())
    assert {request["path"] for request in requests} == {"/v1/completions"}


@pytest.mark.parametrize("make", [OPD, ResOPD, Veto, Distill], ids=lambda cls: cls.__name__)
def test_losses_are_those_of_the_local_teacher(models, make):
    batch = prompt_batch(models, PROMPTS)
    options = {ResOPD: {"k": 4}, Veto: {"support": TopK(k=4)}, Distill: {"support": TopK(k=4)}}.get(make, {})
    live = make(rollout=SAMPLED, **options)
    with teachers(models, source=SAMPLED) as (source, _):
        served = make(rollout=source)
        rows = source(batch, models, STEP)
    assert not served.needs_teacher
    one = live.loss({SAMPLED: SAMPLED(batch, models, STEP)}, models, STEP).terms["loss"]
    other = served.loss({source: rows}, replace(models, teacher=None), STEP).terms["loss"]
    torch.testing.assert_close(other.total, one.total, rtol=1e-4, atol=1e-4)


def refuses(first):
    """Fails whenever the text begins so."""

    def broken(request, number):
        prompt = request["body"]["prompt"]
        return (500, "{}", {}) if not isinstance(prompt, str) and prompt[0] == first else None

    return broken


def test_a_row_that_no_server_answers_leaves_the_step_and_is_counted(models):
    batch = prompt_batch(models, PROMPTS)
    lost = models.tokenizer("d")["input_ids"][0]
    with teachers(models, refuses(lost), count=2, source=SAMPLED, retries=1) as (source, both):
        rows = source(batch, models, STEP)
    assert rows.unanswered.tolist() == [False, False, True, True, False, False, False, False]
    assert not rows.loss_mask[rows.unanswered].any()
    assert rows.completion_mask[rows.unanswered].any(1).all()
    assert float(rollout_numbers([rows], models.eos_ids)["unanswered"].mean()) == 0.25
    failed = [request for requests in both for request in requests if request["body"]["prompt"][0] == lost]
    assert len(failed) == 2 * 2 * 2, "two attempts of two rows at each of two servers"
    kept = rows.rows(~rows.unanswered)
    one, other = (OPD(rollout=source).loss({source: part}, models, STEP).terms["loss"] for part in (rows, kept))
    torch.testing.assert_close(one.total, other.total)
    assert one.weight == other.weight


def test_a_window_that_is_scored_at_once_is_that_of_its_micro_batches(models):
    batch = prompt_batch(models, PROMPTS)
    parts = [batch.rows(torch.tensor(rows)) for rows in ([0, 1], [2, 3])]
    lost = models.tokenizer("d")["input_ids"][0]
    with teachers(models, refuses(lost), source=SAMPLED, retries=0) as (source, _):
        whole = source(PromptBatch.concatenate(parts), models, STEP)
        for start, part in zip((0, 2), parts, strict=True):
            dealt, alone = whole.of_part(start, part), source(part, models, STEP)
            assert difference(dealt, alone) == ""
            assert torch.equal(dealt.unanswered, alone.unanswered)
            one, other = (rows.teacher_scores[rows.loss_mask] for rows in (dealt, alone))
            torch.testing.assert_close(one.logp, other.logp)
            torch.testing.assert_close(one.sampled_logp, other.sampled_logp)


def test_servers_share_the_rows_and_one_does_what_another_does_not(models):
    batch = prompt_batch(models, PROMPTS)
    with teachers(models, count=2, source=SAMPLED) as (source, both):
        healthy = source(batch, models, STEP)
        shares = [sum(not isinstance(r["body"]["prompt"], str) for r in requests) for requests in both]
    assert shares == [4, 4]
    with teachers(models, source=SAMPLED, retries=0) as (source, _), serving(lambda *_: (503, "{}", {})) as (dead, _):
        rows = replace(source, servers=(dead, *source.servers))(batch, models, STEP)
    assert not rows.unanswered.any()
    torch.testing.assert_close(rows.teacher_scores.logp, healthy.teacher_scores.logp)


def test_without_any_answer_the_run_ends(models):
    told = pytest.raises(DataError, match="None of 8 rows was scored by the teacher `the-teacher` at http")
    with teachers(models, lambda *_: (503, "{}", {}), source=SAMPLED, retries=0) as (source, _), told:
        source(prompt_batch(models, PROMPTS), models, STEP)


def changed(change):
    """Let the answer be changed."""

    def broken(request, number, models=tiny_models()):
        told = answer(models.teacher, models.tokenizer, request)
        change(told["choices"][0])
        return told

    return broken


def other_ids(choice):
    choice["prompt_token_ids"] = [i + 1 for i in choice["prompt_token_ids"]]


def no_ids(choice):
    del choice["prompt_token_ids"]


def no_logprobs(choice):
    choice["prompt_logprobs"] = None


def logits(choice):
    for at in choice["prompt_logprobs"][1:]:
        for one in at.values():
            one["logprob"] += 3.0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (other_ids, "reads other ids than this run"), (no_ids, "it makes no ids"),
        (no_logprobs, "has not given `prompt_logprobs`"), (logits, "probabilities that sum to"),
    ],
)  # fmt: skip
def test_a_server_that_does_something_else_is_refused(models, change, told):
    refused = pytest.raises(ConfigurationError, match=told)
    with teachers(models, changed(change), source=SAMPLED) as (source, _), refused:
        source(prompt_batch(models, PROMPTS), models, STEP)


def test_more_ids_than_the_server_gives_are_refused_with_its_own_words(models):
    refused = pytest.raises(ConfigurationError, match=r"The teacher at .* greater than max allowed: 20")
    with teachers(models, source=SAMPLED) as (source, _), refused:
        replace(source, k=21)(prompt_batch(models, PROMPTS), models, STEP)


def padded(shortest):
    """Let an id beyond the vocabulary be the likeliest behind rows of that many tokens and more."""

    def padding(request, number, models=tiny_models()):
        told, prompt = answer(models.teacher, models.tokenizer, request), request["body"]["prompt"]
        if not isinstance(prompt, str) and len(prompt) >= shortest:
            told["choices"][0]["prompt_logprobs"][-1]["5000"] = {"logprob": -0.1}
        return told

    return padding


def test_an_id_of_a_padding_row_among_the_likeliest_loses_the_row_alone(models):
    with teachers(models, padded(10), source=SAMPLED) as (source, _):
        rows = source(prompt_batch(models, PROMPTS), models, STEP)
    longest = rows.attention_mask.sum(1) > 9
    assert torch.equal(rows.unanswered, longest)
    assert 0 < int(longest.sum()) < len(rows)


def test_padding_rows_that_every_row_meets_are_told_as_what_they_are(models):
    """The servers are all right, so no word of timeouts."""
    told = pytest.raises(DataError, match=rf"has ids from {models.student.vocab_size} on among its 4 likeliest in each")
    with teachers(models, padded(1), source=SAMPLED) as (source, _), told:
        source(prompt_batch(models, PROMPTS), models, STEP)


def test_what_cannot_work_is_refused_when_the_configuration_is_read():
    source = ServedTeacher(servers=("http://localhost:1/v1",), model=TEACHER)
    for expected, make in {
        "`Distill.temperature` is 2.0": lambda: Distill(rollout=source, temperature=2.0),
        "Leave out `advantage`": lambda: VOPD(rollout=source),
        "cannot hold `ServedTeacher`": lambda: Mixture(source, FromDataset()),
        "brings scores along itself": lambda: replace(source, source=source),
        "must name a server": lambda: replace(source, servers=()),
        "expected an address": lambda: replace(source, servers=("localhost",)),
    }.items():
        with pytest.raises(ConfigurationError, match=expected):
            make()


@dataclass(frozen=True)
class Unloadable(ModelSource):
    """Weights that nobody must ask for."""

    def config(self):
        return tiny_source(vocab_size=64).config()

    def load(self):
        raise AssertionError("the teacher was to be asked first")


def fitted(source, student, folder, objective=OPD):
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": text, "completion": text[::-1]}) + "\n" for text in PROMPTS))
    module = DistillationModule(objective(rollout=source), student, tokenizer=CharacterTokenizer(ALPHABET))
    limits = {"max_prompt_tokens": 32, "max_completion_tokens": 32}
    data = PromptDataModule(JsonLines(train=str(rows), verifier=ExactMatch()), batch_size=4, **limits)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=2, limit_val_batches=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        default_root_dir=str(folder),
    )  # fmt: skip
    trainer.fit(module, data)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (lambda *_: (503, "{}", {}), r"The teacher `the-teacher` cannot be reached at http://\S+ \(status 503\)"),
        (changed(other_ids), "reads other ids than this run"),
        (changed(logits), "probabilities that sum to"),
    ],
    ids=["silent", "another tokenizer", "no probabilities"],
)
def test_a_teacher_that_will_not_do_is_refused_before_any_weights_are_loaded(models, reply, told, tmp_path):
    with (
        teachers(models, reply, source=SAMPLED, retries=0) as (source, _),
        pytest.raises(ConfigurationError, match=told),
    ):
        fitted(source, Unloadable(), tmp_path)


def test_more_ids_than_the_server_gives_are_refused_before_any_weights_are_loaded(models, tmp_path):
    refused = pytest.raises(ConfigurationError, match=r"The teacher at .* greater than max allowed: 20")
    with teachers(models, source=SAMPLED) as (source, _), refused:
        fitted(replace(source, k=21), Unloadable(), tmp_path)


def test_one_server_of_several_may_be_silent_when_the_run_begins(models):
    with teachers(models, retries=0) as (source, _), serving(lambda *_: (503, "{}", {})) as (dead, _):
        objective = Sum(terms={"one": OPD(rollout=replace(source, servers=(dead, *source.servers)))})
        with pytest.warns(UserWarning, match=rf"cannot be reached at {dead} \(status 503\); others do its part"):
            objective.before_loading(models.tokenizer)


@pytest.mark.parametrize("objective", [OPD, ResOPD], ids=lambda cls: cls.__name__)
def test_a_run_without_a_teacher_learns_from_a_served_one(models, objective, tmp_path):
    with teachers(models, source=SAMPLED) as (source, _):
        logged = fitted(source, tiny_source(), tmp_path, objective)
    assert logged["train/unanswered"] == 0
    assert logged["train/kl"] > 0
    assert logged["train/grad_norm"] > 0

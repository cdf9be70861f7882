"""Calls for rows that grow: what was read is kept, what is written is the same, and nothing is left over."""

import gc
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.chat_tokenizers import chat_tokenizer
from tests.rollouts.test_fixed_rows import models_of, recorded, same  # noqa: F401
from veto_pl.data import ChatTemplate
from veto_pl.data.collate import Collator
from veto_pl.models.assemble import load_models
from veto_pl.models.initialisation import RandomWeights
from veto_pl.rollouts import DecodeLoop, Played, Sampling
from veto_pl.rollouts.kept_rows import KeepingSession
from veto_pl.rollouts.kv_cache import GrowingLayer, can_resume, obstacle
from veto_pl.seams import Engine, Environment, Episode, Example, Media, Reply, Step
from veto_pl.testing.rows import tiny_prompts
from veto_pl.testing.tiny import prompt_batch, tiny_source

STEP = Step(3, 10)
MODELS = models_of("llama")
SAMPLING = Sampling(max_new_tokens=8, num_completions=2, stop=tuple("acegikmo"))


class Anew(DecodeLoop):
    """The same loop, which reads every context from the start."""

    session = Engine.session


@dataclass(frozen=True)
class Uneven(Environment):
    """Says something of another length in each episode and turn; some episodes end early."""

    def begin(self, example, seed):
        return _Uneven(seed)


class _Uneven(Episode):
    def __init__(self, seed):
        self.seed, self.turns = seed, 0

    def reply(self, turn):
        self.turns += 1
        said = "no>" * (1 + (self.seed + self.turns) % 5)
        return Reply(({"role": "user", "content": said},), done=(self.seed + self.turns) % 11 == 0)


def read_by(model, monkeypatch):
    """Counts the tokens that the model reads, padding included, and its passes."""
    counts, read = [], model.next_logits

    def counted(input_ids, *rest):
        counts.append(input_ids.numel())
        return read(input_ids, *rest)

    monkeypatch.setattr(model, "next_logits", counted, raising=False)
    return counts


def both(models, monkeypatch, prompts=None, **changed):
    """An episode of nine turns by each engine, and how many tokens each has read in how many passes."""
    told = []
    can_resume(models.student)  # a probe reads tokens, once
    for engine in (Anew, DecodeLoop):
        settings = {"sampling": SAMPLING, "max_turns": 9, "max_tokens": 120} | changed
        source = Played(Uneven(), engine=engine(settings.pop("drop_at", 0.25)), **settings)
        with monkeypatch.context() as patch:
            counts = read_by(models.student, patch)
            rows = source(tiny_prompts(models) if prompts is None else prompts, models, STEP)
        told.append((rows, sum(counts), len(counts)))
    return told


@pytest.mark.parametrize("drop_at", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_dialogues_are_the_same_and_less_is_read(kind, drop_at, monkeypatch):
    (anew, much, passes), (kept, less, as_many) = both(models_of(kind), monkeypatch, drop_at=drop_at)
    assert kept.turn_ids.max() == 9
    assert torch.equal(anew.input_ids, kept.input_ids)
    torch.testing.assert_close(kept.sampler_logp, anew.sampler_logp, rtol=0, atol=1e-5)
    assert less < much / 2
    assert as_many <= passes  # prompts of very different lengths are read in several


def test_recorded_steps_go_on_behind_kept_rows(recorded):  # noqa: F811
    models = models_of("llama")
    anew, kept = (
        Played(Uneven(), SAMPLING, max_turns=4, max_tokens=90, engine=engine)(tiny_prompts(models), models, STEP)
        for engine in (Anew(capture=False), DecodeLoop(capture=True))
    )
    assert any(one.replayed for one in recorded)
    same(anew, kept)


def test_a_template_that_takes_out_thoughts_keeps_what_stays(monkeypatch):
    """Rows are read anew, and what stands in front of the thoughts need not be read again."""
    tokenizer = chat_tokenizer("qwen3")
    models = load_models(tiny_source("llama", vocab_size=len(tokenizer)), None, tokenizer)
    template = ChatTemplate()
    rows = [Example("What is 2 + 3?"), Example("What is it?")]
    prompts = Collator(tokenizer=tokenizer, template=template)(rows)
    settings = {
        "sampling": Sampling(max_new_tokens=4, num_completions=2, stop=tuple("aeiou 0123456789")),
        "max_tokens": 400,
    }
    (anew, much, _), (kept, less, _) = both(models, monkeypatch, prompts, **settings)
    assert torch.equal(anew.input_ids, kept.input_ids)
    torch.testing.assert_close(kept.sampler_logp, anew.sampler_logp, rtol=0, atol=1e-5)
    assert less < 0.7 * much


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_rows_that_go_on_are_written_as_if_they_were_read_from_the_start(data):
    """Rows come and go, get longer by any number of tokens, or begin otherwise than they did."""
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    texts = {name: "abcdefgh"[: draw(1, 8)] for name in range(draw(1, 4))}
    sampling = Sampling(max_new_tokens=draw(1, 6), stop=("b",))
    engine = DecodeLoop(data.draw(st.sampled_from([0.0, 0.5, 1.0])))
    with engine.session(MODELS.student, MODELS, on_policy=True) as session:
        for turn in range(4):
            names = [name for name in texts if draw(0, 5)]
            prompts = replace(prompt_batch(MODELS, [texts[name] for name in names]), numbers=torch.tensor(names))
            step = STEP.aside(f"turn {turn}")
            kept = session.generate(prompts, sampling, step, names)
            anew = engine.generate(prompts, MODELS.student, sampling, MODELS, step, on_policy=True)
            assert torch.equal(kept.input_ids, anew.input_ids)
            torch.testing.assert_close(kept.sampler_logp, anew.sampler_logp, rtol=0, atol=1e-5)
            for name, written in zip(names, kept.completion_ids(), strict=True):
                grown = texts[name] + MODELS.tokenizer.decode(written, skip_special_tokens=True) + "ponm"[: draw(0, 4)]
                texts[name] = grown if draw(0, 4) else grown[1:] + "a"


def layers():
    """The layers of caches that are alive; `isinstance` would look behind weak references of other tests."""
    gc.collect()
    return [one for one in gc.get_objects() if type(one) is GrowingLayer]


def test_only_rows_of_the_call_before_are_kept_and_none_after_the_last():
    before = layers()
    prompts, sampling = tiny_prompts(MODELS), Sampling(max_new_tokens=4, temperature=0.0)
    session = DecodeLoop().session(MODELS.student, MODELS, on_policy=True)
    session.generate(prompts, sampling, STEP, range(4))
    session.generate(prompts.rows(torch.tensor([1])), sampling, STEP, [1])
    assert list(session.kept.read) == [1]
    assert sum(len(part.names) for part in session.kept._left) == 1
    session.generate(prompts.rows(torch.tensor([1])), sampling, STEP, [1], is_last=True)
    assert not session.kept.read
    assert not session.kept._left
    Played(Uneven(), SAMPLING, max_turns=4, max_tokens=90)(prompts, MODELS, STEP)
    assert len(layers()) == len(before)


def test_a_row_that_would_not_gain_is_read_from_the_start(monkeypatch):
    """One long reply makes all others as long in a pass; where that is more than the contexts, nothing is kept."""
    prompts = prompt_batch(MODELS, ["a>", "b>", "c>"])
    session = DecodeLoop().session(MODELS.student, MODELS, on_policy=True)
    session.generate(prompts, Sampling(max_new_tokens=1, temperature=0.0), STEP, range(3))
    counts = read_by(MODELS.student, monkeypatch)
    longer = prompt_batch(MODELS, ["a>" + "p" * 30, "b>", "c>"])
    session.generate(longer, Sampling(max_new_tokens=1, temperature=0.0), STEP, range(3))
    assert sum(counts) >= 38


SLOPES = RandomWeights("mpt", {"vocab_size": 20, "d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 128})


@pytest.mark.parametrize("source", [tiny_source("gemma2"), SLOPES], ids=["sliding windows", "slopes by columns"])
def test_models_that_count_columns_read_each_context_from_the_start(source):
    models = load_models(source, None, MODELS.tokenizer)
    assert not obstacle(models.student)
    session = DecodeLoop().session(models.student, models, on_policy=True)
    assert not isinstance(session, KeepingSession)


def test_prompts_with_images_are_read_from_the_start():
    asked = []

    def write(prompts, sampling, step):
        asked.append(prompts)

    session = KeepingSession(write, lambda *_: pytest.fail("what is kept knows ids alone"))
    images = replace(tiny_prompts(MODELS), media=Media(({"pixel_values": torch.ones(1)}, {}, {}, {})))
    session.generate(images, SAMPLING, STEP, range(8))
    assert asked == [images]

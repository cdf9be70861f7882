"""Recorded steps write what the growing loop writes: on fixed places, without the host, and replayed as CUDA would."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.marks import fast
from tests.rollouts.test_engines import EVEN, RAGGED, STEP, TYPES
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.assemble import load_models
from veto_pl.models.host_reads import refused_host_reads
from veto_pl.models.initialisation import RandomWeights
from veto_pl.models.tokenizers import CharacterTokenizer
from veto_pl.rollouts import (
    DecodeLoop,
    FromStudent,
    Sampling,
    TeacherCorrected,
    TeacherMixed,
    TeacherSwitched,
    fixed_rows,
    recording,
)
from veto_pl.rollouts.live_rows import EndChecks
from veto_pl.testing.pretended_graph import PretendedRecorder
from veto_pl.testing.tiny import ALPHABET, DIMENSIONS, prompt_batch

SAMPLINGS = {
    "greedy": Sampling(temperature=0.0, max_new_tokens=24),
    "sampled, several": Sampling(temperature=1.5, max_new_tokens=20, num_completions=2),
    "nucleus": Sampling(temperature=0.7, top_p=0.8, max_new_tokens=20),
    "likeliest": Sampling(temperature=2.0, top_k=4, top_p=0.9, max_new_tokens=20),
    "stops": Sampling(temperature=1.5, max_new_tokens=24, stop=("ab", "c", "pp")),
}


@pytest.fixture
def recorded(monkeypatch):
    """Lets the CPU record, look only at every fourth token, and part with rows early; returns the replays' numbers."""
    made = []

    def recorder(device):
        made.append(Counting(device))
        return made[-1]

    monkeypatch.setitem(recording.RECORDERS, "cpu", recorder)
    monkeypatch.setattr(fixed_rows, "WORTH_A_RECORDING", 2)
    monkeypatch.setattr(EndChecks, "due", lambda _, column: column % 4 == 0)
    return made


class Counting(PretendedRecorder):
    def __init__(self, device):
        super().__init__(device)
        self.recorded, self.replayed = 0, 0

    def record(self, work):
        self.recorded += 1
        replay = super().record(work)

        def counted():
            self.replayed += 1
            replay()

        return counted


def models_of(model_type, seeds=(0, 1), eos_bias=0.0, **changed):
    """Models whose rows end at different times, without hooks: EOS gets its bias from the head's own."""
    dimensions = {"vocab_size": len(ALPHABET) + 3, "initializer_range": 0.4} | DIMENSIONS.get(model_type, {})
    dimensions |= TYPES.get(model_type, {}) | changed
    sources = [RandomWeights(model_type, dimensions, seed=seed) for seed in seeds]
    models = load_models(*sources, CharacterTokenizer(ALPHABET).load())
    for one in (models.student, models.teacher) if eos_bias else ():
        head = one.model.get_output_embeddings()
        head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0]))
        head.bias.data[models.tokenizer.eos_token_id] = eos_bias
    return models


def both(source_of, models, batch, recorded):
    """What is written kernel by kernel, and recorded."""
    growing = source_of(capture=False)(batch, models, STEP)
    assert not recorded
    fixed = source_of(capture=True)(batch, models, STEP)
    assert recorded[0].replayed > 0
    return growing, fixed


def same(growing, fixed):
    assert torch.equal(growing.input_ids, fixed.input_ids)
    for name in ("attention_mask", "loss_mask", "prompt_rows", "ending", "unjudged"):
        assert torch.equal(getattr(growing, name), getattr(fixed, name)), name
    torch.testing.assert_close(growing.sampler_logp, fixed.sampler_logp, rtol=1e-4, atol=1e-4)


def by_engine(sampling, drop_at=0.25):
    return lambda capture: FromStudent(sampling, DecodeLoop(drop_at, capture))


CASES = [(model_type, name) for model_type in ("llama", "gemma2", "gpt2") for name in SAMPLINGS]
KEPT = [("llama", "greedy"), ("llama", "nucleus"), ("llama", "stops"), ("gemma2", "sampled, several")]


@pytest.mark.parametrize("case", fast(CASES, *KEPT))
def test_recorded_steps_write_the_same(case, recorded):
    model_type, name = case
    prompts = EVEN if model_type == "gpt2" else RAGGED
    models = models_of(model_type, eos_bias={"llama": 2.0, "gpt2": 3.0, "gemma2": 1.0}[model_type])
    growing, fixed = both(by_engine(SAMPLINGS[name]), models, prompt_batch(models, prompts * 2), recorded)
    same(growing, fixed)
    assert len({len(row) for row in growing.completions()}) > 2, "rows should end at different times"


def test_rows_leave_when_half_have_ended_and_each_size_is_recorded_once(recorded):
    models = models_of("llama", eos_bias=3.0)
    batch = prompt_batch(models, RAGGED * 4)
    sampling = Sampling(temperature=1.5, max_new_tokens=40)
    growing, fixed = both(by_engine(sampling), models, batch, recorded)
    same(growing, fixed)
    (recorder,) = recorded
    assert 1 < recorder.recorded <= 1 + 5
    whole = FromStudent(sampling, DecodeLoop(1.0, True))(batch, models, STEP)
    same(growing, whole)
    assert recorded[1].recorded == 1


@pytest.mark.parametrize("case", fast([("gemma2", 4), ("gemma2", 40), ("mistral", 5)], ("gemma2", 4)))
def test_windows_are_those_of_the_growing_cache(case, recorded):
    """Shorter and longer than the text, with padding, which a window counts."""
    model_type, window = case
    models = models_of(model_type, **DIMENSIONS["llama"], sliding_window=window)
    batch = prompt_batch(models, RAGGED)
    same(*both(by_engine(SAMPLINGS["sampled, several"]), models, batch, recorded))


def mixed(kind):
    sampling = Sampling(temperature=1.5, max_new_tokens=20, num_completions=2)
    sources = {
        "mixture": TeacherMixed(0.5, sampling),
        "mixture of nuclei": TeacherMixed(0.5, replace(sampling, top_p=0.8)),
        "corrected": TeacherCorrected(3, sampling),
        "switched": TeacherSwitched(1.0, sampling),
    }
    return sources[kind]


@pytest.mark.parametrize(
    "kind", fast(["mixture", "mixture of nuclei", "corrected", "switched"], "corrected", "switched")
)
def test_several_writers_write_the_same(kind, recorded, monkeypatch):
    """Two models; a draw that remembers stays outside of what is recorded."""
    models = models_of("llama", eos_bias=2.0)
    batch = prompt_batch(models, RAGGED)
    with monkeypatch.context() as patch:
        patch.delitem(recording.RECORDERS, "cpu")
        growing = mixed(kind)(batch, models, STEP)
    fixed = mixed(kind)(batch, models, STEP)
    assert recorded[0].replayed > 0
    same(growing, fixed)
    if growing.by_teacher is not None:
        assert torch.equal(growing.by_teacher, fixed.by_teacher)


def test_what_autocast_has_cast_stays_where_it_is(recorded):
    """Casts are kept for the rollout, so what was recorded reads them; a cast that were freed would be refused."""
    models = models_of("llama")
    batch = prompt_batch(models, RAGGED)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        growing, fixed = both(by_engine(SAMPLINGS["greedy"]), models, batch, recorded)
    assert fixed.input_ids.shape == growing.input_ids.shape
    first = fixed.loss_mask.float().argmax(1)
    rows = torch.arange(len(first))
    assert torch.equal(growing.input_ids[rows, first], fixed.input_ids[rows, first]), "bfloat16 rounds otherwise later"


def test_adapters_are_recorded(recorded):
    peft = pytest.importorskip("peft")
    models = models_of("llama", eos_bias=2.0)
    wrapped = peft.get_peft_model(models.student.model, peft.LoraConfig(target_modules=["q_proj", "up_proj"], r=2))
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(0))
    same(*both(by_engine(SAMPLINGS["sampled, several"]), models, prompt_batch(models, RAGGED), recorded))


def test_nothing_is_recorded_by_default_on_a_cpu_nor_for_a_few_tokens(recorded, monkeypatch):
    models = models_of("llama")
    batch = prompt_batch(models, EVEN)
    FromStudent(Sampling(max_new_tokens=12))(batch, models, STEP)
    assert not recorded
    FromStudent(Sampling(max_new_tokens=16))(batch, models, STEP)
    assert len(recorded) == 1
    monkeypatch.delitem(recording.RECORDERS, "cpu")
    FromStudent(Sampling(max_new_tokens=16))(batch, models, STEP)
    assert len(recorded) == 1
    with pytest.raises(ConfigurationError, match=r"DecodeLoop.capture.*a `cpu` device cannot record.*capture: auto"):
        FromStudent(Sampling(), DecodeLoop(capture=True))(batch, models, STEP)


def dynamic():
    """Positions beyond the pretrained length change the frequencies, and the host asks for the largest."""
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    return models_of("llama", rope_parameters=scaling)


def hooked():
    models = models_of("llama")
    models.student.model.get_output_embeddings().register_forward_hook(lambda *_: None)
    return models


def flash():
    models = models_of("llama")
    models.student.model.config._attn_implementation_internal = "flash_attention_2"
    return models


def sharded():
    models = models_of("llama")
    models.student.shards = SimpleNamespace()
    return models


REASONS = {
    "sharded": (sharded, r"spread over the ranks \(`fsdp2`\)"),
    "dynamic": (dynamic, r"HostReadError.*modeling_rope_utils"),
    "hooked": (hooked, r"`model.lm_head` has a hook"),
    "flash": (flash, r"`flash_attention_2`, takes no mask"),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_cannot_be_recorded_is_told_by_name(name):
    make, reason = REASONS[name]
    assert re.search(reason, DecodeLoop().obstacle(make().student))


@pytest.mark.parametrize("name", ["dynamic", "hooked"])
def test_what_cannot_be_recorded_is_decoded_as_usual_and_said_once(name, recorded, caplog):
    models = REASONS[name][0]()
    batch = prompt_batch(models, RAGGED)
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        plain, auto, again = (
            FromStudent(SAMPLINGS["greedy"], DecodeLoop(capture=how))(batch, models, STEP)
            for how in (False, "auto", "auto")
        )
    assert not recorded
    assert torch.equal(plain.input_ids, auto.input_ids)
    assert torch.equal(plain.input_ids, again.input_ids)
    assert len([one for one in caplog.messages if "LlamaForCausalLM cannot be recorded" in one]) == 1
    with pytest.raises(ConfigurationError, match=REASONS[name][1]):
        FromStudent(SAMPLINGS["greedy"], DecodeLoop(capture=True))(batch, models, STEP)


def test_a_recording_that_fails_costs_nothing_but_a_warning(recorded, monkeypatch):
    models = models_of("llama", eos_bias=2.0)
    batch = prompt_batch(models, RAGGED)
    expected = FromStudent(SAMPLINGS["sampled, several"], DecodeLoop(capture=False))(batch, models, STEP)

    def broken(self, work):
        raise RuntimeError("no room in the pool")

    monkeypatch.setattr(Counting, "record", broken)
    with pytest.warns(UserWarning, match=r"RuntimeError \(no room in the pool\).*kernel by kernel.*capture: false"):
        found = FromStudent(SAMPLINGS["sampled, several"])(batch, models, STEP)
    same(expected, found)
    assert "no room" in DecodeLoop().obstacle(models.student)
    FromStudent(SAMPLINGS["sampled, several"])(batch, models, STEP)
    assert len(recorded) == 1, "it is not tried again"
    other = models_of("llama")
    with pytest.raises(ConfigurationError, match="no room in the pool"):
        FromStudent(SAMPLINGS["sampled, several"], DecodeLoop(capture=True))(batch, other, STEP)


@pytest.mark.parametrize(("strategy", "given"), [("fsdp2", True), ("auto", False)])
def test_a_recording_that_is_asked_for_is_refused_before_the_run(strategy, given):
    told = list(DecodeLoop(capture=True).requirements(SimpleNamespace(trainer={"strategy": strategy}), "engine"))
    assert [mistake.path for mistake in told] == ["engine.capture"] * given
    assert not list(DecodeLoop().requirements(SimpleNamespace(trainer={"strategy": strategy}), "engine"))


@settings(max_examples=12, deadline=None)
@given(
    data=st.data(), top_p=st.floats(0.05, 1.0), top_k=st.integers(0, 3), temperature=st.sampled_from([0.0, 0.7, 2.0])
)
def test_a_draw_that_nobody_reads_draws_the_same(data, top_p, top_k, temperature):
    """The whole vocabulary is sorted, where the host would look at the likeliest ids first."""
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    logits = 3 * torch.randn(6, 300, generator=generator, dtype=torch.float64)
    uniform = torch.rand(6, generator=generator, dtype=torch.float64)
    ids, logp = sampling.draw(logits, uniform)
    with refused_host_reads():
        unread, its_logp = sampling.draw(logits, uniform, unread=True)
        shaped = sampling.shape(logits, unread=True)
    assert torch.equal(ids, unread)
    torch.testing.assert_close(its_logp, logp)
    torch.testing.assert_close(shaped, sampling.shape(logits))

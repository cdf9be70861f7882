"""The protocol between `Vllm` and vLLM, recorded by a stand-in that samples from the weights it was given."""

import os
import random
import sys
import types
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf

import numpy as np
import pytest
import torch

from veto_pl.exceptions import ConfigurationError
from veto_pl.metrics.rollout_numbers import rollout_numbers
from veto_pl.models import Lora, RandomWeights, StudentBase
from veto_pl.models.assemble import load_models
from veto_pl.models.causal_lm import CausalLM
from veto_pl.models.probes import probe_logits
from veto_pl.objectives import Distill
from veto_pl.rollouts import FromDataset, FromStudent, FromTeacher, Mixture, Sampling, Vllm
from veto_pl.seams import Step
from veto_pl.testing.rows import global_numbers
from veto_pl.testing.tiny import ALPHABET, prompt_batch, tiny_models, tiny_source

PROMPTS = ["abc>", "a>", "hgfedcba>", "pp>"]
ANY_GAP = partial(Vllm, largest_gap=inf)  # the stand-in's log-probabilities are no model's


@dataclass
class StandIn:
    """What a test sees of the engine."""

    started: list = field(default_factory=list)
    requests: list = field(default_factory=list)
    events: list = field(default_factory=list)


class Parameters:
    def __init__(self, **settings):
        self.__dict__.update(settings)


class Network:
    """After its start a real network's parameters have lost what its loader needs."""

    def __init__(self):
        self.weights = {}

    def load_weights(self, weights):
        raise AttributeError("'Parameter' object has no attribute 'weight_loader'")


class Worker:
    def __init__(self):
        self.model_runner = types.SimpleNamespace(model=Network())

    def get_model(self):
        return self.model_runner.model

    def reload_weights(self, *, weights_iterator):
        self.model_runner.model.weights.update((name, tensor.clone()) for name, tensor in weights_iterator)


class Engine:
    """Holds the pushed weights, and writes tokens that are a function of the request."""

    def __init__(self, record, settings):
        from transformers import AutoConfig, AutoTokenizer

        self.record, self.worker = record, Worker()
        self.network = self.worker.model_runner.model
        self.config = AutoConfig.from_pretrained(settings["model"])
        self.tokenizer = AutoTokenizer.from_pretrained(settings["model"])
        record.started.append(settings)
        record.engine = self

    def collective_rpc(self, method, timeout=None, args=(), kwargs=None):
        self.record.events += ["push"] if method == "reload_weights" else []
        bound = getattr(self.worker, method) if isinstance(method, str) else partial(method, self.worker)
        return [bound(*args, **(kwargs or {}))]

    def reset_prefix_cache(self):
        self.record.events.append("reset")

    def wake_up(self, tags=None):
        self.record.events.append(f"wake {' '.join(tags)}")

    def sleep(self, level=1):
        self.record.events.append(f"sleep {level}")

    def generate(self, prompts, sampling_params, use_tqdm=True):
        self.record.events.append("generate")
        self.record.requests.append(list(zip(prompts, sampling_params, strict=True)))
        return [answer(*pair) for pair in self.record.requests[-1]]


def answer(prompt, parameters):
    """The completions of one request, last first: `index` says which is which."""
    outputs = []
    for index in range(parameters.n):
        length = 1 + (parameters.seed + index) % parameters.max_tokens
        ids = [3 + (parameters.seed + index + i) % 5 for i in range(length - 1)] + [2]
        logp = [{token: types.SimpleNamespace(logprob=-0.5 - i)} for i, token in enumerate(ids)]
        ended = {"finish_reason": "stop", "stop_reason": 2}
        outputs.append(types.SimpleNamespace(index=index, token_ids=tuple(ids), logprobs=logp, **ended))
    return types.SimpleNamespace(prompt_token_ids=prompt["prompt_token_ids"], outputs=outputs[::-1])


@pytest.fixture
def vllm(monkeypatch):
    """A module of that name, and what it saw."""
    record, module = StandIn(), types.ModuleType("vllm")
    module.LLM, module.SamplingParams = lambda **settings: Engine(record, settings), Parameters
    module.__version__ = "0.32.0"
    monkeypatch.setitem(sys.modules, "vllm", module)
    return record


def updated(models):
    with torch.no_grad():
        for weight in models.student.parameters():
            weight.add_(0.01)


def test_weights_are_pushed_once_per_update(vllm):
    models = tiny_models()
    batch = prompt_batch(models, PROMPTS)
    source = FromStudent(Sampling(max_new_tokens=4), ANY_GAP())
    for micro in range(2):
        source(batch, models, Step(0, 9, micro=micro))
    assert vllm.events == ["push", "reset", "generate", "generate"]
    updated(models)
    source(batch, models, Step(1, 9))
    source(batch, models, Step(1, 9, micro=1))
    assert vllm.events[4:] == ["push", "reset", "generate", "generate"]
    pushed = vllm.engine.network.weights
    assert set(pushed) == {name for name, _ in models.student.model.named_parameters()}
    assert all(torch.equal(pushed[name], weight) for name, weight in models.student.model.named_parameters())
    assert len(vllm.started) == 1


@pytest.mark.parametrize("lora", [{"dora": True}, {"targets": ("q_proj",), "modules_to_save": ("lm_head",)}])
def test_of_an_adapter_the_merged_weights_are_pushed(vllm, lora):
    """vLLM gets a model without adapters: its names, its configuration, and what the student computes with."""
    source = Lora(tiny_source(vocab_size=24, tie_word_embeddings=True), rank=2, **lora)
    models = load_models(source, StudentBase().resolved(source), tiny_models().tokenizer)
    batch, sampling = prompt_batch(models, PROMPTS), Sampling(max_new_tokens=4)
    with torch.no_grad():
        for weight in models.student.parameters():
            weight += 0.1 * weight.requires_grad
    for index in range(2):
        FromStudent(sampling, ANY_GAP())(batch, models, Step(index, 9))
        pushed, tied = vllm.engine.network.weights, vllm.engine.config.tie_word_embeddings
        own = RandomWeights("llama", source.source.dimensions | {"vocab_size": 20, "tie_word_embeddings": tied}).load()
        assert tied == ("dora" in lora)
        own.load_state_dict(pushed | ({"lm_head.weight": pushed["model.embed_tokens.weight"]} if tied else {}))
        found, student = CausalLM(own, 20).eval(), models.student.eval()
        torch.testing.assert_close(probe_logits(found), probe_logits(student), rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            for weight in models.student.parameters():
                weight += 0.1 * weight.requires_grad
    assert vllm.events.count("push") == 2
    with torch.autocast("cpu", torch.bfloat16):
        FromTeacher(sampling, ANY_GAP())(batch, models, Step(0, 9))
    base = dict(models.teacher.model.named_parameters())
    assert all(torch.equal(weight, base[name][: len(weight)]) for name, weight in vllm.engine.network.weights.items())


def test_weights_that_are_loaded_without_a_step_are_pushed(vllm):
    models = tiny_models()
    batch = prompt_batch(models, PROMPTS)
    source = FromStudent(Sampling(max_new_tokens=4), ANY_GAP())
    source(batch, models, Step(0, 9))
    models.student.load_state_dict(tiny_models(student_seed=5).student.state_dict())
    source(batch, models, Step(0, 9))
    assert vllm.events.count("push") == 2


def test_a_frozen_teacher_is_pushed_once(vllm):
    models = tiny_models()
    batch = prompt_batch(models, PROMPTS)
    for index in range(3):
        sequences = FromTeacher(Sampling(max_new_tokens=4), ANY_GAP())(batch, models, Step(index, 9))
    assert vllm.events.count("push") == 1
    assert not sequences.on_policy.any()


def test_the_engine_starts_from_the_configuration_alone(vllm):
    models = tiny_models()
    FromStudent(Sampling(max_new_tokens=4), ANY_GAP(0.5, max_model_len=64))(
        prompt_batch(models, PROMPTS), models, Step(0, 1)
    )
    (settings,) = vllm.started
    assert settings["load_format"] == "dummy"
    assert settings["logprobs_mode"] == "processed_logprobs"
    assert settings["generation_config"] == "vllm"
    assert settings["distributed_executor_backend"] == "external_launcher"
    assert (settings["dtype"], settings["gpu_memory_utilization"], settings["max_model_len"]) == ("float32", 0.5, 64)
    assert settings["kv_cache_memory_bytes"] is None
    assert vllm.engine.config.architectures == ["LlamaForCausalLM"]
    assert vllm.engine.config.hidden_size == models.student.model.config.hidden_size
    assert vllm.engine.tokenizer.get_vocab() == models.tokenizer.get_vocab()
    assert models.student.model.config.architectures is None


def test_rows_come_back_in_prompt_order_with_their_log_probabilities(vllm):
    models = tiny_models()
    batch = prompt_batch(models, PROMPTS)
    sampling = Sampling(0.7, 0.9, 11, max_new_tokens=6, num_completions=3, stop=("b",))
    sequences = FromStudent(sampling, ANY_GAP())(batch, models, Step(2, 9, seed=4))
    (requests,) = vllm.requests
    assert [prompt["prompt_token_ids"] for prompt, _ in requests] == [models.tokenizer(t)["input_ids"] for t in PROMPTS]
    for _, asked in requests:
        shaped = (asked.temperature, asked.top_p, asked.top_k, asked.max_tokens, asked.n, asked.stop, asked.detokenize)
        assert shaped == (0.7, 0.9, 11, 6, 3, ["b"], True)
        assert (asked.stop_token_ids, asked.logprobs) == (list(models.eos_ids), 0)
    assert sequences.prompt_rows.tolist() == [row for row in range(4) for _ in range(3)]
    assert sequences.on_policy.all()
    for row, ids in enumerate(sequences.completions()):
        seed = requests[row // 3][1].seed + row % 3
        assert ids.tolist() == [3 + (seed + i) % 5 for i in range(seed % 6)] + [2]
        logp = sequences.sampler_logp[row][sequences.loss_mask[row]]
        assert torch.equal(logp, torch.arange(len(ids)) * -1.0 - 0.5)
        prompt = sequences.input_ids[row][sequences.attention_mask[row] & ~sequences.loss_mask[row]]
        assert models.tokenizer.decode(prompt) == PROMPTS[row // 3]


def test_seeds_are_a_function_of_the_step(vllm):
    models = tiny_models()
    batch = prompt_batch(models, PROMPTS * 4)
    source = FromStudent(Sampling(max_new_tokens=4), ANY_GAP())
    for step in (Step(0, 9), Step(0, 9, rank=1), Step(0, 9, micro=1), Step(1, 9), Step(0, 9, seed=1)):
        source(batch, models, step)
    first, rank, micro, *others = [tuple(asked.seed for _, asked in requests) for requests in vllm.requests]
    assert first == rank == micro
    assert len({first, *others}) == 3
    assert len(set(first)) == 16


def test_greedy_rows_have_probability_one_and_no_cut_is_minus_one(vllm):
    models = tiny_models()
    sequences = FromStudent(Sampling(0.0, max_new_tokens=4), ANY_GAP())(
        prompt_batch(models, PROMPTS), models, Step(0, 1)
    )
    assert (sequences.sampler_logp == 0).all()
    assert {asked.top_k for _, asked in vllm.requests[0]} == {-1}


@pytest.mark.parametrize("tied", [False, True])
def test_the_engine_knows_no_padding_ids(vllm, tied):
    real, padded = len(ALPHABET) + 3, 1500
    tokenizer = tiny_models().tokenizer
    models = load_models(tiny_source(vocab_size=padded, tie_word_embeddings=tied), None, tokenizer)
    FromStudent(Sampling(max_new_tokens=4), ANY_GAP())(prompt_batch(models, PROMPTS), models, Step(0, 1))
    assert vllm.engine.config.vocab_size == real
    shapes = {name: weight.shape[0] for name, weight in vllm.engine.network.weights.items()}
    assert {shapes[name] for name in shapes if "embed" in name or "head" in name} == {real}
    assert len(shapes) == len(list(models.student.model.parameters()))
    assert models.student.model.config.vocab_size == padded


def test_memory_is_handed_back_between_rollouts_and_weights_come_before_the_cache(vllm):
    models = tiny_models()
    source = FromStudent(Sampling(max_new_tokens=4), ANY_GAP(sleep=True))
    for micro in range(2):
        source(prompt_batch(models, PROMPTS), models, Step(0, 9, micro=micro))
    assert vllm.events == ["wake weights", "push", "reset", "wake kv_cache", "generate", "sleep 2"] * 2
    assert vllm.started[0]["enable_sleep_mode"]


def test_the_engine_computes_in_the_dtype_of_autocast(vllm):
    models = tiny_models()
    with torch.autocast("cpu", torch.bfloat16):
        FromStudent(Sampling(max_new_tokens=4), ANY_GAP())(prompt_batch(models, PROMPTS), models, Step(0, 1))
    assert vllm.started[0]["dtype"] == "bfloat16"


def test_the_start_leaves_generators_and_environment_alone(vllm, monkeypatch):
    monkeypatch.setenv("RANK", "7")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
    module, seen = sys.modules["vllm"], []

    def start(**settings):
        seen.append({name: os.environ[name] for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")})
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(0)
        return Engine(vllm, settings)

    module.LLM, models = start, tiny_models()
    before = global_numbers()
    FromStudent(Sampling(max_new_tokens=4), ANY_GAP())(prompt_batch(models, PROMPTS), models, Step(0, 1))
    assert (seen[0]["RANK"], seen[0]["LOCAL_RANK"], os.environ["RANK"]) == ("0", "0", "7")
    assert not {"LOCAL_RANK", "VLLM_ENABLE_V1_MULTIPROCESSING"} & os.environ.keys()
    assert global_numbers() == before


def test_an_engine_with_other_probabilities_is_refused(vllm):
    models = tiny_models()
    batch = prompt_batch(models, PROMPTS)
    for source in (FromStudent, FromTeacher):
        with pytest.raises(ConfigurationError, match=r"nats per token on average, and `Vllm.largest_gap` is 0.2"):
            source(Sampling(max_new_tokens=4), Vllm())(batch, models, Step(0, 1))


def test_samples_are_marked_with_the_trainers_log_ratio_under_the_sampling_distribution(vllm):
    models = tiny_models()
    sampling = Sampling(0.7, top_k=5, max_new_tokens=5, num_completions=2)
    rows = FromStudent(sampling, ANY_GAP())(prompt_batch(models, PROMPTS), models, Step(0, 1))
    with torch.no_grad():
        logits = models.student(rows, lambda hidden, model: model.project(hidden)[0]).double()
    own = torch.log_softmax((logits / 0.7).masked_fill(logits < logits.topk(5).values[:, -1:], -inf), -1)
    expected = own.gather(1, rows.token_ids()[:, None])[:, 0] - rows.sampled_logp()[rows.predictions]
    assert expected.isinf().any()
    torch.testing.assert_close(rows.engine_log_ratio[:, 1:][rows.predictions].double(), expected, rtol=0, atol=1e-5)
    assert (rows.engine_log_ratio[~rows.completion_mask] == 0).all()
    gap = rollout_numbers([rows], models.eos_ids)["engine_gap"].mean()
    assert float(gap) == pytest.approx(float(expected[expected.isfinite()].abs().mean()), abs=1e-5)


def test_no_prompts_give_no_rows(vllm):
    models = tiny_models()
    nobody = prompt_batch(models, PROMPTS).rows(torch.arange(0))
    rows = FromStudent(Sampling(max_new_tokens=4), Vllm())(nobody, models, Step(0, 1))
    assert len(rows) == len(rows.engine_log_ratio) == 0
    assert vllm.events == ["push", "reset"]


def test_a_mixture_asks_it_on_every_rank_whoever_gets_the_prompts(vllm):
    models = tiny_models()
    mixture = Mixture(FromStudent(Sampling(max_new_tokens=4), ANY_GAP()), FromDataset(), 0.5, coin="sample")
    batch = replace(prompt_batch(models, ["a>"], ["a"]), numbers=torch.tensor([3]))
    written = [mixture(batch, models, Step(index, 9)).on_policy.item() for index in range(9)]
    assert set(written) == {True, False}
    assert vllm.events.count("push") == 9


@pytest.mark.parametrize("temperature", [2.0, 2.5])
def test_more_heat_than_vllm_allows_is_refused_when_the_configuration_is_read(temperature):
    source = FromStudent(Sampling(temperature), Vllm())
    setup = types.SimpleNamespace(objective=Distill(rollout=source), evaluation=Sampling(0.0), models={})
    found = [str(mistake) for mistake in source.engine.requirements(setup, "model.objective.init_args.rollout")]
    assert len(found) == (temperature > 2)
    assert all("`Vllm` with `temperature: 2.5`, expected at most 2" in one for one in found)


@pytest.mark.parametrize(("version", "told"), [("0.31.2", "error"), ("0.32.0", ""), ("0.40", "warning")])
def test_versions_that_were_not_tried_are_told(vllm, version, told):
    sys.modules["vllm"].__version__ = version
    models = tiny_models()
    expected = {"error": pytest.raises(ConfigurationError, match=r"needs vLLM 0.32 or later, got 0.31.2"),
                "warning": pytest.warns(UserWarning, match="this is 0.40")}.get(told, nullcontext())  # fmt: skip
    with expected:
        FromStudent(Sampling(max_new_tokens=4), ANY_GAP())(prompt_batch(models, PROMPTS), models, Step(0, 1))


def test_engines_of_two_models_do_not_meet(vllm):
    for seed in (0, 1):
        models = tiny_models(student_seed=seed)
        FromStudent(Sampling(max_new_tokens=4), ANY_GAP())(prompt_batch(models, PROMPTS), models, Step(0, 1))
        pushed = vllm.engine.network.weights
        assert all(torch.equal(pushed[name], weight) for name, weight in models.student.model.named_parameters())
    assert len(vllm.started) == 2


def test_without_vllm_the_message_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    models = tiny_models()
    with pytest.raises(ConfigurationError, match=r"pip install .*vllm.*DecodeLoop"):
        FromStudent(engine=ANY_GAP())(prompt_batch(models, PROMPTS), models, Step(0, 1))
    assert hash(Vllm()) == hash(Vllm())

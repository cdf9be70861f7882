"""The protocol between `VllmServer` and a server, which a stand-in answers."""

import sys
import types
from collections import namedtuple
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf

import anyio
import pytest
import torch
from safetensors.torch import load_file

from tests.judging.chat_server import serving
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.models.assemble import load_models
from veto_pl.rollouts import FromStudent, Sampling, VllmServer
from veto_pl.seams import Ending, Step
from veto_pl.testing.tiny import ALPHABET, prompt_batch, tiny_models, tiny_source

PROMPTS = ["abc>", "a>", "hgfedcba>"]
PAUSED = ["/pause?mode=wait&clear_cache=true", "/collective_rpc", "/resume"]


@pytest.fixture(autouse=True)
def _direct_and_at_once(monkeypatch):
    """No proxy, no pause between attempts."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    async def sleep(delay):
        """Does not wait."""

    monkeypatch.setattr(anyio, "sleep", sleep)


def completed(request):
    """Completions whose tokens are a function of the seed; the second of a prompt ends at a stop string."""
    body, choices = request["body"], []
    for index in range(body["n"]):
        ids = [3 + (body["seed"] + index) % 5, 4, 2 if index == 0 else 5]
        reason = {"finish_reason": "stop", "stop_reason": 2 if index == 0 else "b"}
        told = {"token_logprobs": [-0.5, -1.0, -1.5]}
        choices.append({"index": index, "text": "", "token_ids": ids, "logprobs": told} | reason)
    return {"choices": choices}


@contextmanager
def engine(tmp_path, reply=completed, **settings):
    def answer(request, number):
        return reply(request) if request["path"].endswith("/completions") else {"status": "done"}

    with serving(answer) as (address, requests):
        given = {"server": address, "model": "student", "transfer": "folder", "folder": str(tmp_path / "weights")}
        yield VllmServer(**given | {"largest_gap": inf, "retries": 0} | settings), requests


def paths(requests):
    return [request["path"] for request in requests]


def test_weights_go_while_the_server_pauses_once_per_update(tmp_path):
    models = tiny_models()
    batch = prompt_batch(models, PROMPTS)
    with engine(tmp_path) as (server, requests):
        source = FromStudent(Sampling(max_new_tokens=4), server)
        for micro in range(2):
            source(batch, models, Step(0, 9, micro=micro))
        assert paths(requests) == [*PAUSED, *["/v1/completions"] * 6]
        told = {"method": "reload_weights", "kwargs": {"weights_path": server.folder}}
        assert requests[1]["body"] == told
        with torch.no_grad():
            for weight in models.student.parameters():
                weight.add_(0.01)
        source(batch, models, Step(1, 9))
        assert paths(requests)[9:] == [*PAUSED, *["/v1/completions"] * 3]
        stored = load_file(tmp_path / "weights" / "model.safetensors")
    assert stored.keys() == {name for name, _ in models.student.model.named_parameters()}
    assert all(torch.equal(stored[name], weight) for name, weight in models.student.model.named_parameters())


def test_rows_come_back_in_prompt_order_with_their_log_probabilities(tmp_path):
    models = tiny_models()
    sampling = Sampling(0.7, 0.9, 11, max_new_tokens=6, num_completions=2, stop=("b",))
    with engine(tmp_path) as (server, requests):
        rows = FromStudent(sampling, server)(prompt_batch(models, PROMPTS), models, Step(2, 9, seed=4))
    asked = [request["body"] for request in requests if "prompt" in request["body"]]
    by_prompt = {tuple(body["prompt"]): body for body in asked}
    assert len(asked) == len(PROMPTS)
    for place, text in enumerate(PROMPTS):
        body = by_prompt[tuple(models.tokenizer(text)["input_ids"])]
        shape = [body[name] for name in ("temperature", "top_p", "top_k", "max_tokens", "n", "stop", "logprobs")]
        assert shape == [0.7, 0.9, 11, 6, 2, ["b"], 0]
        assert (body["model"], body["stop_token_ids"], body["logit_bias"]) == ("student", list(models.eos_ids), None)
        for index in range(2):
            ids = rows.completions()[2 * place + index].tolist()
            assert ids == [3 + (body["seed"] + index) % 5, 4, 2 if index == 0 else 5]
    logp = rows.sampler_logp[rows.loss_mask].view(-1, 3)
    assert (logp == torch.tensor([-0.5, -1.0, -1.5])).all()
    assert rows.ending.tolist() == [Ending.EOS, Ending.STOP] * 3
    assert rows.engine_log_ratio.abs().sum() > 0


def test_padding_ids_are_banned_as_long_as_the_server_takes_so_many(tmp_path):
    tokenizer, real = tiny_models().tokenizer, len(ALPHABET) + 3
    with engine(tmp_path) as (server, requests):
        models = load_models(tiny_source(vocab_size=real + 5), None, tokenizer)
        FromStudent(Sampling(max_new_tokens=4), server)(prompt_batch(models, PROMPTS), models, Step(0, 1))
        assert requests[-1]["body"]["logit_bias"] == {str(i): -100.0 for i in range(real, real + 5)}
        models = load_models(tiny_source(vocab_size=real + 1025), None, tokenizer)
        with pytest.raises(ConfigurationError, match="can ban 1024 ids in a request, but the head has 1025"):
            FromStudent(Sampling(max_new_tokens=4), server)(prompt_batch(models, PROMPTS), models, Step(0, 1))


@pytest.mark.parametrize(
    ("reply", "error", "told"),
    [
        (lambda _: (503, "{}", {}), DataError, r"left 3 of 3 prompts unanswered \(status 503\)"),
        (lambda _: {"choices": [{"text": "ab"}]}, ConfigurationError, "has not given `token_ids`"),
    ],
)
def test_a_server_that_does_not_write_ends_the_run(tmp_path, reply, error, told):
    models = tiny_models()
    with engine(tmp_path, reply) as (server, _), pytest.raises(error, match=told):
        FromStudent(Sampling(max_new_tokens=4), server)(prompt_batch(models, PROMPTS), models, Step(0, 1))


def test_a_server_from_another_model_is_refused(tmp_path):
    models = tiny_models()
    told = pytest.raises(ConfigurationError, match=r"`VllmServer.largest_gap` is 0\.2")
    with engine(tmp_path, largest_gap=0.2) as (server, _), told:
        FromStudent(Sampling(max_new_tokens=4), server)(prompt_batch(models, PROMPTS), models, Step(0, 1))


def test_what_cannot_work_is_refused_when_the_configuration_is_read():
    fine = VllmServer(server="http://localhost:1/v1", model="student")
    for expected, given in {"needs a `folder`": {"transfer": "folder"}, "expected an address": {"server": "x"}}.items():
        with pytest.raises(ConfigurationError, match=expected):
            replace(fine, **given)


def test_over_nccl_the_trainer_is_rank_0_and_says_what_it_sends(tmp_path, monkeypatch):
    """vLLM's trainer side is a stand-in: what it was given, and whether names and shapes agree with what comes."""
    seen = []

    @dataclass
    class InitInfo:
        master_address: str
        master_port: int
        world_size: int
        rank: int

    class Sender:
        def __init__(self, source):
            self.source = source

        def send_weights(self):
            said = [(meta.name, meta.dtype, meta.shape) for meta in self.source.metadata()]
            sent = [(name, weight.dtype, tuple(weight.shape)) for name, weight in self.source]
            seen.append((said, sent))

    def trainer_init(init_info, client, source):
        seen.append((init_info, client))
        return Sender(source)

    base = {"ParamMeta": namedtuple("ParamMeta", ("name", "dtype", "shape"))}
    modules = {
        "": {"__version__": "0.32.0"},
        ".distributed.weight_transfer.base": base | {"WeightSource": object},
        ".distributed.weight_transfer.clients": {"HTTPVLLMWeightSyncClient": lambda url, timeout: url},
        ".distributed.weight_transfer.factory": {
            "WeightTransferTrainerFactory": types.SimpleNamespace(trainer_init=trainer_init)
        },
        ".distributed.weight_transfer.nccl_engine": {"NCCLTrainerInitInfo": InitInfo},
    }
    for name, content in modules.items():
        module = types.ModuleType(f"vllm{name}")
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, f"vllm{name}", module)
    models = tiny_models()
    with engine(tmp_path, transfer="nccl", server_ranks=2, port=1234) as (server, requests):
        for index in range(2):
            FromStudent(Sampling(max_new_tokens=4), server)(prompt_batch(models, PROMPTS), models, Step(index, 9))
    assert seen[0] == (InitInfo("localhost", 1234, 3, 0), server.server.removesuffix("/v1"))
    assert len(seen) == 3, "the connection was opened once, and weights were sent twice"
    for said, sent in seen[1:]:
        assert said == sent
        assert [name for name, *_ in said] == [name for name, _ in models.student.model.named_parameters()]
    assert [path for path in paths(requests) if "completions" not in path] == [PAUSED[0], PAUSED[2]] * 2

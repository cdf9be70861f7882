"""The page for users of TRL leaves no argument of its `DistillationTrainer` out."""

import pytest

from tests.processes import ROOT

PAGE = (ROOT / "docs" / "from_trl.md").read_text()
ARGUMENTS = (
    "model teacher_model train_dataset eval_dataset processing_class callbacks optimizers quantization_config "
    "peft_config tools"
)
"""Of the trainer, in version 1.16; `args` is its configuration."""
SETTINGS = (
    "learning_rate model_init_kwargs trust_remote_code teacher_model_name_or_path teacher_model_revision "
    "teacher_model_init_kwargs disable_dropout remove_unused_columns max_completion_length ds3_gather_for_generation "
    "shuffle_dataset pad_to_multiple_of temperature top_p top_k min_p generation_kwargs chat_template_kwargs "
    "repetition_penalty cache_implementation use_vllm vllm_mode vllm_model_impl vllm_enable_sleep_mode "
    "vllm_structured_outputs_regex vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout "
    "vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length vllm_tensor_parallel_size beta "
    "max_tool_calling_iterations log_completions num_completions_to_print log_unique_prompts"
)
"""What its configuration has beyond `TrainingArguments`, and the rate, whose default is another."""


@pytest.mark.parametrize("name", f"{ARGUMENTS} {SETTINGS}".split())
def test_the_page_has_a_row_for_it(name):
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| ")]
    assert any(f"`{name}`" in cell or f"`{name}: " in cell for cell in rows)

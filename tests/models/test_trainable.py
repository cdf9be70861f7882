"""What of a student cannot be trained is refused, and what would stay as it is is said."""

import json
import warnings

import lightning as L
import pytest
import torch

from veto_pl.commands.main import main
from veto_pl.data import JsonLines, PromptDataModule
from veto_pl.exceptions import ConfigurationError
from veto_pl.models import CharacterTokenizer, Pretrained, RandomWeights
from veto_pl.models.assemble import load_models, load_student, load_tokenizer
from veto_pl.models.trainable import check_numbers, warn_of_lost_steps
from veto_pl.module import DistillationModule
from veto_pl.objectives import SFT
from veto_pl.rollouts import Sampling
from veto_pl.testing.tiny import ALPHABET, tiny_models, tiny_source

BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_compute_dtype": "float32"}


@pytest.fixture
def quantised(tmp_path):
    """What is read before any weight: a configuration that says how the weights are stored."""
    source = tiny_source()
    source.load().save_pretrained(tmp_path / "quantised")
    CharacterTokenizer(ALPHABET).load().save_pretrained(tmp_path / "quantised")
    file = tmp_path / "quantised" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": BITS}))
    (tmp_path / "quantised" / "model.safetensors").write_bytes(b"never read")
    return str(tmp_path / "quantised")


def test_a_quantised_student_is_refused_before_it_is_loaded(quantised, tmp_path):
    source = Pretrained(quantised)
    tokenizer = load_tokenizer(source)
    for load in (lambda: load_models(source, None, tokenizer), lambda: load_student(source, tokenizer)):
        with pytest.raises(ConfigurationError, match=r"The student is quantised \(bitsandbytes\).*A teacher may be"):
            load()
    row = {"prompt": "a>", "completion": "b"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    options = {"data.task": "JsonLines", "data.task.train": tmp_path / "rows.jsonl", "model.objective": "SFT",
               "model.student": "Pretrained", "model.student.path": quantised, "run_dir": tmp_path / "run"}  # fmt: skip
    with pytest.raises(SystemExit, match=r"model.student.* a quantised model \(bitsandbytes\), expected weights that"):
        main(["fit", *(f"--{name}={value}" for name, value in options.items())])


def test_weights_that_are_no_numbers_are_refused_whatever_the_configuration_says():
    student = tiny_models().student
    check_numbers(student)
    layer = student.model.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(torch.zeros(256, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ConfigurationError, match=r"1 weights that are no floating-point numbers.*layers\.0\.mlp\.up"):
        check_numbers(student)


EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 1, "vocab_size": len(ALPHABET) + 3, "max_position_embeddings": 64}  # fmt: skip


def fitted(tmp_path, student, compiled=False, lr=1e-3):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a>", "completion": "b"}\n')
    module = DistillationModule(SFT(), student, tokenizer=CharacterTokenizer(ALPHABET),
                                evaluation=Sampling(temperature=0.0, max_new_tokens=4),
                                optimizer=lambda weights: torch.optim.AdamW(weights, lr=lr))  # fmt: skip
    data = PromptDataModule(
        JsonLines(train=str(tmp_path / "rows.jsonl")), max_prompt_tokens=32, max_completion_tokens=32
    )
    trainer = L.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.fit(torch.compile(module) if compiled else module, data)
    return " ".join(str(one.message) for one in said)


def test_a_router_whose_own_loss_is_left_out_is_said(tmp_path):
    said = fitted(tmp_path, RandomWeights("mixtral", SIZES | EXPERTS))
    assert said.count("The student is a mixture of experts") == 1
    assert "`router_aux_loss_coef: 0.001`" in said
    silent = RandomWeights("mixtral", SIZES | EXPERTS | {"router_aux_loss_coef": 0.0})
    for student in (silent, tiny_source(), RandomWeights("doge", dict(SIZES))):
        assert "mixture of experts" not in fitted(tmp_path, student)


def test_a_module_that_is_compiled_as_a_whole_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"`torch.compile\(module\)` would compile.*the module itself"):
        fitted(tmp_path, tiny_source(), compiled=True)


@pytest.mark.parametrize(("lr", "dtype", "lost"), [(1e-5, "bfloat16", True), (1e-5, "float32", False),
                                                   (1e-1, "bfloat16", False)])  # fmt: skip
def test_steps_that_round_away_are_said(tmp_path, lr, dtype, lost):
    student = RandomWeights("llama", tiny_source().dimensions, dtype=dtype)
    said = fitted(tmp_path, student, lr=lr)
    assert ("of the student's weights will not move" in said) == lost


@pytest.mark.parametrize("rate", [1e-5, 1e-4, 1e-3])
def test_half_of_the_weights_move_where_nothing_is_said(rate):
    """The rule against AdamW itself, on weights of all sizes."""
    for scale in (1e-3, 1e-2, 1e-1, 1.0):
        weights = torch.randn(4000, generator=torch.Generator().manual_seed(0)).mul(scale).bfloat16()
        weight = torch.nn.Parameter(weights.clone())
        optimizer = torch.optim.AdamW([weight], lr=rate, weight_decay=0.0)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            warn_of_lost_steps(optimizer.param_groups)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        moved = float((weight != weights).double().mean())
        # Between 1/512 and 1/256 of a weight, what is left of its step depends on the weight.
        assert moved < 0.5 if said else moved > 0.25

"""Models quantised by the real bitsandbytes, on the CPU: teachers, and bases of adapters (QLoRA)."""

import json
import re
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from test_adapter_exports import divergence
from test_adapters import TOKENIZER, adapted
from transformers import AutoModelForCausalLM

from veto_pl.checks.setup import RunSetup
from veto_pl.commands.main import main
from veto_pl.exceptions import ConfigurationError
from veto_pl.models import Lora, Pretrained, Pruned, StudentBase
from veto_pl.models.assemble import load_models, load_student
from veto_pl.models.export_folder import export_student
from veto_pl.models.merging import whole_weights
from veto_pl.models.probes import probe_logits
from veto_pl.models.quantising import quantization
from veto_pl.testing.tiny import tiny_source

NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose layers are wide enough for blocks of 64 numbers."""
    path = tmp_path_factory.mktemp("quantised")
    tiny_source(hidden_size=64, intermediate_size=128).load().save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    return str(path)


def test_a_quantised_teacher_is_small_near_and_frozen(folder):
    models = load_models(tiny_source(hidden_size=64), Pretrained(folder, quantization_config=NF4), TOKENIZER)
    packed = [weight for weight in models.teacher.parameters() if weight.dtype == torch.uint8]
    assert len(packed) == 14
    full = load_student(Pretrained(folder), TOKENIZER).eval()
    logp, other = (probe_logits(m).log_softmax(-1) for m in (full, models.teacher))
    assert 0 < float((logp.exp() * (logp - other)).sum(-1).mean()) < 3
    assert not any(weight.requires_grad for weight in models.teacher.parameters())


@pytest.mark.parametrize("dora", [pytest.param(False, marks=pytest.mark.slow), True])
def test_an_adapter_beside_four_bits_is_exported_as_it_was_trained(folder, dora, tmp_path):
    """Merged into the numbers that the bits stand for, or apart, beside the base as it was before."""
    source = Pretrained(folder, quantization_config=NF4)
    student = adapted(source=source, dora=dora)
    trained = {weight.dtype for weight in student.parameters() if weight.requires_grad}
    assert trained == {torch.float32}
    export_student(student, TOKENIZER, None, tmp_path / "merged", source=Lora(source))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert divergence(student, merged) == pytest.approx(0.0, abs=1e-5)
    assert not hasattr(merged.config, "quantization_config")
    export_student(student, TOKENIZER, None, tmp_path / "apart", adapter="separate", source=Lora(source))
    card = (tmp_path / "apart" / "README.md").read_text()
    assert "quantization_config=BitsAndBytesConfig(" in card
    assert "AutoTokenizer, BitsAndBytesConfig, pipeline" in card
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "apart" / "base")
    assert divergence(load_student(Pretrained(folder), TOKENIZER), whole) == 0.0


def test_layers_of_four_bits_keep_the_layout_that_adapters_read(folder):
    """Some processors repack them otherwise, and then a DoRA takes other numbers for its base."""
    student = adapted(source=Pretrained(folder, quantization_config=NF4), dora=True).eval()
    with torch.no_grad():
        student.model(torch.tensor([[1, 2, 3]]))
    layers = [layer for layer in student.modules() if hasattr(layer, "support_avx512bf16_for_cpu")]
    assert layers
    assert not any(getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in layers)


def test_the_base_of_four_bits_teaches_beside_its_adapter(folder):
    lora = Lora(Pretrained(folder, quantization_config=NF4), rank=2)
    models = load_models(lora, StudentBase().resolved(lora), TOKENIZER)
    loaded = load_student(Lora(lora.source, rank=2), TOKENIZER).eval()
    assert torch.equal(probe_logits(models.teacher), probe_logits(loaded)), "B is 0 at the start"
    assert {weight.data_ptr() for weight in models.teacher.parameters()} < {
        weight.data_ptr() for weight in models.student.parameters()
    }


@pytest.mark.slow
def test_bits_that_compute_with_other_numbers_are_not_merged(folder, tmp_path):
    """Layers of 8 bits round what they read as well, which no merged weights do."""
    source = Pretrained(folder, quantization_config={"load_in_8bit": True})
    student = adapted(source=source)
    with pytest.raises(ConfigurationError, match=r"another model.*as those of 8 bits do"):
        export_student(student, TOKENIZER, None, tmp_path / "out", source=Lora(source))
    export_student(student, TOKENIZER, None, tmp_path / "out", adapter="separate", source=Lora(source))


def test_whole_weights_leave_the_bits_alone(folder):
    student = adapted(source=Pretrained(folder, quantization_config=NF4), targets=("q_proj",))
    before = probe_logits(student)
    shapes = {name: (weight.shape, weight.dtype) for name, weight in whole_weights(student)}
    plain = dict(Pretrained(folder).load().named_parameters())
    assert shapes == {name: (weight.shape, torch.float32) for name, weight in plain.items()}
    assert torch.equal(probe_logits(student), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "bitsandbite"}, "`quant_method` `bitsandbite`.* Did you mean `bitsandbytes`"),
        ({}, "`quant_method` `None`, which transformers does not have"),
        (NF4 | {"bnb_4bit_quant": "nf4"}, "has `bnb_4bit_quant`, which BitsAndBytesConfig does not take. Did you mean"),
        (NF4 | {"bnb_4bit_compute_dtype": 3}, "is refused by BitsAndBytesConfig"),
    ],
)
def test_settings_that_would_be_left_out_are_named(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        quantization(settings)


def setup(**trainer):
    return RunSetup(None, None, trainer)


def test_what_cannot_be_quantised_is_told_before_the_run(folder, monkeypatch):
    source = Pretrained(folder, quantization_config=NF4)
    assert list(source.requirements(setup(), "model.teacher")) == []
    (mistake,) = source.requirements(setup(strategy="fsdp2"), "model.teacher")
    assert "`model.teacher.init_args.quantization_config`: given a quantised model under `fsdp2`" in str(mistake)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(
        "veto_pl.models.quantising.find_spec", lambda name: None if name == "bitsandbytes" else object()
    )
    with pytest.raises(ConfigurationError, match=r"needs bitsandbytes: pip install 'veto_pl\[quantised\]'"):
        list(source.requirements(setup(), "model.teacher"))


def test_a_quantised_student_says_how_it_can_be_trained(folder):
    source = Pretrained(folder, quantization_config=NF4)
    with pytest.raises(ConfigurationError, match=r"quantised \(bitsandbytes\).*make it the `source` of a `Lora`"):
        load_student(source, TOKENIZER)
    assert source.unquantised() == Pretrained(folder)
    assert Pruned(source, keep_layers=(0,)).unquantised() == Pruned(Pretrained(folder), keep_layers=(0,))


@pytest.mark.slow
def test_the_command_tells_what_quantising_costs(folder, tmp_path, capsys):
    texts = {"abc>": "cba", "de>": "ed"}
    rows, config = tmp_path / "rows.jsonl", tmp_path / "config.yaml"
    rows.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in texts.items()))
    task = {"class_path": "JsonLines", "init_args": {"train": str(rows), "validation": str(rows)}}
    teacher = {"class_path": "Pretrained", "init_args": {"path": folder, "quantization_config": NF4}}
    model = {"objective": {"class_path": "SFT"}, "student": folder, "teacher": teacher}
    model["evaluation"] = {"max_new_tokens": 8}
    lengths = {"max_prompt_tokens": 8, "max_completion_tokens": 8}
    data, trainer = {"task": task, "batch_size": 2, **lengths}, {"accelerator": "cpu", "max_steps": 1}
    config.write_text(yaml.safe_dump({"model": model, "data": data, "trainer": trainer}))
    main(["quantised", "--config", str(config)])
    said = re.search(r"teacher: KL\(full \|\| quantised\) (\S+) nats per token over 7 tokens", capsys.readouterr().out)
    source, terms = Pretrained(folder), []
    both = [one.load().eval() for one in (source, replace(source, quantization_config=NF4))]
    for prompt, answer in texts.items():
        ids = torch.tensor([[*TOKENIZER(prompt + answer)["input_ids"], TOKENIZER.eos_token_id]])
        with torch.no_grad():
            logp, other = (m(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1) for m in both)
        terms += (logp.exp() * (logp - other)).sum(-1).tolist()
    assert float(said[1]) == pytest.approx(sum(terms) / len(terms), rel=1e-3)
    with pytest.raises(SystemExit, match="quantises no model"):
        main(["quantised", "--config", str(config), "--model.teacher=null"])

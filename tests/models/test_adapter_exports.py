"""What an export of a student with an adapter is for others: read by transformers and peft, it says the same."""

import json
import os
import re
from dataclasses import dataclass, replace
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_adapters import TOKENIZER, adapted
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from veto_pl.exceptions import ConfigurationError
from veto_pl.models import InMemory, Lora, Pretrained, Pruned
from veto_pl.models.adapter_folder import BASE
from veto_pl.models.assemble import load_student
from veto_pl.models.causal_lm import CausalLM
from veto_pl.models.export_folder import export_student
from veto_pl.models.merging import whole_weights
from veto_pl.models.probes import probe_logits
from veto_pl.seams import ModelSource
from veto_pl.testing.tiny import tiny_source

IDS = torch.arange(3, 13)[None]


def divergence(student, model):
    """KL in nats per token from what the student says to what a model of transformers says."""
    with torch.no_grad():
        logp, other = (m(IDS).logits.log_softmax(-1) for m in (student.model.eval(), model.eval()))
    return float((logp.exp() * (logp - other)).sum(-1).mean())


def by_the_card(folder):
    """Run the code of a model card beside the folder, up to the call; its `generate`."""
    code = re.search(r"```python\n(.*?)\ngenerate\(", (folder / "README.md").read_text(), re.S)[1]
    before = os.getcwd()
    os.chdir(folder.parent)
    try:
        names = {}
        exec(code, names)
    finally:
        os.chdir(before)
    return names["generate"]


@pytest.mark.parametrize("form", ["merged", "separate"])
@pytest.mark.parametrize(
    "lora",
    [
        {"dora": True, "targets": ("q_proj", "down_proj"), "modules_to_save": ("lm_head",)},
        pytest.param({"dora": True}, marks=pytest.mark.slow),
        pytest.param({"targets": ("embed_tokens",)}, marks=pytest.mark.slow),
    ],
    ids=["head", "dora", "embedding"],
)
def test_the_models_card_loads_the_student(form, lora, tmp_path):
    """The base is a pruned model with a tied head, which no hub and no other folder has."""
    source = Pruned(tiny_source(tie_word_embeddings=True, num_hidden_layers=3), drop_layers=(1,))
    student = adapted(source=source, **lora)
    export_student(student, TOKENIZER, None, tmp_path / "out", adapter=form, source=Lora(source))
    model = by_the_card(tmp_path / "out").model
    assert divergence(student, model) == pytest.approx(0.0, abs=1e-6)
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")}
    assert ("adapter_config.json" in files) == ("base/model.safetensors" in files) == (form == "separate")
    assert ("model.safetensors" in files) == (form == "merged")
    export_student(student, TOKENIZER, None, tmp_path / "out", adapter="merged", source=Lora(source))
    assert not (tmp_path / "out" / BASE).exists(), "an earlier export is replaced as a whole"


def test_a_separate_adapter_names_no_place_of_this_machine(tmp_path):
    student = adapted()
    export_student(student, TOKENIZER, None, tmp_path / "out", adapter="separate", source=Lora(tiny_source()))
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "./base"
    assert str(tmp_path) not in "".join(path.read_text(errors="replace") for path in (tmp_path / "out").rglob("*.json"))
    with pytest.raises(OSError, match=r"\./base"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_a_base_on_the_hub_is_named_and_not_copied(tmp_path):
    """The hub is played by its cache: a folder that is there whenever its name is read."""
    tiny_source().load().save_pretrained(tmp_path / "cache")
    real = Pretrained._location
    at_hub = {"pretrained_model_name_or_path": str(tmp_path / "cache"), "revision": None}

    def cached(source):
        return at_hub if source.path == "someone/model" else real(source)

    source = Lora(Pretrained("someone/model", revision="abc"))
    assert source.source.published() == {"pretrained_model_name_or_path": "someone/model", "revision": "abc"}
    assert Pruned(source.source, drop_layers=(0,)).published() is None
    with (
        patch.object(Pretrained, "_location", cached),
        patch.object(
            Pretrained, "published", lambda self: {"pretrained_model_name_or_path": "someone/model", "revision": "abc"}
        ),
    ):
        student = adapted(source=source.source)
        export_student(student, TOKENIZER, None, tmp_path / "out", adapter="separate", source=source)
    assert not (tmp_path / "out" / BASE).exists()
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("someone/model", "abc")
    assert (
        'from_pretrained("someone/model", revision="abc", dtype="float32")' in (tmp_path / "out/README.md").read_text()
    )


@pytest.mark.parametrize("form", ["merged", "separate"])
def test_what_is_not_the_student_is_not_kept(form, tmp_path):
    """Merged the wrong way, or beside another base: the export is refused by name, and an earlier one stays."""
    student, source = adapted(), Lora(tiny_source())
    export_student(student, TOKENIZER, "earlier: run", tmp_path / "out", source=source)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def without_adapter(model, rounding=None):
        return whole_weights(load_student(tiny_source(), TOKENIZER))

    def of_another(model, rounding=None):
        return whole_weights(load_student(tiny_source(seed=9), TOKENIZER))

    place = "export_folder" if form == "merged" else "adapter_folder"
    with (
        patch(f"veto_pl.models.{place}.whole_weights", without_adapter if form == "merged" else of_another),
        pytest.raises(
            ConfigurationError, match=r"another model than the trained student.* \(KL .* nats.*`export.adapter:"
        ),
    ):
        export_student(student, TOKENIZER, None, tmp_path / "out", adapter=form, source=source)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_of_a_whole_student_is_read_again_too(tmp_path):
    """A class that writes other weights than it computes with: here its head is not what is saved."""
    student = load_student(tiny_source(), TOKENIZER)
    hook = student.model.lm_head.register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(ConfigurationError, match="Its class writes other weights than it computes with"):
        export_student(student, TOKENIZER, None, tmp_path / "out")
    hook.remove()
    export_student(student, TOKENIZER, None, tmp_path / "out")
    assert divergence(student, AutoModelForCausalLM.from_pretrained(tmp_path / "out")) == 0.0


class Unknown(LlamaForCausalLM):
    """A class that the registry of transformers does not know."""


def test_a_class_that_nobody_can_read_is_exported_with_a_warning(tmp_path):
    shape = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    model = Unknown(LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64))
    with pytest.warns(UserWarning, match="was not read again: transformers does not know `Unknown`"):
        export_student(CausalLM(model, 20), TOKENIZER, None, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


@dataclass(frozen=True)
class OfAPlugin(ModelSource):
    """As the first plug-ins did it: what `add_adapter` of transformers does, and nothing said of it anywhere else."""

    source: ModelSource

    def config(self):
        return self.source.config()

    def load(self):
        from peft import LoraConfig, inject_adapter_in_model

        model = self.source.load()
        settings = LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", init_lora_weights=False)
        inject_adapter_in_model(settings, model)
        model._hf_peft_config_loaded = True
        return model


def test_an_adapter_of_a_plug_in_is_exported_as_the_model_that_it_is(tmp_path):
    """It once was: an adapter alone, whose base was another model by 0.19 nats per token, without a word."""
    tiny_source(num_hidden_layers=3).load().save_pretrained(tmp_path / "whole")
    source = OfAPlugin(Pruned(Pretrained(str(tmp_path / "whole")), drop_layers=(1,)))
    student = load_student(source, TOKENIZER)
    export_student(student, TOKENIZER, None, tmp_path / "out", source=source)
    assert divergence(student, AutoModelForCausalLM.from_pretrained(tmp_path / "out")) == pytest.approx(0.0, abs=1e-6)
    export_student(student, TOKENIZER, None, tmp_path / "out", adapter="separate", source=source)
    assert divergence(student, by_the_card(tmp_path / "out").model) == pytest.approx(0.0, abs=1e-6)


def test_several_adapters_are_refused(tmp_path):
    from peft import inject_adapter_in_model

    student = load_student(OfAPlugin(tiny_source()), TOKENIZER)
    inject_adapter_in_model(student.model.peft_config["default"], student.model, "second")
    with pytest.raises(ConfigurationError, match=r"has 2 adapters \(default, second\), expected one"):
        export_student(student, TOKENIZER, None, tmp_path / "out", adapter="separate")


def test_rounding_an_adapter_away_is_told(tmp_path):
    source = replace(tiny_source(), dtype="bfloat16")
    student = adapted(source=source, scale=3e-4)
    with pytest.warns(UserWarning, match=r"Merging the adapter loses \d+% of it: .*bfloat16"):
        export_student(student, TOKENIZER, None, tmp_path / "out", source=Lora(source))
    export_student(student, TOKENIZER, None, tmp_path / "out", adapter="separate", source=Lora(source))
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.float32}


def test_a_damaged_adapter_is_not_kept(tmp_path):
    def damaged(weights, path, metadata):
        save_file({name: torch.zeros_like(weight) for name, weight in weights.items()}, path, metadata=metadata)

    with patch("safetensors.torch.save_file", damaged), pytest.raises(ConfigurationError, match="another model"):
        export_student(adapted(), TOKENIZER, None, tmp_path / "out", adapter="separate", source=Lora(tiny_source()))
    assert not (tmp_path / "out").exists()


def test_a_model_that_peft_has_wrapped_is_exported(tmp_path):
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(tiny_source().load(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    student = load_student(InMemory(wrapped), TOKENIZER)
    export_student(student, TOKENIZER, None, tmp_path / "out")
    torch.testing.assert_close(
        probe_logits(load_student(Pretrained(str(tmp_path / "out")), TOKENIZER).eval()),
        probe_logits(student.eval()),
        rtol=1e-4,
        atol=1e-4,
    )

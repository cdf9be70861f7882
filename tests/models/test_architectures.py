"""Every causal architecture of transformers, tiny: it is trained and sampled from, or refused by name."""

import warnings

import pytest
import torch
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from veto_pl.core.own_errors import OwnErrors
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.assemble import load_models
from veto_pl.models.backbone import backbone
from veto_pl.models.causal_lm import CausalLM
from veto_pl.models.initialisation import RandomWeights
from veto_pl.models.tokenizers import CharacterTokenizer
from veto_pl.module import DistillationModule
from veto_pl.rollouts import FromDataset, FromStudent, Sampling
from veto_pl.seams import Step
from veto_pl.testing.tiny import ALPHABET, prompt_batch, tiny_models, tiny_source

STEP = Step(0, 1)
WIDTHS = dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size", "attention_hidden_size", "dim"), 32)
LAYERS = dict.fromkeys(
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 4
)
HEADS = dict.fromkeys(
    ("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads", "encoder_attention_heads",
     "decoder_attention_heads"), 4
)  # fmt: skip
INNER = dict.fromkeys(
    ("intermediate_size", "ffn_dim", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size"), 64
)
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
           "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "topk_group": 1}  # fmt: skip
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
STATE = {"state_size": 4, "mamba_d_state": 4, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2}
LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
OTHERS = {"vocab_size": len(ALPHABET) + 3, "head_dim": 8, "max_position_embeddings": 128, "n_positions": 128,
          "pad_token_id": 0, "initializer_range": 0.2, "init_std": 0.2, "sliding_window": 8, "rotary_dim": 8,
          "vocab_size_per_layer_input": 20, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0}  # fmt: skip
SMALL = WIDTHS | LAYERS | HEADS | INNER | EXPERTS | LATENT | STATE | LINEAR | OTHERS
LARGEST = 3e7
"""Parameters of a model that these settings make small."""
NAMED = {"llama4_text": "llama4", "llama4": "llama4", "mllama": "mllama"}
FAST = ("llama4_text", "mllama", "xlnet")
TRAINED = (
    "falcon", "gemma", "gemma2", "gemma3_text", "glm", "gpt2", "gpt_neox", "granite", "llama", "mistral", "mixtral",
    "olmo2", "opt", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3",
)  # fmt: skip
"""What many use. These train and write; for others it is enough to be refused by name."""


def small(config):
    """Those of the settings that a configuration has, and not twice under two names."""
    known = {name: value for name, value in SMALL.items() if name in config.to_dict() or name in config.attribute_map}
    return {name: value for name, value in known.items() if config.attribute_map.get(name) not in known}


def source(model_type):
    plain = RandomWeights(model_type).config()
    dimensions, text = small(plain), plain.get_text_config()
    if text is not plain and "text_config" in plain.to_dict():
        dimensions["text_config"] = small(text)
    return RandomWeights(model_type, dimensions)


@pytest.mark.parametrize(
    "model_type",
    [
        name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
        for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    ],
)
def test_an_architecture_trains_and_writes_or_is_refused_by_name(model_type):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            chosen = source(model_type)
            with torch.device("meta"):
                if chosen.skeleton().num_parameters() > LARGEST:
                    assert model_type not in TRAINED
                    pytest.skip("these settings do not make it small")
            models = load_models(chosen, None, CharacterTokenizer(ALPHABET).load())
            batch = prompt_batch(models, ["abc>", "a>", "fedcba>"], ["cba", "a", "abcdef"])
            rows = FromDataset()(batch, models, STEP)
            models.student(rows, lambda hidden, lm: lm.project(hidden)[0]).sum().backward()
            FromStudent(Sampling(max_new_tokens=3))(batch, models, STEP)
        except ConfigurationError as error:
            assert model_type not in TRAINED
            refused_by_name(str(error), model_type)
        except (ValueError, RuntimeError):
            assert model_type not in TRAINED
            pytest.skip("transformers does not run it with these settings")


def refused_by_name(message, model_type):
    assert any(name in message for name in ("ForCausalLM", "LMHead", "Decoder", "RandomWeights", model_type)), message
    assert "no attribute 'packs'" not in message


@pytest.mark.parametrize("model_type", ["llama4_text", "mllama"])
def test_a_backbone_that_its_class_misnames_is_found(model_type):
    model = source(model_type).load()
    assert model.base_model is model
    assert backbone(model) is model.model


def test_a_model_without_a_backbone_is_refused_by_name():
    model = tiny_source().load()
    model.base_model_prefix = "nothing"
    assert backbone(model) is model.model
    model.other = nn.Linear(2, 2)
    with pytest.raises(ConfigurationError, match=r"LlamaForCausalLM has no part .* it has 2 modules"):
        CausalLM(model, 20).supports_packing  # noqa: B018


def test_a_bidirectional_model_is_refused():
    with pytest.raises(ConfigurationError, match=r"BertGenerationDecoder reads the tokens that it should predict"):
        load_models(source("bert-generation"), None, CharacterTokenizer(ALPHABET).load()).student.probe()


@pytest.mark.parametrize("whose", [CausalLM, DistillationModule])
def test_a_property_fails_with_its_own_error(whose, monkeypatch):
    """`nn.Module` would say that there is no such property."""
    assert issubclass(whose, OwnErrors)
    student = tiny_models().student
    monkeypatch.setattr(student.model, "get_output_embeddings", lambda: None)
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'weight'"):
        student.head_rows  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        student.nothing  # noqa: B018


def test_whatever_an_architecture_raises_when_it_is_tried_names_it(monkeypatch):
    student = tiny_models().student
    monkeypatch.setattr(student.model.model, "forward", lambda **_: None.last_hidden_state)
    with pytest.raises(ConfigurationError, match=r"LlamaForCausalLM cannot be run .* AttributeError: 'NoneType'"):
        student.supports_packing  # noqa: B018

"""A source's skeleton is its model without the numbers, and what is pruned can be built again."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import transformers
from transformers import Qwen2Config

from veto_pl.exceptions import ConfigurationError
from veto_pl.models import CharacterTokenizer, Gguf, Pretrained, PretrainedTokenizer, Pruned, RandomWeights
from veto_pl.models.assemble import load_models, load_student, load_tokenizer
from veto_pl.testing.tiny import ALPHABET, DIMENSIONS, tiny_source

IDS = torch.arange(3, 13)[None]
SMALL = {
    "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
    "intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip
LARGE = {
    "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
    "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False,
}  # fmt: skip


def qwen2_parameters(
    *, hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads, intermediate_size, vocab_size,
    tie_word_embeddings,
):  # fmt: skip
    """Counted by hand: q and o, k and v with the three biases, the gated MLP, two norms; then the embeddings."""
    d, kv = hidden_size, hidden_size // num_attention_heads * num_key_value_heads
    layer = 2 * d * d + 2 * d * kv + d + 2 * kv + 3 * d * intermediate_size + 2 * d
    return num_hidden_layers * layer + d + vocab_size * d * (1 if tie_word_embeddings else 2)


def test_the_real_pair_is_assembled_on_the_meta_device_from_configs_alone(tmp_path):
    for name, settings in (("student", SMALL), ("teacher", LARGE)):
        Qwen2Config(**settings).save_pretrained(tmp_path / name)
        CharacterTokenizer(ALPHABET).load().save_pretrained(tmp_path / name)
    student, teacher = (
        Pretrained(str(tmp_path / name), dtype="bfloat16", attention="eager") for name in ("student", "teacher")
    )
    with torch.device("meta"):
        models = load_models(student, teacher, load_tokenizer(student), empty=True)
    for model, settings in ((models.student, SMALL), (models.teacher, LARGE)):
        assert all(p.is_meta and p.dtype == torch.bfloat16 for p in model.parameters())
        assert sum(p.numel() for p in model.parameters()) == qwen2_parameters(**settings)
        assert model.model.config._attn_implementation == "eager"
        assert (model.head_rows, model.vocab_size) == (settings["vocab_size"], len(ALPHABET) + 3)
    assert models.student.training
    assert not models.teacher.training
    assert not any(p.requires_grad for p in models.teacher.parameters())


@pytest.fixture
def half(tmp_path):
    """A checkpoint in bfloat16, as most of the hub's are."""
    replace(tiny_source(), dtype="bfloat16").load().save_pretrained(tmp_path / "half")
    return str(tmp_path / "half")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "auto"])
def test_skeleton_and_model_have_the_same_dtypes(half, dtype):
    wanted = {"float32": torch.float32, "float16": torch.float16}.get(dtype, torch.bfloat16)
    stored = Pretrained(half, dtype=dtype)
    for source in (stored, Pruned(stored, drop_layers=(0,))):
        for model in (source.skeleton(), source.load()):
            assert {p.dtype for p in model.parameters()} == {wanted}
    made = RandomWeights("llama", DIMENSIONS["llama"], dtype=dtype)
    assert made.skeleton().dtype == made.load().dtype == (torch.float32 if dtype == "auto" else wanted)


def test_trained_weights_survive_the_way_through_an_empty_student(half):
    tokenizer = CharacterTokenizer(ALPHABET).load()
    trained = load_student(Pretrained(half), tokenizer)
    with torch.no_grad():
        for p in trained.parameters():
            p.add_(1e-4)  # lost if the empty student had the checkpoint's bfloat16
    empty = load_student(Pretrained(half), tokenizer, empty=True)
    empty.load_state_dict(trained.state_dict())
    for name, value in trained.state_dict().items():
        assert torch.equal(value, empty.state_dict()[name]), name


def test_rotary_frequencies_stay_float32_when_random_weights_are_half_precision():
    model = replace(tiny_source(), dtype="bfloat16").load()
    assert model.dtype == torch.bfloat16
    assert torch.equal(model.model.rotary_emb.inv_freq, tiny_source().load().model.rotary_emb.inv_freq)


def test_random_weights_reseed_no_other_device(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    tiny_source(seed=3).load()
    assert seeded == []


def test_dropout_and_attention_reach_every_architecture(tmp_path):
    for model_type, names in {
        "gpt2": ("attn_pdrop", "embd_pdrop", "resid_pdrop"), "qwen2": ("attention_dropout",),
    }.items():  # fmt: skip
        folder = str(tmp_path / model_type)
        tiny_source(model_type).load().save_pretrained(folder)
        source = Pretrained(folder, dropout=0.125, attention="eager")
        for model in (source.skeleton(), source.load()):
            assert [getattr(model.config, name) for name in names] == [0.125] * len(names)
            assert model.config._attn_implementation == "eager"
        rates = {m.p for m in Pretrained(folder, dropout=0.125).load().modules() if isinstance(m, torch.nn.Dropout)}
        assert rates <= {0.125}


@pytest.mark.parametrize("settings", [
    {"attention_dropout": 0.0}, {"num_hidden_layers": 4, "sliding_window": 4, "use_sliding_window": True},
])  # fmt: skip
def test_a_pruned_config_builds_the_pruned_model(tmp_path, settings):
    for drop in ((0,), (1,)):
        source = Pruned(tiny_source("qwen2", **settings), drop_layers=drop)
        state = torch.get_rng_state()
        model = source.load().eval()
        assert torch.equal(torch.get_rng_state(), state)
        assert source.config().to_dict().get("layer_types") == model.config.layer_types
        assert source.config().num_hidden_layers == model.config.num_hidden_layers == len(model.model.layers)
        same_after_saving(model, tmp_path / f"{len(settings)}{drop[0]}")


def same_after_saving(model, folder):
    model.save_pretrained(folder)
    with torch.no_grad():
        assert torch.equal(Pretrained(str(folder)).load().eval()(IDS).logits, model(IDS).logits)


def test_layers_without_rotary_positions_stay_so_after_pruning(tmp_path):
    dimensions = DIMENSIONS["llama"] | {"num_hidden_layers": 4, "vocab_size": 20, "pad_token_id": 0}
    dimensions |= {"bos_token_id": 1, "eos_token_id": 1, "initializer_range": 0.4}
    source = Pruned(RandomWeights("smollm3", dimensions), drop_layers=(1,))
    assert source.config().no_rope_layers == [1, 1, 0]
    same_after_saving(source.load().eval(), tmp_path)


def test_layers_placed_by_index_are_refused_and_not_scrambled():
    dimensions = DIMENSIONS["llama"] | {
        "num_hidden_layers": 4, "vocab_size": 20, "mlp_only_layers": [0, 1], "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 8, "num_experts": 2, "num_experts_per_tok": 1,
    }  # fmt: skip
    source = RandomWeights("qwen2_moe", dimensions)
    with pytest.raises(
        ConfigurationError, match=r"cannot drop these layers of `Qwen2MoeForCausalLM`.*model\.layers\.1"
    ):
        Pruned(source, drop_layers=(1,)).load()
    assert Pruned(source, drop_layers=(3,)).load().config.num_hidden_layers == 3


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda at: Pretrained(at, dropout=1.5), r"`Pretrained\.dropout` must lie in \[0, 1\), got 1\.5"),
        (lambda at: Gguf(path=at, dropout=-0.1), r"`Gguf\.dropout` must lie in \[0, 1\), got -0\.1"),
        (lambda at: Pretrained(at).config(), "^No model could be read from `.*empty`(?!.*No model could)"),
        (lambda at: Pretrained(at).load(), "^No model could be read from `.*empty`(?!.*No model could)"),
        (lambda at: Gguf(package="no_package.inside").load(), r"`no_package\.inside`, which is not installed"),
        (lambda at: Gguf(path=at + "/no.gguf").load(), r"needs one GGUF file, found 0 in `.*no\.gguf`"),
        (lambda at: RandomWeights("llama", {"to_dict": 3}).config(), r"names \['to_dict'\]"),
        (lambda at: PretrainedTokenizer(at + "/no").load(), "No tokenizer could be read from `.*/no`"),
        (lambda at: load_tokenizer(Pretrained(at + "/no")), "No tokenizer could be read from `.*/no`"),
        (lambda at: CharacterTokenizer("ab", eos="a"), "differ from each other and from every character"),
        (lambda at: CharacterTokenizer("ab", eos="<pad>"), "differ from each other and from every character"),
    ],
)
def test_mistakes_are_named(tmp_path, mistake, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=message):
        mistake(str(tmp_path / "empty"))


def test_a_folder_without_a_tokenizer_is_not_read_as_a_vocabulary_of_one(tmp_path):
    Qwen2Config().save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match=r"holds no tokenizer|No tokenizer could be read"):
        load_tokenizer(Pretrained(str(tmp_path)))


def test_prompts_are_padded_on_the_left():
    tokenizer = load_tokenizer(tiny_source(), CharacterTokenizer(ALPHABET))
    assert tokenizer(["a", "abc"], padding=True)["input_ids"] == [[0, 0, 4], [4, 5, 6]]


def test_a_skeleton_of_trusted_remote_code_asks_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own"
    tiny_source().config().save_pretrained(folder)
    (folder / "modeling_own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    stored = json.loads((folder / "config.json").read_text()) | {
        "model_type": "own",
        "auto_map": {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"},
    }
    (folder / "config.json").write_text(json.dumps(stored))
    assert type(Pretrained(str(folder), trust_remote_code=True).skeleton()).__name__ == "OwnForCausalLM"
    with pytest.raises(ConfigurationError, match="No model could be read"):
        Pretrained(str(folder)).config()


def test_importing_the_sources_imports_no_transformers():
    code = "import sys, veto_pl.models; print(sorted({'transformers', 'tokenizers', 'gguf'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

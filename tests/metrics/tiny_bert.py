"""An encoder that is small enough to be made by the tests."""

import atexit
import json
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "a",
    "river",
    "of",
    "small",
    "stones",
    "runs",
    "the",
    "cat",
    "sat",
    "on",
]
VOCABULARY += ["mat", "dog", "barked", "loudly", "today"]


@lru_cache(maxsize=1)
def tiny_bert():
    """Its folder. The weights are the same in every process."""
    folder = tempfile.mkdtemp(prefix="tiny_bert")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = BertModel(config)
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.5)
    # Not `save_pretrained`, which writes on rank 0 only.
    Path(folder, "config.json").write_text(json.dumps(config.to_dict()))
    save_file(model.state_dict(), Path(folder, "model.safetensors"), metadata={"format": "pt"})
    return folder

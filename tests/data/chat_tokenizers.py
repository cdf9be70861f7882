"""Byte-level tokenizers with the chat templates of well-known families, written for these tests."""

import copy
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = """\
{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
MARKED = """\
{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}
{%- if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}{% endgeneration %}
{%- else %}{{ message['content'] }}{% endif %}{{ '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
LLAMA3 = """\
{{ bos_token }}
{%- if tools %}{{ '<|start_header_id|>tools<|end_header_id|>\n\n' + tools | tojson + '<|eot_id|>' }}{% endif %}
{%- for message in messages %}
{%- set role = 'ipython' if message['role'] == 'tool' else message['role'] %}
{{- '<|start_header_id|>' + role + '<|end_header_id|>\n\n' }}
{%- if message.tool_calls %}
{%- for call in message.tool_calls %}{{ call.function | tojson }}{% endfor %}
{%- else %}{{ message['content'] | trim }}{% endif %}{{ '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
QWEN3 = """\
{%- set last = namespace(query=-1) %}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{% set last.query = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
{%- set content = message['content'] %}
{%- if message['role'] == 'assistant' %}
{%- set thought = '' %}
{%- if '</think>' in content %}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}
{{- '<|im_start|>assistant\n' }}
{%- if loop.index0 > last.query and (loop.last or thought) %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}
{{- content + '<|im_end|>\n' }}
{%- elif message['role'] == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' + content + '\n</tool_response><|im_end|>\n' }}
{%- else %}{{ '<|im_start|>' + message['role'] + '\n' + content + '<|im_end|>\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"""
MISTRAL = """\
{{ bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + eos_token }}{% endif %}
{%- endfor %}"""
TEMPLATES = {
    "chatml": (CHATML, "<|im_end|>"),
    "marked": (MARKED, "<|im_end|>"),
    "llama3": (LLAMA3, "<|eot_id|>"),
    "gemma": (GEMMA, "<end_of_turn>"),
    "qwen3": (QWEN3, "<|im_end|>"),
    "mistral": (MISTRAL, "</s>"),
}
SPECIAL = [
    "<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>",
    "<start_of_turn>", "<end_of_turn>",
]  # fmt: skip
CORPUS = [
    "Where is Paris?\nParis is in France. It is the capital.\n\n", "user assistant system model tool\n",
    "<think>\nthought\n</think>\n\n answer answers [INST] [/INST]",
]  # fmt: skip


def _core():
    """Bytes and merges, with newlines kept together as the tokenizers of Llama 3 and Qwen do."""
    core = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\s*[\r\n]+| ?\w+| ?[^\s\w]+|\s+"), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    core.train_from_iterator(CORPUS * 3, trainer)
    return core


_MADE = PreTrainedTokenizerFast(
    tokenizer_object=_core(), clean_up_tokenization_spaces=False, pad_token="<pad>", bos_token="<s>",
    extra_special_tokens=SPECIAL[3:], eos_token="</s>",
)  # fmt: skip


@cache
def chat_tokenizer(name):
    """The tokenizer with the template of a family, whose end of a turn is its EOS; not to be changed."""
    tokenizer = copy.deepcopy(_MADE)
    tokenizer.chat_template, tokenizer.eos_token = TEMPLATES[name]
    return tokenizer

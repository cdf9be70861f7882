"""Flash attention is examined in half precision and told where sequences begin; a plain stand-in takes its place."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from veto_pl.exceptions import ConfigurationError
from veto_pl.models import RandomWeights
from veto_pl.models.causal_lm import CausalLM
from veto_pl.models.packing import Packing
from veto_pl.rollouts import FromDataset
from veto_pl.seams import Step
from veto_pl.testing.tiny import ALPHABET, DIMENSIONS, prompt_batch, tiny_models, tiny_source

REAL_IDS = len(ALPHABET) + 3
NAME = "flash_attention_for_tests"
calls = []


def flash(module, query, key, value, mask, *, cu_seq_lens_q=None, max_length_q=None, position_ids=None, **_):
    """As transformers' own: half precision only; by bounds, or else by positions."""
    calls.append((cu_seq_lens_q, max_length_q))
    if query.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    width, groups = query.shape[2], query.shape[1] // key.shape[1]
    begins = (position_ids[0] == 0).nonzero()[:, 0] if cu_seq_lens_q is None else cu_seq_lens_q[:-1]
    number = torch.bucketize(torch.arange(width), begins.long(), right=True)
    apart = (number[:, None] == number) & torch.ones(width, width).tril().bool()
    key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=apart).transpose(1, 2), None


AttentionInterface.register(NAME, flash)
AttentionMaskInterface.register(NAME, flash_attention_mask)


def model(attention):
    made = CausalLM(tiny_source().load(), REAL_IDS)
    made.model.config._attn_implementation = attention
    return made.eval()


def rows(completions=("cbacb", "ab", None)):
    models = tiny_models()
    return FromDataset()(prompt_batch(models, ["abc>", "ba>", "a>"], completions), models, Step(0, 1))


def test_flash_attention_is_examined_under_the_runs_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert model(NAME).supports_packing
    with pytest.raises(ConfigurationError, match="only support fp16 and bf16"):
        model(NAME).probe()


def test_packed_rows_bring_their_bounds_and_are_read_as_with_a_mask():
    with torch.autocast("cpu", torch.bfloat16):
        packed, masked = model(NAME), model("sdpa")
        assert packed.supports_packing
        calls.clear()
        hidden, expected = (one(rows(), lambda hidden, _: hidden) for one in (packed, masked))
    assert torch.allclose(hidden.float(), expected.float(), atol=0.05)
    lengths = rows().attention_mask.sum(1)
    assert len(calls) == 2, "two layers"
    for bounds, longest in calls:
        assert bounds.dtype == torch.int32
        assert bounds.tolist() == [0, *lengths.cumsum(0).tolist(), int(lengths.sum())]
        assert longest == int(lengths.max())


def test_a_rank_without_rows_has_one_sequence_of_spare_places():
    nothing = rows().rows(torch.zeros(0, dtype=torch.int64))
    assert list(Packing.of(nothing, 0.0).lengths) == []
    with torch.autocast("cpu", torch.bfloat16):
        packed = model(NAME)
        packed.probe()
        calls.clear()
        packed(nothing, lambda hidden, _: hidden)
    assert [(bounds.tolist(), longest) for bounds, longest in calls] == 2 * [([0, 1], 1)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_other_attention_gets_no_bounds(attention):
    seen = []
    network = model(attention)
    network.supports_packing  # noqa: B018
    network.model.model.register_forward_pre_hook(lambda module, given, named: seen.append(named), with_kwargs=True)
    network(rows(), lambda hidden, _: hidden)
    assert not any("cu_seq_lens_q" in named for named in seen)


def test_flex_attention_can_be_chosen():
    with torch.device("meta"):
        network = RandomWeights("llama", DIMENSIONS["llama"], attention="flex_attention").skeleton()
    assert network.config._attn_implementation == "flex_attention"

"""Pipelines of Z-Image and FLUX.2-klein with tiny parts of the real classes, and a Qwen3-VL that reads images."""

import json
from functools import cache

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from tests.vision import by_pillow

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
VOCABULARY = {text: i for i, text in enumerate(SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet()))}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WIDTH = 16
LANGUAGE = {
    "vocab_size": len(VOCABULARY), "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip
BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 8), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4, "sample_size": 16,
}  # fmt: skip
Z_IMAGE = {
    "in_channels": 4, "dim": 32, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
    "cap_feat_dim": WIDTH, "axes_dims": [4, 6, 6], "axes_lens": [1100, 16, 16],
}  # fmt: skip
KLEIN = {
    "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2,
    "joint_attention_dim": 3 * WIDTH, "timestep_guidance_channels": 8, "axes_dims_rope": (2, 2, 2, 2),
    "guidance_embeds": False,
}  # fmt: skip


def tokenizer():
    core = Tokenizer(models.BPE(VOCABULARY, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=SPECIAL[1:]
    )
    made.chat_template = TEMPLATE
    return made


@cache
def z_image():
    torch.manual_seed(0)
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL(**BLOCKS, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False,
                          use_post_quant_conv=False, mid_block_add_attention=True).eval(),
        text_encoder=Qwen3Model(Qwen3Config(**LANGUAGE)).eval(),
        tokenizer=tokenizer(),
        transformer=stirred(ZImageTransformer2DModel(**Z_IMAGE)),
    )  # fmt: skip


@cache
def klein():
    torch.manual_seed(0)
    vae = AutoencoderKLFlux2(**BLOCKS).eval()
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**LANGUAGE | {"num_hidden_layers": 28})).eval(),
        tokenizer=tokenizer(),
        transformer=stirred(Flux2Transformer2DModel(**KLEIN)),
        is_distilled=True,
    )


def stirred(model):
    """A model whose outputs are not zero, as those of gates that begin at zero are."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.1)
    return model.eval()


def vision(folder):
    """A Qwen3-VL with the language model of `z_image` in shape, and other weights."""
    torch.manual_seed(1)
    rope = {**LANGUAGE["rope_parameters"], "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    seeing = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": WIDTH, "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }  # fmt: skip
    ids = {
        f"{name}_token_id": VOCABULARY[f"<|{text}|>"]
        for name, text in (("image", "image_pad"), ("vision_start", "vision_start"), ("vision_end", "vision_end"))
    }
    text = {**LANGUAGE, "rope_parameters": rope}
    config = Qwen3VLConfig(text_config=text, vision_config=seeing, video_token_id=-1, **ids)
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    by_pillow("Qwen2VLImageProcessor")(
        patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=64, max_pixels=1024
    ).save_pretrained(folder)
    return folder


def image_rows(folder, count=3, size=16):
    """A file of rows with images of one colour each."""
    rng = np.random.default_rng(0)
    for number in range(count):
        colour = rng.integers(0, 255, 3, dtype=np.uint8)
        Image.fromarray(np.broadcast_to(colour, (size, size + 4, 3)).copy()).save(folder / f"{number}.png")
    rows = [{"image": f"{n}.png", "text": f"{'very ' * n}new style"} for n in range(count)]
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path

"""A transformer of diffusers with random weights, and stripes to train it on."""

from functools import partial

import lightning as L
import torch

from veto_pl.diffusion import Denoisers, DenoisingModule, Gratings, ImageDataModule, RandomDenoiser

SIZES = {
    "sample_size": 4, "patch_size": 2, "in_channels": 1, "out_channels": 1, "num_layers": 2, "attention_head_dim": 4,
    "num_attention_heads": 2, "joint_attention_dim": 16, "caption_projection_dim": 8, "pooled_projection_dim": 16,
    "pos_embed_max_size": 4,
}  # fmt: skip
STRIPES = Gratings(rows=12, size=4, width=16, seed=3)
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def tiny(seed=0):
    return RandomDenoiser(settings=SIZES, seed=seed)


def rows(count=3):
    return STRIPES.load("train").rows(torch.arange(count))


def double_models(count=3):
    """Student, another teacher and rows in float64."""
    batch = rows(count)
    batch = type(batch)(*[{k: v.double() for k, v in one.items()} for one in (batch.conditions, batch.stronger)],
                        batch.targets.double(), batch.numbers)  # fmt: skip
    return Denoisers(tiny(0).load().double(), tiny(1).load().double()), batch


def module_of(objective, teacher=tiny(1), student=tiny(0), **settings):
    settings.setdefault("optimizer", partial(torch.optim.SGD, lr=0.1))
    return DenoisingModule(objective, student, teacher, seed=5, **settings)


def fit(module, folder, *, batch_size=12, images=STRIPES, ckpt_path=None, shuffle=True, **trainer):
    data = ImageDataModule(images, batch_size=batch_size, shuffle=shuffle, seed=5)
    settings = {"max_steps": 2, "limit_val_batches": 0, "num_sanity_val_steps": 0, "use_distributed_sampler": False,
                "accelerator": "cpu", "default_root_dir": str(folder), "enable_checkpointing": False}  # fmt: skip
    runner = L.Trainer(**(settings | QUIET | trainer))
    runner.fit(module, data, ckpt_path=ckpt_path)
    return runner


def weights(module):
    return torch.cat([p.detach().flatten().clone() for p in module.student.parameters()])

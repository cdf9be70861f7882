"""Exports of students with adapters that ranks share."""

from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh

from veto_pl.core.ranks import Sharding
from veto_pl.models import CharacterTokenizer, Lora, Pruned
from veto_pl.models.assemble import load_models
from veto_pl.models.export_folder import export_student
from veto_pl.models.probes import probe_logits
from veto_pl.models.sharding import local_part, resharded
from veto_pl.models.student_base import StudentBase
from veto_pl.testing.tiny import ALPHABET, tiny_source

BASE = Pruned(tiny_source(tie_word_embeddings=True, num_hidden_layers=3), drop_layers=(1,))
LORA = Lora(BASE, rank=2, dora=True, modules_to_save=("lm_head",))


def export(folder: str, half: bool) -> dict[str, Any]:
    """Write a student whose adapter says something in both ways; what it and its base say."""
    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    dtype = torch.bfloat16 if half else None
    shared = Sharding(mesh, torch.device("cpu"), whole_to_sample=True, compute_dtype=dtype)
    tokenizer = CharacterTokenizer(ALPHABET).load()
    teacher = StudentBase().resolved(LORA)
    models = load_models(LORA, teacher, tokenizer, sharding=lambda _: shared)
    with torch.no_grad(), resharded(models.student):
        for weight in models.student.parameters():
            if weight.requires_grad:
                local_part(weight).add_(0.02)
    models.student.eval()
    for form in ("merged", "separate"):
        export_student(models.student, tokenizer, None, Path(folder, form), adapter=form, source=LORA)
    said = {"student": probe_logits(models.student), "base": probe_logits(models.teacher)}
    torch.distributed.destroy_process_group()
    return said

"""Whether models load, and whether an optimizer's steps reach the weights."""

import tempfile
from collections.abc import Iterator

import torch
from gpu_checks.place import Place
from gpu_checks.verdict import Verdict
from transformers.integrations import accelerate

from veto_pl.models import Pretrained

STEPS = 10
RATE = 1e-5


def load_without_accelerate(place: Place) -> Iterator[Verdict]:
    """Load a folder as Lightning does, with the device as the default one, where accelerate is not installed."""
    installed = accelerate.is_accelerate_available
    with tempfile.TemporaryDirectory() as folder:
        place.network("0.5B", num_hidden_layers=2).save_pretrained(folder)
        accelerate.is_accelerate_available = lambda *_, **__: False
        try:
            with place.device:
                model = Pretrained(folder, dtype="bfloat16").load().to(place.device)
        finally:
            accelerate.is_accelerate_available = installed
    yield Verdict.ran("pretrained without accelerate", device=str(next(model.parameters()).device))


def compare_updates(place: Place) -> Iterator[Verdict]:
    """Compare which share of the weights moves: those in float32, as the recipes have them, and those in bfloat16."""
    share, moved = _updates(place, "float32")
    lost_share, lost_moved = _updates(place, "bfloat16")
    yield Verdict.judged(
        "weights that AdamW moves in bf16-mixed", share, least=0.9, smoke=place.smoke, moved=moved,
        bfloat16_share=lost_share, bfloat16_moved=lost_moved, bfloat16_over_float32=lost_moved / moved,
    )  # fmt: skip


def _updates(place: Place, dtype: str) -> tuple[float, float]:
    """Return the share of weights that some steps on random tokens change, and the distance that they move."""
    model = place.network("0.5B", dtype).train()
    before = [weight.detach().clone() for weight in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    generator = torch.Generator(place.device).manual_seed(0)
    width = 16 if place.smoke else 128
    ids = torch.randint(4, place.ids, (4, width), device=place.device, generator=generator)
    for _ in range(STEPS):
        with torch.autocast(place.device.type, torch.bfloat16, enabled=dtype == "float32"):
            loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pairs = zip(model.parameters(), before, strict=True)
    steps = [weight.detach().float() - old.float() for weight, old in pairs]
    changed = sum(int((step != 0).sum()) for step in steps) / sum(step.numel() for step in steps)
    return changed, float(torch.stack([step.norm() for step in steps]).norm())

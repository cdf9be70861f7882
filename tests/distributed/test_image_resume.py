"""A run with images that goes on from a checkpoint is the run that was not stopped, to the bit."""

import lightning as L
import pytest
import torch
from image_runs import train

from tests import vision
from veto_pl.callbacks import Checkpoints
from veto_pl.models import PartlyFrozen

SOURCES = {"whole": None, "tower frozen": PartlyFrozen(vision.source("qwen2_5_vl"))}


class Kill(L.Callback):
    """Ends the run inside of the third step."""

    def on_before_backward(self, trainer, *args):
        if trainer.global_step == 2:
            raise RuntimeError("killed")


@pytest.mark.parametrize("kind", SOURCES)
def test_a_resumed_run_is_the_whole_run(kind, tmp_path):
    kept = {"style": "qwen2_5_vl", "objective": "sampled", "source": SOURCES[kind]}
    whole = train(tmp_path, **kept)
    kept["enable_checkpointing"], place = True, {"dirpath": str(tmp_path), "every_n_train_steps": 2}
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path, **kept, callbacks=[Checkpoints(**place), Kill()])
    rest = train(tmp_path, **kept, callbacks=[Checkpoints(**place)], resumed=str(tmp_path / "last.ckpt"))
    assert torch.equal(rest["curve"], whole["curve"][2:])
    assert all(torch.equal(weight, whole["weights"][name]) for name, weight in rest["weights"].items())
    before = vision.source("qwen2_5_vl").load().state_dict()
    moved = {name for name, weight in whole["weights"].items() if not torch.equal(weight, before[name])}
    assert any("visual" in name for name in moved) == (kind == "whole")

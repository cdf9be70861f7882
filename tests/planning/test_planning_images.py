"""Plans of students that read images: the weights that do are counted, and it is said that images are not."""

import torch

from tests import vision
from veto_pl import DistillationModule
from veto_pl.models import InMemoryTokenizer, PartlyFrozen
from veto_pl.models.vision import image_weights
from veto_pl.objectives import Veto
from veto_pl.planning.devices import DEVICES
from veto_pl.planning.placement import Placement
from veto_pl.planning.plan_table import summary
from veto_pl.planning.rollout import Lengths
from veto_pl.planning.run_plan import plan
from veto_pl.planning.simulation import Setting
from veto_pl.rollouts import FromStudent, Sampling


def planned(student):
    module = DistillationModule(
        Veto(rollout=FromStudent(Sampling(max_new_tokens=4))), student, vision.source("llava", 1),
        tokenizer=InMemoryTokenizer(vision.tokenizer("llava")),
        optimizer=lambda parameters: torch.optim.Adam(parameters),
    )  # fmt: skip
    setting = Setting(Lengths(8, 4, None), prompts=2, validation_prompts=0)
    return plan(module, setting, Placement(), DEVICES["H100-80GB"])


def test_what_reads_images_is_counted_and_named():
    whole, frozen = planned(vision.source("llava")), planned(PartlyFrozen(vision.source("llava")))
    model = vision.source("llava").load()
    images = sum(weight.numel() for weight in image_weights(model))
    assert whole.simulated.student.parameters == sum(weight.numel() for weight in model.parameters())
    assert whole.simulated.student.images == images
    assert whole.simulated.student.trained - frozen.simulated.student.trained == 4 * images
    assert whole.simulated.state > frozen.simulated.state
    assert any("of it read images" in line for line in summary(whole))

"""D-OPSD on 8 x 8 digits: does a few-step model learn a new style from a teacher that sees the image, and what is lost?

The setting. A transformer of SD3's kind (284k parameters) learns scikit-learn's digits by flow matching: a class
gives a plain digit; a class and an image of that class in one of four styles (inverted or not, mirrored or not) gives
a digit in that style. `StepDistillation` (docs/diffusion.md) then makes it a model of the four steps 0, .1, .25, .5.
This base is made once. Then a new word stands for inverted and mirrored, on 16 images. The student reads class and
word, the teacher the image as well. Each run has the same steps, batch, noise and learning rate; a seed changes their
order and noise.

The rule, written before any run. `E` is the energy distance at four steps, lower is better: `new` between samples of
class and word and held-out digits in the style, `old` between samples of the class alone and held-out plain digits.
Differences between methods are paired over seeds 1 to 5, with 95 % t intervals. A claim is shown if its interval
excludes 0 on the side that it names, and else it is not shown:

1. D-OPSD with the averaged teacher, and with the frozen one, ends with a lower `new` than the base has.
2. The live teacher ends with a higher `new` than the averaged one.
3. SFT on the 16 images ends with a higher `old` than D-OPSD with the averaged teacher (it forgets more).
4. D-OPSD with the averaged teacher ends with a lower `new` than SFT.

The paper claims the like of 1 to 3 for large models. The learning rate is 2e-4 for all, without a search.

    python benchmarks/digits.py runs/digits              # about 25 minutes on one core
    python benchmarks/digits.py runs/digits --quick      # tries the script, in two minutes, and shows nothing
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning as L
import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor

from veto_pl.diffusion import (
    DOPSD,
    AveragedDenoiser,
    ConditionBatch,
    DenoisingModule,
    FewSteps,
    FlowMatching,
    ImageDataModule,
    ImageSet,
    Noised,
    PretrainedDenoiser,
    RandomDenoiser,
    picture,
)
from veto_pl.functional.energy import energy_distance
from veto_pl.seams import Step

ROOT = Path(__file__).resolve().parents[1]
WIDTH, WORD, TRAIN, HELD = 64, 10, 1400, 397
MODEL = {
    "sample_size": 8, "patch_size": 2, "in_channels": 1, "out_channels": 1, "num_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 4, "joint_attention_dim": WIDTH, "caption_projection_dim": 64, "pos_embed_max_size": 8,
    "pooled_projection_dim": WIDTH,
}  # fmt: skip
STEPS = {"base": 10_000, "distilled": 700, "adapted": 300}
QUICK = {"base": 40, "distilled": 10, "adapted": 6}
NEW = 3
"""The style of the new word: inverted and mirrored."""


def styled(images: Tensor, style: Tensor | int) -> Tensor:
    """Images [N, 1, 8, 8] in [-1, 1] in styles 0 to 3: the first bit inverts, the second mirrors."""
    style = torch.as_tensor(style).expand(len(images)).view(-1, 1, 1, 1)
    mirrored = torch.where(style & 2 > 0, images.flip(-1), images)
    return torch.where(style & 1 > 0, -mirrored, mirrored)


def told(classes: Tensor, *, word: bool = False, shown: Tensor | None = None) -> dict[str, Tensor]:
    """What a model reads: class and word as one vector, and the image, or nothing, as another."""
    text = torch.nn.functional.one_hot(classes, WIDTH).float()
    text[:, WORD] = float(word)
    image = torch.zeros_like(text) if shown is None else shown.flatten(1)
    return {"encoder_hidden_states": torch.stack([text, image], dim=1), "pooled_projections": text}


@dataclass(frozen=True, eq=False)
class InMemoryRows(ImageSet):
    rows: ConditionBatch

    def load(self, split):
        return self.rows if split == "train" else None


class Digits:
    """The rows of each stage."""

    def __init__(self) -> None:
        found = load_digits()
        self.images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
        self.classes = torch.tensor(found.target)
        self.generator = torch.Generator().manual_seed(0)

    def base(self) -> ConditionBatch:
        """Three rows of each digit: by its class alone, and twice by another digit of the class in a style."""
        images, classes = self.images[:TRAIN], self.classes[:TRAIN]
        parts = [(told(classes), images)]
        for _ in range(2):
            style = torch.randint(4, (TRAIN,), generator=self.generator)
            other = torch.stack([self._another(int(label)) for label in classes])
            parts.append((told(classes, shown=styled(other, style)), styled(images, style)))
        conditions = {name: torch.cat([one[name] for one, _ in parts]) for name in parts[0][0]}
        return ConditionBatch(conditions, {}, torch.cat([target for _, target in parts]), torch.arange(3 * TRAIN))

    def new(self) -> ConditionBatch:
        """Sixteen images of the new word."""
        images, classes = styled(self.images[:16], NEW), self.classes[:16]
        return ConditionBatch(
            told(classes, word=True), told(classes, word=True, shown=images), images, torch.arange(16)
        )

    def held(self, *, word: bool) -> ConditionBatch:
        """Rows to measure on, none of them trained on."""
        images, classes = self.images[-HELD:], self.classes[-HELD:]
        target = styled(images, NEW) if word else images
        return ConditionBatch(told(classes, word=word), {}, target, torch.arange(HELD))

    def _another(self, label: int) -> Tensor:
        places = (self.classes[:TRAIN] == label).nonzero().flatten()
        return self.images[places[torch.randint(len(places), (), generator=self.generator)]]


def page_objective():
    """`StepDistillation`, as the page has it."""
    page = (ROOT / "docs" / "diffusion.md").read_text()
    (code,) = re.findall(r'^```python title="[^"]+"\n(.*?)^```$', page, re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {"__name__": __name__}
    exec(code, names)
    return names["StepDistillation"]


def train(objective, student, teacher, rows, *, steps, rate, seed, batch_size=64):
    """The module after a run."""
    optimizer = partial(torch.optim.AdamW, lr=rate, weight_decay=0.0)
    module = DenoisingModule(objective, student, teacher, optimizer=optimizer, seed=seed)
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, gradient_clip_val=1.0, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, ImageDataModule(InMemoryRows(rows), batch_size=batch_size, seed=seed))
    return module


def measured(model, digits: Digits) -> dict[str, float]:
    """`new` and `old`, by the same noise for every model."""
    found = {}
    for name, word in (("new", True), ("old", False)):
        batch = digits.held(word=word)
        found[name] = float(energy_distance(FewSteps().sample(model, batch, Step(0, 1, seed=99)), batch.targets))
    return found


def made(folder: Path, name: str, make) -> PretrainedDenoiser:
    """The source of a model that is trained once."""
    if not (folder / name).exists():
        make().export(folder / name)
    return PretrainedDenoiser(str(folder / name), subfolder="transformer")


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and 95 % t interval."""
    mean, spread = float(torch.tensor(values).mean()), float(stats.sem(values)) if len(values) > 1 else float("inf")
    half = float(stats.t.ppf(0.975, max(len(values) - 1, 1))) * spread
    return mean, mean - half, mean + half


def verdicts(start: dict[str, float], ended: dict[str, list[dict[str, float]]]) -> list[str]:
    """Each claim of the rule, with the interval of its difference, which has to lie below 0."""

    def of(method: str, what: str) -> list[float]:
        return [one[what] for one in ended[method]]

    pairs = {
        "1a. averaged below the base, new": (of("averaged", "new"), [start["new"]] * len(ended["averaged"])),
        "1b. frozen below the base, new": (of("frozen", "new"), [start["new"]] * len(ended["frozen"])),
        "2. averaged below live, new": (of("averaged", "new"), of("live", "new")),
        "3. averaged below SFT, old": (of("averaged", "old"), of("SFT", "old")),
        "4. averaged below SFT, new": (of("averaged", "new"), of("SFT", "new")),
    }
    lines = []
    for claim, (less, more) in pairs.items():
        mean, low, high = interval([a - b for a, b in zip(less, more, strict=True)])
        lines.append(f"| {claim} | {mean:+.3f} [{low:+.3f}, {high:+.3f}] | {'shown' if high < 0 else 'not shown'} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    steps, digits = QUICK if given.quick else STEPS, Digits()
    rows = digits.base()
    new = RandomDenoiser(settings=MODEL, seed=0)
    base = made(given.folder, "base", lambda: train(
        FlowMatching(), new, None, rows, steps=steps["base"], rate=1e-3, seed=0))  # fmt: skip
    few = made(given.folder, "few", lambda: train(
        page_objective()(substeps=4), base, base, rows, steps=steps["distilled"], rate=5e-4, seed=0))  # fmt: skip
    start = measured(few.load(), digits)
    print(json.dumps({"base": measured(base.load(), digits), "few steps": start}), flush=True)
    on_policy = DOPSD(rollout=FewSteps(samples=4))
    methods = {
        "frozen": (on_policy, few),
        "averaged": (on_policy, AveragedDenoiser(few, decay=1 - 0.2 / steps["adapted"])),
        "live": (on_policy, AveragedDenoiser(few, decay=0.0)),
        "SFT": (FlowMatching(rollout=Noised(samples=16)), None),
    }
    ended: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    for seed in range(1, given.seeds + 1):
        for name, (objective, teacher) in methods.items():
            module = train(objective, few, teacher, digits.new(), steps=steps["adapted"], rate=2e-4, seed=seed,
                           batch_size=16)  # fmt: skip
            ended[name].append(measured(module.student, digits))
            print(json.dumps({"seed": seed, "method": name, **ended[name][-1]}), flush=True)
            shown = FewSteps().sample(
                module.student, digits.held(word=True).rows(torch.arange(32)), Step(0, 1, seed=99)
            )
            picture(shown, columns=16).save(given.folder / f"{name}-{seed}.png")
    table = ["| claim | difference | |", "| :--- | ---: | :--- |", *verdicts(start, ended)]
    (given.folder / "digits.md").write_text("\n".join(table) + "\n")
    print("\n".join(table))


if __name__ == "__main__":
    main()

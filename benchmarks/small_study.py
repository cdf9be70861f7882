"""Tiny models that are trained and tested within one process, for studies of minutes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch

from veto_pl import DistillationModule, PromptDataModule
from veto_pl.compare.statistics import Contrast, contrast, estimate
from veto_pl.metrics import Accuracy
from veto_pl.models import RandomWeights
from veto_pl.models.export_folder import export_student
from veto_pl.parts.schedules import Cosine, WarmUp
from veto_pl.rollouts import Sampling
from veto_pl.seams import ModelSource, Objective, TokenizerSource

Seeds = Mapping[int, float]
"""A number of each seed."""


def quietly() -> None:
    """One thread, and no talk of Lightning's."""
    torch.set_num_threads(1)
    logging.getLogger("lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def llama(ids: int, *, width: int, layers: int, seed: int) -> RandomWeights:
    """A decoder with so many ids, whose weights are new."""
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    heads = {"num_attention_heads": width // 16, "num_key_value_heads": width // 16}
    rest = {"vocab_size": ids, "max_position_embeddings": 64, "tie_word_embeddings": True}
    return RandomWeights("llama", sizes | heads | rest, seed=seed)


def fitted(
    objective: Objective,
    student: ModelSource,
    data: Callable[[int], PromptDataModule],
    folder: Path,
    *,
    steps: int,
    rate: float,
    seed: int,
    longest: int = 8,
    tokenizer: TokenizerSource | None = None,
    teachers: Mapping[str, ModelSource] | None = None,
) -> tuple[Path, dict[str, float], dict[str, float]]:
    """Train a student and test it, unless its folder says that this was done.

    Args:
        objective: what is trained on.
        student: where it begins.
        data: makes the data module of a seed.
        folder: where it is kept.
        steps: of the optimizer.
        rate: the learning rate, behind a warm-up of a twentieth of the run and with a cosine.
        seed: of the run.
        longest: tokens of an answer of the test.
        tokenizer: of the student; None for its own.
        teachers: by name.

    Returns:
        Its export, greedy accuracies of the test by name, and what the last step logged.
    """
    done = folder / "numbers.pt"
    if done.exists():
        return folder / "export", *torch.load(done)
    given = dict(teachers or {})
    module = DistillationModule(
        objective, student, given.pop("teacher", None), tokenizer, seed=seed, metrics=[Accuracy()], teachers=given,
        optimizer=partial(torch.optim.AdamW, lr=rate, weight_decay=0.0), lr_schedule=WarmUp(0.05, Cosine(1.0)),
        evaluation=Sampling(temperature=0.0, max_new_tokens=longest),
    )  # fmt: skip
    rows = data(seed)
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, gradient_clip_val=1.0, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, rows)
    logged = {name: value for name, value in module.logged.items() if name.startswith("train/")}
    (tested,) = trainer.test(module, rows, verbose=False)
    processor = module.images.files(module.student.model)
    export = export_student(module.student, module.tokenizer, None, folder / "export", processor=processor)
    torch.save((dict(tested), logged), done)
    return export, dict(tested), logged


def told(values: Seeds, scale: float = 100.0) -> str:
    """The mean over seeds, with its 95% t interval where there are several."""
    found = estimate([scale * value for value in values.values()])
    return f"{found.mean:.1f}" if len(values) < 2 else f"{found.mean:.1f} [{found.low:.1f}, {found.high:.1f}]"


def compared(one: Seeds, other: Seeds) -> Contrast:
    """One method minus another, seed by seed."""
    return contrast(dict(one), dict(other))


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table of Markdown."""
    lines = [head, [":---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def tell_routes(
    found: Mapping[str, Mapping[int, Mapping[str, float]]], known: Mapping[str, float], claims: Sequence[str]
) -> None:
    """Print the accuracies of students whose rows were routed to two teachers, and of those with swapped routes.

    Of several seeds, the rule is applied: a routed student has at least 0.9 of each teacher's accuracy on its own kind
    of rows, and a swapped one has less than that and less than a routed one; by the ends of 95% t intervals.

    Args:
        found: accuracies by kind of rows, for each seed of the arms `routed` and `swapped`.
        known: the accuracy of each teacher on its own kind of rows.
        claims: what the two halves of the rule show.
    """
    of = {(arm, kind): {seed: one[kind] for seed, one in by.items()} for arm, by in found.items() for kind in known}
    print(table(["accuracy, %", *known], [["teachers", *(f"{100 * score:.1f}" for score in known.values())],
                *([arm, *(told(of[arm, kind]) for kind in known)] for arm in found)]))  # fmt: skip
    if len(found["routed"]) < 2:
        return
    shares = {key: estimate([value / known[key[1]] for value in by.values()]) for key, by in of.items()}
    gaps = {kind: compared(of["routed", kind], of["swapped", kind]).difference for kind in known}
    for (arm, kind), share in shares.items():
        print(f"{arm}, {kind}: {share.mean:.3f} [{share.low:.3f}, {share.high:.3f}] of the teacher's accuracy")
    for kind, gap in gaps.items():
        print(f"routed minus swapped, {kind}: {100 * gap.mean:.1f} [{100 * gap.low:.1f}, {100 * gap.high:.1f}] points")
    both = all(shares["routed", kind].low >= 0.9 for kind in known)
    routes = all(gaps[kind].low > 0 and shares["swapped", kind].high < 0.9 for kind in known)
    for number, (claim, holds) in enumerate(zip(claims, (both, routes), strict=True), 1):
        print(f"{number}. {claim}: {'shown' if holds else 'not shown'}")

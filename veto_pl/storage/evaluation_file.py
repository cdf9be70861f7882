"""The metrics of a test, as a file that a comparison reads."""

from __future__ import annotations

import json
import math
from pathlib import Path

import lightning as L

from veto_pl.storage.atomic import replacing
from veto_pl.storage.journals import described_quantities

TEST = "test.json"


def write_test(trainer: L.Trainer, module: L.LightningModule, folder: Path, **counts: int) -> None:
    """Write what a test has logged under `test/` into `test.json`, with the split and how each metric is shown.

    Args:
        trainer: whose test has just ended.
        module: was tested.
        folder: of the run.
        counts: how much was tested, by name.
    """
    values = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
    found = {
        "metrics": {
            name.removeprefix("test/"): value if math.isfinite(value) else None
            for name, value in values.items()
            if name.startswith("test/")
        },
        "quantities": described_quantities(module),
        "split": getattr(trainer.datamodule, "test_split", "test"),  # type: ignore[attr-defined]
        **counts,
    }
    with replacing(folder / TEST) as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")

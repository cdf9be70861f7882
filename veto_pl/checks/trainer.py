"""What the trainer is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from veto_pl.checks.numbers import TRAINER
from veto_pl.checks.setup import RunSetup
from veto_pl.core.mistakes import Mistake
from veto_pl.seams import Objective

SCALED = ("16", "16-mixed")
"""Precisions with a gradient scaler."""
PRECISIONS = ("None", "32", "32-true", "bf16", "bf16-mixed", *SCALED)
"""Those that leave weights and batches as they are; in others Lightning converts both."""

USE = "Use `ddp`, or `fsdp2` where a model does not fit on one device."


def settings_of(trainer: Trainer) -> dict[str, Any]:
    """Return the settings of a trainer by name."""
    return {
        "strategy": trainer.strategy,
        "precision": trainer.precision,
        "devices": trainer.world_size,
        # With one process there is nothing to distribute, and Lightning's default would be refused for nothing.
        "use_distributed_sampler": trainer._accelerator_connector.use_distributed_sampler and trainer.world_size > 1,
        **{name: getattr(trainer, name) for name in TRAINER if hasattr(trainer, name)},
    }


def supported_strategy(setup: RunSetup) -> Iterator[Mistake]:
    """Check that the strategy splits models in a way that the loss supports, in a supported precision."""
    chosen = setup.trainer.get("strategy")
    name = chosen if isinstance(chosen, str) else type(chosen).__name__
    if isinstance(chosen, DeepSpeedStrategy) or name.startswith("deepspeed"):
        yield Mistake("trainer.strategy", f"`{name}` (DeepSpeed)", "a strategy that is supported", USE)
    if isinstance(chosen, FSDPStrategy) or name in ("fsdp", "fsdp_cpu_offload"):
        yield Mistake("trainer.strategy", f"`{name}` (FSDP1)", "a strategy that is supported", USE)
    if type(chosen) is ModelParallelStrategy:
        yield Mistake(
            "trainer.strategy", "`ModelParallelStrategy` (tensor parallel)", "a strategy that is supported", USE
        )
    if "spawn" in name or getattr(chosen, "_start_method", None) == "spawn":
        yield Mistake("trainer.strategy", f"`{name}`, whose processes get copies of all objects by pickling",
                      "a strategy that is supported", "A configured run cannot be pickled. " + USE)  # fmt: skip
    sharded = name == "fsdp2" or isinstance(chosen, ModelParallelStrategy)
    precision = str(setup.trainer.get("precision"))
    if precision not in PRECISIONS:
        yield Mistake(
            "trainer.precision", f"`{precision}`", "`32-true`, `bf16-mixed` or `16-mixed`",
            "Lightning would convert the batches and the positions' frequencies too. Set `dtype: bfloat16` on the "
            "models and leave `trainer.precision` out: then weights, gradients and optimizer state are bfloat16.",
        )  # fmt: skip
    if sharded and precision in SCALED:
        yield Mistake("trainer.precision", "`16-mixed` with sharded models", "a precision without a gradient scaler",
                      "Use `bf16-mixed`.")  # fmt: skip


def distributed_sampler(setup: RunSetup) -> Iterator[Mistake]:
    """Check that Lightning's sampler is off, since the data module already gives each rank its rows."""
    if setup.trainer.get("use_distributed_sampler"):
        yield Mistake("trainer.use_distributed_sampler", "`true`", "`false`",
                      "The data module gives each rank its rows itself; set it to false.")  # fmt: skip


def accumulation(setup: RunSetup) -> Iterator[Mistake]:
    """Check that gradients are not accumulated for several loss terms under a gradient scaler."""
    windows, terms = setup.trainer.get("accumulate_grad_batches", 1), _terms(setup.module.objective)
    if windows > 1 and terms > 1 and str(setup.trainer.get("precision")) in SCALED:
        yield Mistake(
            "trainer.accumulate_grad_batches",
            f"{windows} in 16-mixed, with {terms} loss terms in `{type(setup.module.objective).__name__}`",
            "1",
            "Set it to 1 and raise `data.batch_size`, or use `bf16-mixed`.",
        )


def length_of_the_run(setup: RunSetup) -> Iterator[Mistake]:
    """Check that the run has an end, which schedules need."""
    unlimited = [setup.trainer.get("max_steps", 0), setup.trainer.get("max_epochs", 0)]
    if unlimited == [-1, -1]:
        yield Mistake("trainer", "an unlimited run (`max_steps: -1`, `max_epochs: -1`)", "a run with an end, which "
                      "schedules need", "Set `trainer.max_steps` or `trainer.max_epochs`.")  # fmt: skip


def _terms(objective: Objective) -> int:
    """Return the number of losses with denominators of their own that an objective consists of."""
    settings = [getattr(objective, name) for name in getattr(objective, "__dataclass_fields__", ())]
    parts = [part for value in settings for part in (value.values() if isinstance(value, Mapping) else [value])]
    return sum(_terms(part) for part in parts if isinstance(part, Objective)) or 1

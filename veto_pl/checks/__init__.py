"""Combinations of settings that cannot work, found before any model is loaded.

Each check reads a `RunSetup` and yields what is wrong. All of them run, so that one attempt shows every mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from lightning.pytorch import Callback, Trainer

from veto_pl.checks import model_settings as models
from veto_pl.checks import monitored as monitors
from veto_pl.checks import numbers
from veto_pl.checks import objective_settings as objective
from veto_pl.checks import trainer as the_trainer
from veto_pl.checks.setup import Checked, RunSetup
from veto_pl.core.mistakes import Mistake, report
from veto_pl.data import PromptDataModule

__all__ = ["RunSetup", "check", "check_run"]

Check = Callable[[RunSetup], Iterator[Mistake]]
ALWAYS: tuple[Check, ...] = (
    numbers.of_the_trainer,
    numbers.of_the_data,
    numbers.of_the_callbacks,
    the_trainer.supported_strategy,
    the_trainer.distributed_sampler,
    models.readable_models,
    models.quantised_student,
    models.positive_sizes,
    models.room_to_answer,
    models.completions_per_prompt,
    objective.requirements,
)
FITTING: tuple[Check, ...] = (
    the_trainer.length_of_the_run,
    the_trainer.accumulation,
    objective.finite_numbers,
    objective.schedule_values,
    objective.several_completions,
    objective.optimizer,
    objective.greedy_rollouts,
    objective.use_of_the_models,
    monitors.names,
    monitors.directions,
    monitors.best_export,
)


def check(
    module: Checked,
    data: PromptDataModule,
    trainer: Trainer | Mapping[str, Any],
    stage: str = "fit",
    callbacks: Mapping[str, Callback] = MappingProxyType({}),
) -> None:
    """Run every check.

    Args:
        module: the module, before its models are loaded.
        data: the data module.
        trainer: the trainer, or its settings where it does not exist yet.
        stage: fit, validate, test or predict.
        callbacks: by the path of their settings.

    Raises:
        ConfigurationError: something cannot work; the message names everything that was found.
    """
    settings = the_trainer.settings_of(trainer) if isinstance(trainer, Trainer) else trainer
    setup = RunSetup(module, data, settings, stage, callbacks)
    report(mistake for one in (*ALWAYS, *(FITTING if stage == "fit" else ())) for mistake in one(setup))


def check_run(module: Checked, trainer: Trainer) -> None:
    """Run every check for a trainer that is about to begin, as the command line does for a configuration.

    Nothing is checked of data that are no `PromptDataModule`.

    Raises:
        ConfigurationError: something cannot work; the message names everything that was found.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    if isinstance(data, PromptDataModule):
        callbacks = {type(callback).__name__: callback for callback in trainer.callbacks}  # type: ignore[attr-defined]
        assert trainer.state.fn is not None, "the trainer is about to do something"
        check(module, data, trainer, str(trainer.state.fn.value), callbacks)

"""`veto-pl plan`: the configuration of `fit`, thought through instead of run."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from lightning.pytorch import Trainer
from rich.console import Console

from veto_pl.commands.prepared import Prepared
from veto_pl.data.splits import check_sizes
from veto_pl.exceptions import ConfigurationError
from veto_pl.planning.devices import device as find_device
from veto_pl.planning.longest_row import longest_row as find_longest_row
from veto_pl.planning.placement import Placement
from veto_pl.planning.plan_table import as_json, longest_row_line, memory_table, remedy_lines, summary, work_table
from veto_pl.planning.rollout import Lengths
from veto_pl.planning.run_plan import plan, remedies
from veto_pl.planning.simulation import Setting


class _WithoutTrainer(Prepared):
    """Reads a configuration, also one of a machine that this one is not."""

    def instantiate_trainer(self, **_: Any) -> Trainer:
        """Return an empty stand-in, since a trainer would look for the devices of the run."""
        return cast(Trainer, SimpleNamespace())


def print_plan(
    config: Sequence[str],
    *,
    device: str | None,
    memory: float | None,
    prompt_tokens: int | None,
    completion_tokens: int | None,
    share: float,
    as_script: bool,
    longest_row: bool = False,
) -> None:
    """Print what a run needs, and the changes that would make it fit.

    Args:
        config: the arguments of `veto-pl fit`.
        device: name of the device; this machine's by default.
        memory: GiB of the device, instead of what is known about it.
        prompt_tokens: of a typical prompt; by default the longest that the configuration admits.
        completion_tokens: of a typical completion; by default the longest that the configuration admits.
        share: the part of the device's peak that is reached.
        as_script: print JSON.
        longest_row: look for the longest row that fits, too, by a few more plans.

    Raises:
        ConfigurationError: a setting cannot work, or the step cannot be planned.
    """
    check_sizes("plan", at_least=1, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
    if not 0 < share <= 1:
        raise ConfigurationError(f"`--share` must lie in (0, 1], got {share:g}.")
    target = find_device(device, memory)
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    cli = _WithoutTrainer(["fit", *config])
    trainer = cli.config_init["fit"]["trainer"]
    data = cli.datamodule
    setting = Setting(
        lengths=Lengths(
            prompt=prompt_tokens or data.max_prompt_tokens,
            reference=completion_tokens or data.max_completion_tokens,
            longest=completion_tokens,
        ),
        prompts=data.batch_size,
        validation_prompts=0 if trainer["limit_val_batches"] == 0 else data.validation_batch_size,
        accumulate=int(trainer["accumulate_grad_batches"] or 1),
        precision=str(trainer["precision"] or "32-true"),
    )
    result = plan(cli.model, setting, Placement.of(trainer.as_dict()), target, share)
    found = [] if result.fits else remedies(cli.model, result)
    longest = find_longest_row(cli.model, result) if longest_row else None
    if as_script:
        print(json.dumps(as_json(result, found) | ({"longest_row": longest} if longest_row else {})))
        return
    console = Console()
    for line in summary(result):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(memory_table(result))
    console.print(work_table(result))
    lines = [longest_row_line(result, longest)] if longest_row else []
    for line in lines + ([] if result.fits else remedy_lines(found)):
        console.print(line, highlight=False, soft_wrap=True)

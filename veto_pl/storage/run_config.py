"""The configuration of a run, beside its results."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info

from veto_pl.storage.atomic import replacing
from veto_pl.storage.going_on import warn_if_unwritten
from veto_pl.storage.run_folder import run_folder
from veto_pl.storage.run_loggers import RunLoggers


class RunConfig(SaveConfigCallback):
    """Writes the complete configuration into the run folder, and never over a file that the run was given.

    It is `config.yaml`, or, where that is one of those files, `config-2.yaml`, and so on. Loggers get it as
    hyperparameters.

    Args:
        parser: prints the configuration.
        config: the configuration.
        given: the files of `--config`.
        loggers: what made the loggers of the run; None where they get nothing.
    """

    def __init__(
        self,
        parser: LightningArgumentParser,
        config: Any,
        given: Sequence[Any] = (),
        loggers: RunLoggers | None = None,
    ) -> None:
        super().__init__(parser, config, overwrite=True)
        self._given = [Path(str(path)).resolve() for path in given]
        self._loggers = loggers

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file once, on the first rank. Collective: call it on every rank."""
        folder = run_folder(trainer)
        if trainer.is_global_zero and not self.already_saved:
            self._write(folder)
            if self._loggers is not None:
                self._loggers.begin(trainer.loggers, self._hyperparameters())
        self.already_saved = True

    def _hyperparameters(self) -> dict[str, Any]:
        """Return the configuration without what differs between the parts of one run."""
        found: dict[str, Any] = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        return {name: value for name, value in found.items() if name not in ("ckpt_path", "weights_only")}

    def _write(self, folder: Path) -> None:
        path = next(path for path in _names(folder / self.config_filename) if path.resolve() not in self._given)
        with warn_if_unwritten(path, "keeps its configuration in its checkpoints"), replacing(path) as temporary:
            temporary.write_text(self.parser.dump(self.config, skip_none=False), encoding="utf-8")
        if path.name != self.config_filename:
            rank_zero_info(
                f"`{folder / self.config_filename}` stays as it was given; the complete configuration is {path.name} "
                "beside it."
            )


def _names(path: Path) -> Any:
    yield path
    for number in itertools.count(2):
        yield path.with_stem(f"{path.stem}-{number}")

"""LightningCLI as the package uses it: it builds what a configuration describes, and runs it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelSummary, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger

from veto_pl.callbacks import PredictionFile
from veto_pl.callbacks.monitors import Monitors
from veto_pl.callbacks.resuming import resume_path, was_requeued
from veto_pl.callbacks.student_summary import StudentSummary
from veto_pl.callbacks.threads import Threads
from veto_pl.checks import check
from veto_pl.cli.compact_parser import CompactParser
from veto_pl.cli.parsing import plain, strict_parsing
from veto_pl.cli.refusals import REFUSALS, explain_refusal
from veto_pl.cli.training_commands import SUMMARIES
from veto_pl.cli.values import check_values
from veto_pl.core.mistakes import shorten
from veto_pl.data import PromptDataModule
from veto_pl.exceptions import ConfigurationError, VetoError
from veto_pl.module import DistillationModule
from veto_pl.plugins import load_plugins
from veto_pl.storage.checkpoint_place import check_checkpoint
from veto_pl.storage.config_files import check_files, load
from veto_pl.storage.journals import Events, MetricsFile, journals
from veto_pl.storage.paths import expand_home
from veto_pl.storage.run_config import RunConfig
from veto_pl.storage.run_folder import RunFolder, RunTrainer
from veto_pl.storage.run_loggers import RunLoggers

DESCRIPTION = "Distil language models. `veto-pl --help` names the commands beside those that train."
TRAINER_DEFAULTS = {
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
    "log_every_n_steps": 1,
    "gradient_clip_val": 1.0,
    "callbacks": [PredictionFile(), Monitors()],
}


SWITCHES = {"enable_progress_bar": ProgressBar, "enable_checkpointing": Checkpoint}
"""Settings of the trainer that switch off a kind of callback."""
SEEDED = ("model.seed", "data.seed")
"""What `seed_everything` sets."""


class VetoCLI(LightningCLI):
    """LightningCLI with a run folder, the package's callbacks, and classes that start from their own defaults.

    Attributes:
        parser_kind: says what a configuration may hold, and the classes of model and data among it.
        trainer_settings: those of the trainer by default.
    """

    parser_kind: type[CompactParser] = CompactParser
    trainer_settings: Mapping[str, Any] = TRAINER_DEFAULTS

    def __init__(self, args: Sequence[str] | None = None, *, run: bool = True, description: str = DESCRIPTION) -> None:
        self._command_names = (sys.argv[1:] if args is None else [*args])[:1]
        super().__init__(
            self.roots["model"],
            self.roots["data"],
            save_config_callback=RunConfig if run else None,
            trainer_class=RunTrainer,
            trainer_defaults=dict(self.trainer_settings),
            seed_everything_default=0,
            parser_class=self.parser_kind,
            parser_kwargs={"description": description},
            args=None if args is None else list(args),
            run=run,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    @property
    def roots(self) -> Mapping[str, Any]:
        """What a configuration may hold, and the classes that stand behind it."""
        return self.parser_kind.roots

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning calls it on the instance
        """Return Lightning's commands; only the one that is called, if any, since each parser takes half a second."""
        known = super().subcommands()
        return {name: known[name] for name in self._command_names if name in known} or known

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        """Add the commands with a sentence about each, where Lightning takes the first line of a docstring."""
        super()._add_subcommands(parser, **kwargs)
        added = parser._subcommands_action
        assert added is not None
        for shown in added._choices_actions:
            shown.help = SUMMARIES[shown.dest]

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder and the callbacks that every run has, and link the seeds of model and data to one."""
        parser.add_argument(
            "--run_dir",
            type=str,
            default=f"runs/{datetime.now():%Y%m%d-%H%M%S}",
            help="Folder of all files of this run: metrics.csv, samples.jsonl, config.yaml, checkpoints, export. "
            "An earlier run in it is overwritten; one that is not over is left alone.",
        )
        parser.add_argument(
            "--validate_first", type=bool, default=True, help="Validate before the first step of a fit."
        )
        parser.add_argument(
            "--threads",
            type=int | Literal["auto"],
            default="auto",
            help="Threads on a CPU; auto takes as many as cores are free, unless OMP_NUM_THREADS is set.",
        )
        for name, owner in self.roots.items():
            if owner is not None and issubclass(owner, Callback):
                parser.add_lightning_class_args(owner, name)
        for target in SEEDED:
            parser.link_arguments("seed_everything", target, compute_fn=lambda seed: int(seed or 0))

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse and check the arguments; a class that replaces another inherits none of its values."""
        groups = [name for name, cls in self.roots.items() if cls is not None]
        check_files(sys.argv[1:] if args is None else args, groups, dict.fromkeys(SEEDED, "seed_everything"))
        with strict_parsing():
            self.config = plain(parser.parse_args(args))
        check_values(self.config.get(self.config.get("subcommand") or "", self.config).as_dict(), self.roots)

    def _parse_ckpt_path(self) -> None:
        """Check that the checkpoint exists. Lightning's own version would let the file choose classes to build."""
        if self.config.get("subcommand") is None:
            return
        config = self.config[self.config.subcommand]
        if config.get("ckpt_path") is not None:
            config.ckpt_path = expand_home(str(config.ckpt_path))
            check_checkpoint(config.ckpt_path, expand_home(config.run_dir), "last")

    def before_instantiate_classes(self) -> None:
        """Set the run folder, in which loggers then write by default."""
        config = self.config.get(str(self.subcommand), self.config)
        self._folder, self._threads = RunFolder(config.run_dir), Threads(config.threads)
        self._loggers = RunLoggers(self._folder.path, continued=config.get("ckpt_path") is not None or was_requeued())
        self.parser.add_instantiator(self._loggers.make, Logger)
        given = [*(self.config.get("config") or ()), *(config.get("config") or ())]
        self.save_config_kwargs = {"given": given, "loggers": self._loggers}

    def instantiate_classes(self) -> None:
        """Build what the configuration describes; an error of a class about its settings names their path."""
        try:
            super().instantiate_classes()
        except REFUSALS as error:
            if self._loggers.refusal is not None:
                raise self._loggers.refusal from error
            config = self.config.get(str(self.subcommand), self.config).as_dict()
            if (refusal := explain_refusal(error, config, self.roots)) is None:
                raise
            raise refusal from error

    def after_instantiate_classes(self) -> None:
        """Give the module its configuration as YAML, for checkpoints and model cards."""
        parser = self._parser(self.subcommand)
        config = self.config.get(str(self.subcommand), self.config)
        self.model.run_config = parser.dump(config, skip_none=False, skip_link_targets=True)
        self.model._log_hyperparams = False  # private: loggers get the whole configuration (`RunLoggers.begin`)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the command with the run folder locked."""
        self._folder.claim()
        try:
            super()._run_subcommand(subcommand)
        finally:
            self._folder.release()
            self._threads.release()

    def before_fit(self) -> None:
        """Find the checkpoint to resume from, or empty the run's files and validate the untrained student."""
        config = self.config_init[str(self.subcommand)]
        config.ckpt_path = resume_path(self.trainer, config.ckpt_path)
        if config.ckpt_path is not None:
            return
        for journal in journals(self.trainer):
            journal.cut(self.trainer, rows=0, step=0)
        if config.validate_first and not config.trainer.fast_dev_run:
            self.trainer.validate(self.model, self.datamodule, verbose=False)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Return a trainer that writes into the run folder, `metrics.csv` whatever its loggers are.

        `trainer.logger: true` means TensorBoard beside it.
        """
        run_dir = str(self._folder.path)
        trainer = self._get(self.config_init, "trainer")
        _refuse_other_folder(trainer.get("default_root_dir"), run_dir)
        kwargs["default_root_dir"] = run_dir
        kwargs["logger"] = self._loggers.with_metrics(_listed(trainer.get("logger"), run_dir))
        with _trainer_errors():
            built = super().instantiate_trainer(**kwargs)
        built.callbacks[:0] = [self._folder, self._threads]  # type: ignore[attr-defined]
        return built

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Check settings and callbacks together, and drop the callbacks that the trainer's settings switch off."""
        chosen = config.get("callbacks") or []
        chosen = chosen if isinstance(chosen, list) else [chosen]
        keys = self._parser(self.subcommand).callback_keys
        own = dict(zip(keys, callbacks, strict=True))
        if self.subcommand is not None:
            given = {f"trainer.callbacks.{i}.init_args": callback for i, callback in enumerate(chosen)}
            self.check_settings(config, given | own)
        unwanted = [kind for name, kind in SWITCHES.items() if config.get(name) is False]
        unwanted += [ProgressBar for callback in chosen if isinstance(callback, ProgressBar)]
        kept = [callback for callback in callbacks if not isinstance(callback, tuple(unwanted))]
        if config.get("enable_model_summary") is not False and not any(isinstance(c, ModelSummary) for c in chosen):
            kept.append(StudentSummary())
        return super()._instantiate_trainer(config, kept)

    def check_settings(self, trainer: Mapping[str, Any], callbacks: Mapping[str, Callback]) -> None:
        """Raise `ConfigurationError` for settings that do not go together, before anything is loaded.

        Args:
            trainer: its settings by name.
            callbacks: by the path of their settings.
        """
        check(self.model, self.datamodule, trainer, str(self.subcommand), callbacks)


@contextmanager
def _trainer_errors() -> Iterator[None]:
    try:
        yield
    except VetoError:
        raise
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        raise ConfigurationError(f"`trainer`: its settings are refused. It says: {shorten(error, 300)}") from error


def _refuse_other_folder(given: str | None, run_dir: str) -> None:
    if given not in (None, run_dir):
        raise ConfigurationError(
            f"`trainer.default_root_dir`: given `{shorten(given)}`, expected nothing, for `run_dir` names the one "
            "folder of a run. Set `run_dir` instead."
        )


def _listed(given: Any, run_dir: str) -> list[Logger]:
    """Return the loggers that `trainer.logger` stands for; one of TensorBoard by default, where that is installed."""
    if given in (None, True):
        return [MetricsFile(run_dir), *([Events(run_dir)] if find_spec("tensorboard") else [])]
    if given is False:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]


def built_from(config: str) -> tuple[DistillationModule, PromptDataModule]:
    """Build the modules that a run's YAML describes, on any machine. The YAML has to be trusted.

    Objective and frozen models are left out: they may name files that only the machine of the run has.

    Raises:
        ConfigurationError: it describes no run.
    """
    load_plugins()
    parts = {key: value for key, value in load(config).items() if key in ("seed_everything", "model", "data")}
    if missing := sorted({"model", "data"} - {key for key, value in parts.items() if isinstance(value, dict)}):
        raise ConfigurationError(f"`--config` describes no run: it has no `{missing[0]}`. Name the run's config.yaml.")
    parts["model"] |= {"objective": {"class_path": "SFT"}, "teacher": None, "teachers": None, "reference": None}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(parts), encoding="utf-8")
        command = VetoCLI(["--config", str(path)], run=False)
    return command.model, command.datamodule

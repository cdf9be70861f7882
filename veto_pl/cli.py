"""The `veto-pl` command: LightningCLI, and the commands beside it."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from veto_pl.callbacks import Diagnostics, DistillationProgress, Export, PredictionFile, SampleTable
from veto_pl.data import PromptDataModule
from veto_pl.exceptions import VetoError
from veto_pl.module import DistillationModule
from veto_pl.parsing import own_defaults
from veto_pl.plugins import load_plugins
from veto_pl.report.run import SAMPLES

DESCRIPTION = """Distil language models. Beside the commands below there are `veto-pl list` (what is available behind
each seam), `veto-pl export` (a checkpoint as a Hugging Face folder), `veto-pl report` (an HTML page of runs) and
`veto-pl cache-teacher` (a teacher's scores on disk)."""
LINE = 110
TRAINER_DEFAULTS = {
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
    "log_every_n_steps": 1,
    "gradient_clip_val": 1.0,
    "callbacks": [PredictionFile()],
}


class CompactDumper(yaml.SafeDumper):
    """Writes mappings and lists in lines, not one entry per line, where they are short or hold plain values only."""

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        """Flow style for what is short or flat, block style for the rest."""
        flat = not any(isinstance(value, dict | list) for value in mapping.values())
        return super().represent_mapping(tag, mapping, flow_style=flat or len(str(mapping)) < LINE)

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        """Flow style for what is short."""
        return super().represent_sequence(tag, sequence, flow_style=len(str(sequence)) < LINE)


class CompactParser(LightningArgumentParser):
    """Prints configurations so compactly that an algorithm fits on a screen."""

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """The configuration as YAML; comments at its head are kept."""
        text: str = super().dump(*args, **kwargs)
        header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
        body: str = yaml.dump(yaml.safe_load(text), Dumper=CompactDumper, sort_keys=False, width=LINE)
        return header + body


class VetoCLI(LightningCLI):
    """LightningCLI with a run folder, the package's callbacks, and classes that start from their own defaults."""

    def __init__(self, args: Sequence[str] | None = None, *, run: bool = True) -> None:
        super().__init__(
            DistillationModule,
            PromptDataModule,
            save_config_callback=SaveConfigCallback if run else None,
            save_config_kwargs={"overwrite": True},
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_class=CompactParser,
            parser_kwargs={"description": DESCRIPTION},
            args=None if args is None else list(args),
            run=run,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the run folder and the callbacks that every run has, and shares the seed."""
        parser.add_argument(
            "--run_dir",
            type=str,
            default=f"runs/{datetime.now():%Y%m%d-%H%M%S}",
            help="Folder of this run: metrics.csv, samples.jsonl, config.yaml, checkpoints, export. "
            "An earlier run in it is overwritten.",
        )
        parser.add_argument(
            "--validate_first", type=bool, default=True, help="Validate before the first step of a fit."
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({"checkpoint.save_last": True})
        parser.add_lightning_class_args(SampleTable, "samples")
        parser.add_lightning_class_args(Diagnostics, "diagnostics")
        parser.add_lightning_class_args(Export, "export")
        parser.add_lightning_class_args(DistillationProgress, "progress")
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses so that a class that replaces another inherits none of its values."""
        with own_defaults():
            self.config = parser.parse_args(args)

    def after_instantiate_classes(self) -> None:
        """Hands the module its own configuration, for checkpoints and model cards."""
        parser = self._parser(self.subcommand)
        config = self.config.get(str(self.subcommand), self.config)
        self.model.run_config = parser.dump(config, skip_none=False, skip_link_targets=True)

    def before_fit(self) -> None:
        """Starts the run's files afresh and measures where the student starts: every run has its own baseline."""
        config = self.config[str(self.subcommand)]
        if config.ckpt_path is None:
            Path(config.run_dir, SAMPLES).unlink(missing_ok=True)
        if config.validate_first and config.ckpt_path is None and not config.trainer.fast_dev_run:
            self.trainer.validate(self.model, self.datamodule, verbose=False)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Puts everything that a run writes into its folder; `trainer.logger: true` means CSV and TensorBoard."""
        run_dir = self._get(self.config_init, "run_dir")
        trainer = self._get(self.config_init, "trainer")
        kwargs.setdefault("default_root_dir", trainer.get("default_root_dir") or run_dir)
        if trainer.get("logger") in (None, True):
            kwargs.setdefault("logger", _default_loggers(run_dir))
        return super().instantiate_trainer(**kwargs)


def _default_loggers(run_dir: str) -> list[Logger]:
    return [CSVLogger(run_dir, name="", version=""), TensorBoardLogger(run_dir, name="", version="tensorboard")]


def module_from_config(config: str) -> DistillationModule:
    """Builds the module that a run's YAML describes, on whatever machine this is, without running anything.

    Objective and teacher are left out: they may name files that only the machine of the run has.
    """
    load_plugins()
    parts = {key: value for key, value in yaml.safe_load(config).items() if key in ("seed_everything", "model", "data")}
    parts["model"] |= {"objective": {"class_path": "SFT"}, "teacher": None}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(parts), encoding="utf-8")
        model: DistillationModule = VetoCLI(["--config", str(path)], run=False).model
    return model


def _list(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("veto-pl list", description="What is available behind each seam.")
    parser.add_argument("seams", nargs="*", help="objectives, divergences, targets, schedules, ...; all by default")
    from veto_pl.listing import print_listing

    print_listing(parser.parse_args(arguments).seams)


def _export(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("veto-pl export", description="Write a checkpoint as a Hugging Face folder.")
    parser.add_argument("checkpoint", help="a .ckpt file")
    parser.add_argument("folder", help="where to write the student, the tokenizer and the model card")
    given = parser.parse_args(arguments)
    from veto_pl.export import export_checkpoint

    print(export_checkpoint(given.checkpoint, given.folder))


def _report(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("veto-pl report", description="Write an HTML report of one or several runs.")
    parser.add_argument("runs", nargs="+", help="run folders")
    parser.add_argument("--out", default="report.html", help="the page to write")
    parser.add_argument("--title", default="Distillation report")
    given = parser.parse_args(arguments)
    from veto_pl.report import Run, write_report

    print(write_report([Run.read(Path(folder)) for folder in given.runs], Path(given.out), title=given.title))


def _cache_teacher(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "veto-pl cache-teacher",
        description="Score the task's completions with the teacher, once. Other options are those of `veto-pl fit`.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; an interrupted build goes on")
    parser.add_argument("--k", type=int, default=64, help="likeliest ids kept per token (default: 64)")
    parser.add_argument("--split", default="train", help="train (default), validation or test")
    parser.add_argument("--rows_per_shard", type=int, default=512, help="rows of a file (default: 512)")
    given, config = parser.parse_known_args(arguments)
    load_plugins()
    from veto_pl.offline.command import cache_teacher

    cache_teacher(config, **vars(given))


def _leave_out_noise() -> None:
    """Hides what a user can do nothing about: deprecations between the libraries, and Lightning's advertisements."""
    warnings.filterwarnings("ignore", message=r"(?s).*deprecated in v4\.")  # jsonargparse
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty.*")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: "Tip: For seamless cloud" not in record.getMessage())


COMMANDS = {"list": _list, "export": _export, "report": _report, "cache-teacher": _cache_teacher}
TRAINING = ("fit", "validate", "test", "predict")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; errors that veto_pl raises on purpose end it with their message alone."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _leave_out_noise()
    try:
        if given and given[0] in COMMANDS:
            COMMANDS[given[0]](given[1:])
        else:
            load_plugins()
            VetoCLI(given)
    except VetoError as error:
        sys.exit(f"veto-pl: {error}")


if __name__ == "__main__":
    main()

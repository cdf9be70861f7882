"""The commands of `veto-pl` beside those that train, the package's own and those of others.

A package announces a command in the entry-point group `veto_pl.commands`: a function that takes the arguments behind
its name. The first line of its docstring explains it in `veto-pl --help`:

    [project.entry-points."veto_pl.commands"]
    prune = "my_package.prune:main"

The package's own import what they need when they run.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from veto_pl.cli.training_commands import SUMMARIES
from veto_pl.core.mistakes import shorten
from veto_pl.exceptions import VetoError
from veto_pl.plugins import announced, load, load_plugins, refused, summary
from veto_pl.storage.paths import expand_home, local_path


def _list(arguments: Sequence[str]) -> None:
    """Print what is available behind each seam."""
    parser = _parser(_list)
    parser.add_argument("seams", nargs="*", help="objectives, divergences, targets, schedules, ...; all by default")
    from veto_pl.cli.listing import print_listing

    print_listing(parser.parse_args(arguments).seams)


def _export(arguments: Sequence[str]) -> None:
    """Write a checkpoint as a Hugging Face folder."""
    parser = _parser(_export)
    parser.add_argument("checkpoint", type=expand_home, help="a .ckpt file, or the folder of a sharded run")
    parser.add_argument("folder", type=expand_home, help="where to write the student, the tokenizer and the model card")
    parser.add_argument(
        "--config", type=local_path, help="of the run, for a checkpoint that does not describe its student"
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that belongs to the model")
    parser.add_argument("--adapter", choices=("merged", "separate"), default="merged",
                        help="how a student with an adapter is written (default: merged)")  # fmt: skip
    given = parser.parse_args(arguments)
    load_plugins()  # they may have registered architectures
    from veto_pl.commands.export import export_checkpoint
    from veto_pl.storage.config_files import check_files
    from veto_pl.storage.going_on import data_error_if_unwritten

    check_files(arguments)
    config = None if given.config is None else given.config.read_text(encoding="utf-8")
    with data_error_if_unwritten(f"The export `{given.folder}`"):
        done = export_checkpoint(
            given.checkpoint, given.folder, config, trust_remote_code=given.trust_remote_code, adapter=given.adapter
        )
        print(done)


def _push(arguments: Sequence[str]) -> None:
    """Put an export onto the Hugging Face hub, private unless told otherwise."""
    parser = _parser(_push)
    parser.add_argument("export", type=local_path, help="the folder of an export, such as runs/mine/export")
    parser.add_argument("repo", help="OWNER/NAME; made if there is none")
    parser.add_argument("--public", action="store_true", help="let everybody read it")
    parser.add_argument("--license", dest="licence", help="identifier of the hub for the card, such as apache-2.0")
    parser.add_argument("--run", type=local_path, help="folder of the run, for the metrics (default: that of EXPORT)")
    given = parser.parse_args(arguments)
    from veto_pl.commands.push import push_export

    print(push_export(given.export, given.repo, public=given.public, licence=given.licence, run=given.run))


def _report(arguments: Sequence[str]) -> None:
    """Write an HTML report of one or several runs."""
    parser = _parser(_report)
    parser.add_argument("runs", nargs="+", type=local_path, help="run folders")
    parser.add_argument("--out", type=local_path, default="report.html", help="the page to write")
    parser.add_argument("--names", nargs="+", help="what to call the runs, in their order (default: their folders)")
    parser.add_argument("--title", default="Distillation report")
    given = parser.parse_args(arguments)
    from veto_pl.report import write_report
    from veto_pl.report.run import named_runs

    print(write_report(named_runs(given.runs, given.names), given.out, title=given.title))


def _cache_teacher(arguments: Sequence[str]) -> None:
    """Score the task's completions with the teacher, once.

    Other options are those of `veto-pl fit`.
    """
    parser = _parser(_cache_teacher)
    parser.add_argument(
        "--out", type=local_path, required=True, help="the folder to write; an interrupted build goes on"
    )
    parser.add_argument("--k", type=int, default=64, help="likeliest ids kept per token (default: 64)")
    parser.add_argument("--split", default="train", help="train (default), validation or test")
    parser.add_argument("--rows_per_shard", type=int, default=512, help="rows of a file (default: 512)")
    parser.add_argument("--teacher", default="teacher", help="its name in `model.teachers`; `model.teacher` by default")
    given, config = parser.parse_known_args(arguments)
    load_plugins()
    from veto_pl.commands.cache_teacher import cache_teacher

    cache_teacher(config, **vars(given))


def _headroom(arguments: Sequence[str]) -> None:
    """Ask whether the teacher has something to teach.

    Other options are those of `veto-pl fit`.
    """
    parser = _parser(_headroom)
    parser.add_argument("--prompts", type=int, default=128, help="prompts that both answer (default: 128)")
    parser.add_argument("--split", default="validation", help="train, validation (default) or test")
    parser.add_argument(
        "--share", type=float, default=0.5, help="of the student's completion that the teacher goes on from (0.5)"
    )
    parser.add_argument("--json", action="store_true", dest="as_script", help="print JSON")
    given, config = parser.parse_known_args(arguments)
    load_plugins()
    from veto_pl.commands.headroom import headroom

    headroom(config, **vars(given))


def _plan(arguments: Sequence[str]) -> None:
    """Say what a run needs, before it runs.

    Other options are those of `veto-pl fit`.
    """
    parser = _parser(_plan)
    parser.add_argument("--device", help="H100-80GB, H200, A100-80GB, A100-40GB, L40S, RTX-4090 or CPU; else this one")
    parser.add_argument("--memory", type=float, help="GiB of a device, instead of what is known about it")
    parser.add_argument("--prompt_tokens", type=int, help="of a typical prompt (default: the longest admitted)")
    parser.add_argument("--completion_tokens", type=int, help="of a typical completion (default: the longest admitted)")
    parser.add_argument("--share", type=float, default=0.4, help="of the device's peak that is reached (default: 0.4)")
    parser.add_argument("--longest_row", action="store_true", help="also look for the longest row that fits")
    parser.add_argument("--json", action="store_true", dest="as_script", help="print JSON, in bytes, FLOP and seconds")
    given, config = parser.parse_known_args(arguments)
    load_plugins()
    from veto_pl.commands.plan import print_plan

    print_plan(config, **vars(given))


def _quantised(arguments: Sequence[str]) -> None:
    """Measure how far the models that a configuration quantises are from what they were before.

    Other options are those of `veto-pl fit`.
    """
    parser = _parser(_quantised)
    parser.add_argument("--rows", type=int, default=16, help="validation rows that are read (default: 16)")
    given, config = parser.parse_known_args(arguments)
    load_plugins()
    from veto_pl.commands.quantised import print_gaps

    print_gaps(config, rows=given.rows)


def _compare(arguments: Sequence[str]) -> None:
    """Run methods at equal budget over seeds, or go on with that, and write a page and a table.

    Other options replace entries of the study, such as --seeds='[1,2]'.
    """
    parser = _parser(_compare)
    parser.add_argument("study", type=local_path, help="the YAML file of a study, such as configs/compare/debug.yaml")
    parser.add_argument("--out", type=local_path, help="folder of runs and results (default: runs/compare/NAME)")
    parser.add_argument("--workers", type=int, help="runs at a time (default: one per GPU, else per core)")
    parser.add_argument("--address", help="of a Ray cluster, HOST:PORT or auto (default: this machine alone)")
    parser.add_argument("--only_report", action="store_true", help="run nothing; report what is finished")
    given, overrides = parser.parse_known_args(arguments)
    folder = given.out or Path("runs/compare") / given.study.stem
    try:
        load_plugins()
        from veto_pl.commands.compare import run_study
        from veto_pl.compare.cells import counted

        found = run_study(
            given.study,
            folder,
            overrides=overrides,
            workers=given.workers,
            address=given.address,
            only_report=given.only_report,
        )
    except KeyboardInterrupt:
        print("veto-pl: stopped. The same command goes on from here.", file=sys.stderr)
        sys.exit(130)
    if found.failures:
        name, reason = next(iter(found.failures.items()))
        raise VetoError(f"{counted(len(found.failures), 'failure')} in the comparison; {name}: {reason:.500}")


def _judge(arguments: Sequence[str]) -> None:
    """Let a judge say whose answers it prefers."""
    load_plugins()
    from veto_pl.commands.judge import judge_files

    judge_files(arguments)


def _new(arguments: Sequence[str]) -> None:
    """Write a package with a part of your own, to be installed and changed."""
    parser = _parser(_new)
    parser.add_argument("package", help="its name, such as my-methods; a folder of this name is made here")
    parser.add_argument("--seam", nargs="+", required=True, help="objective, divergence, target, task, reward, ...")
    given = parser.parse_args(arguments)
    from veto_pl.commands.new import new_package

    folder = new_package(given.package, given.seam, Path())
    print(f"{folder}\nNext: cd {folder} && pip install -e '.[testing]' && pytest")


def _explain(arguments: Sequence[str]) -> None:
    """Draw what objectives do to one token."""
    from veto_pl.commands.explain import explain

    explain(arguments)


def _diffusion(arguments: Sequence[str]) -> None:
    """Train a few-step denoising model on its own states, measure and export it: `diffusion fit`."""
    load_plugins()
    if arguments[:1] == ["export"]:
        _export_denoiser(arguments[1:])
        return
    from veto_pl.cli.denoising_cli import DenoisingCLI

    DenoisingCLI(arguments)


def _export_denoiser(arguments: Sequence[str]) -> None:
    """Write a checkpoint of a denoising student as a folder of diffusers."""
    parser = argparse.ArgumentParser("veto-pl diffusion export", description=inspect.getdoc(_export_denoiser))
    parser.add_argument("checkpoint", type=expand_home, help="a .ckpt file, or the folder of a sharded run")
    parser.add_argument("folder", type=expand_home, help="where to write the transformer, and an adapter by itself")
    parser.add_argument("--pipeline", help="folder or hub id of the pipeline that the student belongs to")
    given = parser.parse_args(arguments)
    from veto_pl.commands.export_denoiser import export_denoiser_checkpoint
    from veto_pl.storage.going_on import data_error_if_unwritten

    with data_error_if_unwritten(f"The export `{given.folder}`"):
        print(export_denoiser_checkpoint(given.checkpoint, given.folder, given.pipeline))


Command = Callable[[Sequence[str]], Any]
OWN: dict[str, Command] = {
    "list": _list,
    "export": _export,
    "push": _push,
    "report": _report,
    "cache-teacher": _cache_teacher,
    "headroom": _headroom,
    "plan": _plan,
    "quantised": _quantised,
    "compare": _compare,
    "judge": _judge,
    "explain": _explain,
    "new": _new,
    "diffusion": _diffusion,
}
GROUP = "veto_pl.commands"


def commands() -> dict[str, Command]:
    """Return every command beside those that train, by its name.

    Raises:
        PluginError: one of an installed package cannot be imported or called, or has the name of another.
    """
    found = dict(OWN)
    for entry in announced(GROUP):
        if entry.name in (*found, *SUMMARIES):
            raise refused(entry, "has the name of another command")
        command = load(entry)
        if not callable(command):
            raise refused(entry, f"is {shorten(command)}, and no function")
        found[entry.name] = command
    return found


def print_help() -> None:
    """Print what every command does; nothing heavy is imported for it."""
    others = {name: summary(command) for name, command in commands().items()}
    print("usage: veto-pl COMMAND ...\n\nDistil language models.")
    for title, told in (("To train and to measure a student", SUMMARIES), ("Beside that", others)):
        width = max(map(len, told)) + 2
        print(f"\n{title}:")
        for name, text in told.items():
            lines = textwrap.wrap(text, 76 - width) or [""]
            print(f"  {name:<{width}}" + f"\n{' ' * (width + 2)}".join(lines))
    print("\n`veto-pl COMMAND --help` explains the options of one.")


def _parser(command: Command) -> argparse.ArgumentParser:
    """Return a parser for the command's own options, described by the command's docstring."""
    name = next(name for name, known in OWN.items() if known is command)
    return argparse.ArgumentParser(f"veto-pl {name}", description=inspect.getdoc(command), allow_abbrev=False)

"""`veto-pl cache-teacher`: the configuration of `fit`, scored instead of trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from veto_pl.commands.prepared import Prepared
from veto_pl.commands.teacher_scores import Scorer, write_store
from veto_pl.core.nested import given
from veto_pl.data.splits import check_sizes
from veto_pl.exceptions import ConfigurationError
from veto_pl.functional.chunk_size import fewest_rows
from veto_pl.offline.cost import cost_table
from veto_pl.offline.manifest import NAME
from veto_pl.seams import Objective, TeacherContext
from veto_pl.seams.teacher_names import TEACHER, listed, setting_of


def cache_teacher(
    config: Sequence[str], *, out: Path, k: int, split: str, rows_per_shard: int, teacher: str = TEACHER
) -> None:
    """Write the teacher's scores of a split, and print what truncation costs and how a run uses them.

    Args:
        config: the arguments of `veto-pl fit`.
        out: the store's folder.
        k: ids kept per token.
        split: the rows to score.
        rows_per_shard: rows of a file.
        teacher: the name of the one that is scored.

    Raises:
        ConfigurationError: a setting cannot work, or the folder holds other scores.
        DataError: no row can be scored.
    """
    check_sizes("cache-teacher", at_least=1, rows_per_shard=rows_per_shard)
    cli = Prepared(["fit", *config])
    temperature = _temperature(cli.model.objective)
    if teacher not in (known := cli.model.model_sources):
        raise ConfigurationError(
            f"`cache-teacher` needs the teacher to be scored, but of models the run has {listed(known)} and not "
            f"`{teacher}`. Set `{setting_of(teacher)}`, or name another by `--teacher`."
        )
    console = Console()
    manifest = write_store(
        _scorer(cli, k, temperature, teacher),
        cli.datamodule.rows(split),
        out,
        rows_per_shard=rows_per_shard,
        say=lambda line: console.print(line, highlight=False, soft_wrap=True),
    )
    rows = sum(shard.rows for shard in manifest.shards)
    console.print(f"{out / NAME}: {rows} rows, {manifest.cost.tokens} tokens", highlight=False, soft_wrap=True)
    console.print(cost_table(manifest.cost.means(), k))
    console.print("Train from the store with these lines in the config, behind the others:", highlight=False)
    console.print(usage(out, teacher), highlight=False, soft_wrap=True)


def usage(out: Path, teacher: str = TEACHER) -> str:
    """Return the YAML that replaces a teacher by the store in `out`."""
    path = {"path": str(out)}
    rollout = {"class_path": "FromCache", "init_args": path}
    alone: dict[str, Any] = {"teacher": None, "objective": {"init_args": {"rollout": rollout}}}
    named: dict[str, Any] = {"teachers": {teacher: {"class_path": "StoredScores", "init_args": path}}}
    text: str = yaml.safe_dump({"model": alone if teacher == TEACHER else named}, sort_keys=False)
    return text


def _scorer(cli: Prepared, k: int, temperature: float, teacher: str) -> Scorer:
    """Return a scorer with the models of the run, on its device and in its precision."""
    data, trainer = cli.datamodule, cli.trainer
    return Scorer(
        models=cli.loaded("cache-teacher", teacher),
        collator=data.collator,
        k=k,
        temperature=temperature,
        batch_size=data.batch_size,
        chunk_rows=fewest_rows(getattr(cli.model.objective, "chunk_rows", 2048)),
        device=trainer.strategy.root_device,
        precision=trainer.precision_plugin.forward_context,
    )


def _temperature(objective: Objective) -> float:
    temperature = getattr(objective, "temperature", None)
    name = type(objective).__name__
    if temperature is None:
        raise ConfigurationError(
            f"`{name}` has no `temperature` of its own, so it is not known at which one to score. Use the config with "
            "one of its terms as `model.objective`."
        )
    if not all(context.is_neutral for context in given(objective, TeacherContext)):  # type: ignore[type-abstract]
        raise ConfigurationError(
            f"`{name}.context` lets the teacher read another text, which a store cannot hold. Use `SameText`."
        )
    return float(temperature)

"""`veto-pl compare`: runs a study, or goes on with it, and writes what it found."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console

from veto_pl.compare.cells import counted
from veto_pl.compare.comparison_page import write_page
from veto_pl.compare.jobs import Job, Jobs, Point, point_text
from veto_pl.compare.markdown import markdown
from veto_pl.compare.pool import Pool
from veto_pl.compare.results import Comparison, Search, Trial
from veto_pl.compare.study import EqualBudget, Method, SettingSearch, Stage, Study
from veto_pl.compare.trials import compare, read_search, read_trial, search_score
from veto_pl.compare.worker import failure, is_done
from veto_pl.core.mistakes import shorten
from veto_pl.exceptions import ConfigurationError
from veto_pl.pages.render import write_text
from veto_pl.storage.config_files import load, reason

PAGE, TABLE = "comparison.html", "comparison.md"


def load_study(file: Path, overrides: Sequence[str] = ()) -> Study:
    """Reads a study's file; `overrides` are options such as `--seeds=[1,2]`.

    Raises:
        ConfigurationError: the file, or a value in it, cannot be used.
    """
    if not file.is_file():
        raise ConfigurationError(f"`veto-pl compare` expected the file of a study, got `{file}`, which is no file.")
    _check_entries(file)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--study", action="config")
    parser.add_class_arguments(Study)
    try:
        given = parser.parse_args([f"--study={file}", *overrides]).as_dict()
    except ArgumentError as error:
        raise ConfigurationError(f"The study `{file}` cannot be used: {error}") from error
    for name in ("methods", "stages", "budget", "search", "evaluations"):
        if not isinstance(given[name], Mapping):
            raise ConfigurationError(f"`{name}` of a study expected named entries, got {given[name]!r:.80}.")
    # By hand: jsonargparse would build the classes that settings name, which are for the runs to build.
    parts = {
        "methods": {name: Method(**of) for name, of in given["methods"].items()},
        "stages": {name: Stage(**of) for name, of in given["stages"].items()},
        "budget": EqualBudget(**given["budget"]),
        "search": SettingSearch(**given["search"]),
    }
    return Study(**{name: value for name, value in {**given, **parts}.items() if name != "study"})


def _check_entries(file: Path) -> None:
    """The parser of the whole study would not say which of its methods or stages is meant."""
    try:
        content = load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"The study `{file}` cannot be used: {reason(error)}. Mend it.") from error
    for group, kind in (("methods", Method), ("stages", Stage)):
        entries = content.get(group) if isinstance(content, Mapping) else None
        for name, given in entries.items() if isinstance(entries, Mapping) else ():
            parser = ArgumentParser(exit_on_error=False)
            parser.add_class_arguments(kind)
            try:
                parser.parse_object(given if isinstance(given, Mapping) else {})
            except ArgumentError as error:
                known = ", ".join(part.name for part in fields(kind))
                raise ConfigurationError(
                    f"`{group}.{name}` of the study `{file}` cannot be used: {shorten(error, 300)}. It takes {known}."
                ) from error


def run_study(
    file: Path, folder: Path, *, overrides: Sequence[str] = (), workers: int | None = None, only_report: bool = False
) -> Comparison:
    """Runs what is missing and writes the page and the table.

    Args:
        file: the study.
        folder: where everything is written; a study that was stopped goes on there.
        overrides: options that replace entries of the study.
        workers: runs at a time; by default one per accelerator, else one per core.
        only_report: run nothing; report what is finished.

    Raises:
        ConfigurationError: the study or the folder cannot be used, or a stage that all runs start from failed.
        DataError: a file of a finished run is missing or damaged.
    """
    study = load_study(file, overrides)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"`--out` expected a folder to write in, got `{folder}`: {error.strerror}.") from error
    command = shlex.join(["veto-pl", "compare", str(file), f"--out={folder}", *overrides])
    pool = Pool.of_this_machine(workers, study.devices)
    return Desk(study, Jobs(study, file.parent, folder), folder, command, pool, only_report).work()


@dataclass
class Desk:
    """Where a study is worked through: stages, search, trials, report."""

    study: Study
    jobs: Jobs
    folder: Path
    command: str
    pool: Pool
    only_report: bool = False
    console: Console = field(default_factory=Console)
    failures: dict[str, str] = field(default_factory=dict)
    """Name of a run, or of a search -> why it failed."""

    def work(self) -> Comparison:
        """Everything, in order."""
        for name in self.study.stages:
            failed = self._run(f"stage {name}", self.jobs.stages(name))
            if failed and not self.only_report:
                folder, reason = next(iter(failed.items()))
                raise ConfigurationError(f"The methods start from `{folder}`, which failed: {reason}")
        points, searches = self._search()
        trials = {
            (method, seed): self.jobs.trial(method, points[method], seed)
            for seed in self.study.seeds
            for method in self.study.methods
            if method in points
        }
        self._run("trials", list(trials.values()))
        return self._report(trials, searches)

    def _search(self) -> tuple[dict[str, Point], dict[str, Search]]:
        """The point of each method. One whose runs all failed has none."""
        study = self.study
        single = study.search.points[0] if not study.searches else {}
        fixed: dict[str, Point] = {m: single if of.search else {} for m, of in study.methods.items()}
        searched = [m for m, of in study.methods.items() if of.search] if study.searches else []
        grid = {point_text(point): point for point in study.search.points}
        jobs = {
            m: {text: [self.jobs.search(m, point, seed) for seed in study.search.seeds] for text, point in grid.items()}
            for m in searched
        }
        self._run("search", [job for text in grid for m in searched for job in jobs[m][text]])
        searches = {m: found for m in searched if (found := self._ranked(m, jobs[m], grid)) is not None}
        points = {m: grid[searches[m].chosen] if m in searches else fixed[m] for m in fixed}
        return {m: p for m, p in points.items() if m in searches or m not in searched}, searches

    def _ranked(self, method: str, jobs: Mapping[str, Sequence[Job]], grid: Mapping[str, Point]) -> Search | None:
        """The search of a method, if a setting has a score; if none can get one any more, that is a failure."""
        search = self.study.search
        scores = {text: self._score(group) for text, group in jobs.items()}
        if any(map(math.isfinite, scores.values())):
            return read_search(search, scores, grid)
        if all(is_done(job) or job.name in self.failures for group in jobs.values() for job in group):
            nothing = f"no run ended with a finite `{search.metric}`, which is `search.metric`"
            self.failures[f"the search of {method}"] = f"No setting has a score: {nothing}."
        return None

    def _score(self, jobs: Sequence[Job]) -> float:
        if not all(map(is_done, jobs)):
            return float("nan")
        return search_score(self.study.search.metric, jobs)

    def _run(self, what: str, jobs: Sequence[Job]) -> dict[Path, str]:
        """Runs what is missing. Returns folder -> why it failed."""
        missing = [job for job in jobs if not is_done(job)]
        if self.only_report:
            failed = {job.folder: reason for job in missing if (reason := failure(job))}
        else:
            failed = self._run_all(what, missing) if missing else {}
        self.failures |= {job.name: failed[job.folder] for job in missing if job.folder in failed}
        return failed

    def _run_all(self, what: str, missing: Sequence[Job]) -> dict[Path, str]:
        self.console.rule(f"{what}: {counted(len(missing), 'run')}, {self.pool.workers} at a time")
        left = len(missing)

        def finished(job: Job, reason: str | None, seconds: float) -> None:
            nonlocal left
            left -= 1
            outcome = "done" if reason is None else f"FAILED: {reason:.300}"
            self.console.print(
                f"{job.name:40} {outcome}, {seconds:.0f} s, {left} left", markup=False, highlight=False, soft_wrap=True
            )

        return self.pool.run(missing, finished)

    def _report(self, jobs: Mapping[tuple[str, int], Job], searches: Mapping[str, Search]) -> Comparison:
        trials = [read_trial(m, seed, job, self.study.answers) for (m, seed), job in jobs.items() if is_done(job)]
        comparison = compare(self.study, trials, searches, self.failures, self.command)
        page = write_page(comparison, self.folder / PAGE)
        table = write_text(markdown(comparison), self.folder / TABLE)
        self._warn_of_empty(trials)
        self.console.print(f"page      {page}\ntable     {table}", soft_wrap=True, highlight=False)
        return comparison

    def _warn_of_empty(self, trials: Sequence[Trial]) -> None:
        """A misspelt quantity would otherwise be a column of dashes."""
        known = sorted({name for trial in trials for name in trial.values})
        for quantity in self.study.measured:
            if trials and quantity not in known:
                self.console.print(
                    f"warning   no run has {quantity!r}, which the study shows. There are: {', '.join(known)}",
                    markup=False, highlight=False, soft_wrap=True,
                )  # fmt: skip

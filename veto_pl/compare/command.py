"""`veto-pl compare`: runs a study, or goes on with it, and writes what it found."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console

from veto_pl.compare.jobs import Job, Jobs, Point, point_text
from veto_pl.compare.markdown import markdown
from veto_pl.compare.page import write_page
from veto_pl.compare.pool import Pool
from veto_pl.compare.results import Comparison, Search, Trial
from veto_pl.compare.study import EqualBudget, Method, SettingSearch, Stage, Study
from veto_pl.compare.trials import compare, read_search, read_trial, search_score
from veto_pl.compare.worker import failure, is_done
from veto_pl.exceptions import ConfigurationError
from veto_pl.report.page import write_text

PAGE, TABLE = "comparison.html", "comparison.md"


def load_study(file: Path, overrides: Sequence[str] = ()) -> Study:
    """Reads a study's file; `overrides` are options such as `--seeds=[1,2]`.

    Raises:
        ConfigurationError: the file, or a value in it, cannot be used.
    """
    if not file.is_file():
        raise ConfigurationError(f"`veto-pl compare` expected the file of a study, got `{file}`, which is no file.")
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
        ConfigurationError: the study cannot be used, or a stage that all runs start from failed.
    """
    study = load_study(file, overrides)
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
    failures: dict[Path, str] = field(default_factory=dict)
    unranked: dict[str, str] = field(default_factory=dict)
    """Method -> why its search chose nothing."""

    def work(self) -> Comparison:
        """Everything, in order."""
        for name in self.study.stages:
            self._run(f"stage {name}", self.jobs.stages(name))
        if self.failures and not self.only_report:
            folder, reason = next(iter(self.failures.items()))
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
            (m, text): [self.jobs.search(m, point, seed) for seed in study.search.seeds]
            for text, point in grid.items()
            for m in searched
        }
        self._run("search", [job for group in jobs.values() for job in group])
        searches: dict[str, Search] = {}
        for method in searched:
            scores = {text: self._score(jobs[method, text]) for text in grid}
            if any(map(math.isfinite, scores.values())):
                searches[method] = read_search(study.search, scores, grid)
            else:
                folders = [job.folder for text in grid for job in jobs[method, text]]
                self.unranked[method] = self._why_unranked(folders)
        points = {m: grid[searches[m].chosen] if m in searches else fixed[m] for m in fixed}
        return {m: p for m, p in points.items() if m in searches or m not in searched}, searches

    def _score(self, jobs: Sequence[Job]) -> float:
        if not all(map(is_done, jobs)):
            return float("nan")
        return search_score(self.study.search.metric, jobs)

    def _why_unranked(self, folders: Sequence[Path]) -> str:
        reasons = [self.failures[folder] for folder in folders if folder in self.failures]
        nothing = f"`search.metric`, `{self.study.search.metric}`, has no finite value at the end of its runs."
        return "" if self.only_report and not reasons else (*reasons, nothing)[0]

    def _run(self, what: str, jobs: Sequence[Job]) -> None:
        missing = [job for job in jobs if not is_done(job)]
        if self.only_report:
            self.failures |= {job.folder: reason for job in missing if (reason := failure(job))}
        if not missing or self.only_report:
            return
        self.console.rule(f"{what}: {len(missing)} runs, {self.pool.workers} at a time")
        left = len(missing)

        def finished(job: Job, reason: str | None, seconds: float) -> None:
            nonlocal left
            left -= 1
            outcome = "done" if reason is None else f"FAILED: {reason:.300}"
            self.console.print(
                f"{job.name:40} {outcome}, {seconds:.0f} s, {left} left", markup=False, highlight=False, soft_wrap=True
            )

        self.failures |= self.pool.run(missing, finished)

    def _report(self, jobs: Mapping[tuple[str, int], Job], searches: Mapping[str, Search]) -> Comparison:
        trials: list[Trial] = []
        failures: dict[tuple[str, int], str] = {}
        for (method, seed), job in jobs.items():
            if is_done(job):
                trials.append(read_trial(method, seed, job, self.study.answers))
            elif job.folder in self.failures:
                failures[method, seed] = self.failures[job.folder]
        for method, reason in self.unranked.items():
            if reason:
                failures |= {(method, seed): f"Its search chose nothing. {reason}" for seed in self.study.seeds}
        comparison = compare(self.study, trials, searches, failures, self.command)
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

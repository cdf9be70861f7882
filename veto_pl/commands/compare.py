"""`veto-pl compare`: runs a study, or goes on with it, and writes what it found."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from veto_pl.compare.cells import counted
from veto_pl.compare.cluster import Cluster
from veto_pl.compare.comparison_page import write_page
from veto_pl.compare.jobs import Job, JobFactory, Point, label
from veto_pl.compare.markdown import markdown
from veto_pl.compare.results import Comparison, Search, Trial
from veto_pl.compare.study import Study
from veto_pl.compare.study_file import load_study
from veto_pl.compare.trials import compare, read_search, read_trial, search_score
from veto_pl.exceptions import ConfigurationError
from veto_pl.pages.render import write_text

PAGE, TABLE = "comparison.html", "comparison.md"


def run_study(
    file: Path,
    folder: Path,
    *,
    overrides: Sequence[str] = (),
    workers: int | None = None,
    address: str | None = None,
    only_report: bool = False,
) -> Comparison:
    """Run what is missing of a study, and write the page and the table.

    Args:
        file: the study.
        folder: where everything is written; a study that was stopped goes on there.
        overrides: options that replace entries of the study.
        workers: runs at a time; by default one per GPU, else one per core.
        address: of a Ray cluster, `HOST:PORT` or `auto`; None stands for this machine alone.
        only_report: run nothing; report what is finished.

    Raises:
        ConfigurationError: the study, the folder or the cluster cannot be used, or a stage that all runs start from
            failed.
        DataError: a file of a finished run is missing or damaged.
    """
    study = load_study(file, overrides)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"`--out` expected a folder to write in, got `{folder}`: {error.strerror}.") from error
    command = shlex.join(["veto-pl", "compare", str(file), f"--out={folder}", *overrides])
    jobs = JobFactory(study, file.parent, folder)
    with Cluster(folder, study.devices, workers, address) as cluster:
        return StudyRunner(study, jobs, command, None if only_report else cluster).run()


@dataclass
class StudyRunner:
    """Goes through a study: its stages, the search, the trials, the report.

    Args:
        study: what is compared.
        jobs: makes its runs.
        command: what makes the page again.
        cluster: where runs that are missing are run; None: nowhere.
        failures: name of a run, or of a search -> why it failed.
    """

    study: Study
    jobs: JobFactory
    command: str
    cluster: Cluster | None = None
    failures: dict[str, str] = field(default_factory=dict)
    _console: Console = field(default_factory=Console)

    def run(self) -> Comparison:
        """Run stages, search and trials in this order, and return the comparison."""
        for name in self.study.stages:
            failed = self._finish(f"stage {name}", self.jobs.stages(name))
            if failed and self.cluster is not None:
                job, reason = failed[0]
                raise ConfigurationError(f"The methods start from `{job.folder}`, which failed: {reason}")
        points, searches = self._search()
        pairs = [(method, seed) for seed in self.study.seeds for method in self.study.methods if method in points]
        trials = {(method, seed): self.jobs.trial(method, points[method], seed) for method, seed in pairs}
        self._finish("trials", list(trials.values()))
        return self._report(trials, searches)

    def _search(self) -> tuple[dict[str, Point], dict[str, Search]]:
        """Run the searches. Return the chosen point of each method whose search did not fail, and the searches."""
        study, points = self.study, {label(point): point for point in self.study.search.points}
        searched = [name for name, method in study.methods.items() if method.search and study.searches]
        jobs = {
            (method, text): [self.jobs.search(method, point, seed) for seed in study.search.seeds]
            for text, point in points.items()
            for method in searched
        }
        self._finish("search", [job for group in jobs.values() for job in group])
        ranked = {
            method: self._rank_settings(method, {text: jobs[method, text] for text in points}) for method in searched
        }
        searches = {method: search for method, search in ranked.items() if search is not None}
        chosen = {method: points[search.chosen] for method, search in searches.items()}
        # A grid of one point is no search: it is used.
        only = {name: study.search.points[0] if method.search else {} for name, method in study.methods.items()}
        return {name: chosen.get(name, only[name]) for name in only if name in chosen or name not in searched}, searches

    def _rank_settings(self, method: str, jobs: Mapping[str, Sequence[Job]]) -> Search | None:
        """Return the search of a method, or None if no setting has a score; a search that is over is then a failure."""
        search = self.study.search
        scores = {
            text: search_score(search.metric, group) if all(job.is_done for job in group) else math.nan
            for text, group in jobs.items()
        }
        if any(map(math.isfinite, scores.values())):
            return read_search(search, scores)
        if all(job.is_done or job.name in self.failures for group in jobs.values() for job in group):
            nothing = f"no run ended with a finite `{search.metric}`, which is `search.metric`"
            self.failures[f"the search of {method}"] = f"No setting has a score: {nothing}."
        return None

    def _finish(self, what: str, jobs: Sequence[Job]) -> list[tuple[Job, str]]:
        """Run the jobs that are not done. Return those that failed, each with the reason."""
        missing = [job for job in jobs if not job.is_done]
        if self.cluster is None:
            reasons = {job.folder: job.failure for job in missing}
        else:
            reasons = {**self._run(self.cluster, what, missing)} if missing else {}
        failed = [(job, reason) for job in missing if (reason := reasons.get(job.folder)) is not None]
        self.failures |= {job.name: reason for job, reason in failed}
        return failed

    def _run(self, cluster: Cluster, what: str, missing: Sequence[Job]) -> dict[Path, str]:
        self._console.rule(f"{what}: {counted(len(missing), 'run')}, {cluster.share().runs} at a time")
        left = len(missing)

        def finished(job: Job, reason: str | None, seconds: float) -> None:
            nonlocal left
            left -= 1
            outcome = "done" if reason is None else f"FAILED: {reason:.300}"
            self._print(f"{job.name:40} {outcome}, {seconds:.0f} s, {left} left")

        return cluster.run(missing, finished)

    def _report(self, jobs: Mapping[tuple[str, int], Job], searches: Mapping[str, Search]) -> Comparison:
        trials = [read_trial(m, seed, job, self.study.answers) for (m, seed), job in jobs.items() if job.is_done]
        comparison = compare(self.study, trials, searches, self.failures, self.command)
        page = write_page(comparison, self.jobs.folder / PAGE)
        table = write_text(markdown(comparison), self.jobs.folder / TABLE)
        self._warn_of_empty(trials)
        self._print(f"page      {page}\ntable     {table}")
        return comparison

    def _warn_of_empty(self, trials: Sequence[Trial]) -> None:
        """Print a warning about quantities of the study that no run has, such as misspelt ones."""
        known = sorted({name for trial in trials for name in trial.values})
        for quantity in self.study.measured if trials else ():
            if quantity not in known:
                there = ", ".join(known)
                self._print(f"warning   no run has {quantity!r}, which the study shows. There are: {there}")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

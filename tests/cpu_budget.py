"""Keeps the fast suite fast: a test runs as many of its cases as its share of CPU time allows, and the others are slow.

A test with cases that take too long for that is slow as a whole, and one of them `long`, which is run beside the suite.

`tests/cpu_seconds.json` has what a case of each test takes. `pytest --update-times` measures anew what it runs.
"""

import json
import os
import resource
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from zlib import crc32

import pytest

BUDGET = 0.4
"""CPU seconds for all cases of a test together; one case is kept in any case."""
LONGEST = 2.0
"""CPU seconds of a case; a test with longer ones is no part of the fast suite."""
MEASURED = Path(__file__).with_name("cpu_seconds.json")


def mark_beyond_budget(items, seconds, budget=BUDGET):
    """Marks cases as slow, so that the others take no more than `budget` together; `seconds` has those of a case."""
    cases = defaultdict(list)
    for item in items:
        if item.get_closest_marker("slow") is None:
            cases[function_of(item.nodeid)].append(item)
    for test, these in cases.items():
        each = seconds.get(test, 0.0)
        chosen = kept(test, len(these), each, budget)
        for number, case in enumerate(these):
            if number in chosen and each > LONGEST:
                case.add_marker(pytest.mark.long)
            if number not in chosen or each > LONGEST:
                case.add_marker(pytest.mark.slow)


def kept(test, cases, seconds, budget):
    """Returns the numbers of the cases that stay: evenly spread, and others for each test, so no kind is left out."""
    count = cases if cases * seconds <= budget else max(1, int(budget / seconds))
    return {(crc32(test.encode()) + place * cases // count) % cases for place in range(count)}


def function_of(nodeid):
    """Returns the id of a test without its case, and without the group that xdist puts behind it."""
    return nodeid.partition("[")[0].partition("@")[0]


class Times:
    """Measures the CPU seconds of each test, those of its processes included, and writes their means by test."""

    def __init__(self, config):
        self.config, self.seconds, self.started = config, defaultdict(list), 0.0

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        self.started = _used()
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item):
        result = yield
        item.user_properties.append(("cpu_seconds", _used() - self.started))
        return result

    def pytest_runtest_logreport(self, report):
        if report.when == "teardown":
            self.seconds[function_of(report.nodeid)] += [dict(report.user_properties)["cpu_seconds"]]

    def pytest_sessionfinish(self):
        if not hasattr(self.config, "workerinput"):  # the process that all others report to
            means = {test: round(sum(each) / len(each), 2) for test, each in self.seconds.items()}
            told = {**json.loads(MEASURED.read_text()), **means}
            shown = {test: seconds for test, seconds in sorted(told.items()) if seconds}
            MEASURED.write_text(json.dumps(shown, indent=0) + "\n")


def _used():
    """Returns the CPU seconds of this process and of all that it has started, those that still run included."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime + sum(_seconds_of_living(os.getpid()))


def _seconds_of_living(ancestor):
    """Yields the CPU seconds of the descendants of a process, each with the children that it has waited for.

    Pools of ranks and of Ray outlive the tests that they work for.
    """
    tick, parents, used = os.sysconf("SC_CLK_TCK"), {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # a process that has ended meanwhile
            fields = stat.read_text().rpartition(")")[2].split()
            pid = int(stat.parent.name)
            parents[pid], used[pid] = int(fields[1]), sum(map(int, fields[11:15])) / tick
    for pid in parents:
        above = pid
        while above in parents and above != ancestor:
            above = parents[above]
        if above == ancestor and pid != ancestor:
            yield used[pid]

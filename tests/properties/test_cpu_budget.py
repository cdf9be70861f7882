"""The fast suite runs of each test as many cases as its share of CPU time allows."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cpu_budget import LONGEST, _used, kept, mark_beyond_budget

SECONDS = st.floats(0, 100)


@given(st.text(), st.integers(1, 500), SECONDS, st.floats(0.1, 10))
def test_some_case_is_kept_and_no_more_than_there_is_time_for(name, cases, seconds, budget):
    chosen = kept(name, cases, seconds, budget)
    assert chosen <= set(range(cases))
    assert len(chosen) == (cases if cases * seconds <= budget else max(1, int(budget / seconds)))
    assert chosen == kept(name, cases, seconds, budget)


@given(st.text(), st.integers(2, 500), st.integers(1, 20))
def test_what_is_kept_is_spread_over_all_cases(name, cases, count):
    chosen = sorted(kept(name, cases, 1.0, count))
    gaps = [b - a for a, b in zip(chosen, [*chosen[1:], chosen[0] + cases], strict=True)]
    assert max(gaps) - min(gaps) <= 1


def test_tests_keep_different_cases():
    assert len({next(iter(kept(f"test {number}", 45, 1.0, 1.0))) for number in range(200)}) > 40


class Item(SimpleNamespace):
    """What is asked of a test, and what is done to it."""

    def get_closest_marker(self, name):
        return name if name in self.marks else None

    def add_marker(self, mark):
        self.marks.append(mark.name)


@pytest.mark.parametrize(("seconds", "fast"), [({}, 5), ({"a.py::test": 0.2}, 5), ({"a.py::test": 0.5}, 2)])
def test_cases_that_are_slow_already_count_for_nothing(seconds, fast):
    items = [Item(nodeid=f"a.py::test[{number}]", marks=["slow"] if number > 4 else []) for number in range(8)]
    mark_beyond_budget(items, seconds, budget=1.0)
    assert sum("slow" not in item.marks for item in items) == fast
    assert all(item.marks == ["slow"] for item in items[5:])


def test_a_test_with_long_cases_is_slow_and_one_case_runs_as_long():
    items = [Item(nodeid=f"a.py::test[{number}]", marks=[]) for number in range(3)]
    mark_beyond_budget(items, {"a.py::test": LONGEST + 1})
    assert all("slow" in item.marks for item in items)
    assert sum("long" in item.marks for item in items) == 1


def test_a_process_that_still_runs_is_counted():
    before = _used()
    burning = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", burning], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "done\n"
            assert _used() - before >= 0.25
        finally:
            process.kill()

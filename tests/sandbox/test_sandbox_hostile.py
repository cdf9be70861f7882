"""Hostile programs do not get what they want, and the host is as it was."""

import pytest

from tests.sandbox.hostile import DISK, ENDLESS, HOSTILE, REASONS, SECRET
from veto_pl.sandbox import Limits, judge, protection
from veto_pl.sandbox.commands import LEVELS

ACTIVE = protection().level
# Time enough on the busiest machine, so that it is never the clock that stops a program that ends by itself.
LIMITS = {"timeout": 60, "memory": 512}
SHORT = {"timeout": 0.5}


def works(level):
    try:
        return protection(level).level == level
    except ValueError:
        return False


OTHERS = [level for level in LEVELS if level != ACTIVE and works(level)]
LEVELS_HERE = [ACTIVE, *OTHERS]


def check(host, tests, name, level):
    """Asserts that the program ends as it has to."""
    gaps = {*protection(level).gaps} - {"fill the disk while it runs"}
    assert gaps == set(), "programs of the hostile set would get through: install bubblewrap"
    program = HOSTILE[name]
    header = "" if program.startswith("#") else host.header
    answer = f"ANSWER = {SECRET!r}\n" if name in REASONS else ""
    limits = Limits(**(SHORT if name in ENDLESS else LIMITS), protection=level)
    reason = judge(tests, header + answer + program, limits).reason
    assert reason == REASONS[name] if name in REASONS else reason not in ("passed", "timeout"), reason


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_is_contained_and_does_no_harm(host, secret_test, name):
    check(host, secret_test, name, ACTIVE)


@pytest.mark.slow
@pytest.mark.parametrize("level", OTHERS)
@pytest.mark.parametrize("name", HOSTILE)
def test_the_other_levels_hold_too(host, secret_test, name, level):
    check(host, secret_test, name, level)


@pytest.mark.parametrize("level", LEVELS_HERE)
def test_whoever_knows_the_secret_passes(host, secret_test, level):
    limits = Limits(**LIMITS, protection=level)
    assert judge(secret_test, host.header + f"def f(x): return {SECRET!r}", limits).passed


@pytest.mark.parametrize("level", LEVELS_HERE)
def test_the_disk_is_filled_only_where_the_level_says_so(host, secret_test, level):
    found = judge(secret_test, f"ANSWER = {SECRET!r}{DISK}", Limits(**LIMITS, protection=level))
    assert found.reason == ("passed" if "fill the disk while it runs" in protection(level).gaps else "OSError")

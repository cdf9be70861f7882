"""Hostile programs are scored wrong, and the host is as it was."""

import pytest

from tests.sandbox.hostile import HOSTILE, SECRET
from veto_pl.exceptions import ConfigurationError
from veto_pl.sandbox import Limits, judge, protection
from veto_pl.sandbox.commands import LEVELS

TIMEOUT = 0.8
ACTIVE = protection().level


def works(level):
    try:
        return protection(level).level == level
    except ConfigurationError:
        return False


OTHERS = [level for level in LEVELS if level != ACTIVE and works(level)]


def attack(host, tests, program, level):
    lacking = {"use the network", "read files", "change files", "outlive its time"} & {*protection(level).gaps}
    assert lacking == set(), "programs of the hostile set would get through: install bubblewrap"
    header = "" if program.startswith("#") else host.header
    return judge(tests, header + program, Limits(timeout=TIMEOUT, protection=level))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_is_scored_wrong_and_does_no_harm(host, secret_test, name):
    assert not attack(host, secret_test, HOSTILE[name], ACTIVE).passed


@pytest.mark.slow
@pytest.mark.parametrize("level", OTHERS)
@pytest.mark.parametrize("name", HOSTILE)
def test_the_other_levels_hold_too(host, secret_test, name, level):
    assert not attack(host, secret_test, HOSTILE[name], level).passed


@pytest.mark.parametrize("level", [ACTIVE, *OTHERS])
def test_whoever_knows_the_secret_passes(host, secret_test, level):
    limits = Limits(protection=level)
    assert judge(secret_test, host.header + f"def f(x): return {SECRET!r}", limits).passed

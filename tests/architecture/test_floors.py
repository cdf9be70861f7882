"""The floors of the package: a folder imports what stands below it, never above, and nothing in a circle."""

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "veto_pl"
FLOORS = (
    "moved", "exceptions", "sandbox", "functional", "core", "servers", "storage", "seams", "data", "parts", "models",
    "judging", "metrics", "environments", "offline", "rollouts", "objectives", "training", "diffusion", "checks",
    "module", "callbacks", "plugins", "cli", "charts", "pages", "report", "explain", "planning", "compare", "commands",
    "testing", "__main__", "__init__",
)  # fmt: skip
"""From the ground up. A folder may import those before it in this list."""
LOOSE = 6
"""Files beside the folders, at most."""


def modules():
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())


def owner(name):
    """The module that a dotted name lies in: the name itself, or the longest beginning of it that is a module."""
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


@cache
def imports(module):
    """The package's modules that one imports, wherever in the file, for types alone as well."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "veto_pl":
            found |= {owner(f"{node.module}.{alias.name}") for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {owner(alias.name) for alias in node.names if alias.name.split(".")[0] == "veto_pl"}
    return found - {module}


def floor(module):
    names = module.split(".")
    return FLOORS.index(names[1] if len(names) > 1 else "__init__")


def reached(module):
    """Everything that a module imports, directly or through others."""
    seen, waiting = set(), [module]
    while waiting:
        new = imports(waiting.pop()) - seen
        seen |= new
        waiting += new
    return seen


def test_every_folder_has_its_floor():
    assert sorted({path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES.values()}) == sorted(
        FLOORS
    )


def test_few_files_lie_beside_the_folders():
    assert len(list(PACKAGE.glob("*.py"))) <= LOOSE


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_imports_what_stands_above_it(module):
    assert sorted(other for other in imports(module) if floor(other) > floor(module)) == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_imports_itself_through_others(module):
    assert module not in reached(module)


def test_no_two_files_share_a_name():
    """An editor's tabs show the name of a file alone. `__init__.py` and the parts of a test suite aside."""
    apart = ("functional", "testing")  # formulas have the names of what they are for; tests are found by their folder
    paths = [path for path in MODULES.values() if path.stem != "__init__" and path.parent.name not in apart]
    names = [path.name for path in paths]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_the_sandbox_stands_alone():
    """It could be lifted out: it imports nothing of the package."""
    outside = {other for name in MODULES if ".sandbox" in name for other in imports(name)}
    assert sorted(other for other in outside if ".sandbox" not in other) == []

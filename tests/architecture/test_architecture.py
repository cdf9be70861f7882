"""The rules of CONTRIBUTING.md that a program can check."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from veto_pl.cli.seam_classes import SEAMS

PARTS = tuple(seam for seams_ in SEAMS.values() for seam in seams_)
ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "veto_pl"
FILES = sorted(PACKAGE.rglob("*.py"))


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def functions(tree):
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def body_lines(function):
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", sorted((PACKAGE / "functional").glob("*.py")), ids=lambda p: p.name)
def test_the_functional_layer_imports_torch_and_the_standard_library_only(path):
    allowed = (
        "torch", "math", "collections", "__future__", "abc", "dataclasses", "functools", "types", "typing", "warnings",
            "veto_pl.functional",
    )  # fmt: skip
    assert [name for name in imported(parse(path)) if not name.startswith(allowed)] == []


def test_the_functional_layer_needs_no_lightning():
    code = (
        "import sys, veto_pl.functional.divergences, veto_pl.functional.targets, veto_pl.functional.chunked\n"
        "print([m for m in ('lightning', 'transformers', 'torchmetrics', 'jsonargparse') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_module_names_no_algorithm():
    tree = parse(PACKAGE / "module.py")
    forbidden = ("veto_pl.objectives", "veto_pl.parts.divergences", "veto_pl.parts.targets", "veto_pl.functional")
    assert [name for name in imported(tree) if name.startswith(forbidden)] == []
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    algorithms = {path.stem.lower() for path in (PACKAGE / "objectives").glob("*.py")} - {"__init__", "base"}
    assert {name for name in names if name.lower() in algorithms} == set()


def test_files_and_functions_stay_small():
    long_files = {str(p.relative_to(ROOT)): n for p in FILES if (n := len(p.read_text().splitlines())) > 320}
    long_functions = {
        f"{p.relative_to(ROOT)}:{f.name}": body_lines(f)
        for p in FILES
        for f in functions(parse(p))
        if body_lines(f) > 36
    }
    assert (long_files, long_functions) == ({}, {})


def test_the_reduction_module_is_the_only_place_where_a_mask_meets_a_sum():
    allowed = {"reduction.py", "advantages.py", "contrast.py", "step_weights.py"}
    for path in (PACKAGE / "functional").glob("*.py"):
        if path.name not in allowed:
            arguments = {a.arg for f in functions(parse(path)) for a in f.args.args}
            assert "mask" not in arguments, path


def test_public_functions_and_classes_are_documented():
    places = [*(PACKAGE / "seams").glob("*.py"), PACKAGE / "core/memory.py", PACKAGE / "storage/journals.py"]
    bases = [node for path in places for node in ast.walk(parse(path))]
    seams = {n.name for c in bases if isinstance(c, ast.ClassDef) for n in functions(c) if ast.get_docstring(n)}
    inherited = seams | {"update", "compute", "per_token", "examples"}
    missing = []
    for path in FILES:
        tree = parse(path)
        nested = {id(g) for f in functions(tree) for g in functions(f) if g is not f}
        private = [c for c in ast.walk(tree) if isinstance(c, ast.ClassDef) and c.name.startswith("_")]
        nested |= {id(f) for c in private for f in functions(c)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                known = isinstance(node, ast.FunctionDef) and (node.name in inherited or id(node) in nested)
                if not known and not ast.get_docstring(node):
                    missing.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert missing == []


def test_no_global_randomness():
    """Draws come from `Step.generator` or a generator of their own."""
    for path in FILES:
        if "testing" in path.parts:
            continue
        assert not {"random", "numpy.random"} & set(imported(parse(path))), path


def test_nobody_compares_with_the_pad_id():
    for path in FILES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Compare):
                text = ast.unparse(node)
                assert "pad_token_id" not in text or "is None" in text, f"{path}: {text}"


@pytest.mark.parametrize("package", ["veto_pl.objectives", "veto_pl.rollouts", "veto_pl.models", "veto_pl.data"])
def test_a_package_hands_on_the_parts_that_its_modules_define(package):
    """A part that a user cannot import beside its kin was forgotten."""
    loaded = importlib.import_module(package)
    modules = [importlib.import_module(f"{package}.{found.name}") for found in pkgutil.iter_modules(loaded.__path__)]
    parts = {
        name
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__ and issubclass(value, PARTS)
        if not name.startswith("_") and not inspect.isabstract(value)
    }
    assert sorted(name for name in parts if not hasattr(loaded, name)) == []


def test_no_text_becomes_the_id_of_a_test(request):
    """A long one cannot be an environment variable, which pytest makes of it, and no program starts with it."""
    hooks = request.config.pluginmanager.subset_hook_caller("pytest_make_parametrize_id", [])
    named = hooks(config=request.config, val="(" * 300_000, argname="text")
    assert 0 < len(named) <= 50
    checked = request.config.pluginmanager.subset_hook_caller("pytest_collection_modifyitems", [])
    long = types.SimpleNamespace(nodeid="x" * 201)
    with pytest.raises(pytest.UsageError, match="at most 200 characters"):
        checked(session=request.session, config=request.config, items=[long])


def test_modules_with_properties_fail_with_their_own_errors():
    """`nn.Module` takes an AttributeError inside a property for the property's absence."""
    code = (
        "import importlib, pkgutil, torch, veto_pl\n"
        "from veto_pl.core.own_errors import OwnErrors\n"
        "for found in pkgutil.walk_packages(veto_pl.__path__, 'veto_pl.'):\n"
        "    if '.testing' not in found.name and '__main__' not in found.name: importlib.import_module(found.name)\n"
        "def below(kind): return {kind}.union(*map(below, kind.__subclasses__()))\n"
        "print(sorted(k.__name__ for k in below(torch.nn.Module) if k.__module__.startswith('veto_pl')\n"
        "    and any(isinstance(v, property) for v in vars(k).values()) and not issubclass(k, OwnErrors)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"

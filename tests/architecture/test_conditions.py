"""No file but its own asks whether something is a certain objective, source or other part: a part describes itself."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "veto_pl"
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
SEAMS = (*PACKAGE.glob("seams/*.py"), PACKAGE / "metrics/metric_bases.py")


def names(*nodes):
    """The last parts of the names in an expression, but for those of torch, which has a `Linear` and a `Sum` too."""
    inner = [node for root in nodes for node in ast.walk(root) if isinstance(node, ast.Name | ast.Attribute)]
    ours = [name for node in inner if (name := ast.unparse(node)).split(".")[0] not in ("torch", "nn")]
    return {name.rpartition(".")[2] for name in ours}


def texts(*nodes):
    return {part.value for node in nodes for part in ast.walk(node) if isinstance(part, ast.Constant)}


def classes():
    for path, tree in TREES.items():
        yield from ((node, path) for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def concrete_parts():
    """The classes that fill a seam, directly or through others, with the files that define them."""
    seams = {node.name for node, path in classes() if path in SEAMS}
    parts = {}
    while more := {n.name: p for n, p in classes() if names(*n.bases) & (seams | parts.keys())}.items() - parts.items():
        parts |= dict(more)
    return {name: path for name, path in parts.items() if path not in SEAMS}


def called(node):
    """What a call asks for: the classes of `isinstance` and of a dispatch, and the names of which `__name__` is one."""
    function = ast.unparse(node.func)
    if function in ("isinstance", "issubclass"):
        return names(*node.args[1:])
    if function.endswith(".register"):
        return names(*node.args)
    return texts(*node.args) if "__name__" in function or "__qualname__" in function else set()


def asked(node):
    """The names that a condition asks for, however it is written."""
    if isinstance(node, ast.Call):
        return called(node)
    if isinstance(node, ast.MatchClass):
        return names(node.cls)
    if isinstance(node, ast.Dict):
        return names(*filter(None, node.keys))
    if isinstance(node, ast.Compare):  # `X().method is X.method` too
        return names(node.left, *node.comparators) | texts(node)
    if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(
        node.value, ast.Tuple | ast.List | ast.Set | ast.BinOp
    ):
        return listed(node.value)
    if isinstance(node, ast.FunctionDef) and any(".register" in ast.unparse(one) for one in node.decorator_list):
        return names(*(argument.annotation for argument in node.args.args if argument.annotation))
    return set()


def listed(value):
    """The names in a tuple of classes, which `isinstance` may be given somewhere; an instance is no class."""
    entries = [value.left, value.right] if isinstance(value, ast.BinOp) else value.elts
    return names(*(entry for entry in entries if isinstance(entry, ast.Name | ast.Attribute)))


PARTS = concrete_parts()


def conditions(tree, path=None):
    """The concrete parts that a file asks for and does not define, with the lines."""
    return sorted(
        (node.lineno, name) for node in ast.walk(tree) for name in asked(node) & PARTS.keys() if PARTS[name] != path
    )


@pytest.mark.parametrize("path", [path for path in TREES if "testing" not in path.parts], ids=lambda path: path.stem)
def test_a_part_describes_itself_and_no_other_file_asks_what_it_is(path):
    assert conditions(TREES[path], path) == []


@pytest.mark.parametrize(
    "condition",
    [
        "isinstance(source, BestTeacher)",
        "issubclass(kind, (Veto, int))",
        "isinstance(source, veto_pl.rollouts.Replay | None)",
        "isinstance(metric, PassAtK)",
        "type(objective) is Veto",
        "objective.__class__ in {Veto, SFT}",
        "target != Teacher()",
        "type(source).__name__ == 'Replay'",
        "type(source).__name__.startswith('Replay')",
        "type(support).__call__ is FullVocabulary.__call__",
        "{Veto: 1, SFT: 2}[type(objective)]",
    ],
)
def test_every_spelling_of_such_a_condition_is_seen(condition):
    assert conditions(ast.parse(f"x = 1 if {condition} else 2"))


@pytest.mark.parametrize(
    "statement",
    [
        "match x:\n    case Veto(): pass",
        "KINDS = (Veto, SFT)",
        "KINDS = Veto | SFT",
        "@drawn.register\ndef _(part: Veto): pass",
        "drawn.register(Veto, draw)",
    ],
)
def test_so_is_every_other_way_to_choose_by_the_class(statement):
    assert conditions(ast.parse(statement))


@pytest.mark.parametrize(
    "innocent",
    [
        "isinstance(x, Objective)", "isinstance(x, torch.nn.Linear)", "Veto(beta=0.5)", "x == 'beta'",
        "terms = (Veto(), SFT())", "x = Veto",
    ],
)  # fmt: skip
def test_a_seam_and_a_part_that_is_used_are_none(innocent):
    assert conditions(ast.parse(innocent)) == []

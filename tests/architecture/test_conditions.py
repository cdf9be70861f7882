"""No file but its own asks whether something is a certain objective, source or other part: a part describes itself."""

import ast
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "veto_pl"
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
FOUND = {
    "checks/model_settings.py": 5, "checks/objective_settings.py": 11, "checks/setup.py": 3, "explain/response.py": 9,
    "explain/supports.py": 2, "objectives/token_objective.py": 1, "objectives/distill.py": 5,
    "commands/cache_teacher.py": 1,
    "planning/rollout.py": 12,
}  # fmt: skip
"""Conditions of each file that are there to this day. Lower a number with each one that goes; never raise one."""


def names(*nodes):
    """The last parts of the names in an expression, but for those of torch, which has a `Linear` and a `Sum` too."""
    inner = [node for root in nodes for node in ast.walk(root) if isinstance(node, ast.Name | ast.Attribute)]
    ours = [name for node in inner if (name := ast.unparse(node)).split(".")[0] not in ("torch", "nn")]
    return {name.rpartition(".")[2] for name in ours}


def classes():
    for path, tree in TREES.items():
        yield from ((node, path) for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def concrete_parts():
    """The classes that fill a seam, directly or through others, with the files that define them."""
    seams = {node.name for node, path in classes() if path.parent == PACKAGE / "seams"}
    parts = {}
    while more := {n.name: p for n, p in classes() if names(*n.bases) & (seams | parts.keys())}.items() - parts.items():
        parts |= dict(more)
    return parts


def asked(node):
    """The names that a condition compares with: those of `isinstance`, `==`, `is`, `in`, `match`, a table's keys."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
        return names(*node.args[1:])
    if isinstance(node, ast.MatchClass):
        return names(node.cls)
    if isinstance(node, ast.Dict):
        return names(*filter(None, node.keys))
    if isinstance(node, ast.Compare):
        texts = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
        return names(node.left, *node.comparators) | texts
    return set()


PARTS = concrete_parts()


def conditions(tree, path=None):
    """The concrete parts that a file asks for and does not define, once for each condition."""
    return [name for node in ast.walk(tree) for name in asked(node) & PARTS.keys() if PARTS[name] != path]


def test_a_part_describes_itself_and_no_other_file_asks_what_it_is():
    found = Counter(
        {
            str(path.relative_to(PACKAGE)): len(conditions(tree, path))
            for path, tree in TREES.items()
            if "testing" not in path.parts
        }
    )
    assert +(found - Counter(FOUND)) == {}, "there are more conditions on concrete parts than there were"
    assert +(Counter(FOUND) - found) == {}, "there are fewer conditions on concrete parts: lower the numbers of `FOUND`"


@pytest.mark.parametrize(
    "condition",
    [
        "isinstance(source, BestTeacher)",
        "issubclass(kind, (Veto, int))",
        "isinstance(source, veto_pl.rollouts.Replay | None)",
        "type(objective) is Veto",
        "objective.__class__ in {Veto, SFT}",
        "target != Teacher()",
        "type(source).__name__ == 'Replay'",
        "{Veto: 1, SFT: 2}[type(objective)]",
    ],
)
def test_every_spelling_of_such_a_condition_is_seen(condition):
    assert conditions(ast.parse(f"x = 1 if {condition} else 2"))


def test_a_match_is_a_condition_and_a_seam_is_not():
    assert conditions(ast.parse("match x:\n    case Veto(): pass")) == ["Veto"]
    for innocent in ("isinstance(x, Objective)", "isinstance(x, torch.nn.Linear)", "Veto(beta=0.5)", "x == 'beta'"):
        assert conditions(ast.parse(innocent)) == [], innocent

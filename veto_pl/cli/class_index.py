"""The classes of the package behind each seam, found in its source: importing them takes seconds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
LEFT_OUT = ("testing",)
"""Folders whose classes nobody names in a configuration."""
SEAM_NAMES: dict[str, tuple[str, ...]] = {
    "objectives": ("Objective",),
    "divergences": ("Divergence",),
    "targets": ("Target",),
    "schedules": ("Schedule",),
    "rollouts": ("RolloutSource",),
    "engines": ("Engine",),
    "environments": ("Environment",),
    "contexts": ("TeacherContext",),
    "panels": ("Panel",),
    "supports": ("Support",),
    "weightings": ("TokenWeighting",),
    "advantages": ("Advantage",),
    "tasks": ("Task",),
    "templates": ("Template",),
    "rewards": ("Reward",),
    "judges": ("Judge",),
    "models": ("ModelSource",),
    "scores": ("ScoreSource",),
    "tokenizers": ("TokenizerSource",),
    "metrics": ("CompletionMetric", "TokenMetric", "MetricFamily"),
}
"""The seams of language models, and the base classes behind their names."""
DENOISING: dict[str, tuple[str, ...]] = {
    "denoising": ("DenoisingObjective",),
    "trajectories": ("TrajectorySource",),
    "denoisers": ("DenoiserSource",),
    "calls": ("ModelCall",),
    "images": ("ImageSet",),
}
"""Those of denoising models."""
LISTED = SEAM_NAMES | DENOISING
"""What `veto-pl list` takes."""


@dataclass(frozen=True)
class SourceClass:
    """A class as its source tells it.

    Args:
        name: of the class.
        module: that defines it.
        bases: the names of its bases, without the modules in front.
        own_doc: its docstring, if it has one.
        defined: what it defines, abstract methods left out.
        abstract: its abstract methods.
    """

    name: str
    module: str
    bases: tuple[str, ...]
    own_doc: str | None
    defined: frozenset[str]
    abstract: frozenset[str]


class ClassIndex:
    """All classes of the package. A base is the class of that name in the same module, or else in another one."""

    @cached_property
    def _classes(self) -> dict[str, list[SourceClass]]:
        found: dict[str, list[SourceClass]] = {}
        for path in sorted(PACKAGE.rglob("*.py")):
            if path.relative_to(PACKAGE).parts[0] not in LEFT_OUT:
                for one in _classes_in(path):
                    found.setdefault(one.name, []).append(one)
        return found

    def of_seam(self, base: str) -> list[SourceClass]:
        """Return the concrete, public subclasses of a base, by name."""
        classes = [one for named in self._classes.values() for one in named if not one.name.startswith("_")]
        found = [one for one in classes if self._is_below(one, base) and not self._is_abstract(one)]
        return sorted(found, key=lambda one: (one.name, one.module))

    def doc(self, one: SourceClass) -> str:
        """Return the docstring that a class has or inherits."""
        return next((above.own_doc for above in self._ancestors(one) if above.own_doc), "")

    def _ancestors(self, of: SourceClass) -> Iterator[SourceClass]:
        """Yield the class and all above it, in the order in which attributes are looked up but for diamonds."""
        yield of
        for name in of.bases:
            known = self._classes.get(name, [])
            beside = [one for one in known if one.module == of.module and one is not of] or known
            for one in beside[:1]:
                yield from self._ancestors(one)

    def _is_below(self, one: SourceClass, base: str) -> bool:
        return one.name != base and any(above.name == base for above in self._ancestors(one))

    def _is_abstract(self, one: SourceClass) -> bool:
        done: set[str] = set()
        for above in self._ancestors(one):
            if above.abstract - done:
                return True
            done |= above.defined
        return False


def _classes_in(path: Path) -> Iterator[SourceClass]:
    text = path.read_text(encoding="utf-8")
    if "class " not in text:
        return
    module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef):
            defined, abstract = _members(node)
            yield SourceClass(node.name, module, tuple(_base_names(node)), ast.get_docstring(node), defined, abstract)


def _base_names(node: ast.ClassDef) -> Iterator[str]:
    for base in node.bases:
        base = base.value if isinstance(base, ast.Subscript) else base
        yield ast.unparse(base).rpartition(".")[2]


def _members(node: ast.ClassDef) -> tuple[frozenset[str], frozenset[str]]:
    """Return what a class defines, and its abstract methods."""
    defined: set[str] = set()
    abstract: set[str] = set()
    for part in node.body:
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = {ast.unparse(one).rpartition(".")[2] for one in part.decorator_list}
            (abstract if "abstractmethod" in decorators else defined).add(part.name)
        elif isinstance(part, ast.Assign):
            defined |= {name.id for target in part.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        elif isinstance(part, ast.AnnAssign) and part.value is not None and isinstance(part.target, ast.Name):
            defined.add(part.target.id)
    return frozenset(defined), frozenset(abstract)

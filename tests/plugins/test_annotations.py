"""Parts of modules that postpone the evaluation of annotations, and import nothing but what they use."""

import sys
import types

import pytest
from jsonargparse._parameter_resolvers import get_signature_parameters

from veto_pl import seams
from veto_pl.core.part import Part

SEAMS = sorted(
    f"seams.{name}" for name, kind in vars(seams).items() if isinstance(kind, type) and issubclass(kind, Part)
)
BASES = (
    "objectives.TokenObjective",
    "objectives.Distill",
    "rollouts.FromStudent",
    "data.JsonLines",
    "models.Pretrained",
)
"""Of those that have settings, which a subclass inherits."""
MODULE = """
from __future__ import annotations
from dataclasses import dataclass
from veto_pl.seams import Schedule
from veto_pl.{module} import {base}

@dataclass(frozen=True, kw_only=True)
class Mine({base}):
    '''A part.'''
    inner: Schedule | None = None
"""


@pytest.mark.parametrize("base", [*SEAMS, *BASES])
def test_the_command_line_knows_the_parts_of_a_part(base, monkeypatch):
    """It looks for the names of a seam's own annotations in the module of the subclass: a seam can have none."""
    module = types.ModuleType(f"postponed_{base}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    place, _, name = base.partition(".")
    text = MODULE.format(module=place, base=name)
    exec(compile(text, module.__name__, "exec", dont_inherit=True), vars(module))  # a test's module
    (inner,) = [one for one in get_signature_parameters(module.Mine) if one.name == "inner"]
    assert inner.annotation == seams.Schedule | None
    assert not [one.name for one in get_signature_parameters(module.Mine) if isinstance(one.annotation, str)]

"""Pictures of an objective: its loss, its gradient and its target, against what the student believes."""

from veto_pl.explain.explanation_page import write_explanation
from veto_pl.explain.response import Response, respond
from veto_pl.explain.scene import Scene

__all__ = ["Response", "Scene", "respond", "write_explanation"]

"""The objectives: compositions of the seams with the papers' defaults."""

from veto_pl.objectives.base import TokenObjective
from veto_pl.objectives.combine import Sum
from veto_pl.objectives.distill import Distill
from veto_pl.objectives.gkd import GKD
from veto_pl.objectives.minillm import MiniLLM
from veto_pl.objectives.phases import Phases
from veto_pl.objectives.sft import SFT, SeqKD
from veto_pl.objectives.supervised_kd import SupervisedKD
from veto_pl.objectives.veto import Veto
from veto_pl.tokens import TokenGrid, TokenRows

__all__ = [
    "GKD",
    "SFT",
    "Distill",
    "MiniLLM",
    "Phases",
    "SeqKD",
    "Sum",
    "SupervisedKD",
    "TokenGrid",
    "TokenObjective",
    "TokenRows",
    "Veto",
]

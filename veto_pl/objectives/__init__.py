"""The objectives: compositions of the seams with the papers' defaults."""

from veto_pl.objectives.brts import BRTS
from veto_pl.objectives.combine import Sum
from veto_pl.objectives.distill import Distill
from veto_pl.objectives.distillm import AdaptiveSkew, DistiLLM, DistiLLM2
from veto_pl.objectives.eopd import EOPD
from veto_pl.objectives.exopd import ExOPD, ListOPD
from veto_pl.objectives.gkd import GKD
from veto_pl.objectives.interleaved import SKD, AdaSwitch, ImitKD
from veto_pl.objectives.minillm import MiniLLM
from veto_pl.objectives.mixed_kl import AKL, ToDi
from veto_pl.objectives.opd import OPD, VOPD
from veto_pl.objectives.phases import Phases
from veto_pl.objectives.reopold import REOPOLD
from veto_pl.objectives.self_distillation import OPSD, SDFT, SDPO
from veto_pl.objectives.sft import SFT, SeqKD
from veto_pl.objectives.supervised_kd import SupervisedKD
from veto_pl.objectives.token_objective import TokenObjective
from veto_pl.objectives.top_k_opd import TopKOPD
from veto_pl.objectives.uni_opd import UniOPD
from veto_pl.objectives.veto import Veto
from veto_pl.seams.tokens import TokenGrid, TokenRows

__all__ = [
    "AKL",
    "BRTS",
    "EOPD",
    "GKD",
    "OPD",
    "OPSD",
    "REOPOLD",
    "SDFT",
    "SDPO",
    "SFT",
    "SKD",
    "VOPD",
    "AdaSwitch",
    "AdaptiveSkew",
    "DistiLLM",
    "DistiLLM2",
    "Distill",
    "ExOPD",
    "ImitKD",
    "ListOPD",
    "MiniLLM",
    "Phases",
    "SeqKD",
    "Sum",
    "SupervisedKD",
    "ToDi",
    "TokenGrid",
    "TokenObjective",
    "TokenRows",
    "TopKOPD",
    "UniOPD",
    "Veto",
]

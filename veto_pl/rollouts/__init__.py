"""Who writes the completions, what runs the models, and how the next token is drawn."""

from veto_pl.core.sampling import Sampling
from veto_pl.rollouts.adaptive import AdaptiveReplay
from veto_pl.rollouts.best_teacher import BestTeacher
from veto_pl.rollouts.cached import FromCache
from veto_pl.rollouts.debate import Debate
from veto_pl.rollouts.engines import DecodeLoop, Transformers
from veto_pl.rollouts.played import Played
from veto_pl.rollouts.replay import Replay
from veto_pl.rollouts.served_teacher import ServedTeacher
from veto_pl.rollouts.sources import FromDataset, FromStudent, FromTeacher, Mixture, TeacherMixed
from veto_pl.rollouts.stepwise import TeacherSteps
from veto_pl.rollouts.told_teachers import ServedScores, StoredScores
from veto_pl.rollouts.two_writers import TeacherCorrected, TeacherSwitched
from veto_pl.rollouts.vllm import Vllm
from veto_pl.rollouts.vllm_server import VllmServer

__all__ = [
    "AdaptiveReplay",
    "BestTeacher",
    "Debate",
    "DecodeLoop",
    "FromCache",
    "FromDataset",
    "FromStudent",
    "FromTeacher",
    "Mixture",
    "Played",
    "Replay",
    "Sampling",
    "ServedScores",
    "ServedTeacher",
    "StoredScores",
    "TeacherCorrected",
    "TeacherMixed",
    "TeacherSteps",
    "TeacherSwitched",
    "Transformers",
    "Vllm",
    "VllmServer",
]

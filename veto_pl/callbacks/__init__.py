"""Lightning callbacks: answers, checkpoints, samples, predictions, progress, diagnostics, guards, export."""

from veto_pl.callbacks.answers import Answers
from veto_pl.callbacks.budget import Budget
from veto_pl.callbacks.checkpoints import Checkpoints
from veto_pl.callbacks.diagnostics import Diagnostics
from veto_pl.callbacks.export_at_end import Export
from veto_pl.callbacks.extrapolation import ExtrapolationMonitor
from veto_pl.callbacks.guards import Guard, Guards
from veto_pl.callbacks.predictions import PredictionFile
from veto_pl.callbacks.progress import DistillationProgress
from veto_pl.callbacks.samples import SampleTable
from veto_pl.callbacks.threads import Threads
from veto_pl.storage.run_folder import RunFolder

__all__ = [
    "Answers",
    "Budget",
    "Checkpoints",
    "Diagnostics",
    "DistillationProgress",
    "Export",
    "ExtrapolationMonitor",
    "Guard",
    "Guards",
    "PredictionFile",
    "RunFolder",
    "SampleTable",
    "Threads",
]

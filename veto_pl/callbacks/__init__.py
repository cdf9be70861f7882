"""Lightning callbacks: samples, predictions, progress, diagnostics, export."""

from veto_pl.callbacks.diagnostics import Diagnostics
from veto_pl.callbacks.export import Export
from veto_pl.callbacks.predictions import PredictionFile
from veto_pl.callbacks.progress import DistillationProgress
from veto_pl.callbacks.samples import SampleTable

__all__ = ["Diagnostics", "DistillationProgress", "Export", "PredictionFile", "SampleTable"]

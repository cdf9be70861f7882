"""On-policy distillation of denoising models (D-OPSD, arXiv 2605.05204) on the training loop of `veto_pl.training`.

Models are those of diffusers, which is imported when one is loaded: `pip install "veto_pl[diffusion]"`.
"""

from veto_pl.diffusion.denoiser import Denoiser, Denoisers, reading
from veto_pl.diffusion.denoiser_export import export_denoiser
from veto_pl.diffusion.denoiser_files import DenoiserFiles
from veto_pl.diffusion.denoiser_sources import (
    AveragedDenoiser,
    DenoiserSource,
    LoraDenoiser,
    PretrainedDenoiser,
    RandomDenoiser,
)
from veto_pl.diffusion.denoising_module import DenoisingModule
from veto_pl.diffusion.denoising_objectives import DOPSD, DenoisingObjective, FlowMatching, compared, taught
from veto_pl.diffusion.few_steps import FewSteps, Noised, TrajectorySource
from veto_pl.diffusion.image_distance import EnergyDistance
from veto_pl.diffusion.image_grid import picture
from veto_pl.diffusion.images import ArrayImages, Gratings, ImageDataModule, ImageSet, rows_of_arrays
from veto_pl.diffusion.model_calls import Flux2Call, ImageCall, ModelCall, ZImageCall
from veto_pl.diffusion.pipeline_images import PipelineDecoder, PipelineImages
from veto_pl.diffusion.trajectories import ConditionBatch, Trajectories

__all__ = [
    "DOPSD",
    "ArrayImages",
    "AveragedDenoiser",
    "ConditionBatch",
    "Denoiser",
    "DenoiserFiles",
    "DenoiserSource",
    "Denoisers",
    "DenoisingModule",
    "DenoisingObjective",
    "EnergyDistance",
    "FewSteps",
    "FlowMatching",
    "Flux2Call",
    "Gratings",
    "ImageCall",
    "ImageDataModule",
    "ImageSet",
    "LoraDenoiser",
    "ModelCall",
    "Noised",
    "PipelineDecoder",
    "PipelineImages",
    "PretrainedDenoiser",
    "RandomDenoiser",
    "Trajectories",
    "TrajectorySource",
    "ZImageCall",
    "compared",
    "export_denoiser",
    "picture",
    "reading",
    "rows_of_arrays",
    "taught",
]

"""Where a fit goes on."""

from __future__ import annotations

import os
from pathlib import Path

import lightning as L
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_info

from veto_pl.callbacks.checkpoints import Checkpoints


def resume_path(trainer: L.Trainer, given: str | None) -> str | None:
    """Return the checkpoint that a fit starts from, or None for a fresh start.

    `last` stands for the newest checkpoint of the run, or a fresh start if there is none yet. Without `given`, a job
    that SLURM has requeued resumes from the checkpoint of its requeue.
    """
    connector = trainer._checkpoint_connector
    if given is None and SLURMEnvironment.detect():
        return connector._hpc_resume_path
    if given != "last":
        return given
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, Checkpoints)]
    found = {path for callback in callbacks for path in callback._find_last_checkpoints(trainer)}
    if not found:
        rank_zero_info("`--ckpt_path last`: there is no checkpoint yet, so the run starts afresh.")
    return max(found, key=lambda path: Path(path).stat().st_mtime, default=None)


def was_requeued() -> bool:
    """Return whether SLURM has started this job before."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0 and SLURMEnvironment.detect()

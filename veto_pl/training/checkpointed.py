"""What a checkpoint holds of a module beside its weights, and a module that is made from one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.core.own_errors import OwnErrors
from veto_pl.exceptions import ConfigurationError
from veto_pl.storage.checkpoint_io import read_checkpoint
from veto_pl.storage.checkpoint_place import check_checkpoint
from veto_pl.storage.sharded_checkpoint import is_sharded
from veto_pl.training.arguments import made_again, plain_arguments
from veto_pl.training.nonfinite import NonFiniteSteps

M = TypeVar("M", bound="CheckpointedModule")
EXPORTED_BY = "veto_pl_exported_by"
"""The key under which a checkpoint names the command that exports it, where that is not `veto-pl export`."""


class CheckpointedModule(OwnErrors, L.LightningModule):
    """Saves what resuming and exporting need beside the weights, and can be made from a checkpoint.

    Attributes:
        arguments: the arguments of the constructor, with the attributes that hold them.
        run_config: YAML of the run, where a configuration describes it.
        seed: of the run.
    """

    arguments: ClassVar[Mapping[str, str]] = {}
    models: Any
    run_config: str | None
    seed: int
    _seed_was_open: bool
    _loaded_step: int | None
    _non_finite: NonFiniteSteps

    def tell_arguments(self) -> None:
        """Keep the arguments in plain values as `hparams`, for loggers and checkpoints."""
        self.save_hyperparameters(plain_arguments({name: getattr(self, of) for name, of in self.arguments.items()}))

    def student_entries(self) -> dict[str, Any]:
        """Return what an export needs beside the weights, by its keys in a checkpoint; nothing by default."""
        return {}

    def check_student(self, checkpoint: Mapping[str, Any]) -> None:
        """Raise `ConfigurationError` where the checkpoint is not of such a student; by default it always is."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what an export needs, the configuration, the seed, the memories and the count of skipped steps."""
        checkpoint |= self.student_entries()
        checkpoint["veto_pl_config"] = self.run_config
        checkpoint["veto_pl_seed"] = self.seed
        checkpoint["veto_pl_memories"] = self._models.memories.states()
        checkpoint["veto_pl_skipped_in_a_row"] = self._non_finite.in_a_row

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the memories, go on counting the steps that are skipped in a row, and note the checkpoint's step.

        The run keeps its seed, unless another one was given.
        """
        self.check_student(checkpoint)
        self._loaded_step = checkpoint.get("global_step")
        self._models.memories.restore(checkpoint.get("veto_pl_memories", []))
        self._non_finite.in_a_row = checkpoint.get("veto_pl_skipped_in_a_row", 0)
        saved = checkpoint.get("veto_pl_seed", self.seed)
        if self._seed_was_open and saved != self.seed:
            rank_zero_warn(
                f"The run of the checkpoint has the seed {saved}, and goes on with it. This process was told none, or "
                f"another one: call `lightning.seed_everything({saved})` before its models are made, so that all parts "
                "have it."
            )
            self.seed = saved
            self.tell_arguments()

    @classmethod
    def load_from_checkpoint(
        cls: type[M],
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        *,
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> M:
        """Return the module of a checkpoint, with the weights that it holds; frozen models are read where they were.

        Nothing in the file is run. Of the classes that it names only those of this package are known, and those of
        modules that are imported already.

        Args:
            checkpoint_path: a `.ckpt` file.
            map_location: where its tensors are read to; the memory of the host by default.
            hparams_file: has to be None.
            strict: refuse weights that are missing or too many, by default.
            weights_only: is not looked at: a checkpoint is always read so.
            trust_remote_code: whether code that belongs to a model may run.
            kwargs: arguments of the module in the place of the checkpoint's. Those that are no plain values, such as a
                model in memory, or a class from a notebook that is over, have to be given.

        Raises:
            ConfigurationError: the checkpoint is missing or damaged, or an argument is not told and not given.
        """
        if hparams_file is not None:
            raise ConfigurationError("`load_from_checkpoint` takes no `hparams_file`: pass the arguments themselves.")
        check_checkpoint(str(checkpoint_path))
        if is_sharded(checkpoint_path):
            raise ConfigurationError(
                f"`{checkpoint_path}` is a sharded checkpoint, which the ranks of a trainer read: make the module "
                "as for training and name it as `ckpt_path` of `fit`, `validate`, `test` or `predict`; or export it, "
                f"`veto-pl export {checkpoint_path} FOLDER`."
            )
        checkpoint = read_checkpoint(checkpoint_path, map_location or "cpu")
        told = checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY)
        module = cls(**made_again(told, kwargs, cls, Path(checkpoint_path), trusted=trust_remote_code))
        module.configure_model()
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"], strict=module.strict_loading if strict is None else strict)
        return module

    @property
    def _models(self) -> Any:
        assert self.models is not None, "Lightning calls `configure_model` before any step"
        return self.models

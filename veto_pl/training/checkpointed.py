"""What a checkpoint holds of a module beside its weights, and a module that is made from one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from veto_pl.core.own_errors import OwnErrors
from veto_pl.exceptions import ConfigurationError
from veto_pl.models.blueprint import BLUEPRINT, student_files
from veto_pl.seams import LanguageModel, Models, ModelSource
from veto_pl.storage.checkpoint_io import read_checkpoint
from veto_pl.storage.checkpoint_place import check_checkpoint
from veto_pl.storage.sharded_checkpoint import is_sharded
from veto_pl.training.adapter_checkpoints import ADAPTER, adapter_entry, check_base
from veto_pl.training.arguments import made_again, plain_arguments
from veto_pl.training.nonfinite import NonFiniteSteps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

M = TypeVar("M", bound="CheckpointedModule")

ARGUMENTS = {
    "objective": "objective", "student": "student_source", "teacher": "teacher_source",
    "teachers": "further_teachers", "reference": "reference_source", "tokenizer": "tokenizer_source",
    "optimizer": "optimizer",
    "lr_schedule": "lr_schedule", "evaluation": "evaluation", "evaluation_engine": "evaluation_engine",
    "metrics": "metrics", "seed": "seed", "skip_limit": "skip_limit", "roll_out_window": "rolls_out_window",
}  # fmt: skip
"""The arguments of a module, with the attributes that hold them."""


class CheckpointedModule(OwnErrors, L.LightningModule):
    """Saves what resuming and exporting need beside the weights, and can be made from a checkpoint.

    Attributes:
        run_config: YAML of the run, where a configuration describes it.
        seed: of the run.
    """

    student: LanguageModel
    student_source: ModelSource
    tokenizer: PreTrainedTokenizerBase
    template: Any
    models: Models | None
    run_config: str | None
    seed: int
    _seed_was_open: bool
    _loaded_step: int | None
    _non_finite: NonFiniteSteps

    def tell_arguments(self) -> None:
        """Keep the arguments in plain values as `hparams`, for loggers and checkpoints."""
        self.save_hyperparameters(plain_arguments({name: getattr(self, of) for name, of in ARGUMENTS.items()}))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the student's files for an export, the configuration as YAML, the seed, the memories and the count of
        skipped steps.
        """
        checkpoint[BLUEPRINT] = student_files(self.student.model, self.tokenizer, self.template)
        checkpoint[ADAPTER] = adapter_entry(self.student, self.student_source)
        checkpoint["veto_pl_config"] = self.run_config
        checkpoint["veto_pl_seed"] = self.seed
        checkpoint["veto_pl_memories"] = self._models.memories.states()
        checkpoint["veto_pl_skipped_in_a_row"] = self._non_finite.in_a_row

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the memories, go on counting the steps that are skipped in a row, and note the checkpoint's step.

        The run keeps its seed, unless another one was given.
        """
        check_base(self.student, checkpoint.get(ADAPTER))
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
    def _models(self) -> Models:
        assert self.models is not None, "Lightning calls `configure_model` before any step"
        return self.models

"""The strategy `fsdp2`: student and teacher sharded over all ranks."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor
from torch.optim import Optimizer

from veto_pl.core.ranks import Sharding
from veto_pl.exceptions import ConfigurationError
from veto_pl.storage.atomic import recover
from veto_pl.storage.checkpoint_io import AtomicCheckpointIO
from veto_pl.storage.sharded_checkpoint import check_sharded, is_sharded, load_sharded_into, plain_values, save_sharded


class FullyShard(ModelParallelStrategy):
    """FSDP2: every rank keeps a part of each weight, gradient and optimizer state, and of the teacher.

    Named `fsdp2` in `trainer.strategy`. Runs on GPUs over NCCL, and on CPUs over gloo. A checkpoint is a folder that
    any number of ranks can go on from; one that a single process or DDP wrote is read too. In `bf16-mixed` each rank's
    parts are float32, weights are gathered in bfloat16, and gradients are summed over the ranks in float32.

    Args:
        gather_student: hold the whole student while it samples; it is let go for the update. Needs the memory, and is
            fast. Otherwise each layer is gathered for every token.
        gather_teacher: the same for a teacher that samples; for each of several.
        settings: of Lightning's `ModelParallelStrategy`.
    """

    shards_models = True

    def __init__(self, gather_student: bool = True, gather_teacher: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self.gather = {"student": gather_student, "teacher": gather_teacher, "reference": False}

    def setup_environment(self) -> None:
        """Set one dimension of data-parallel ranks; Lightning would choose tensor parallelism within a node."""
        # Private fields: the sizes are arguments of `__init__`, where the number of ranks is not known yet.
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    def sharding(self, role: str) -> Sharding:
        """Return how the ranks share the `student`, the `reference`, or a teacher by its name."""
        mixed = self.precision_plugin.precision == "bf16-mixed"
        whole = self.gather.get(role, self.gather["teacher"])
        return Sharding(self.device_mesh["data_parallel"], self.root_device, whole, torch.bfloat16 if mixed else None)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write a folder whole or not at all; where that fails, `AtomicCheckpointIO.on_failed_save` decides.

        Collective: call it on every rank.
        """
        path = Path(self.broadcast(filepath))
        tensors: dict[str, Any] = {"state_dict": checkpoint.pop("state_dict")}
        plain: dict[str, Any] = dict(checkpoint)
        for index, state in enumerate(plain.pop("optimizer_states", [])):
            tensors[f"optimizer_{index}"], plain[f"optimizer_{index}"] = _split_state(state)
        writer = self.checkpoint_io
        with writer.saving(path) if isinstance(writer, AtomicCheckpointIO) else nullcontext():
            save_sharded(path, tensors, plain)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the state by the names of the weights.

        PyTorch would make an optimizer that has not stepped step, to see its state; so that state is given here as
        empty.
        """
        if optimizer.state:
            return super().optimizer_state(optimizer)
        return {"state": {}, "param_groups": [_settings(group) for group in optimizer.param_groups]}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a folder, or a file of one process; never run code from it, whatever `weights_only` says.

        Collective: call it on every rank.
        """
        path = Path(self.broadcast(checkpoint_path))
        if self.is_global_zero:
            recover(path)
        self.barrier()
        if not is_sharded(path):
            if not path.is_file():
                raise ConfigurationError(
                    f"`{path}` is no checkpoint: neither a file nor a complete folder of a sharded run. Name another."
                )
            return super().load_checkpoint(path, weights_only=True)
        check_sharded(path)
        plain = plain_values(path)
        self._restore_weights(path)
        for index, optimizer in enumerate(self.optimizers):
            self._restore_optimizer(path, f"optimizer_{index}", optimizer, plain.pop(f"optimizer_{index}"))
        return plain

    def _restore_weights(self, path: Path) -> None:
        from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

        assert self.model is not None, "Lightning loads a checkpoint after `setup`"
        weights = get_model_state_dict(self.model)
        load_sharded_into(path, {"state_dict": weights})
        set_model_state_dict(self.model, weights)

    def _restore_optimizer(self, path: Path, name: str, optimizer: Optimizer, plain: dict[str, Any]) -> None:
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

        assert self.model is not None, "Lightning loads a checkpoint after `setup`"
        if plain["stepped"]:
            tensors, _ = _split_state(get_optimizer_state_dict(self.model, optimizer))
            load_sharded_into(path, {name: tensors})
            state = {weight: {**tensors.get(weight, {}), **values} for weight, values in plain["values"].items()}
            groups = get_optimizer_state_dict(self.model, optimizer)["param_groups"]
            merged: dict[str, Any] = {"state": state, "param_groups": groups}
            set_optimizer_state_dict(self.model, optimizer, merged)
        for group, saved in zip(optimizer.param_groups, plain["param_groups"], strict=True):
            group.update(_settings(saved))


def _split_state(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split an optimizer's state into its tensors, by weight, and the plain rest."""
    tensors = {w: {k: v for k, v in s.items() if isinstance(v, Tensor)} for w, s in state["state"].items()}
    values = {w: {k: v for k, v in s.items() if not isinstance(v, Tensor)} for w, s in state["state"].items()}
    groups = [_settings(group) for group in state["param_groups"]]
    return tensors, {"param_groups": groups, "values": values, "stepped": bool(tensors)}


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


StrategyRegistry.register("fsdp2", FullyShard, description="Student and teacher sharded over all ranks (FSDP2).")

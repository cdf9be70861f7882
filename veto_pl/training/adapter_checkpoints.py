"""Checkpoints of a student with an adapter: its base stays out of them, and is known again when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn

from veto_pl.exceptions import ConfigurationError
from veto_pl.models.adapters import adapter_names, is_adapted
from veto_pl.models.described import described
from veto_pl.models.sharding import local_part, resharded

if TYPE_CHECKING:
    from lightning import LightningModule

    from veto_pl.seams import LanguageModel, ModelSource

ADAPTER = "veto_pl_adapter"
"""The key under which a checkpoint says what its adapter belongs to; None for a student that is trained whole."""


_sums: WeakKeyDictionary[nn.Module, dict[str, int]] = WeakKeyDictionary()
"""By student: the sums over its base, which stays as it is."""


def leave_out_bases(module: LightningModule) -> None:
    """Leave the bases of models with adapters out of the module's state, and do not miss them when one is read."""
    networks = {role: getattr(model, "model", None) for role, model in module.named_children()}
    kept = {
        role: {f"{role}.model.{name}" for name in adapter_names(network)}
        for role, network in networks.items()
        if isinstance(network, nn.Module) and is_adapted(network)
    }

    def is_left_out(name: str, prefix: str = "") -> bool:
        own = name.removeprefix(prefix)
        role = own.partition(".")[0]
        return role in kept and own not in kept[role]

    def drop(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
        for name in [name for name in state if is_left_out(name, prefix)]:
            del state[name]

    def forgive(_: nn.Module, problems: Any) -> None:
        problems.missing_keys[:] = [name for name in problems.missing_keys if not is_left_out(name)]

    if kept:
        module.register_state_dict_post_hook(drop)  # type: ignore[no-untyped-call]
        module.register_load_state_dict_post_hook(forgive)  # type: ignore[no-untyped-call]


def adapter_entry(student: LanguageModel, source: ModelSource) -> dict[str, Any] | None:
    """Return what a checkpoint says of the base: where it comes from, as plain values, and a sum over its weights.

    Collective where the student is sharded: call it on every rank.
    """
    if not is_adapted(student.model):
        return None
    return {"student": described(source), "base": _base_sums(student)}


def check_base(student: LanguageModel, entry: Any) -> None:
    """Raise `ConfigurationError` where the student's base is not the one that a checkpoint's adapter was trained on.

    Collective where the student is sharded: call it on every rank.

    Args:
        student: with its base.
        entry: of the checkpoint; None where it has none.
    """
    if not is_adapted(student.model):
        if isinstance(entry, Mapping):
            raise ConfigurationError(
                "The checkpoint holds an adapter, but `model.student` has none. Name the student of its run."
            )
        return
    if not isinstance(entry, Mapping):
        raise ConfigurationError(
            "The checkpoint holds no adapter, but `model.student` has one. Name the student of its run, or begin anew."
        )
    stored, own = entry.get("base") or {}, _base_sums(student)
    differing = [name for name in sorted(stored.keys() | own.keys()) if stored.get(name) != own.get(name)]
    if differing:
        raise ConfigurationError(
            f"The adapter of the checkpoint was trained beside other weights: {len(differing)} of {len(own)} weights "
            f"of the base differ, for instance `{differing[0]}`. Name the base of its run, in the same `dtype`."
        )


def _base_sums(student: LanguageModel) -> dict[str, int]:
    """Return, by name, a sum of each frozen number's bits, which does not depend on how ranks share the weights.

    Quantised weights are left out: how they are packed depends on the device.
    """
    if student not in _sums:
        _sums[student] = _find_sums(student)
    return _sums[student]


def _find_sums(student: LanguageModel) -> dict[str, int]:
    kept = adapter_names(student.model)
    with resharded(student), torch.no_grad():
        frozen = [(name, weight) for name, weight in student.model.named_parameters() if name not in kept]
        sums = {name: _bit_sum(local_part(weight)) for name, weight in frozen if weight.is_floating_point()}
        if not sums:
            return {}
        stacked = torch.stack([*sums.values()])
        if student.shards is not None:
            dist.all_reduce(stacked, group=student.shards.mesh.get_group())
    return dict(zip(sums, stacked.tolist(), strict=True))


def _bit_sum(weight: Tensor) -> Tensor:
    whole_numbers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return weight.detach().contiguous().view(whole_numbers[weight.element_size()]).sum(dtype=torch.int64)

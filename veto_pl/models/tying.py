"""Weights with two names: whether a model has one matrix in two places depends on its files, not on its config."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from veto_pl.models.adapters import base_layer, is_adapted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS = 4096
"""So many rows are compared at a time."""


def tied(model: nn.Module) -> list[list[str]]:
    """Return the names of each weight that has several."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(weight, []).append(name)
    return [group for group in names.values() if len(group) > 1]


def untie(model: PreTrainedModel, names: Collection[str]) -> None:
    """Give each of these places a weight of its own, with arbitrary values, and let the configuration say so."""
    for name in names:
        place, _, attribute = name.rpartition(".")
        old = model.get_parameter(name)
        setattr(model.get_submodule(place), attribute, nn.Parameter(torch.empty_like(old), old.requires_grad))
        getattr(model, "all_tied_weights_keys", {}).pop(name, None)
    say_whether_tied(model)


def say_whether_tied(model: PreTrainedModel) -> None:
    """Correct a configuration that ties head and embedding where the model, with its weights, has two matrices.

    transformers leaves two different ones in a file apart whatever the configuration says. Whoever makes the model from
    the configuration alone would tie them.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if is_adapted(model):  # it is the base that the configuration describes
        head, embedding = base_layer(head), base_layer(embedding)
    apart = head is not None and embedding is not None and head.weight is not embedding.weight
    if apart and getattr(model.config, "tie_word_embeddings", False):
        model.config.tie_word_embeddings = False


def differing_names(
    names: list[str], weights: Mapping[str, Any], shape: Callable[[Any], Sequence[int]] = Tensor.size
) -> list[str]:
    """Return those of the names of one weight under which there is another matrix than under the first of them.

    Args:
        names: of one weight, according to the configuration; those without a matrix are left out.
        weights: tensors, or slices of files, by name.
        shape: of one of these.
    """
    first, *others = [name for name in names if name in weights] or [""]
    return [n for n in others if not _equal(weights[first], weights[n], shape(weights[first]), shape(weights[n]))]


def _equal(one: Any, other: Any, shape: Sequence[int], other_shape: Sequence[int]) -> bool:
    """Compare two matrices a part at a time, for they may be of many gigabytes."""
    parts = (slice(start, start + ROWS) for start in range(0, shape[0], ROWS))
    return [*shape] == [*other_shape] and all(bool((one[part] == other[part]).all()) for part in parts)

"""A batch of closed-form edits as named tensors, and the number of its keys."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from betaedit.editors.method import EditResult
from betaedit.memory.update import Update


def to_tensors(keys: Mapping[int, Tensor], updates: Mapping[int, Update]) -> dict[str, Tensor]:
    """``LAYER.keys`` (d_in, b), ``LAYER.left`` (d_out, r) and ``LAYER.right`` (d_in, r) of every layer.

    Args:
        keys: Of the facts written again and then of the new ones, by layer.
        updates: What each layer's memory computed, before the recipe's post-processing.
    """
    tensors: dict[str, Tensor] = {}
    for layer, update in updates.items():
        tensors |= {f"{layer}.keys": keys[layer], f"{layer}.left": update.left, f"{layer}.right": update.right}
    return tensors


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[int, tuple[Tensor, Update]]:
    """Keys and update of every layer, from what ``to_tensors`` made of them."""
    layers = sorted({int(name.partition(".")[0]) for name in tensors})
    return {
        layer: (tensors[f"{layer}.keys"], Update(tensors[f"{layer}.left"], tensors[f"{layer}.right"]))
        for layer in layers
    }


def n_keys(result: EditResult) -> int:
    """How many keys a fact was written with: one, and one for each further wording; none if it was not kept."""
    return int(result.figures.get("keys", 1))

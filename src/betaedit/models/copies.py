"""Frozen weights a second time, laid out as the processor reads them soonest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

COPIED_BYTES = 2**30
"""The copies of one part of a model, its head or its layers above the edited ones, are kept if they fit in this."""

_USUAL_ROWS = 16
"""oneDNN lays a weight out for products of so many rows; with others they take hardly longer."""

_GIVEN_BACK = 2**23 + 1
"""Floats in a block of memory so large that it is given back when let go; smaller ones leave holes between copies."""


class _Kept(NamedTuple):
    places: list[tuple[int, int]]
    rows: list[Tensor]
    copies: tuple[Tensor, ...]


class Copies:
    """``W`` of linear layers in oneDNN's blocks, made once and again when a weight has changed.

    Products of a few rows with the head take half the time, those with others a tenth to a quarter less. Several ``W``
    with one input are laid out as one matrix.
    """

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()

    def of(self, *linears: nn.Linear, transposed: bool = False) -> tuple[Tensor, ...]:
        """That of the weights as they are now; ``transposed`` asks for that of ``W^T`` too, each time or never."""
        weights = [linear.weight.detach() for linear in linears]
        places = [(weight.data_ptr(), weight._version) for weight in weights]
        rows = [weight[len(weight) // 2] for weight in weights]
        kept = self._kept.get(linears[0])
        # Weights changed through `.data` keep place and version; hardly any change spares a whole row.
        if kept is None or kept.places != places or not all(map(torch.equal, kept.rows, rows)):
            copies = _pack(weights, transposed)
            kept = self._kept[linears[0]] = _Kept(places, [row.clone() for row in rows], copies)
        return kept.copies

    def nbytes(self, model: nn.Module) -> int:
        """Bytes of all copies of weights of ``model``."""
        kept = [self._kept[module] for module in model.modules() if module in self._kept]
        return sum(copy.numel() * copy.element_size() for one in kept for copy in one.copies)


def _pack(weights: list[Tensor], transposed: bool) -> tuple[Tensor, ...]:
    size, d_in = sum(weight.numel() for weight in weights), weights[0].shape[1]
    room = torch.empty(max(size, _GIVEN_BACK))[:size]
    blocks = _blocks(torch.cat(weights, out=room.view(-1, d_in)))
    if not transposed:
        return (blocks,)
    return blocks, _blocks(torch.cat([weight.t() for weight in weights], dim=1, out=room.view(d_in, -1)))


def _blocks(weight: Tensor) -> Tensor:
    blocks: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _USUAL_ROWS)
    return blocks


packed = Copies()

FEW = 40
"""At more rows torch is as quick with the weights as they are."""


def is_kept_packed(weights: Iterable[Tensor], *, transposed: bool = False) -> bool:
    """Whether these can be packed, and there is room for the copies."""
    weights = list(weights)
    plain = all(is_by_mkl(w) and w.dtype == torch.float32 and not w.is_inference() for w in weights)
    there = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return plain and there and (1 + transposed) * sum(weight.nbytes for weight in weights) <= COPIED_BYTES


def is_by_mkl(weight: Tensor) -> bool:
    """Whether products with ``weight`` are computed on the CPU in single or double precision."""
    return weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)


def packed_product(rows: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b`` ``(n, d_out)`` of rows ``(n, d_in)`` and a packed ``W``."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows.contiguous(), packed, bias, "none", [], "")
    return product

"""Frozen weights a second time, laid out as the processor reads them soonest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from betaedit.models.linear import is_by_avx2, is_by_mkl

COPIED_BYTES = 2**30
"""The copies of one kind are kept if they fit in this."""

_USUAL_ROWS = 16


class _Kept(NamedTuple):
    place: tuple[int, int]
    row: Tensor
    copies: tuple[Tensor, ...]


class Copies:
    """Copies of the weights of linear layers, made once and again when a weight has changed.

    Args:
        make: The copies of a weight.
    """

    def __init__(self, make: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        self._make = make
        self._kept: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()

    def of(self, linear: nn.Linear) -> tuple[Tensor, ...]:
        """Those of the weight as it is now."""
        weight = linear.weight.detach()
        place, row = (weight.data_ptr(), weight._version), weight[len(weight) // 2]
        kept = self._kept.get(linear)
        # Weights changed through `.data` keep place and version; hardly any change spares a whole row.
        if kept is None or kept.place != place or not torch.equal(kept.row, row):
            kept = self._kept[linear] = _Kept(place, row.clone(), self._make(weight))
        return kept.copies

    def nbytes(self, model: nn.Module) -> int:
        """Bytes of those of ``model``."""
        kept = [self._kept[module] for module in model.modules() if module in self._kept]
        return sum(copy.numel() * copy.element_size() for one in kept for copy in one.copies)


transposed = Copies(lambda weight: (weight.t().contiguous(),))
"""``W^T``: with AVX-512 the way back takes two thirds of the time if its rows lie one after another in memory."""

packed = Copies(lambda weight: (_pack(weight), _pack(weight.t())))
"""``W`` and ``W^T`` in oneDNN's blocks: with AVX2 a product of a few rows takes half the time with a tall matrix."""


def copies_bytes(model: nn.Module) -> int:
    """Bytes of all copies of weights of ``model``."""
    return transposed.nbytes(model) + packed.nbytes(model)


def is_kept_transposed(weights: Iterable[Tensor]) -> bool:
    """Whether ``transposed`` copies of these pay, and there is room for them."""
    weights = list(weights)
    plain = all(is_by_mkl(weight) and not is_by_avx2(weight) and not weight.is_inference() for weight in weights)
    return plain and sum(weight.nbytes for weight in weights) <= COPIED_BYTES


def is_kept_packed(weight: Tensor) -> bool:
    """Whether ``packed`` copies of this pay, and there is room for them."""
    plain = is_by_avx2(weight) and weight.dtype == torch.float32 and not weight.is_inference()
    return plain and 2 * weight.nbytes <= COPIED_BYTES and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def packed_product(rows: Tensor, packed: Tensor) -> Tensor:
    """``x W^T`` ``(n, d_out)`` of rows ``(n, d_in)`` and a packed ``W``."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows.contiguous(), packed, None, "none", [], "")
    return product


def _pack(weight: Tensor) -> Tensor:
    block: Any = torch.ops.mkldnn._reorder_linear_weight(weight, _USUAL_ROWS)
    packed: Tensor = block
    return packed

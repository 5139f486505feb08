"""Linear layers of a model that compute products of few rows at the speed the processor has.

On CPUs torch often computes ``x W^T`` for a few dozen rows slower than ``W x^T``, which is the same numbers
(docs/benchmarks.md). MKL's kernels for AVX2 take columns of ``x^T`` eight at a time, and what is left over, one by one:
there columns are padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from betaedit.models.copies import is_by_mkl, is_kept_packed, packed, packed_product
from betaedit.models.partial import replaced_forwards

NARROW = 64
"""Rows from which on torch is quick by itself."""

_FEWEST, _LANES = 16, 8


@contextmanager
def narrow_linears(modules: Iterable[nn.Module], *, often: bool = False) -> Iterator[None]:
    """A context in which the linear layers within ``modules`` compute products of few rows the quick way round.

    Only for frozen float32 weights on the CPU; other layers, and those that accelerate moves about, stay as they are.

    Args:
        modules: Modules.
        often: Whether products are so many that copies of the weights pay (models/copies.py). They are made at once.
    """
    linears = {cast(nn.Linear, part) for module in modules for part in module.modules() if _is_plain(part)}
    copied = {linear for linear in linears if often and is_kept_packed([linear.weight], transposed=True)}
    for linear in copied:
        packed.of(linear, transposed=True)
    with replaced_forwards({linear: _narrow_forward(linear, linear in copied) for linear in linears}):
        yield


def _is_plain(module: nn.Module) -> bool:
    if type(module) is not nn.Linear or "forward" in module.__dict__:
        return False
    weight = module.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and not weight.requires_grad


def _narrow_forward(linear: nn.Linear, copied: bool) -> Callable[[Tensor], Tensor]:
    weight, bias = linear.weight, linear.bias

    def forward(x: Tensor) -> Tensor:
        if x.numel() >= NARROW * x.shape[-1]:
            return nn.functional.linear(x, weight, bias)
        factors = packed.of(linear, transposed=True) if copied else (weight, weight.t())
        product: Tensor = _FrozenProduct.apply(x, *factors)  # type: ignore[no-untyped-call]
        return product if bias is None else product + bias

    return forward


class _FrozenProduct(torch.autograd.Function):
    """``x W^T`` for ``x`` ``(..., d_in)``, with a gradient for ``x`` alone, from ``W`` and ``W^T``, packed or not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, transposed: Tensor) -> Tensor:
        """``(W x^T)^T``."""
        ctx.save_for_backward(transposed)
        return _product(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """``g W``."""
        (transposed,) = ctx.saved_tensors
        return _product(gradient, transposed), None, None


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """``x W^T`` ``(..., d_out)`` of ``x`` ``(..., d_in)``, with rows of zeros below ``x`` while it is computed."""
    rows = x.flatten(0, -2)
    product = packed_product(rows, weight) if weight.is_mkldnn else _plain_product(rows, weight)
    return product.view(*x.shape[:-1], -1)


def _plain_product(rows: Tensor, weight: Tensor) -> Tensor:
    n = len(rows)
    width = _rounded(n, weight)
    if weight.is_contiguous() or width > n:
        return torch.mm(weight, nn.functional.pad(rows.t(), (0, width - n)))[:, :n].t().contiguous()
    return torch.mm(rows, weight.t())


def _rounded(n: int, weight: Tensor) -> int:
    """Columns, ``n`` or a few more, whose products with ``weight`` take the least time."""
    if not is_by_mkl(weight) or torch.backends.cpu.get_cpu_capability() != "AVX2":
        return n
    return max(_FEWEST, -(-n // _LANES) * _LANES)

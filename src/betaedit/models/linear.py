"""Matrix products of few rows with frozen weights, at the speed the processor has.

On CPUs torch computes ``x W^T`` for a few dozen rows at half the speed of ``W x^T``, which is the same numbers
(docs/benchmarks.md). A few dozen rows are what the value of one fact needs. From some width on MKL does not divide
``W x^T`` well among its threads; then each is given rows of ``W`` of its own. Its kernels for AVX2 take columns eight
at a time, and what is left over, one by one: there columns are padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from betaedit.models.partial import replaced_forwards

NARROW = 64
"""Rows from which on torch is quick by itself."""

# The most columns that MKL divides well: of a matrix that is taller than wide, and of one that is wider.
_UNDIVIDED = {True: 48, False: 28}

_FEWEST, _LANES = 16, 8


def rounded_width(n: int, like: Tensor) -> int:
    """Columns, ``n`` or a few more, whose products take the least time where and in the type that ``like`` has."""
    if not is_by_avx2(like):
        return n
    return max(_FEWEST, -(-n // _LANES) * _LANES)


def column_product(weight: Tensor, columns: Tensor, onto: Tensor | None = None) -> Tensor:
    """``W x`` ``(d_out, n)`` of columns ``(d_in, n)``; added to ``onto``, which is contiguous, if that is given."""
    (d_out, d_in), n = weight.shape, columns.shape[1]
    threads = torch.get_num_threads() if is_by_mkl(weight) and weight.is_contiguous() else 1
    if threads == 1 or d_out % threads or n <= _UNDIVIDED[d_out >= d_in]:
        return weight.mm(columns) if onto is None else onto.addmm_(weight, columns)
    parts = weight.view(threads, -1, d_in), columns.expand(threads, -1, -1)
    if onto is None:
        return torch.bmm(*parts).view(d_out, n)
    onto.view(threads, -1, n).baddbmm_(*parts)
    return onto


def is_by_avx2(weight: Tensor) -> bool:
    """Whether MKL computes products with ``weight`` without wider registers: then ``W^T g`` is as quick as ``W x``."""
    return is_by_mkl(weight) and torch.backends.cpu.get_cpu_capability() == "AVX2"


def is_by_mkl(weight: Tensor) -> bool:
    """Whether products with ``weight`` are computed on the CPU in single or double precision."""
    return weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)


@contextmanager
def narrow_linears(modules: Iterable[nn.Module]) -> Iterator[None]:
    """A context in which the linear layers within ``modules`` compute products of few rows the quick way round.

    Only for frozen float32 weights on the CPU; other layers, and those that accelerate moves about, stay as they are.
    """
    linears = {part for module in modules for part in module.modules() if _is_plain(part)}
    with replaced_forwards({linear: _narrow_forward(linear) for linear in linears}):
        yield


def _is_plain(module: nn.Module) -> bool:
    if type(module) is not nn.Linear or "forward" in module.__dict__:
        return False
    weight = module.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and not weight.requires_grad


def _narrow_forward(linear: nn.Module) -> Callable[[Tensor], Tensor]:
    weight, bias = linear.get_parameter("weight"), linear._parameters["bias"]

    def forward(x: Tensor) -> Tensor:
        if x.numel() >= NARROW * x.shape[-1]:
            return nn.functional.linear(x, weight, bias)
        product: Tensor = _FrozenProduct.apply(x, weight)  # type: ignore[no-untyped-call]
        return product if bias is None else product + bias

    return forward


class _FrozenProduct(torch.autograd.Function):
    """``x W^T`` for ``x`` ``(..., d_in)``, with a gradient for ``x`` alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """``(W x^T)^T``."""
        ctx.save_for_backward(weight)
        product = _rounded_product(weight, x.flatten(0, -2).t())
        return product.t().contiguous().view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """``g W``."""
        (weight,) = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        if rounded_width(len(rows), weight) == len(rows):
            product = torch.mm(rows, weight)
        else:
            product = _rounded_product(weight.t(), rows.t()).t().contiguous()
        return product.view(*gradient.shape[:-1], weight.shape[1]), None


def _rounded_product(weight: Tensor, columns: Tensor) -> Tensor:
    """``W x`` ``(d_out, n)``, with columns of zeros beside ``x`` ``(d_in, n)`` while it is computed."""
    n = columns.shape[1]
    return torch.mm(weight, nn.functional.pad(columns, (0, rounded_width(n, weight) - n)))[:, :n]

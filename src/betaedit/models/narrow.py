"""Linear layers of a model that compute products of few rows at the speed the processor has.

Where there are kernels (models/native/), they do that. Else: on CPUs torch often computes ``x W^T`` for a few dozen
rows slower than ``W x^T``, which is the same numbers (docs/benchmarks.md). MKL's kernels for AVX2 take columns of
``x^T`` eight at a time, and what is left over, one by one: there columns are padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from betaedit.models.native.kernels import Kernels, Matrices, kernels_for
from betaedit.models.partial import replaced_forwards

NARROW = 63
"""Rows up to which torch is quicker the other way round."""

_FEWEST, _LANES = 16, 8


@contextmanager
def narrow_linears(modules: Iterable[nn.Module]) -> Iterator[None]:
    """A context in which the linear layers within ``modules`` compute products of few rows the quick way.

    Only for frozen weights on the CPU, float32 or, where kernels are quicker, of two bytes; other layers, and those
    that accelerate moves about, stay as they are.
    """
    linears = {cast(nn.Linear, part) for module in modules for part in module.modules() if _is_plain(part)}
    forwards = {linear: _narrow_forward(linear) for linear in linears}
    with replaced_forwards({linear: forward for linear, forward in forwards.items() if forward is not None}):
        yield


def _is_plain(module: nn.Module) -> bool:
    if type(module) is not nn.Linear or "forward" in module.__dict__:
        return False
    weight = module.weight
    return weight.device.type == "cpu" and not weight.requires_grad


def _narrow_forward(linear: nn.Linear) -> Callable[[Tensor], Tensor] | None:
    weight, bias, kernels = linear.weight, linear.bias, kernels_for(linear.weight)
    way: type[torch.autograd.Function] = _FrozenProduct
    factors: tuple[Any, ...] = (weight,)
    most = NARROW
    if kernels is not None:
        way, factors, most = _NativeProduct, (kernels, Matrices([weight], [None])), kernels.most_rows[weight.dtype]
    elif weight.dtype != torch.float32:
        return None

    def forward(x: Tensor) -> Tensor:
        n = x.shape[:-1].numel()
        alike = (x.device, x.dtype, x.shape[-1]) == (weight.device, weight.dtype, weight.shape[1])
        if not alike or x.dim() == 1 or not 0 < n <= most:
            return nn.functional.linear(x, weight, bias)
        product: Tensor = way.apply(x, *factors)  # type: ignore[no-untyped-call]
        return product if bias is None else product + bias

    return forward


class _NativeProduct(torch.autograd.Function):
    """``x W^T`` for ``x`` ``(..., d_in)``, with a gradient for ``x`` alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: Kernels, matrices: Matrices) -> Tensor:
        """``x W^T``."""
        ctx.kernels, ctx.matrices = kernels, matrices
        return kernels.product(matrices, x.flatten(0, -2)).view(*x.shape[:-1], -1).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """``g W``."""
        rows = ctx.kernels.product_back(ctx.matrices, gradient.flatten(0, -2))
        return rows.view(*gradient.shape[:-1], -1).to(gradient.dtype), None, None


class _FrozenProduct(torch.autograd.Function):
    """The same by torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """``(W x^T)^T``."""
        ctx.save_for_backward(weight)
        return _product(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """``(W^T g^T)^T``."""
        (weight,) = ctx.saved_tensors
        return _product(gradient, weight.t()), None


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """``x W^T`` ``(..., d_out)`` of ``x`` ``(..., d_in)``, with rows of zeros below ``x`` while it is computed."""
    rows = x.flatten(0, -2)
    n = len(rows)
    width = _rounded(n)
    if weight.is_contiguous() or width > n:
        product = torch.mm(weight, nn.functional.pad(rows.t(), (0, width - n)))[:, :n].t().contiguous()
    else:
        product = torch.mm(rows, weight.t())
    return product.view(*x.shape[:-1], -1)


def _rounded(n: int) -> int:
    """Columns, ``n`` or a few more, whose products take the least time."""
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        return n
    return max(_FEWEST, -(-n // _LANES) * _LANES)

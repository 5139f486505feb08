"""Products of few rows with frozen matrices: all linear maps that are not computed by the model's modules.

The compiled kernels (kernels.py) compute them where they take the matrices. Without kernels torch does; on CPUs it
often computes ``x W^T`` for a few dozen rows slower than ``W x^T``, which is the same numbers (docs/benchmarks.md).
MKL's kernels for AVX2 take columns of ``x^T`` eight at a time and those left over one by one: there columns are padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from betaedit.models.replay import replaced_forwards
from betaedit.models.runners.kernels import Kernels, Matrices, kernels_for
from betaedit.models.runners.trust import is_frozen_linear, runs_its_own_forward

FEW_ROWS = 63
"""Rows up to which torch computes ``W x^T`` sooner than ``x W^T``."""

_FEWEST, _LANES = 16, 8


@dataclass(frozen=True)
class Linears:
    """``W x + b`` for one ``x`` and one to three ``W``, with a gradient for ``x`` alone.

    Args:
        weights: ``(d_out, d_in)`` of each.
        biases: ``(d_out,)`` or nothing, of each.
        sizes: ``d_out`` of each.
        compiled: The kernels and the matrices as they take them; nothing where torch computes.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    sizes: tuple[int, ...]
    compiled: tuple[Kernels, Matrices] | None = None

    @classmethod
    def of(cls, weights: Sequence[Tensor], biases: Sequence[Tensor | None], *, use_kernels: bool) -> Linears:
        """Those with these weights, read from their modules once; with ``use_kernels`` by kernels where they can be."""
        kernels = kernels_for(*weights) if use_kernels else None
        compiled = None if kernels is None else (kernels, Matrices(weights, biases))
        return cls(tuple(weights), tuple(biases), tuple(map(len, weights)), compiled)

    def split(self, x: Tensor) -> Sequence[Tensor]:
        """``(n, d_out)`` of rows ``x`` ``(n, d_in)``, for each of them."""
        if self.compiled_at(len(x)) is not None:
            return self.joined(x).split_with_sizes(self.sizes, 1)
        multiply = _weight_first if self._weight_first_at(len(x)) else nn.functional.linear
        return [multiply(x, *pair) for pair in zip(self.weights, self.biases, strict=True)]

    def joined(self, x: Tensor) -> Tensor:
        """The same side by side."""
        if (compiled := self.compiled_at(len(x))) is not None:
            kernels, matrices = compiled
            return kernels.product(matrices, x).to(x.dtype)
        products = self.split(x)
        return products[0] if len(products) == 1 else torch.cat(list(products), dim=1)

    def backward(self, *gradients: Tensor) -> Tensor:
        """``(n, d_in)`` the gradient of ``x``, from that of each product."""
        n = len(gradients[0])
        if (compiled := self.compiled_at(n)) is not None:
            kernels, matrices = compiled
            return kernels.product_backward(matrices, torch.cat(gradients, dim=1)).to(gradients[0].dtype)
        if self._weight_first_at(n):
            pairs = zip(gradients, self.weights, strict=True)
            return reduce(Tensor.add_, (_weight_first(gradient, weight.t()) for gradient, weight in pairs))
        rows = torch.mm(gradients[0], self.weights[0])
        for gradient, weight in zip(gradients[1:], self.weights[1:], strict=True):
            rows.addmm_(gradient, weight)
        return rows

    def compiled_at(self, n: int) -> tuple[Kernels, Matrices] | None:
        """``compiled`` if it is faster for that many rows."""
        quicker = self.compiled is not None and 0 < n <= self.compiled[0].most_rows[self.weights[0].dtype]
        return self.compiled if quicker else None

    def is_quicker_at(self, n: int) -> bool:
        """Whether that many rows are multiplied differently from ``nn.functional.linear``."""
        return self.compiled_at(n) is not None or self._weight_first_at(n)

    def _weight_first_at(self, n: int) -> bool:
        first = self.weights[0]
        return 0 < n <= FEW_ROWS and (first.device.type, first.dtype) == ("cpu", torch.float32)


@contextmanager
def few_row_linears(modules: Iterable[nn.Module], *, use_kernels: bool) -> Iterator[None]:
    """A context in which the linear layers within ``modules`` compute products of few rows as ``Linears`` does.

    Only for frozen weights on the CPU; other layers, and those that accelerate moves about, stay as they are.
    """
    parts = {part for module in modules for part in module.modules() if is_frozen_linear(part)}
    linears = [cast(nn.Linear, part) for part in parts if runs_its_own_forward(part)]
    forwards = {linear: _forward_of(linear, use_kernels) for linear in linears if linear.weight.device.type == "cpu"}
    with replaced_forwards({linear: forward for linear, forward in forwards.items() if forward is not None}):
        yield


def _forward_of(linear: nn.Linear, use_kernels: bool) -> Callable[[Tensor], Tensor] | None:
    """What ``linear`` computes, with products of few rows by ``Linears``; ``None`` where these are torch's own."""
    weight, bias = linear.weight, linear.bias
    linears = Linears.of([weight], [None], use_kernels=use_kernels)
    if not linears.is_quicker_at(1):
        return None

    def forward(x: Tensor) -> Tensor:
        alike = (x.device, x.dtype, x.shape[-1]) == (weight.device, weight.dtype, weight.shape[1])
        if not alike or x.dim() == 1 or not linears.is_quicker_at(x.shape[:-1].numel()):
            return nn.functional.linear(x, weight, bias)
        product: Tensor = _Product.apply(x, linears)  # type: ignore[no-untyped-call]
        return product if bias is None else product + bias

    return forward


class _Product(torch.autograd.Function):
    """``x W^T`` for ``x`` ``(..., d_in)``, with a gradient for ``x`` alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linears: Linears) -> Tensor:
        """``x W^T``."""
        ctx.linears = linears
        return linears.joined(x.flatten(0, -2)).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """``g W``."""
        return ctx.linears.backward(gradient.flatten(0, -2)).view(*gradient.shape[:-1], -1), None


def _weight_first(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b`` ``(n, d_out)`` of ``x`` ``(n, d_in)`` as ``(W x^T)^T``, padded by zeros where that is quicker."""
    n = len(x)
    width = _quick_width(n)
    if weight.is_contiguous() or width > n:
        product = torch.mm(weight, nn.functional.pad(x.t(), (0, width - n)))[:, :n].t().contiguous()
    else:
        product = torch.mm(x, weight.t())
    return product if bias is None else product + bias


def _quick_width(n: int) -> int:
    """Columns, ``n`` or a few more, whose products take the least time."""
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        return n
    return max(_FEWEST, -(-n // _LANES) * _LANES)

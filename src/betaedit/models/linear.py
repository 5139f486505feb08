"""Matrix products of few rows with frozen weights, at the speed the processor has.

On CPUs torch computes ``x W^T`` for a few dozen rows at half the speed of ``W x^T``, which is the same numbers
(docs/benchmarks.md). A few dozen rows are what the value of one fact needs. From some width on MKL does not divide
``W x^T`` well among its threads; then each is given rows of ``W`` of its own. Its kernels for AVX2 take columns eight
at a time, and what is left over, one by one: there columns are padded.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The most columns that MKL divides well: of a matrix that is taller than wide, and of one that is wider.
_UNDIVIDED = {True: 48, False: 28}

_FEWEST, _LANES = 16, 8


def rounded_width(n: int, like: Tensor) -> int:
    """Columns, ``n`` or a few more, whose products take the least time where and in the type that ``like`` has."""
    if not is_by_avx2(like):
        return n
    return max(_FEWEST, -(-n // _LANES) * _LANES)


def column_product(weight: Tensor, columns: Tensor) -> Tensor:
    """``W x`` ``(d_out, n)`` of columns ``(d_in, n)``."""
    (d_out, d_in), n = weight.shape, columns.shape[1]
    threads = torch.get_num_threads() if is_by_mkl(weight) and weight.is_contiguous() else 1
    if threads == 1 or d_out % threads or n <= _UNDIVIDED[d_out >= d_in]:
        return weight.mm(columns)
    return torch.bmm(weight.view(threads, -1, d_in), columns.expand(threads, -1, -1)).view(d_out, n)


def is_by_avx2(weight: Tensor) -> bool:
    """Whether MKL computes products with ``weight`` without wider registers: then ``W^T g`` is as quick as ``W x``."""
    return is_by_mkl(weight) and torch.backends.cpu.get_cpu_capability() == "AVX2"


def is_by_mkl(weight: Tensor) -> bool:
    """Whether products with ``weight`` are computed on the CPU in single or double precision."""
    return weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)

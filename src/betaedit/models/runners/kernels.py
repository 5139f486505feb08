"""Products of few rows by the kernels, on the CPU, contiguous, without gradients (kernels.c says more)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from betaedit.compiled.library import NoKernelsError, find_bound
from betaedit.models.runners.trust import agrees, is_readable

_SOURCE = Path(__file__).with_name("kernels.c")
_KINDS = (torch.float32, torch.bfloat16, torch.float16)
_FEWEST_OUTPUTS = 4
_MOST = 3
_TOLERANCE = 1e-5
_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_ARGUMENTS = {
    "multiply": (_POINTER, _POINTER, _POINTER, _SIZE, _INT),
    "multiply_backward": (_POINTER, _POINTER, _POINTER, _POINTER, _SIZE, _INT),
    "forward": (_POINTER, _INT),
    "backward": (_POINTER, _INT),
}


class MatricesStruct(ctypes.Structure):
    """``struct matrices``."""

    _fields_ = (
        ("w", _POINTER * _MOST),
        ("bias", _POINTER * _MOST),
        ("d_out", _SIZE * _MOST),
        ("count", _SIZE),
        ("d_in", _SIZE),
        ("all", _SIZE),
        ("kind", _SIZE),
    )


class Matrices:
    """One to three ``W`` ``(d_out, d_in)`` of one type with one input, as the kernels take them.

    Args:
        weights: See ``Kernels.take``; their memory is read at each product.
        biases: ``(d_out,)`` or nothing, of each.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        self.d_out, self.d_in = sum(map(len, weights)), weights[0].shape[1]
        # Detached tensors keep their memory alive, even if the model's parameters get other data.
        self._held = [weight.detach() for weight in weights]
        self._biases = [None if bias is None else bias.detach().float().contiguous() for bias in biases]
        self.struct = MatricesStruct(
            (_POINTER * _MOST)(*(weight.data_ptr() for weight in self._held)),
            (_POINTER * _MOST)(*(None if bias is None else bias.data_ptr() for bias in self._biases)),
            (_SIZE * _MOST)(*map(len, weights)),
            len(weights),
            self.d_in,
            self.d_out,
            _KINDS.index(weights[0].dtype),
        )


class Kernels:
    """The functions of one library.

    Attributes:
        most_rows: By the type of a matrix, up to how many rows its products are quicker than by torch; none where the
            processor has instructions for a type of two bytes that torch uses, or cannot read it.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        for name, arguments in _ARGUMENTS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, None
        library.width.restype = _SIZE
        self._library = library
        self._width = int(library.width())
        library.most_rows.argtypes, library.most_rows.restype = (_SIZE,), _SIZE
        self.most_rows = {kind: int(library.most_rows(number)) for number, kind in enumerate(_KINDS)}

    def take(self, weight: Tensor) -> bool:
        """Whether products with ``weight`` ``(d_out, d_in)`` can, and should, be computed here."""
        fits = is_readable(weight) and len(weight) >= _FEWEST_OUTPUTS and weight.shape[1] % self._width == 0
        return fits and self.most_rows.get(weight.dtype, 0) > 0

    def product(self, matrices: Matrices, x: Tensor) -> Tensor:
        """``x W^T + b`` of each ``W``, side by side: float32 ``(n, sum of d_out)`` of rows ``x`` ``(n, d_in)``."""
        _check_width(x, matrices.d_in)
        x = x.float().contiguous()
        product = x.new_empty(len(x), matrices.d_out)
        pointers = ctypes.addressof(matrices.struct), x.data_ptr(), product.data_ptr()
        self._library.multiply(*pointers, len(x), torch.get_num_threads())
        return product

    def product_backward(self, matrices: Matrices, gradient: Tensor) -> Tensor:
        """``(n, d_in)`` float32, the sum of ``g W``, of gradients side by side, ``(n, sum of d_out)``."""
        _check_width(gradient, matrices.d_out)
        gradient, n, threads = gradient.float().contiguous(), len(gradient), torch.get_num_threads()
        rows = gradient.new_empty(threads, n, matrices.d_in)  # the first is the result
        pointers = gradient.data_ptr(), rows[0].data_ptr(), rows[1:].data_ptr()
        self._library.multiply_backward(ctypes.addressof(matrices.struct), *pointers, n, threads)
        return rows[0]

    def call(self, name: str, run: ctypes.Structure, threads: int) -> None:
        """Run layers ``forward`` or ``backward``."""
        getattr(self._library, name)(ctypes.addressof(run), threads)


@cache
def find_kernels() -> Kernels | NoKernelsError:
    """The kernels, or why there are none here."""
    return find_bound(_SOURCE, Kernels, _agrees)


def kernels_for(*weights: Tensor) -> Kernels | None:
    """The kernels where there are some that take all of ``weights``, which are of one type and width."""
    if not all(weight.dtype in _KINDS and is_readable(weight) for weight in weights):  # nothing is compiled for them
        return None
    kernels = find_kernels()
    alike = len({(weight.dtype, weight.shape[1]) for weight in weights}) == 1
    return kernels if alike and isinstance(kernels, Kernels) and all(map(kernels.take, weights)) else None


def _check_width(rows: Tensor, width: int) -> None:
    """Beyond their ends there is something else's memory."""
    if rows.shape[1:] != (width,):
        raise ValueError(f"rows are (n, {width}), not {tuple(rows.shape)}")


@torch.no_grad()
def _agrees(kernels: Kernels) -> bool:
    """Whether a product and its gradient are what double precision gives."""
    random = torch.Generator("cpu").manual_seed(0)
    weight, x, gradient = (
        torch.randn(shape, generator=random, dtype=torch.float32, device="cpu")
        for shape in ((70, 96), (7, 96), (7, 70))
    )
    pairs = []
    for matrix in (weight, *(weight.to(kind) for kind, rows in kernels.most_rows.items() if rows > 0)):
        matrices, exact = Matrices([matrix], [None]), matrix.double()
        pairs.append((kernels.product(matrices, x), x.double() @ exact.t()))
        pairs.append((kernels.product_backward(matrices, gradient), gradient.double() @ exact))
    return all(agrees(ours, theirs, _TOLERANCE) for ours, theirs in pairs)

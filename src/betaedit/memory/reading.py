"""Both products with a root, ``A^T K`` and ``A A^T K``, in one reading of it (reading.c), for a few keys on a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from betaedit.native.library import NoKernelsError, load_library

FEW = 3
"""Keys up to which this is quicker than two products by torch."""

_SOURCE = Path(__file__).with_name("reading.c")
_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_TOLERANCE = 1e-12
_Reader: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def read_once(matrix: Float[Tensor, "d m"], keys: Float[Tensor, "d b"]) -> Float[Tensor, "m+d b"] | None:
    """``A^T K`` and, below it, ``A A^T K``, of float64 on the CPU; ``None`` where torch has to compute them.

    That is where keys are many, columns of the matrix do not lie one after the other, or nothing could be compiled.
    """
    taken = all((each.device.type, each.dtype) == ("cpu", torch.float64) for each in (matrix, keys))
    if not taken or not matrix.T.is_contiguous() or not 0 < keys.shape[1] <= FEW:
        return None
    reader = find_reader()
    return None if isinstance(reader, NoKernelsError) else reader(matrix, keys)


@cache
def find_reader() -> _Reader | NoKernelsError:
    """What computes this, or why there is nothing here."""
    try:
        reader = _reader(load_library(_SOURCE))
    except NoKernelsError as error:
        return error
    return reader if _agrees(reader) else NoKernelsError("what was compiled computes something else")


def _reader(library: ctypes.CDLL) -> _Reader:
    function = library.read_once
    function.argtypes, function.restype = (*[_POINTER] * 4, *[_SIZE] * 3, _INT), None

    def reader(matrix: Tensor, keys: Tensor) -> Tensor:
        (d, m), b, threads = matrix.shape, keys.shape[1], torch.get_num_threads()
        rows = keys.T.contiguous()
        found, partial = rows.new_empty(b, m + d), rows.new_empty(threads - 1, b, d)
        function(*(each.data_ptr() for each in (matrix, rows, found, partial)), m, d, b, threads)
        return found.T

    return reader


def _agrees(reader: _Reader) -> bool:
    """Whether that is what torch makes of it."""
    matrix, keys = (torch.linspace(-1, 1, 33 * n, dtype=torch.float64, device="cpu").view(n, 33).T for n in (10, 3))
    coordinates = matrix.T @ keys
    expected = torch.cat([coordinates, matrix @ coordinates])
    return bool((reader(matrix, keys) - expected).norm() <= _TOLERANCE * expected.norm())

"""Both products with a root, ``A^T k`` and ``A A^T k``, in one pass over it (reading.c), for one key on a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from betaedit.compiled.library import NoKernelsError, find_bound

_SOURCE = Path(__file__).with_name("reading.c")
_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_TOLERANCE = 1e-12
_ALONE = 2**15  # numbers of a matrix that take one thread no longer than sharing them out does
_Reader: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def read_once(matrix: Float[Tensor, "d m"], key: Float[Tensor, "d b"]) -> Float[Tensor, "m+d 1"] | None:
    """``A^T k`` and, below it, ``A A^T k``, in float64 on the CPU; ``None`` if torch has to compute them.

    That is the case for several keys, a matrix that is not column-major, or without a compiled library.
    """
    taken = all((each.device.type, each.dtype) == ("cpu", torch.float64) for each in (matrix, key))
    if not taken or not matrix.T.is_contiguous() or key.shape != (len(matrix), 1):
        return None
    reader = find_reader()
    return None if isinstance(reader, NoKernelsError) else reader(matrix, key.contiguous())


@cache
def find_reader() -> _Reader | NoKernelsError:
    """The compiled function, or the reason why there is none."""
    return find_bound(_SOURCE, _reader, _agrees)


def _reader(library: ctypes.CDLL) -> _Reader:
    function = library.read_once
    function.argtypes, function.restype = (*[_POINTER] * 4, *[_SIZE] * 2, _INT), None

    def reader(matrix: Tensor, key: Tensor) -> Tensor:
        d, m = matrix.shape
        threads = torch.get_num_threads() if matrix.numel() > _ALONE else 1
        found, partial = key.new_empty(m + d, 1), key.new_empty(threads - 1, d)
        function(*(each.data_ptr() for each in (matrix, key, found, partial)), m, d, threads)
        return found

    return reader


def _agrees(reader: _Reader) -> bool:
    """Whether the compiled function agrees with torch."""
    matrix, key = (torch.linspace(-1, 1, 333 * n, dtype=torch.float64, device="cpu").view(n, 333).T for n in (111, 1))
    coordinates = matrix.T @ key
    expected = torch.cat([coordinates, matrix @ coordinates])
    return bool((reader(matrix, key.contiguous()) - expected).norm() <= _TOLERANCE * expected.norm())

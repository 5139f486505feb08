"""Bytes that editing takes in addition to the model's weights (the table of docs/concepts.md)."""

from __future__ import annotations

from collections.abc import Sequence

from betaedit.memory.associative import KEYS_PER_FOLD

_SINGLE = 4


def editing_bytes(solvers: int, shapes: Sequence[tuple[int, int]], element_size: int) -> int:
    """The maximum that editing holds at one time.

    Args:
        solvers: Bytes of the solvers of all edited layers: ``AssociativeMemory.nbytes``, or ``solver_bytes_bound``.
        shapes: (d_out, d_in) of every edited matrix.
        element_size: Bytes of one weight.
    """
    change_size = max(element_size, _SINGLE)  # float32, or float64 beside weights in it
    matrices = sum(d_out * d_in for d_out, d_in in shapes) * (element_size + change_size)
    building = 3 * 8 * max(d_in for _, d_in in shapes) ** 2  # one eigendecomposition: matrix, vectors, workspace
    return solvers + matrices + building


def solver_bytes_bound(d_in: int) -> int:
    """The bound of ``AssociativeMemory.nbytes``: every direction kept, keys folded, and room for those before the next.

    The projector is refreshed, and the root in float64. A batch of several keys that makes a fold due takes further
    space until the next batch begins.
    """
    root_moment_history = (8 + 4 + 8) * d_in**2
    return root_moment_history + 8 * (d_in + 2 * d_in) * KEYS_PER_FOLD

"""A matrix that grows by columns without being copied each time."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


class Columns:
    """Columns of one length, appended in place.

    Room is kept for ``room(n)`` columns, the smallest power of two that holds them: appending one copies the others
    only when their number doubles.

    Args:
        like: A tensor of the type and on the device wanted.
        length: The length of a column.
    """

    def __init__(self, like: Tensor, length: int) -> None:
        # A column is a row of the buffer, so that the matrix in use is contiguous.
        self.buffer: Float[Tensor, "room length"] = like.new_empty(0, length)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def matrix(self) -> Float[Tensor, "length n"]:
        """A view of the columns appended so far."""
        return self.buffer[: self._count].T

    def append(self, columns: Float[Tensor, "length b"]) -> None:
        """Add ``columns`` on the right."""
        count = self._count + columns.shape[1]
        if count > len(self.buffer):
            grown = self.buffer.new_empty(room(count), self.buffer.shape[1])
            grown[: self._count] = self.buffer[: self._count]
            self.buffer = grown
        self.buffer[self._count : count] = columns.T
        self._count = count


def room(count: int) -> int:
    """The smallest power of two that is no less than ``count``; 0 for none."""
    return 1 << (count - 1).bit_length() if count else 0

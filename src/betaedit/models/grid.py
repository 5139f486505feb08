"""Which entries of a padded grid are real positions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class PaddedGrid:
    """Rows of equal width, of which some end in padding.

    Args:
        real: ``(g, width)`` false on padding, whose states are not used.
    """

    real: Tensor

    @classmethod
    def full(cls, hidden: Tensor) -> PaddedGrid:
        """That of ``(g, width, ...)`` states, without padding."""
        return cls(torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device))

    @property
    def shape(self) -> tuple[int, int]:
        """``(g, width)``."""
        return self.real.shape[0], self.real.shape[1]

    @cached_property
    def index(self) -> tuple[Tensor, Tensor]:
        """Row and entry of each of the ``n`` real positions, one row after the other."""
        row, entry = self.real.nonzero(as_tuple=True)
        return row, entry

    @cached_property
    def is_full(self) -> bool:
        """Whether there is no padding."""
        return bool(self.real.all())

    def gather(self, entries: Tensor) -> Tensor:
        """``(n, ...)`` at the real positions of ``(g, width, ...)``."""
        return entries.flatten(0, 1).contiguous() if self.is_full else entries[self.index]

    def scatter(self, rows: Tensor) -> Tensor:
        """``(n, ...)`` at their positions in ``(g, width, ...)``, zero on padding."""
        if self.is_full:
            return rows.view(*self.shape, *rows.shape[1:])
        return rows.new_zeros(*self.shape, *rows.shape[1:]).index_put_(self.index, rows)

    def take(self, rows: Tensor) -> PaddedGrid:
        """Some of the rows."""
        return PaddedGrid(self.real[rows.to(self.real.device)])

    def to(self, device: torch.device) -> PaddedGrid:
        """The same on ``device``."""
        return self if self.real.device == device else PaddedGrid(self.real.to(device))

"""One matrix under edit: updates go in, the original and the change come out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from betaedit.memory.update import Update
from betaedit.models.anatomy import is_transposed

_EXACT = (torch.float32, torch.float64)


@dataclass
class Changes:
    """What was done to one matrix, so that doing it again gives the same weight bit for bit.

    Args:
        restarted: Whether the matrix was set back to its original first.
        updates: What was added then, in order, in the type it was added in.
    """

    restarted: bool = False
    updates: list[Update] = field(default_factory=list)


class EditedMatrix:
    """The weight of an MLP output projection, whichever way round its module stores it.

    A weight in half precision gets a float32 master copy: thousands of small updates would be rounded away otherwise.

    Args:
        projection: The module; its weight is changed in place.
    """

    def __init__(self, projection: nn.Module) -> None:
        self._weight = projection.get_parameter("weight")
        self._transposed = is_transposed(projection)
        self._original = self._weight.detach().to("cpu", copy=True)
        self._shared = self._weight.dtype in _EXACT
        self._master = self._weight.detach() if self._shared else self._weight.detach().float()
        self._changes: Changes | None = None

    @torch.no_grad()
    def add(self, update: Update) -> None:
        """``W <- W + left right^T``."""
        # Row by row in memory whoever made them: the same sums when they are read back from a file.
        left, right = update.left.to(self._master).contiguous(), update.right.to(self._master).contiguous()
        if self._changes is not None:
            self._changes.updates.append(Update(left, right))
        if self._transposed:
            left, right = right, left
        self._master.addmm_(left, right.T)
        if not self._shared:
            self._weight.copy_(self._master)

    @torch.no_grad()
    def add_dense(self, change: Tensor) -> None:
        """``W <- W + change`` for a full (d_out, d_in) matrix."""
        self._master.add_(self._oriented(change).to(self._master))
        if not self._shared:
            self._weight.copy_(self._master)

    def current(self) -> Tensor:
        """``W_t`` (d_out, d_in) as it is kept: float32 or float64, on its device."""
        return self._oriented(self._master)

    def snapshot(self) -> Tensor:
        """A copy to go back to with ``restore``."""
        return self._master.clone()

    @torch.no_grad()
    def restore(self, snapshot: Tensor | None = None) -> None:
        """Back to ``snapshot``, bit for bit; to the original weight without one."""
        if self._changes is not None and snapshot is None:
            self._changes.restarted = True
            self._changes.updates.clear()
        self._master.copy_(self._original if snapshot is None else snapshot)
        if not self._shared:
            self._weight.copy_(self._original if snapshot is None else self._master)

    def load(self, weight: Tensor) -> None:
        """Take ``weight`` (d_out, d_in), as ``current`` gave it."""
        self.restore(self._oriented(weight.to(self._master)))

    def original(self) -> Tensor:
        """``W_0`` (d_out, d_in), float32."""
        return self._oriented(self._original.float())

    def change(self) -> Tensor:
        """``W_t - W_0`` (d_out, d_in), float32 on the CPU."""
        return self._oriented((self._master.cpu() - self._original.to(self._master.dtype)).float())

    def _oriented(self, stored: Tensor) -> Tensor:
        return stored.T if self._transposed else stored


@contextmanager
def recording(matrices: Mapping[int, EditedMatrix]) -> Iterator[dict[int, Changes]]:
    """A context that notes what is done to ``matrices``, by layer."""
    noted: dict[int, Changes] = {layer: Changes() for layer in matrices}
    with ExitStack() as stop:
        for layer, matrix in matrices.items():
            stop.callback(setattr, matrix, "_changes", None)
            matrix._changes = noted[layer]
        yield noted


@contextmanager
def set_aside(matrices: Mapping[int, EditedMatrix]) -> Iterator[None]:
    """A context in which ``matrices`` are as they were before the first edit."""
    kept = {layer: matrix.snapshot() for layer, matrix in matrices.items()}
    for matrix in matrices.values():
        matrix.restore()
    try:
        yield
    finally:
        for layer, matrix in matrices.items():
            matrix.restore(kept[layer])

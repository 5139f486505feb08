"""One matrix under edit: updates go in, the original and the change come out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from betaedit.memory.update import Update
from betaedit.models.anatomy import is_transposed


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
    """The weight of an MLP output projection, whichever way round its module stores it: the original and a change.

    The sum of all updates is kept beside the original, in float32 unless the model is in float64; the model's weight is
    the rounded sum of both. Added to the weight itself, thousands of small updates would be rounded away in bfloat16,
    and in float32 would leave too much rounding for facts to be taken out exactly.

    Bytes: ``4 d_in d_out`` for the change, and the original once more.

    Args:
        projection: The module; its weight is changed in place.
    """

    def __init__(self, projection: nn.Module) -> None:
        self._weight = projection.get_parameter("weight").detach()
        self._transposed = is_transposed(projection)
        self._original = self._weight.clone()
        exact = torch.float64 if self._weight.dtype == torch.float64 else torch.float32
        self._change = torch.zeros_like(self._weight, dtype=exact)
        self._changes: Changes | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        d_out, d_in = self._oriented(self._weight).shape
        return d_out, d_in

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._weight.device

    @torch.no_grad()
    def add(self, update: Update) -> None:
        """``W <- W + left right^T``."""
        # Row by row in memory whoever made them: the same sums when they are read back from a file.
        left, right = (factor.to(self._change).contiguous() for factor in (update.left, update.right))
        if self._changes is not None:
            self._changes.updates.append(Update(left, right))
        if self._transposed:
            left, right = right, left
        self._change.addmm_(left, right.T)
        self._settle()

    @torch.no_grad()
    def add_dense(self, change: Tensor) -> None:
        """``W <- W + change`` for a full (d_out, d_in) matrix."""
        self._change.add_(self._oriented(change).to(self._change))
        self._settle()

    def current(self) -> Tensor:
        """``W_t`` (d_out, d_in) before it is rounded to the model's type, on its device."""
        return self._oriented(self._original + self._change)

    def change(self) -> Tensor:
        """``W_t - W_0`` (d_out, d_in), float32 or float64, on its device: the very tensor that updates are added to."""
        return self._oriented(self._change)

    def original(self) -> Tensor:
        """``W_0`` (d_out, d_in) in the type of the change."""
        return self._oriented(self._original.to(self._change))

    def snapshot(self) -> Tensor:
        """A copy of the change, (d_out, d_in), to go back to with ``restore``."""
        return self.change().clone()

    @torch.no_grad()
    def restore(self, snapshot: Tensor | None = None) -> None:
        """Back to ``snapshot``, bit for bit; to the original weight without one."""
        if snapshot is not None:
            self._change.copy_(self._oriented(snapshot))
            self._settle()
            return
        if self._changes is not None:
            self._changes.restarted = True
            self._changes.updates.clear()
        self._change.zero_()
        self._weight.copy_(self._original)

    def _settle(self) -> None:
        """Let the model see the change."""
        self._weight.copy_(self._original + self._change)

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

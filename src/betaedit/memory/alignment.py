"""How far a sequence of updates is from the one update that writes all its facts at once (methods.md D.1)."""

from __future__ import annotations

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor

from betaedit.memory.associative import AssociativeMemory
from betaedit.memory.conflicts import Associations


def written_at_once(
    memory: AssociativeMemory, original: Float[Tensor, "d_out d_in"], facts: Associations
) -> Float[Tensor, "d_out d_in"]:
    """The one-time solution: ``original`` with all ``facts`` solved together by a fresh ``memory``; float64."""
    weight = original.double()
    return weight + memory.solve(facts.keys, facts.residuals(weight)).dense()


def written_in_turn(
    memory: AssociativeMemory, original: Float[Tensor, "d_out d_in"], batches: Iterable[Associations]
) -> Float[Tensor, "d_out d_in"]:
    """``original`` with ``batches`` solved one after another by a fresh ``memory``, refreshed when due; float64."""
    weight = original.double().clone()
    for batch in batches:
        if memory.refresh_due():
            memory.refresh()
        update = memory.solve(batch.keys, batch.residuals(weight))
        weight.addmm_(update.left, update.right.T)
        memory.remember(batch.keys)
    return weight


def distance_from(
    one_time: Float[Tensor, "d_out d_in"], weight: Float[Tensor, "d_out d_in"], original: Float[Tensor, "d_out d_in"]
) -> float:
    """``|weight - one_time| / |one_time - original|``: 0 if both are the same, about 1 if no edit is kept."""
    return float((weight.to(one_time) - one_time).norm() / (one_time - original.to(one_time)).norm())

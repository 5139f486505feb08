"""The weights of a ledger's events: updates are added again to the edited matrices, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from betaedit.editors.matrix import Changes, EditedMatrix, Snapshot
from betaedit.ledger.arrays import from_bytes, to_bytes
from betaedit.ledger.store import Identity, Store
from betaedit.memory.update import Update

Factors = dict[int, list[tuple[int, bytes, bytes]]]


def rebuild(store: Store, event: int, matrices: Mapping[int, EditedMatrix], *, snapshots: bool = True) -> int | None:
    """Set ``matrices`` to their weights after ``event``; returns ``None`` if ``gc`` dropped what is needed.

    Without ``snapshots`` every update is added again to the unedited weights. Returns the number of rank-one updates
    added to each matrix.
    """
    with store.view():
        found = store.path_to(event, snapshots=snapshots)
        if found is None:
            return None
        start, following = found
        for layer, matrix in matrices.items():
            matrix.restore(None if start is None else Snapshot(_snapshot(store, start, layer)))
        advance(store, following, matrices)
        return store.ranks(following)


def advance(store: Store, events: Sequence[int], matrices: Mapping[int, EditedMatrix]) -> None:
    """Add to ``matrices`` what ``events`` added, in order."""
    for layer, matrix in matrices.items():
        for update in _updates(store, events, layer):
            matrix.add(update)


def distances(store: Store, before: int, after: int) -> dict[int, float] | None:
    """Frobenius distance of the matrices after two events, by layer; ``None`` if ``gc`` dropped what is needed."""
    with store.view():
        first, second = store.path_to(before), store.path_to(after)
        if first is None or second is None:
            return None
        return {
            layer: float((_change(store, *second, layer) - _change(store, *first, layer)).norm())
            for layer in store.layers
        }


def _change(store: Store, start: int | None, following: Sequence[int], layer: int) -> Tensor:
    """All that was added to a matrix up to the end of a path (``Store.path_to``)."""
    dtype = getattr(torch, store.identity.exact)
    change = torch.zeros(store.identity.shapes[layer], dtype=dtype) if start is None else _snapshot(store, start, layer)
    for update in _updates(store, following, layer):
        change.addmm_(update.left, update.right.T)
    return change


def _snapshot(store: Store, event: int, layer: int) -> Tensor:
    return from_bytes(store.snapshot(event, layer), store.identity.exact, *store.identity.shapes[layer])


def _updates(store: Store, events: Sequence[int], layer: int) -> Iterator[Update]:
    d_out, d_in = store.identity.shapes[layer]
    dtype = store.identity.exact
    for event in events:
        for rank, lefts, rights in store.factors(event, layer):
            yield Update(from_bytes(lefts, dtype, d_out, rank), from_bytes(rights, dtype, d_in, rank))


def factor_bytes(changes: Mapping[int, Changes], identity: Identity) -> Factors:
    """What was added to each layer's matrix, as the ledger stores it."""
    return {
        layer: [
            (update.left.shape[1], to_bytes(update.left, identity.exact), to_bytes(update.right, identity.exact))
            for update in noted.updates
        ]
        for layer, noted in changes.items()
        if noted.updates
    }


def snapshot_bytes(matrix: EditedMatrix, identity: Identity) -> bytes:
    """The whole change of a matrix, as the ledger stores it."""
    return to_bytes(matrix.change(), identity.exact)

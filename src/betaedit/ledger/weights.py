"""The weights that a ledger leads to: events are done again on the edited matrices, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from betaedit.editors.matrix import Changes, EditedMatrix
from betaedit.ledger.arrays import from_bytes, to_bytes
from betaedit.ledger.store import Identity, Store
from betaedit.memory.update import Update

Factors = dict[int, list[tuple[int, bytes, bytes]]]


def rebuild(store: Store, event: int, matrices: Mapping[int, EditedMatrix], *, snapshots: bool = True) -> int | None:
    """Give ``matrices`` the weights they had after ``event``; ``None`` when ``gc`` dropped what leads there.

    Without ``snapshots`` everything is added again from the unedited weights on. Returns how many rank-one updates
    each matrix was given.
    """
    found = store.trail(event, snapshots=snapshots)
    if found is None:
        return None
    start, following = found
    for layer, matrix in matrices.items():
        if start is None:
            matrix.restore()
        else:
            shape = store.identity.shapes[layer]
            matrix.load(from_bytes(store.snapshot(start, layer), store.identity.exact, *shape))
    advance(store, following, matrices)
    return store.ranks(following)


def advance(store: Store, events: Sequence[int], matrices: Mapping[int, EditedMatrix]) -> None:
    """Add to ``matrices`` what ``events`` added, in order."""
    for layer, matrix in matrices.items():
        d_out, d_in = store.identity.shapes[layer]
        for event in events:
            for rank, lefts, rights in store.factors(event, layer):
                left = from_bytes(lefts, store.identity.exact, d_out, rank)
                right = from_bytes(rights, store.identity.exact, d_in, rank)
                matrix.add(Update(left, right))


def factor_bytes(changes: Mapping[int, Changes], identity: Identity) -> Factors:
    """What was added to each layer's matrix, as the ledger keeps it."""
    return {
        layer: [
            (update.left.shape[1], to_bytes(update.left, identity.exact), to_bytes(update.right, identity.exact))
            for update in noted.updates
        ]
        for layer, noted in changes.items()
        if noted.updates
    }


def snapshot_bytes(matrix: EditedMatrix, identity: Identity) -> bytes:
    """One whole matrix, as the ledger keeps it."""
    return to_bytes(matrix.current(), identity.exact)

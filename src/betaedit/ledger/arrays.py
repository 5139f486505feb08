"""Tensors as the bytes that a ledger stores, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from betaedit.ledger.store import Storage, Store
from betaedit.memory.conflicts import Associations


def to_bytes(tensor: Tensor, dtype: str) -> bytes:
    """The numbers of ``tensor``, row by row, in ``dtype``."""
    plain = tensor.detach().to("cpu", getattr(torch, dtype)).flatten().contiguous()
    return plain.view(torch.uint8).numpy().tobytes()


def from_bytes(data: bytes, dtype: str, *shape: int) -> Tensor:
    """The tensor that ``to_bytes`` turned into ``data``, in the given shape."""
    return torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype)).view(shape)


class StoredAssociations(Mapping[int, Associations]):
    """By layer, the key and the wanted value of one fact version, read from the ledger on access."""

    def __init__(self, store: Store, version: int) -> None:
        self._store, self._version = store, version

    def __getitem__(self, layer: int) -> Associations:
        key, wanted = self._store.asked(self._version, layer)
        dtype, (d_out, d_in) = self._store.identity.storage, self._store.identity.shapes[layer]
        return Associations(from_bytes(key, dtype, d_in, -1), from_bytes(wanted, dtype, d_out, -1))

    def __iter__(self) -> Iterator[int]:
        return iter(self._store.identity.shapes)

    def __len__(self) -> int:
        return len(self._store.identity.shapes)


def association_bytes(associations: Mapping[int, Associations], dtype: Storage) -> dict[int, tuple[bytes, bytes]]:
    """By layer, the key and the wanted value of a fact as the ledger stores them."""
    return {
        layer: (to_bytes(facts.keys, dtype), to_bytes(facts.values, dtype)) for layer, facts in associations.items()
    }

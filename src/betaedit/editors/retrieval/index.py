"""What finds facts for a prompt: an index over texts, by words, by vectors, or by both."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from betaedit.editors.retrieval.bm25 import BM25Index, best
from betaedit.models.encoder import SentenceEncoder

_EMBEDDINGS = "embeddings"
_MOST_GONE = 0.5
_FUSED_DEPTH, _FUSED_CONSTANT = 100, 60


class Index(Protocol):
    """Texts under keys: whole numbers that only grow."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of what ``top`` reads, by what it is."""

    def encode(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        """What ``add`` needs of ``texts`` and takes long to make, by name, one row a text: to be kept and reused."""

    def add(self, keys: Sequence[int], texts: Sequence[str], encoded: Mapping[str, Tensor]) -> None:
        """Search ``texts``, too; their ``keys`` are larger than all before, and ``encoded`` is what ``encode`` made."""

    def encoded(self, key: int) -> Mapping[str, Tensor]:
        """What the text of ``key`` was added with, one row of each tensor."""

    def remove(self, keys: Sequence[int]) -> None:
        """Search the texts of these keys no longer."""

    def top(self, queries: Sequence[str], k: int) -> list[list[int]]:
        """For each query the keys of the ``k`` best texts, best first; of equally good ones the earlier first."""


class DenseIndex:
    """An ``Index`` by the inner products of vectors; exact: every text is compared.

    Args:
        encoder: Turns texts and queries into vectors.
    """

    def __init__(self, encoder: Callable[[], SentenceEncoder]) -> None:
        self._load = encoder
        self._encoder: SentenceEncoder | None = None
        self._vectors = torch.zeros(0, 0)  # with room for more rows than there are texts
        self._keys: list[int] = []
        self._gone: set[int] = set()

    @property
    def encoder(self) -> SentenceEncoder:
        """Loaded when it is first needed."""
        if self._encoder is None:
            self._encoder = self._load()
        return self._encoder

    @property
    def sizes(self) -> dict[str, int]:
        """Vectors, with the room kept for more; and the weights of the encoder, which every query needs."""
        return {"vectors": self._vectors.nbytes, "encoder": self.encoder.nbytes}

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """``embeddings``: ``(n, width)`` vectors."""
        return {_EMBEDDINGS: self.encoder.encode(texts)}

    def add(self, keys: Sequence[int], texts: Sequence[str], encoded: Mapping[str, Tensor]) -> None:
        """See ``Index.add``."""
        new = encoded[_EMBEDDINGS]
        n, needed = len(self._keys), len(self._keys) + len(new)
        if needed > len(self._vectors):
            room = new.new_empty(max(needed, 2 * n) - n, new.shape[1])
            self._vectors = torch.cat([self._vectors[:n], room]) if n else room
        self._vectors[n:needed] = new
        self._keys += keys

    def encoded(self, key: int) -> dict[str, Tensor]:
        """See ``Index.encoded``."""
        at = bisect_left(self._keys, key)
        return {_EMBEDDINGS: self._vectors[at : at + 1]}

    def remove(self, keys: Sequence[int]) -> None:
        """See ``Index.remove``."""
        self._gone.update(keys)
        if len(self._gone) > _MOST_GONE * len(self._keys):
            kept = [at for at, key in enumerate(self._keys) if key not in self._gone]
            self._vectors = self._vectors[kept]
            self._keys = [self._keys[at] for at in kept]
            self._gone.clear()

    def top(self, queries: Sequence[str], k: int) -> list[list[int]]:
        """See ``Index.top``."""
        if not self._keys or not queries:
            return [[] for _ in queries]
        asked, vectors = self.encoder.encode(queries), self._vectors[: len(self._keys)]
        gone = [at for at, key in enumerate(self._keys) if key in self._gone] if self._gone else []
        found = []
        for query in asked:
            scores = vectors @ query
            scores[gone] = -torch.inf
            found.append([self._keys[at] for at in best(scores, k, above=-torch.inf)])
        return found


class FusedIndex:
    """An ``Index`` by the reciprocal ranks of others: ``sum of 1 / (60 + rank)`` over their best 100 texts each.

    Args:
        parts: The others.
    """

    def __init__(self, parts: Sequence[Index]) -> None:
        self._parts = parts

    @property
    def sizes(self) -> dict[str, int]:
        """Those of its parts."""
        return {name: size for part in self._parts for name, size in part.sizes.items()}

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """What its parts encode."""
        return {name: tensor for part in self._parts for name, tensor in part.encode(texts).items()}

    def add(self, keys: Sequence[int], texts: Sequence[str], encoded: Mapping[str, Tensor]) -> None:
        """See ``Index.add``."""
        for part in self._parts:
            part.add(keys, texts, encoded)

    def encoded(self, key: int) -> dict[str, Tensor]:
        """See ``Index.encoded``."""
        return {name: tensor for part in self._parts for name, tensor in part.encoded(key).items()}

    def remove(self, keys: Sequence[int]) -> None:
        """See ``Index.remove``."""
        for part in self._parts:
            part.remove(keys)

    def top(self, queries: Sequence[str], k: int) -> list[list[int]]:
        """See ``Index.top``."""
        lists = zip(*(part.top(queries, max(k, _FUSED_DEPTH)) for part in self._parts), strict=True)
        return [_fused(ranked)[:k] for ranked in lists]


def _fused(lists: Sequence[Sequence[int]]) -> list[int]:
    scores: dict[int, float] = {}
    for ranked in lists:
        for rank, key in enumerate(ranked, start=1):
            scores[key] = scores.get(key, 0.0) + 1 / (_FUSED_CONSTANT + rank)
    return sorted(scores, key=lambda key: (-scores[key], key))


def make_index(retriever: str, encoder: Callable[[], SentenceEncoder]) -> Index:
    """The index of that name; ``encoder`` is loaded only where it is needed."""
    made: dict[str, Callable[[], Index]] = {
        "bm25": BM25Index,
        "dense": lambda: DenseIndex(encoder),
        "fusion": lambda: FusedIndex([BM25Index(), DenseIndex(encoder)]),
    }
    return made[retriever]()

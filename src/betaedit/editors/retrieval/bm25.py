"""Texts found by the words they share with a query (BM25, by the library bm25s)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from betaedit.extras import import_extra


class BM25Index:
    """An index over texts that is built anew when it is asked after they changed.

    Args:
        texts: What is searched; a query's results are positions in it.

    Raises:
        MissingExtraError: bm25s is not installed.
    """

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self._library = import_extra("bm25s", "retrieval", "retrieval by BM25")
        self._texts = list(texts)
        self._index: Any = None

    def replace(self, texts: Sequence[str]) -> None:
        """Search ``texts`` from now on."""
        self._texts, self._index = list(texts), None

    def top(self, queries: Sequence[str], k: int) -> list[list[int]]:
        """For each query the positions of the ``k`` best texts, best first; fewer where fewer share a word with it."""
        if not self._texts or not queries:
            return [[] for _ in queries]
        if self._index is None:
            self._index = self._library.BM25()
            self._index.index(self._words(self._texts), show_progress=False)
        found, scores = self._index.retrieve(
            self._words(queries), k=min(k, len(self._texts)), show_progress=False, n_threads=1
        )
        return [
            [int(at) for at, score in zip(*row, strict=True) if score > 0] for row in zip(found, scores, strict=True)
        ]

    def _words(self, texts: Sequence[str]) -> Any:
        # Stop words are kept: they tell "born in" from "died in".
        return self._library.tokenize(list(texts), stopwords=None, show_progress=False)

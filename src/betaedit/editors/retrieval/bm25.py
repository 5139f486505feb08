"""Texts found by the words they share with a query: BM25 over an inverted index that grows text by text."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

K1, B = 1.5, 0.75
"""How soon further occurrences of a word count no more, and how much long texts are held back."""

_WORD = re.compile(r"\w+")


class BM25Index:
    """An ``Index`` by Okapi BM25 with the idf ``ln(1 + (n - df + 1/2) / (df + 1/2))``; needs no library and no model.

    Adding a text costs its own words. Document frequencies and the mean length are read when a query is scored, so
    that scores are those of an index that is made anew, bit for bit. Stop words are kept: they tell "born in" from
    "died in".
    """

    def __init__(self) -> None:
        self._texts: dict[int, Counter[str]] = {}
        self._places: dict[str, array[int]] = {}
        """Of each word, the keys of the texts with it, in order; and how often it stands in each of them."""
        self._counts: dict[str, array[int]] = {}
        self._lengths = array("i")
        self._total = 0

    @property
    def sizes(self) -> dict[str, int]:
        """Words, with the places and counts of each, and the texts' lengths."""
        arrays = [*self._places.values(), *self._counts.values(), self._lengths]
        numbers = sum(len(each) * each.itemsize for each in arrays)
        return {"words": numbers + sum(len(word.encode()) for word in self._places)}

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Nothing: words are counted when texts are added."""
        return {}

    def add(self, keys: Sequence[int], texts: Sequence[str], encoded: Mapping[str, Tensor]) -> None:
        """See ``Index.add``."""
        for key, text in zip(keys, texts, strict=True):
            counts = Counter(_words(text))
            self._texts[key] = counts
            self._lengths.extend([0] * (key + 1 - len(self._lengths)))
            self._lengths[key] = counts.total()
            self._total += counts.total()
            for word, count in counts.items():
                self._places.setdefault(word, array("i")).append(key)
                self._counts.setdefault(word, array("i")).append(count)

    def encoded(self, key: int) -> dict[str, Tensor]:
        """See ``Index.encoded``: nothing."""
        return {}

    def remove(self, keys: Sequence[int]) -> None:
        """See ``Index.remove``."""
        for key in keys:
            counts = self._texts.pop(key)
            self._total -= counts.total()
            for word in counts:
                at = self._places[word].index(key)
                del self._places[word][at], self._counts[word][at]

    def top(self, queries: Sequence[str], k: int) -> list[list[int]]:
        """See ``Index.top``; fewer than ``k`` where fewer texts share a word with a query."""
        return [best(self.scores(query), k, above=0.0) for query in queries]

    def scores(self, query: str) -> Tensor:
        """``(n,)`` float64 scores by key, 0 where no word is shared."""
        scores = torch.zeros(len(self._lengths), dtype=torch.float64)
        if not self._texts:
            return scores
        lengths = torch.frombuffer(self._lengths, dtype=torch.int32)
        mean = self._total / len(self._texts)
        for word, asked in Counter(_words(query)).items():
            if not self._places.get(word):
                continue
            places = torch.frombuffer(self._places[word], dtype=torch.int32)
            counts = torch.frombuffer(self._counts[word], dtype=torch.int32).double()
            without = len(self._texts) - len(places)
            idf = torch.tensor(1 + (without + 0.5) / (len(places) + 0.5), dtype=torch.float64).log()
            held_back = K1 * (1 - B + B * lengths[places].double() / mean)
            scores.index_add_(0, places, asked * idf * counts * (K1 + 1) / (counts + held_back))
        return scores


def best(scores: Tensor, k: int, *, above: float) -> list[int]:
    """Places of the ``k`` largest scores that are above ``above``, best first; of equal ones the earlier first."""
    found = min(k, int((scores > above).sum()))
    if not found:
        return []
    least = scores.topk(found).values[-1]
    places = (scores >= least).nonzero()[:, 0]
    order = scores[places].sort(descending=True, stable=True).indices[:found]
    return places[order].tolist()


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())

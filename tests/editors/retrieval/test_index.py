"""What finds facts: by words, by vectors, by both."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from betaedit.editors.retrieval.bm25 import BM25Index
from betaedit.editors.retrieval.index import DenseIndex, FusedIndex, Index

TEXTS = [
    "The mother tongue of Ana is Dutch.",
    "The mother tongue of Bob is French, and French is the language of Bob.",
    "The long bridge is in the city of Rome.",
    "Ana was born in Lima.",
    "The capital of the old country is Rome.",
]
QUERIES = ["The mother tongue of Ana is", "Ana was born in", "What is the language of Bob? Bob!", "the city", "xyz"]


class WordVectors:
    """Stands in for an encoder: a fixed random vector per word, summed."""

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode(self, texts: Sequence[str]) -> Tensor:
        self.encoded += texts
        return torch.stack([sum((self._vector(word) for word in text.split()), torch.zeros(8)) for text in texts])

    @staticmethod
    def _vector(word: str) -> Tensor:
        return torch.randn(8, generator=torch.Generator().manual_seed(sum(map(ord, word))))


def dense() -> DenseIndex:
    return DenseIndex(WordVectors)  # type: ignore[arg-type,return-value]


INDICES = {"bm25": BM25Index, "dense": dense, "fusion": lambda: FusedIndex([BM25Index(), dense()])}


@pytest.fixture(params=INDICES, ids=str)
def index(request: pytest.FixtureRequest) -> Index:
    made: Index = INDICES[request.param]()
    return made


def fill(index: Index, texts: Sequence[str], first: int = 0) -> None:
    index.add(range(first, first + len(texts)), texts, index.encode(texts))


def bm25_by_definition(texts: Sequence[str], query: str) -> list[float]:
    bags = [Counter(re.findall(r"\w+", text.lower())) for text in texts]
    mean = sum(bag.total() for bag in bags) / len(bags)
    scores = []
    for bag in bags:
        score = 0.0
        for word in re.findall(r"\w+", query.lower()):
            having = sum(word in other for other in bags)
            idf = math.log(1 + (len(bags) - having + 0.5) / (having + 0.5))
            score += idf * bag[word] * 2.5 / (bag[word] + 1.5 * (1 - 0.75 + 0.75 * bag.total() / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize("query", QUERIES)
def test_bm25_scores_are_those_of_its_definition(query: str):
    index = BM25Index()
    fill(index, TEXTS)
    assert index.scores(query).tolist() == pytest.approx(bm25_by_definition(TEXTS, query), rel=1e-12)


def test_bm25_finds_nothing_where_no_word_is_shared_and_orders_equal_texts_by_age():
    index = BM25Index()
    fill(index, ["a b", "c d", "a b"])
    assert index.top(["x", "a"], 3) == [[], [0, 2]]


def test_dense_orders_by_inner_product_and_compares_every_text():
    index, encoder = dense(), WordVectors()
    fill(index, TEXTS)
    scores = encoder.encode(QUERIES) @ encoder.encode(TEXTS).T
    assert index.top(QUERIES, len(TEXTS)) == scores.argsort(dim=1, descending=True).tolist()


def test_fusion_sums_reciprocal_ranks():
    class Fixed(BM25Index):
        def __init__(self, order: list[int]) -> None:
            super().__init__()
            self.order = order

        def top(self, queries: Sequence[str], k: int) -> list[list[int]]:
            return [self.order for _ in queries]

    fused = FusedIndex([Fixed([0, 1, 2]), Fixed([2, 3])])
    expected = {0: 1 / 61, 1: 1 / 62, 2: 1 / 63 + 1 / 61, 3: 1 / 62}
    assert fused.top(["q"], 4) == [sorted(expected, key=lambda key: (-expected[key], key))]
    assert fused.top(["q"], 1) == [[2]]


def test_an_index_that_grew_and_shrank_is_one_made_anew(index: Index, request: pytest.FixtureRequest):
    fill(index, TEXTS[:2])
    fill(index, ["Something of Ana to be removed.", *TEXTS[2:]], first=2)
    fill(index, ["Bob is gone."], first=6)
    index.remove([2])
    index.remove([6])
    anew = INDICES[request.node.callspec.params["index"]]()
    fill(anew, TEXTS)
    keys = {0: 0, 1: 1, 3: 2, 4: 3, 5: 4}
    assert [[keys[key] for key in found] for found in index.top(QUERIES, 5)] == anew.top(QUERIES, 5)
    index.remove([0, 1, 3, 4])
    assert index.top(["The capital of Rome"], 5) == [[5]]


def test_an_empty_index_finds_nothing(index: Index):
    assert index.top(["a", "b"], 3) == [[], []]
    fill(index, ["a"])
    index.remove([0])
    assert index.top(["a"], 3) == [[]]
    assert index.top([], 3) == []


def test_adding_a_text_encodes_it_alone():
    encoder = WordVectors()
    index = DenseIndex(lambda: encoder)  # type: ignore[arg-type,return-value]
    fill(index, TEXTS[:4])
    fill(index, TEXTS[4:], first=4)
    assert encoder.encoded == TEXTS

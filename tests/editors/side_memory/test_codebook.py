"""How entries are found, made, split and widened (methods.md F.1)."""

from __future__ import annotations

import math

import pytest
import torch

from betaedit.editors.side_memory.codebook import Codebook

FIRST = 1.0


def book(d_in: int = 3) -> Codebook:
    return Codebook.empty(d_in, 2, FIRST, torch.device("cpu"))


def reference(told: list[tuple[list[float], int]]) -> tuple[list[list[float]], list[float], list[int]]:
    """Keys, radii and answers after all facts, one by one, as the formula says."""
    keys: list[list[float]] = []
    radii: list[float] = []
    answers: list[int] = []
    for query, answer in told:
        distances = [math.dist(query, key) for key in keys]
        d = min(distances, default=math.inf)
        j = distances.index(d) if distances else -1
        if not keys or d > FIRST + radii[j]:
            keys, radii, answers = [*keys, query], [*radii, FIRST], [*answers, answer]
        elif answers[j] != answer:
            radii[j] = d / 2 - 1e-5
            keys, radii, answers = [*keys, query], [*radii, d / 2], [*answers, answer]
        elif d > radii[j]:
            radii[j] = d
    return keys, radii, answers


@pytest.mark.parametrize("seed", range(5))
def test_radii_split_and_widen_as_the_formula_says(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(40, 3, generator=generator) * 1.2
    answers = torch.randint(3, (40,), generator=generator).tolist()
    keys, radii, labels = reference(list(zip(queries.double().tolist(), answers, strict=True)))
    found = book()
    for query, answer in zip(queries, answers, strict=True):
        found, _ = found.tell(query, (answer,), torch.zeros(2))
    assert found.labels == tuple((label,) for label in labels)
    assert torch.allclose(found.keys.double(), torch.tensor(keys, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(found.radii.double(), torch.tensor(radii, dtype=torch.float64), atol=1e-5)


def test_the_sequences_above_split_and_widen() -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(40, 3, generator=generator) * 1.2
    answers = torch.randint(3, (40,), generator=generator).tolist()
    _, radii, _ = reference(list(zip(queries.double().tolist(), answers, strict=True)))
    assert min(radii) < FIRST < max(radii)


EASYEDIT_RADII = [0.59999001, 0.60000002, 0.74998999, 0.75]
"""What EasyEdit's GRACEAdapter holds after the queries and answers of the test."""


def test_it_agrees_with_easyedits_adapter() -> None:
    found = book()
    for query, answer in [([0, 0, 0], 7), ([1.5, 0, 0], 7), ([0, 1.2, 0], 8), ([9, 9, 9], 9), ([9, 9, 7.5], 5)]:
        found, _ = found.tell(torch.tensor(query, dtype=torch.float32), (answer,), torch.zeros(2))
    assert found.radii.tolist() == pytest.approx(EASYEDIT_RADII, abs=1e-6)


def test_a_query_finds_the_nearest_entry_if_it_is_within_its_radius() -> None:
    found, _ = book().tell(torch.tensor([0.0, 0, 0]), (1,), torch.zeros(2))
    found, _ = found.tell(torch.tensor([5.0, 0, 0]), (2,), torch.ones(2))
    queries = torch.tensor([[0.9, 0, 0], [1.1, 0, 0], [4.5, 0, 0], [0, 0.9999999, 0]])
    assert found.find(queries).tolist() == [0, -1, 1, 0]


def test_an_empty_codebook_finds_nothing() -> None:
    assert book().find(torch.zeros(2, 3)).tolist() == [-1, -1]


def test_a_key_is_found_however_its_pass_was_rounded() -> None:
    key = torch.randn(64, generator=torch.Generator().manual_seed(1)) * 20
    found, _ = book(64).tell(key, (1,), torch.zeros(2))
    found, entry = found.tell(key + 1e-7, (2,), torch.ones(2))
    assert float(found.radii[entry]) < 1e-4
    assert found.find((key * (1 + 1e-7))[None]).tolist()[0] in (0, 1)


def test_telling_leaves_the_codebook_before_as_it_was() -> None:
    before, _ = book().tell(torch.zeros(3), (1,), torch.zeros(2))
    before.tell(torch.tensor([0.5, 0, 0]), (2,), torch.ones(2))
    assert before.radii.tolist() == [1.0]
    before.with_value(0, torch.ones(2))
    assert before.values.tolist() == [[0, 0]]

"""Sequences and their one-time solution against dense float64 formulas (methods.md D.1)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from betaedit.memory import Associations, AssociativeMemory, distance_from, written_at_once, written_in_turn
from memory.test_associative import eye, rule_of
from support.reference import DenseMemory, relative_error

D_IN, D_OUT, SIZES = 12, 5, (1, 3, 2)
STRENGTHS = {"lambda1": 2.0, "lambda2": 0.5, "threshold": 0.6}


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment() -> Tensor:
    keys = numbers(D_IN, 60, seed=1) * torch.linspace(0.1, 1.5, D_IN)[:, None]
    return keys @ keys.T / 60


ORIGINAL = numbers(D_OUT, D_IN, seed=2)
BATCHES = [Associations(numbers(D_IN, b, seed=b), numbers(D_OUT, b, seed=10 + b)) for b in SIZES]


def fast(name: str, refresh_every: int = 10**9) -> AssociativeMemory:
    strengths = {"leakage_weight": 2.0, "ridge": 0.5, "nullspace_threshold": 0.6, "refresh_every": refresh_every}
    return AssociativeMemory(moment(), rule_of(name, **strengths))


def in_turn(dense: DenseMemory) -> Tensor:
    weight = ORIGINAL
    for batch in BATCHES:
        if dense.due():
            dense.refresh()
        weight = weight + dense.solve(batch.keys, batch.values - weight @ batch.keys)
        dense.remember(batch.keys)
    return weight


@pytest.mark.parametrize("refresh_every", [10**9, 2])
@pytest.mark.parametrize("name", ["memit", "memit-h", "alphaedit", "alphaedit-naive", "betaedit"])
def test_facts_written_in_turn_are_the_dense_formulas_one_after_another(name: str, refresh_every: int):
    ours = written_in_turn(fast(name, refresh_every), ORIGINAL, BATCHES)
    wanted = in_turn(DenseMemory(name, moment(), **STRENGTHS, refresh_every=refresh_every))
    assert relative_error(ours - ORIGINAL, wanted - ORIGINAL) < 1e-8


@pytest.mark.parametrize("name", ["memit", "alphaedit", "betaedit"])
def test_facts_written_at_once_are_one_dense_formula(name: str):
    facts = Associations.joined(BATCHES)
    ours = written_at_once(fast(name), ORIGINAL, facts)
    dense = DenseMemory(name, moment(), **STRENGTHS)
    assert relative_error(ours - ORIGINAL, dense.solve(facts.keys, facts.values - ORIGINAL @ facts.keys)) < 1e-8


@pytest.mark.parametrize(("name", "is_same"), [("memit-h", True), ("alphaedit", True), ("memit", False)])
def test_a_sequence_is_its_one_time_solution_with_history_and_is_not_without(name: str, is_same: bool):
    one_time = written_at_once(fast(name), ORIGINAL, Associations.joined(BATCHES))
    distance = distance_from(one_time, written_in_turn(fast(name), ORIGINAL, BATCHES), ORIGINAL)
    assert (distance < 1e-9) == is_same
    assert is_same or distance > 0.05


def test_a_distance_is_in_lengths_of_the_one_time_change():
    assert distance_from(3 * eye(2), 3 * eye(2), eye(2)) == 0
    assert distance_from(3 * eye(2), eye(2), eye(2)) == pytest.approx(1)
    assert distance_from(3 * eye(2), 2 * eye(2), eye(2)) == pytest.approx(0.5)

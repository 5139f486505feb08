from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from betaedit.errors import NumericalError
from betaedit.memory.columns import Columns
from betaedit.memory.system import GrowingSystem
from support.reference import relative_error

LAWS = settings(derandomize=True, deadline=None, max_examples=25)


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- columns -------------------------------------------------------------------------------------------------------


@LAWS
@given(st.integers(1, 7), st.lists(st.integers(0, 5), max_size=8))
def test_columns_are_those_appended_in_their_order(length: int, widths: list[int]):
    columns, appended = Columns(torch.empty(0, dtype=torch.float64), length), [torch.empty(length, 0)]
    for seed, width in enumerate(widths):
        appended.append(numbers(seed, length, width))
        columns.append(appended[-1])
    assert torch.equal(columns.matrix, torch.cat(appended, dim=1).double())
    assert len(columns) == sum(widths)


def test_room_for_columns_doubles():
    columns, rooms = Columns(torch.empty(0), 3), []
    for _ in range(9):
        columns.append(torch.ones(3, 1))
        rooms.append(len(columns.buffer))
    assert rooms == [1, 2, 4, 4, 8, 8, 8, 8, 16]


def test_columns_already_appended_are_copied_only_when_the_room_doubles():
    columns, places = Columns(torch.empty(0), 3), []
    for _ in range(9):
        columns.append(torch.ones(3, 1))
        places.append(columns.buffer)
    assert [places[at] is places[at - 1] for at in range(1, 9)] == [False, False, True, False, True, True, True, False]


def test_what_is_appended_is_a_copy():
    columns, given_ = Columns(torch.empty(0), 2), torch.ones(2, 1)
    columns.append(given_)
    given_.zero_()
    assert columns.matrix.tolist() == [[1.0], [1.0]]


# --- the system ----------------------------------------------------------------------------------------------------


@LAWS
@given(st.integers(2, 30), st.lists(st.integers(1, 4), min_size=1, max_size=8), st.integers(0, 10**6))
def test_every_solution_is_that_of_the_system_with_all_columns_so_far(m: int, widths: list[int], seed: int):
    dense = torch.eye(m, dtype=torch.float64)
    system = GrowingSystem(dense, m)
    for step, width in enumerate(widths):
        added = numbers(seed + step + 1, m, width)
        dense = dense + added @ added.T
        extension = system.extension(added)
        assert relative_error(extension.solution, torch.linalg.solve(dense, added)) < 1e-10
        system.extend(extension)
        inverse = torch.eye(m) - system.columns.matrix @ system.columns.matrix.T
        assert relative_error(inverse, torch.linalg.inv(dense)) < 1e-10


def test_asking_for_an_extension_changes_nothing():
    system = GrowingSystem(numbers(0, 1), 4)
    first = system.extension(numbers(1, 4, 2))
    assert torch.equal(system.extension(numbers(1, 4, 2)).solution, first.solution)
    assert len(system.columns) == 0


def test_columns_too_large_for_double_precision_are_refused():
    system = GrowingSystem(numbers(0, 1), 4)
    with pytest.raises(NumericalError, match="not positive definite"):
        system.extension(torch.full((4, 1), 1e200, dtype=torch.float64))

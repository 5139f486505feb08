"""Both products with a root come from one reading of it, as they come from two by torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from betaedit.memory import reading
from betaedit.memory.reading import FEW, find_reader, read_once
from betaedit.memory.root import InverseRoot
from betaedit.native.library import NoKernelsError
from memory.test_associative import LAWS
from support.reference import relative_error


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def columnwise(matrix: Tensor) -> Tensor:
    """The same numbers, columns one after the other."""
    return matrix.T.contiguous().T


def dense(matrix: Tensor, keys: Tensor) -> Tensor:
    return torch.cat([matrix.T @ keys, matrix @ (matrix.T @ keys)])


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    found = find_reader()
    if isinstance(found, NoKernelsError):
        pytest.skip(f"no kernels on this machine: {found}")


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@LAWS
@given(d=st.integers(1, 300), m=st.integers(1, 40), b=st.integers(1, FEW), seed=st.integers(0, 999))
def test_one_reading_gives_both_products(threads: int, d: int, m: int, b: int, seed: int):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        matrix, keys = columnwise(numbers(seed, d, m)), numbers(seed + 1, d, b)
        found = read_once(matrix, keys)
    finally:
        torch.set_num_threads(before)
    assert found is not None
    assert relative_error(found, dense(matrix, keys)) < 1e-13


@pytest.mark.parametrize(
    ("matrix", "keys"),
    [
        (numbers(1, 8, 5), numbers(2, 8, 1)),
        (columnwise(numbers(1, 8, 5)).float(), numbers(2, 8, 1)),
        (columnwise(numbers(1, 8, 5)), numbers(2, 8, 1).float()),
        (columnwise(numbers(1, 8, 5)), numbers(2, 8, FEW + 1)),
        (columnwise(numbers(1, 8, 5)), numbers(2, 8, 0)),
        (columnwise(numbers(1, 8, 5)).to("meta"), numbers(2, 8, 1).to("meta")),
    ],
    ids=["rows one after the other", "a float32 matrix", "float32 keys", "many keys", "no keys", "elsewhere"],
)
def test_what_it_does_not_take_is_left_to_torch(matrix: Tensor, keys: Tensor):
    assert read_once(matrix, keys) is None


def test_keys_need_not_lie_one_after_the_other():
    matrix, keys = columnwise(numbers(1, 40, 9)), numbers(2, 40, 6)[:, ::3]
    found = read_once(matrix, keys)
    assert found is not None
    assert relative_error(found, dense(matrix, keys)) < 1e-13


@pytest.mark.parametrize("b", [1, FEW, FEW + 1])
@pytest.mark.parametrize("compiled", [True, False])
def test_columns_of_a_root_are_coordinates_above_what_they_are_lifted_to(
    b: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
):
    if not compiled:
        monkeypatch.setattr(reading, "find_reader", lambda: NoKernelsError("a test"))
    basis, keys = torch.linalg.qr(numbers(1, 30, 12)).Q, numbers(2, 30, b)
    root = InverseRoot.of(basis, torch.linspace(1, 5, 12).double(), basis[:, :0], torch.float64)
    columns = root.columns(keys)
    assert columns.shape == (root.height, b) == (42, b)
    assert relative_error(columns[:12], root.matrix.T @ keys) < 1e-14
    assert relative_error(root.lifted(columns), root.matrix @ root.matrix.T @ keys) < 1e-14


def test_keys_more_leave_a_root_that_is_read_once():
    basis = torch.linalg.qr(numbers(1, 30, 12)).Q
    root = InverseRoot.of(basis, torch.linspace(1, 5, 12).double(), basis[:, :0], torch.float64)
    more = root.with_keys(numbers(2, 30, 3))
    for changed in (more, more.without_keys(numbers(2, 30, 3))):
        assert read_once(changed.matrix, numbers(3, 30, 1)) is not None


def test_a_library_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading, "_reader", lambda _: lambda matrix, keys: 1.01 * dense(matrix, keys))
    find_reader.cache_clear()
    try:
        assert "something else" in str(find_reader())
    finally:
        find_reader.cache_clear()

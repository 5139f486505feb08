"""Both products with a root come from one reading of it, as they come from two by torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from betaedit.compiled.library import NoKernelsError
from betaedit.memory import AssociativeMemory, MemoryRule, reading
from betaedit.memory.reading import find_reader, read_once
from betaedit.memory.root import InverseRoot
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
@given(d=st.integers(1, 900), m=st.integers(1, 90), seed=st.integers(0, 999))
def test_one_reading_gives_both_products(threads: int, d: int, m: int, seed: int):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        matrix, keys = columnwise(numbers(seed, d, m)), numbers(seed + 1, d, 1)
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
        (columnwise(numbers(1, 8, 5)), numbers(2, 8, 2)),
        (columnwise(numbers(1, 8, 5)), numbers(2, 8, 0)),
        (columnwise(numbers(1, 8, 5)), numbers(2, 7, 1)),
        (columnwise(numbers(1, 8, 5)).to("meta"), numbers(2, 8, 1).to("meta")),
    ],
    ids=[
        "rows one after the other",
        "a float32 matrix",
        "float32 keys",
        "two keys",
        "no keys",
        "a shorter key",
        "elsewhere",
    ],
)
def test_what_it_does_not_take_is_left_to_torch(matrix: Tensor, keys: Tensor):
    assert read_once(matrix, keys) is None


def test_a_key_need_not_lie_in_one_piece():
    matrix, keys = columnwise(numbers(1, 40, 9)), numbers(2, 40, 6)[:, 3:4]
    found = read_once(matrix, keys)
    assert found is not None
    assert relative_error(found, dense(matrix, keys)) < 1e-13


def test_keys_more_leave_a_root_that_is_read_once():
    basis = torch.linalg.qr(numbers(1, 30, 12)).Q
    root = InverseRoot.of(basis, torch.linspace(1, 5, 12).double(), basis[:, :0], torch.float64)
    more = root.with_keys(numbers(2, 30, 3))
    for changed in (more, more.without_keys(numbers(2, 30, 3))):
        assert read_once(changed.matrix, numbers(3, 30, 1)) is not None


def test_a_library_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading, "_reader", lambda _: lambda matrix, key: 1.01 * dense(matrix, key))
    find_reader.cache_clear()
    try:
        assert "does not agree with torch" in str(find_reader())
    finally:
        find_reader.cache_clear()


# --- lifts that are carried, so that the root is not read again -----------------------------------------------------


def moment_of_few_tokens(d: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """That of fewer tokens than ``d``, steep, and a key a little off one of the others there are."""
    mixing = torch.randn(d, d, generator=random).double() @ torch.diag(torch.logspace(0, -3, d)).double()
    tokens = mixing @ torch.randn(d, 2 * d, generator=random).double()
    some = tokens[:, : d // 2]
    return some @ some.T / (d // 2), tokens[:, -1:] + 0.3 * torch.randn(d, 1, generator=random).double()


@pytest.mark.filterwarnings("ignore:.*eigenvalues were raised")
def test_a_key_written_again_and_again_gets_its_value_each_time():
    """Most of its coordinates cancel then; a lift made of what cancels would miss its value by 1e-8."""
    moment, key = moment_of_few_tokens(128, torch.Generator().manual_seed(0))
    rule = MemoryRule("none", 15000.0, 0.0, history=True, form="equality", slack=0.1)
    memory = AssociativeMemory(moment, rule)
    for _ in range(4):
        update = memory.solve(key, torch.ones(1, 1))
        assert float(update.dense() @ key) == pytest.approx(1.0, abs=1e-12)
        memory.remember(key)


@LAWS
@given(d=st.integers(4, 40), ridge=st.floats(1e-3, 1e3), repeats=st.lists(st.integers(0, 3), max_size=12))
def test_lifts_that_are_carried_are_those_of_the_columns_whatever_was_written(d: int, ridge: float, repeats: list[int]):
    random = torch.Generator().manual_seed(d)
    moment, _ = moment_of_few_tokens(d, random)
    memory = AssociativeMemory(moment, MemoryRule("none", 1.0, ridge, history=True), fold_after=9)
    keys = torch.randn(d, 4, generator=random).double()
    for at in repeats:
        batch = keys[:, :2] if at == 3 else keys[:, at : at + 1]
        memory.solve(batch, torch.ones(2, batch.shape[1]))
        memory.remember(batch)
        assert memory._lifts is not None
        lifted = memory.root.lift(memory._system.columns.matrix)
        assert memory._lifts.matrix.shape == lifted.shape
        assert float((memory._lifts.matrix - lifted).norm()) <= 1e-12 * float(lifted.norm())

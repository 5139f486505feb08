"""What a memory holds, what one edit reads, and what a solve leaves for the ``remember`` that follows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from betaedit.compiled.library import NoKernelsError
from betaedit.memory import AssociativeMemory, reading
from memory.test_associative import LAWS, NAMES, NEVER, Case, cases, column, eye, rule_of, spectrum, watched
from support.reference import REFRESHING, REMEMBERING, relative_error

# --- one edit ------------------------------------------------------------------------------------------------------


class Readings(TorchDispatchMode):
    """Counts the operations that read one tensor; taking a view of it is none."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.place, self.count = tensor.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count += any(map(self.is_it, args)) and not self.is_it(out)
        return out

    def is_it(self, value: object) -> bool:
        return isinstance(value, Tensor) and value.untyped_storage().data_ptr() == self.place


def readings(tensor: Tensor, work: Callable[[], object]) -> int:
    with Readings(tensor) as found:
        work()
    return found.count


def carrying(n: int, *, basis_dtype: torch.dtype = torch.float64) -> AssociativeMemory:
    """A memory 64 wide under BetaEdit with ``n`` keys carried."""
    moment, threshold = spectrum(torch.Generator().manual_seed(1), 64, 0.8)
    rule = rule_of("betaedit", leakage_weight=1.0, ridge=1.0, nullspace_threshold=threshold)
    memory = AssociativeMemory(moment, rule, basis_dtype=basis_dtype)
    memory.remember(torch.randn(64, n, generator=torch.Generator().manual_seed(2)))
    return memory


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without kernels."""
    monkeypatch.setattr(reading, "find_reader", lambda: NoKernelsError("a test"))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What kernels read, one entry each time."""
    reader, matrices = reading.find_reader(), list[Tensor]()
    if isinstance(reader, NoKernelsError):
        pytest.skip(f"no kernels on this machine: {reader}")

    def heard(matrix: Tensor, keys: Tensor) -> Tensor:
        matrices.append(matrix)
        return reader(matrix, keys)

    monkeypatch.setattr(reading, "find_reader", lambda: heard)
    return matrices


def test_an_edit_reads_the_root_once(read: list[Tensor]):
    memory, key = carrying(20), torch.ones(64, 1)
    read.clear()
    assert readings(memory.root.matrix, lambda: memory.solve(key, torch.ones(3, 1))) == 0, "beside the kernels"
    assert read == [memory.root.matrix]
    assert readings(memory.root.matrix, lambda: memory.remember(key)) == 0
    assert len(read) == 1


@pytest.mark.usefixtures("by_torch")
def test_an_edit_by_torch_reads_the_root_twice():
    memory, key = carrying(20), torch.ones(64, 1)
    assert readings(memory.root.matrix, lambda: memory.solve(key, torch.ones(3, 1))) == 2
    assert readings(memory.root.matrix, lambda: memory.remember(key)) == 0


def test_a_key_remembered_without_a_solve_reads_the_root_once(read: list[Tensor]):
    memory = carrying(20)
    read.clear()
    memory.remember(torch.ones(64, 1))
    assert read == [memory.root.matrix]


@pytest.mark.parametrize(("basis_dtype", "more"), [(torch.float64, 0), (torch.float32, 1)])
def test_a_key_solved_twice_reads_at_most_once_more(basis_dtype: torch.dtype, more: int):
    memory, key = carrying(20, basis_dtype=basis_dtype), torch.ones(64, 1)
    memory.solve(key, torch.ones(3, 1))
    assert readings(memory.root.matrix, lambda: memory.solve(key, torch.zeros(3, 1))) == more


@pytest.mark.parametrize("basis_dtype", [torch.float64, torch.float32])
def test_an_edit_makes_nothing_larger_than_a_column(basis_dtype: torch.dtype):
    memory, key = carrying(20, basis_dtype=basis_dtype), torch.ones(64, 1)
    column = memory.rank + 64 if basis_dtype == torch.float64 else 64
    assert watched(lambda: memory.solve(key, torch.ones(3, 1))).largest <= column
    assert watched(lambda: memory.remember(key)).largest <= column, "room for 32 columns is there"


def test_an_update_keeps_nothing_but_its_own_factors():
    update = carrying(20).solve(torch.ones(64, 2), torch.ones(3, 2))
    assert update.right.untyped_storage().nbytes() == 8 * 64 * 2


# --- what a solve leaves behind ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@LAWS
@given(case=cases(), data=st.data())
def test_solving_for_whatever_keys_in_between_changes_nothing_that_comes_after(
    name: str, case: Case, data: st.DataObject
):
    asked, plain = case.memory(name), case.memory(name)
    for K, R in case.batches:
        for _ in range(data.draw(st.integers(0, 2))):
            at = data.draw(st.integers(0, len(case.batches) - 1))
            asked.solve(*case.batches[at])
        asked.remember(K)
        plain.remember(K)
        assert torch.equal(asked.solve(K, R).right, plain.solve(K, R).right)


def altered_between(change: Callable[[AssociativeMemory, Tensor], object]) -> tuple[Tensor, Tensor]:
    """The next update when ``change`` comes between a solve and the ``remember`` of its keys, and without the solve."""
    found = []
    for solves in (True, False):
        memory, keys = carrying(3), torch.arange(64.0, dtype=torch.float64)[:, None] / 64
        if solves:
            memory.solve(keys, torch.ones(3, 1))
        change(memory, keys)
        memory.remember(keys)
        found.append(memory.solve(torch.ones(64, 1), torch.ones(3, 1)).right)
    return found[0], found[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda memory, keys: keys.mul_(2),
        lambda memory, keys: memory.remember(torch.ones(64, 1)),
        lambda memory, keys: memory.forget(torch.randn(64, 3, generator=torch.Generator().manual_seed(2))),
        lambda memory, keys: memory.fold(),
        lambda memory, keys: memory.refresh(),
    ],
    ids=["the keys are overwritten", "others are remembered", "others are forgotten", "a fold", "a refresh"],
)
def test_what_a_solve_leaves_is_not_used_after(change: Callable[[AssociativeMemory, Tensor], object]):
    solved, unsolved = altered_between(change)
    assert torch.equal(solved, unsolved)


# --- bytes ---------------------------------------------------------------------------------------------------------


def tensors_in(value: object) -> Iterator[Tensor]:
    """Every tensor that an object of the memory room holds, however deep."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from tensors_in(item)
    elif type(value).__module__.startswith("betaedit.memory"):
        for name in getattr(value, "__slots__", None) or vars(value):
            yield from tensors_in(getattr(value, name))


def bytes_in(memory: AssociativeMemory) -> int:
    """The sizes of the storages behind them, each once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors_in(memory)}
    return sum(storages.values())


def formula(memory: AssociativeMemory, *, size: int, carried: int, folded: bool = False, solved: int = 0) -> int:
    """The bytes as ``AssociativeMemory`` states them, for a moment in single precision."""
    d, m, r = memory.d_in, memory.rank, memory.root.strong.shape[1]
    c = next((2**power for power in range(30) if 2**power >= carried), 0) if carried else 0
    lifts = 8 * d * c + 8 * d * (solved == 1) if size == 8 else 0
    total = size * d * m + 8 * d * r + 8 * (d + m) * c + 8 * (d + m + 2 * solved) * solved + lifts
    if memory.rule.projector == "refreshed":
        total += 4 * d * d + 8 * d * d * folded
    return total


@pytest.mark.parametrize(("basis_dtype", "size"), [(torch.float64, 8), (torch.float32, 4)])
@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_held_are_those_of_the_formula_at_every_point_of_a_sequence(
    name: str, basis_dtype: torch.dtype, size: int
):
    values = torch.cat([torch.logspace(-6, -2, 20), torch.logspace(0, 2, 5)])
    strengths: dict[str, Any] = {"leakage_weight": 10.0, "ridge": 1.0}
    memory = AssociativeMemory(torch.diag(values), rule_of(name, **strengths), fold_after=6, basis_dtype=basis_dtype)
    random = torch.Generator().manual_seed(4)
    carried, folded = 0, False
    for b in (1, 2, 2, 1, 3):
        assert memory.nbytes == bytes_in(memory) == formula(memory, size=size, carried=carried, folded=folded)
        keys = torch.randn(25, b, generator=random)
        memory.solve(keys, torch.ones(2, b))
        held = formula(memory, size=size, carried=carried, folded=folded, solved=b)
        assert memory.nbytes == bytes_in(memory) == held
        memory.remember(keys)
        if name in REMEMBERING:
            carried += b
            folded = folded or carried >= 6
            carried = 0 if carried >= 6 else carried
    memory.forget(keys)
    carried = max(carried - 3, 0)
    assert memory.nbytes == bytes_in(memory) == formula(memory, size=size, carried=carried, folded=folded)
    memory.refresh()
    assert memory.nbytes == bytes_in(memory) == formula(memory, size=size, carried=0, folded=folded)


def test_strong_directions_are_held_beside_a_root_in_single_precision_alone():
    values = torch.cat([torch.logspace(-6, -2, 20), torch.logspace(0, 2, 5)])
    ranks = {
        dtype: AssociativeMemory(torch.diag(values), rule_of("betaedit"), basis_dtype=dtype).root.strong.shape[1]
        for dtype in (torch.float64, torch.float32)
    }
    assert ranks == {torch.float64: 0, torch.float32: 5}


def test_the_moment_is_not_copied():
    moment = 0.001 * torch.eye(8)
    memory = AssociativeMemory(moment, rule_of("betaedit"))
    assert moment.data_ptr() in {tensor.data_ptr() for tensor in tensors_in(memory)}


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(REFRESHING)))
def test_a_rule_whose_projector_stays_holds_neither_the_moment_nor_a_full_history(name: str):
    """Its root is the only thing as wide as the keys twice over, and with no projector that root is square."""
    moment, threshold = spectrum(torch.Generator().manual_seed(3), 30, 0.5)
    memory = AssociativeMemory(moment, rule_of(name, ridge=1.0, nullspace_threshold=threshold), fold_after=4)
    memory.remember(torch.randn(30, 5, generator=torch.Generator().manual_seed(4)))
    others = [tensor for tensor in tensors_in(memory) if tensor is not memory.root.matrix]
    assert max(tensor.numel() for tensor in others) <= 30


def test_after_a_fold_the_root_in_use_is_the_only_one():
    memory = AssociativeMemory(eye(8), rule_of("memit-h"), fold_after=NEVER)
    memory.remember(column(*range(8)))
    memory.fold()
    assert sum(tensor.shape == (8, 8) for tensor in tensors_in(memory)) == 1
    root, protected = memory.root.matrix, memory.rule.leakage_weight * eye(8) + column(*range(8)) @ column(*range(8)).T
    assert relative_error(root @ root.T, torch.linalg.inv(protected)) < 1e-12

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from betaedit.errors import BetaEditError, MethodError, NumericalError, NumericalWarning, ShapeError
from betaedit.memory import AssociativeMemory
from memory.test_associative import (
    LAWS,
    NAMES,
    NEVER,
    Case,
    cases,
    column,
    eye,
    removable,
    rule_of,
    watched,
)
from memory.test_projector import steep_space
from support.reference import FORGETTING, REMEMBERING, DenseMemory, relative_error

SEQUENCES = settings(derandomize=True, deadline=None, max_examples=40)


def next_updates(memory: AssociativeMemory, case: Case) -> Tensor:
    """What the memory would do next, for every batch of the case."""
    return torch.cat([memory.solve(K, R).dense() for K, R in case.batches], dim=1)


def assert_same_next(memory: AssociativeMemory, other: AssociativeMemory, case: Case) -> None:
    assert relative_error(next_updates(memory, case), next_updates(other, case)) < 1e-8
    assert memory.n_written == other.n_written


# --- the law -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REMEMBERING)
@LAWS
@given(case=cases(least_steps=2, weakest=0.0), data=st.data())
def test_after_forgetting_the_next_update_is_that_of_a_memory_never_given_those_keys(
    name: str, case: Case, data: st.DataObject
):
    forgotten = data.draw(st.sets(st.integers(0, len(case.batches) - 1), min_size=1))
    memory, other = case.memory(name), case.memory(name, fold_after=NEVER)
    for at, (K, _) in enumerate(case.batches):
        memory.remember(K)
        if at not in forgotten:
            other.remember(K)
    memory.forget(torch.cat([case.batches[at][0] for at in forgotten], dim=1))
    assert_same_next(memory, other, case)


@pytest.mark.parametrize("name", REMEMBERING)
@SEQUENCES
@given(case=cases(least_steps=2, weakest=0.0), data=st.data())
def test_whatever_was_remembered_forgotten_and_folded_every_update_is_the_formula_over_the_keys_left(
    name: str, case: Case, data: st.DataObject
):
    """A refresh uses the keys left at that moment; later forgetting leaves its projector as it is."""
    memory, dense = case.memory(name, refresh_every=case.refresh_every), case.dense(name)
    dense.refresh_every = case.refresh_every
    left: list[Tensor] = []
    for K, R in case.batches:
        assert memory.refresh_due() == dense.due()
        if dense.due():
            values = torch.linalg.eigvalsh(dense.thresholded())
            assume(bool(((values / case.threshold - 1).abs() > 1e-6).all() and (values < case.threshold).any()))
            dense.refresh()
            memory.refresh()
        assert relative_error(memory.solve(K, R).dense(), dense.solve(K, R)) < 1e-8
        memory.remember(K)
        left += K.unbind(1)
        if data.draw(st.booleans()):
            memory.fold()
        order = data.draw(st.permutations(range(len(left))))
        gone = order[: data.draw(st.integers(0, len(left)))]
        memory.forget(torch.stack([left[at] for at in gone], dim=1) if gone else K[:, :0])
        left = [key for at, key in enumerate(left) if at not in gone]
        hold_only(dense, left)
        assert relative_error(memory.solve(K, R).dense(), dense.solve(K, R)) < 1e-8
        assert memory.n_written == len(left)


def hold_only(dense: DenseMemory, keys: list[Tensor]) -> None:
    """History and count of ``keys`` alone; the last refresh is no later than now."""
    dense.H = sum((torch.outer(key, key) for key in keys), torch.zeros_like(dense.C0))
    dense.count = len(keys)
    dense.last = min(dense.last, dense.count)


@pytest.mark.parametrize("fold_after", [NEVER, 1])
def test_a_key_remembered_twice_and_forgotten_once_is_still_protected_once(fold_after: int):
    rule = rule_of("betaedit", nullspace_threshold=2.0)
    memory, once = (AssociativeMemory(eye(3), rule, fold_after=fold_after) for _ in range(2))
    key = column(1, 2, 3)
    memory.remember(torch.cat([key, key], dim=1))
    once.remember(key)
    memory.forget(key)
    update, wanted = (each.solve(column(1, 1, 1), column(1.0)).dense() for each in (memory, once))
    assert relative_error(update, wanted) < 1e-12
    memory.forget(key)
    assert memory.n_written == 0


def test_keys_are_recognized_in_the_type_they_were_remembered_in():
    memory = AssociativeMemory(eye(3), rule_of("betaedit", nullspace_threshold=2.0))
    keys = torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.bfloat16)
    memory.remember(keys)
    memory.forget(keys)
    assert memory.n_written == 0
    fresh = AssociativeMemory(eye(3), rule_of("betaedit", nullspace_threshold=2.0))
    assert torch.equal(memory.solve(keys, torch.ones(1, 1)).right, fresh.solve(keys, torch.ones(1, 1)).right)


@pytest.mark.parametrize("name", FORGETTING)
def test_forgetting_under_a_rule_without_history_only_lowers_the_count(name: str):
    memory = AssociativeMemory(eye(3), rule_of(name, nullspace_threshold=2.0))
    key = column(1, 2, 3)
    before = memory.solve(key, column(1.0)).dense()
    memory.remember(torch.cat([key, key], dim=1))
    memory.forget(column(3, 2, 1))
    assert memory.n_written == 1
    assert torch.equal(memory.solve(key, column(1.0)).dense(), before)


# --- and refreshes -------------------------------------------------------------------------------------------------


def test_forgetting_leaves_the_projector_until_the_next_refresh():
    memory, key = removable(1), column(1, 0, 0, 0)
    memory.remember(key)
    memory.refresh()
    memory.forget(key)
    assert memory.rank == 3, "the projector of the refresh"
    memory.refresh()
    assert memory.rank == 4, "history is empty again"


def test_after_forgetting_a_refresh_falls_due_no_later_than_refresh_every_edits_on():
    memory = removable(3)
    memory.remember(0.01 * eye(4))
    memory.refresh()
    memory.forget(0.01 * eye(4)[:, :3])
    assert (memory.n_written, memory.last_refresh) == (1, 1)
    memory.remember(0.01 * eye(4)[:, :2])
    assert not memory.refresh_due()
    memory.remember(0.01 * eye(4)[:, :1])
    assert memory.refresh_due()


# --- what is refused -----------------------------------------------------------------------------------------------


def two_of_three_folded() -> AssociativeMemory:
    memory = AssociativeMemory(0.001 * eye(4), rule_of("alphaedit", ridge=1.0), fold_after=2)
    memory.remember(eye(4)[:, :2])
    memory.remember(column(0, 0, 3, 0))
    return memory


def assert_nothing_forgotten(memory: AssociativeMemory) -> None:
    fresh, key = two_of_three_folded(), column(1, 2, 3, 4)
    assert memory.n_written == 3
    assert torch.equal(memory.solve(key, column(1.0)).right, fresh.solve(key, column(1.0)).right)


@pytest.mark.parametrize("name", NAMES)
def test_more_keys_than_were_remembered_are_refused(name: str):
    memory = AssociativeMemory(0.001 * eye(4), rule_of(name))
    memory.remember(eye(4)[:, :1])
    with pytest.raises(MethodError, match="not all of these keys are among those remembered") as caught:
        memory.forget(eye(4)[:, [0, 0]])
    assert caught.value.hint
    assert isinstance(caught.value, BetaEditError)
    assert memory.n_written == 1


def test_a_key_that_was_not_remembered_is_refused_while_none_is_folded():
    memory = AssociativeMemory(0.001 * eye(4), rule_of("betaedit"))
    memory.remember(eye(4)[:, :2])
    with pytest.raises(MethodError, match="not all of these keys"):
        memory.forget(eye(4)[:, [0, 2]])
    assert memory.n_written == 2
    memory.forget(eye(4)[:, :2])


def test_as_many_keys_not_carried_as_were_folded_are_the_most_that_can_be_forgotten():
    memory = two_of_three_folded()
    with pytest.raises(MethodError, match="not all of these keys"):
        memory.forget(torch.cat([eye(4)[:, :2], column(0.5, 0, 0, 0)], dim=1))
    assert_nothing_forgotten(memory)


def test_a_key_that_history_has_not_the_energy_for_is_refused_and_nothing_changes():
    memory = two_of_three_folded()
    with pytest.warns(NumericalWarning), pytest.raises(MethodError, match="not all of these keys"):
        memory.forget(torch.cat([column(0, 0, 3, 0), column(0, 0, 0, 1)], dim=1))
    assert_nothing_forgotten(memory)


@pytest.mark.parametrize("basis_dtype", [torch.float64, torch.float32])
def test_a_stranger_is_measured_by_its_energy_in_the_null_space(basis_dtype: torch.dtype):
    """Outside it is a thousand times longer, as keys of real models are."""
    moment, keys, threshold = steep_space(4.0, n_keys=40)
    rule = rule_of("betaedit", leakage_weight=0.0, ridge=10.0, nullspace_threshold=threshold)
    memory = AssociativeMemory(moment, rule, fold_after=1, basis_dtype=basis_dtype)
    memory.remember(keys[:, :30])
    stranger = keys[:, 30:31]
    inside = memory.root.matrix.double() @ torch.linalg.lstsq(memory.root.matrix.double(), stranger).solution
    assert float(inside.norm()) < 0.01 * float(stranger.norm())
    with pytest.raises(MethodError, match="not all of these keys"):
        memory.forget(stranger)
    memory.forget(keys[:, :1])


@pytest.mark.parametrize(
    ("keys", "error"), [(torch.ones(3, 1), ShapeError), (torch.full((4, 1), torch.nan), NumericalError)]
)
def test_what_is_no_column_of_finite_numbers_is_refused_and_nothing_changes(keys: Tensor, error: type[BetaEditError]):
    memory = two_of_three_folded()
    with pytest.raises(error):
        memory.forget(keys)
    assert_nothing_forgotten(memory)


# --- what it costs -------------------------------------------------------------------------------------------------


def test_forgetting_keys_since_the_last_fold_needs_no_eigendecomposition():
    memory = two_of_three_folded()
    assert watched(lambda: memory.forget(column(0, 0, 3, 0))).eigendecompositions() == 0


def test_forgetting_folded_keys_is_one_eigendecomposition_for_all_of_them_and_one_of_the_energies_left():
    memory = two_of_three_folded()
    everything = torch.cat([eye(4)[:, :2], column(0, 0, 3, 0)], dim=1)
    assert watched(lambda: memory.forget(everything)).eigendecompositions() == 2
    assert memory.n_written == 0


def test_as_many_keys_as_there_are_can_be_forgotten_at_once():
    memory, fresh = (AssociativeMemory(0.001 * eye(5), rule_of("betaedit", ridge=1.0)) for _ in range(2))
    keys = torch.randn(5, 300, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    memory.remember(keys)
    memory.forget(keys)
    wanted = fresh.solve(keys[:, :1], column(1.0)).dense()
    assert relative_error(memory.solve(keys[:, :1], column(1.0)).dense(), wanted) < 1e-9

"""A root in single precision: the same updates to 1e-6, given a null space and a ridge."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from betaedit.errors import ConfigError
from betaedit.memory import AssociativeMemory
from memory.test_associative import rule_of
from memory.test_projector import steep_space
from support.reference import PROJECTING, REFRESHING, DenseMemory, relative_error

TOPS = [-1.0, 0.0, 1.0, 2.0]


def both(name: str, top: float) -> tuple[AssociativeMemory, DenseMemory, Tensor]:
    """A memory with a root in single precision, the dense one, and 620 keys in the spectrum of a language model."""
    moment, keys, threshold = steep_space(top, n_keys=620)
    rule = rule_of(name, leakage_weight=1000.0, ridge=10.0, nullspace_threshold=threshold)
    dense = DenseMemory(name, moment, lambda1=1000.0, lambda2=10.0, threshold=threshold)
    return AssociativeMemory(moment, rule, fold_after=128, basis_dtype=torch.float32), dense, keys


def remember(keys: Tensor, *memories: AssociativeMemory | DenseMemory) -> None:
    for memory in memories:
        for batch in keys.split(50, dim=1):
            memory.remember(batch)


def error(memory: AssociativeMemory, dense: DenseMemory, keys: Tensor) -> float:
    residuals = torch.eye(keys.shape[1])
    return relative_error(memory.solve(keys, residuals).dense(), dense.solve(keys, residuals))


@pytest.mark.parametrize("top", TOPS)
@pytest.mark.parametrize("name", PROJECTING)
def test_updates_equal_the_dense_formula_to_six_digits_through_six_hundred_keys(name: str, top: float):
    memory, dense, keys = both(name, top)
    for start in range(0, 600, 200):
        assert error(memory, dense, keys[:, start : start + 1]) < 1e-6, "a new key"
        remember(keys[:, start : start + 200], memory, dense)
        assert error(memory, dense, keys[:, start : start + 1]) < 1e-6, "one that was written before"
    assert error(memory, dense, keys[:, 600:604]) < 1e-6, "a batch"


@pytest.mark.parametrize("name", REFRESHING)
def test_a_refreshed_projector_is_as_exact(name: str):
    memory, dense, keys = both(name, 1.0)
    remember(keys[:, :200], memory, dense)
    for each in (memory, dense):
        each.refresh()
    assert error(memory, dense, keys[:, 600:604]) < 1e-6
    assert memory.root.matrix.dtype == torch.float32


@pytest.mark.parametrize("top", TOPS)
@pytest.mark.parametrize("name", ["alphaedit", "betaedit"])
def test_forgetting_folded_keys_is_exact_to_six_digits(name: str, top: float):
    memory, dense, keys = both(name, top)
    remember(keys[:, :300], memory)
    remember(keys[:, 100:300], dense)
    memory.forget(keys[:, :100])
    assert error(memory, dense, keys[:, :1]) < 1e-6, "one that was forgotten"
    assert error(memory, dense, keys[:, 600:604]) < 1e-6


def test_factors_are_in_double_all_the_same():
    memory, _, keys = both("betaedit", 0.0)
    update = memory.solve(keys[:, :3], torch.ones(2, 3))
    assert update.left.dtype == update.right.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_a_root_in_any_other_type_is_refused(dtype: torch.dtype):
    with pytest.raises(ConfigError, match="is not supported") as caught:
        AssociativeMemory(0.001 * torch.eye(4), rule_of("betaedit"), basis_dtype=dtype)
    assert caught.value.hint == "Use torch.float64 or torch.float32."

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from betaedit.memory import Update

LAWS = settings(derandomize=True, deadline=None, max_examples=25)


def random_update(seed: int, d_out: int, d_in: int, b: int) -> Update:
    random = torch.Generator().manual_seed(seed)
    return Update(
        torch.randn(d_out, b, generator=random, dtype=torch.float64),
        torch.randn(d_in, b, generator=random, dtype=torch.float64),
    )


updates = st.builds(random_update, st.integers(0, 10**6), st.integers(2, 20), st.integers(3, 48), st.integers(1, 4))


@LAWS
@given(updates)
def test_the_norm_from_the_factors_is_the_norm_of_the_matrix(update: Update):
    assert update.norm() == pytest.approx(float(torch.linalg.norm(update.dense())), rel=1e-9)


@LAWS
@given(updates)
def test_the_dense_matrix_is_left_times_right_transposed_as_a_weight_is_shaped(update: Update):
    dense = update.dense()
    assert dense.shape == (update.left.shape[0], update.right.shape[0])
    by_hand = sum(
        torch.outer(left, right) for left, right in zip(update.left.T.unbind(), update.right.T.unbind(), strict=True)
    )
    torch.testing.assert_close(dense, by_hand, rtol=1e-12, atol=1e-12)


def test_columns_that_cancel_have_norm_zero_and_not_the_root_of_a_negative_number():
    """Two columns and minus their sum along one direction: the Gram sum is rounding, of either sign."""
    sums, norms = [], []
    for seed in range(20):
        update = random_update(seed, 5, 7, 2)
        left = torch.cat([update.left, -update.left.sum(1, keepdim=True)], dim=1)
        right = update.right[:, :1].expand(-1, 3)
        sums.append(float(((left.T @ left) * (right.T @ right)).sum()))
        norms.append(Update(left, right).norm())
    assert min(sums) < 0, "else this shows nothing"
    assert norms == pytest.approx([0.0] * 20, abs=1e-6)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("factor", ["left", "right"])
def test_one_value_that_is_not_finite_makes_the_update_not_finite(factor: str, broken: float):
    update = random_update(0, 4, 6, 2)
    assert update.is_finite()
    getattr(update, factor)[1, 1] = broken
    assert not update.is_finite()


def test_an_update_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        random_update(0, 2, 3, 1).left = torch.zeros(2, 1)  # type: ignore[misc]  # on purpose

"""The rank that a change of weights needs, and what a smaller one leaves out, against plain singular values."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from betaedit.ledger.export_rank import decompose

D_OUT, D_IN = 24, 40


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def projection() -> nn.Linear:
    module = nn.Linear(D_IN, D_OUT, bias=False).requires_grad_(False)
    module.weight.data = random(D_OUT, D_IN, seed=1)
    return module


def change_of_rank(rank: int) -> torch.Tensor:
    return random(D_OUT, rank, seed=2) @ random(rank, D_IN, seed=3) / 10


@pytest.mark.parametrize("rank", [1, 5, 20])
def test_a_cut_is_the_nearest_matrix_of_its_rank(rank: int) -> None:
    change = random(D_OUT, D_IN)
    left, values, right = torch.linalg.svd(change.double(), full_matrices=False)
    nearest = left[:, :rank] * values[:rank] @ right[:rank]
    parts = decompose(change)
    torch.testing.assert_close(parts.cut(rank).dense(), nearest)
    expected = values[rank:].norm() / values.norm()
    assert parts.relative_error(rank) == pytest.approx(float(expected), rel=1e-6)


def test_no_rank_above_the_width_leaves_anything_out() -> None:
    parts = decompose(random(D_OUT, D_IN))
    assert parts.relative_error(D_OUT) == parts.relative_error(1000) == 0


@pytest.mark.parametrize("rank", [1, 7])
def test_the_rounding_of_the_weights_is_no_rank(rank: int) -> None:
    module = projection()
    before = module.weight.data.clone()
    module.weight.data += change_of_rank(rank)
    difference = module.weight.data - before
    assert torch.linalg.matrix_rank(difference.double()) == D_OUT
    assert decompose(difference).sufficient_rank(module) == rank


@pytest.mark.parametrize(("weight_norm", "rank"), [(1e-3, 3), (100.0, 2)])
def test_what_is_negligible_is_measured_by_the_weight_it_is_added_to(weight_norm: float, rank: int) -> None:
    lengths = torch.tensor([1.0, 1e-2, 1e-5, 1e-8], dtype=torch.float64)
    left, right = (torch.linalg.qr(random(size, 4).double()).Q for size in (D_OUT, D_IN))
    module = projection()
    module.weight.data *= weight_norm / module.weight.data.norm()
    assert decompose(left * lengths @ right.T).sufficient_rank(module) == rank


def test_no_change_has_rank_one_and_no_error() -> None:
    parts = decompose(torch.zeros(D_OUT, D_IN))
    assert parts.sufficient_rank(projection()) == 1
    assert parts.relative_error(1) == 0

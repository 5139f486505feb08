from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from betaedit.errors import NumericalError
from betaedit.memory import Spectrum
from support.reference import reference_projector, relative_error

GENERATOR = torch.Generator().manual_seed(3)
LAWS = settings(derandomize=True, deadline=None, max_examples=25)


def moment_and_threshold(seed: int, d: int, share: float) -> tuple[Tensor, float, int]:
    """A moment, a threshold in one of its gaps, and how many eigenvalues lie below."""
    random = torch.Generator().manual_seed(seed)
    steps = 0.05 + 0.4 * torch.rand(d, generator=random, dtype=torch.float64)
    values = 1e-4 * steps.cumsum(0).exp()
    rotation = torch.linalg.qr(torch.randn(d, d, generator=random, dtype=torch.float64)).Q
    moment = rotation @ torch.diag(values) @ rotation.T
    rank = min(max(round(share * d), 1), d - 1)
    return (moment + moment.T) / 2, float((values[rank - 1] * values[rank]).sqrt()), rank


cases = st.builds(moment_and_threshold, st.integers(0, 10**6), st.integers(3, 48), st.floats(0.2, 0.9))


@LAWS
@given(cases)
def test_the_basis_is_orthonormal(case: tuple[Tensor, float, int]):
    moment, threshold, rank = case
    basis = Spectrum.of(moment).null_space(threshold).basis
    torch.testing.assert_close(basis.T @ basis, torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-12)


@LAWS
@given(cases)
def test_the_basis_diagonalizes_the_moment_into_the_eigenvalues(case: tuple[Tensor, float, int]):
    moment, threshold, _ = case
    space = Spectrum.of(moment).null_space(threshold)
    scale = float(torch.linalg.norm(moment))
    rotated = space.basis.T @ moment @ space.basis
    torch.testing.assert_close(rotated, torch.diag(space.eigenvalues), rtol=0, atol=1e-13 * scale)


@LAWS
@given(cases)
def test_the_rank_is_the_number_of_eigenvalues_below_the_threshold(case: tuple[Tensor, float, int]):
    moment, threshold, rank = case
    space = Spectrum.of(moment).null_space(threshold)
    assert space.rank == rank == space.basis.shape[1] == len(space.eigenvalues)
    assert bool((space.eigenvalues < threshold).all())


@LAWS
@given(cases)
def test_the_projector_is_the_one_that_the_official_code_cuts_from_a_singular_value_decomposition(
    case: tuple[Tensor, float, int],
):
    moment, threshold, _ = case
    basis = Spectrum.of(moment).null_space(threshold).basis
    assert relative_error(basis @ basis.T, reference_projector(moment, threshold)) < 1e-9


@LAWS
@given(cases)
def test_the_share_of_energy_is_the_projected_trace_over_the_trace(case: tuple[Tensor, float, int]):
    moment, threshold, _ = case
    projector = reference_projector(moment, threshold)
    wanted = float(torch.trace(projector @ moment) / torch.trace(moment))
    assert Spectrum.of(moment).null_space(threshold).energy_share == pytest.approx(wanted, rel=1e-6)


def test_without_a_threshold_every_direction_is_kept():
    moment, _, _ = moment_and_threshold(1, 7, 0.5)
    space = Spectrum.of(moment).null_space(None)
    assert space.rank == 7
    assert space.energy_share == 1.0


def test_an_eigenvalue_on_the_threshold_is_not_kept():
    space = Spectrum.of(torch.diag(torch.tensor([0.01, 0.02, 0.03], dtype=torch.float64))).null_space(0.02)
    assert space.eigenvalues.tolist() == [0.01]


def test_a_moment_in_single_precision_is_decomposed_in_double():
    moment, threshold, rank = moment_and_threshold(2, 12, 0.5)
    space = Spectrum.of(moment.float()).null_space(threshold)
    assert space.basis.dtype == torch.float64
    assert space.rank == rank


def test_rounding_below_zero_counts_as_no_energy():
    moment = torch.diag(torch.tensor([-1e-18, 1.0], dtype=torch.float64))
    assert Spectrum.of(moment).null_space(0.5).energy_share == 0.0


def test_a_moment_of_zeros_has_all_directions_and_no_energy():
    space = Spectrum.of(torch.zeros(3, 3)).null_space(0.02)
    assert (space.rank, space.energy_share) == (3, 0.0)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_moment_that_is_not_finite_is_refused_before_the_decomposition(broken: float):
    moment = torch.eye(4)
    moment[2, 1] = broken
    with pytest.raises(NumericalError, match="second moment is not finite") as caught:
        Spectrum.of(moment).null_space(0.02)
    assert caught.value.hint == "Compute the statistics again."


def test_a_threshold_below_every_eigenvalue_is_refused_with_the_smallest_eigenvalue_named():
    with pytest.raises(NumericalError, match=r"below 0\.02 \(the smallest is 3\)") as caught:
        Spectrum.of(3 * torch.eye(4)).null_space(0.02)
    assert caught.value.hint == "Raise nullspace_threshold."


# --- strong directions ---------------------------------------------------------------------------------------------


def steep_space(top: float, *, d: int = 300, n_keys: int = 20) -> tuple[Tensor, Tensor, float]:
    """A moment of a language model's kind, keys with that moment, and a threshold that keeps four directions in five.

    Eigenvalues from 1e-6 to ``10**top``, apart at the threshold; 300 is no multiple of the blocks that are summed.
    """
    random, rank = torch.Generator().manual_seed(7), 4 * d // 5
    values = torch.cat([torch.logspace(-6, -1.5, rank), torch.logspace(-1.4, top, d - rank)]).double()
    root = torch.linalg.qr(torch.randn(d, d, generator=random, dtype=torch.float64)).Q * values.sqrt()
    moment = root @ root.T
    return (moment + moment.T) / 2, root @ torch.randn(d, n_keys, generator=random, dtype=torch.float64), 0.035


def test_the_strong_directions_are_the_fewest_that_leave_at_most_four_times_the_energy_inside():
    energies = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 15.0, 16.0, 1000.0], dtype=torch.float64)
    space = Spectrum.of(torch.diag(energies)).null_space(10.0)
    assert space.strong.abs().argmax(dim=0).tolist() == [10]
    assert float((space.basis.T @ space.strong).abs().max()) == 0.0, "15 + 16 is less than 4 x 8"


def test_the_strong_directions_are_at_most_a_quarter_of_those_inside():
    space = Spectrum.of(torch.diag(torch.tensor([0.0] * 8 + [1.0] * 8, dtype=torch.float64))).null_space(0.5)
    assert space.strong.shape == (16, 2)

"""The square root of the inverse: its product is the inverse in the null space, whatever keys come and go."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from betaedit.errors import MethodError, NumericalWarning
from betaedit.memory import NullSpace, Spectrum
from betaedit.memory.root import InverseRoot
from memory.test_associative import LAWS, spectrum, watched
from memory.test_projector import steep_space
from support.reference import relative_error

GENERATOR = torch.Generator().manual_seed(11)


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def plain(matrix: Tensor, dtype: torch.dtype = torch.float64) -> InverseRoot:
    return InverseRoot(matrix.to(dtype), matrix[:, :0])


def root_of(space: NullSpace, energies: Tensor, dtype: torch.dtype) -> InverseRoot:
    return InverseRoot.of(space.basis, energies, space.strong, dtype)


# --- the law -------------------------------------------------------------------------------------------------------


@LAWS
@given(d=st.integers(3, 40), share=st.floats(0.2, 0.9), ridge=st.floats(0.1, 100.0), seed=st.integers(0, 10**6))
def test_it_is_the_root_of_the_inverse_in_the_null_space(d: int, share: float, ridge: float, seed: int):
    moment, threshold = spectrum(torch.Generator().manual_seed(seed), d, share)
    space = Spectrum.of(moment).null_space(threshold)
    root = root_of(space, space.eigenvalues + ridge, torch.float64).matrix
    U = space.basis
    inverse = torch.linalg.inv(U.T @ moment @ U + ridge * torch.eye(space.rank).double())
    assert relative_error(root @ root.T, U @ inverse @ U.T) < 1e-12


@LAWS
@given(d=st.integers(2, 30), n=st.integers(1, 60), scale=st.floats(-3, 3), seed=st.integers(0, 10**6))
def test_keys_more_are_keys_more_in_the_system_and_go_again(d: int, n: int, scale: float, seed: int):
    random = torch.Generator().manual_seed(seed)
    matrix = torch.randn(d, d, generator=random, dtype=torch.float64) + 3 * torch.eye(d)
    keys = 10**scale * torch.randn(d, n, generator=random, dtype=torch.float64)
    root = plain(matrix)
    more = root.with_keys(keys)
    system = torch.linalg.inv(matrix @ matrix.T)
    assert relative_error(torch.linalg.inv(more.matrix @ more.matrix.T), system + keys @ keys.T) < 1e-7
    if scale < 1:
        again = more.without_keys(keys).matrix
        assert relative_error(again @ again.T, matrix @ matrix.T) < 1e-6


def test_keys_that_the_system_has_not_are_refused():
    with pytest.raises(MethodError, match="not all of these keys are among those remembered"):
        plain(torch.eye(3).double()).without_keys(torch.full((3, 1), 0.7, dtype=torch.float64))


def test_it_has_had_a_key_when_what_is_left_is_no_less_than_the_ridge():
    root = plain(torch.diag(torch.tensor([0.5, 0.5, 0.1])).double())
    key = torch.tensor([[1.0], [0.0], [0.0]], dtype=torch.float64)
    assert root.has(key, 4.0)
    assert not root.has(key, 4.1)


def test_many_keys_come_and_go_by_products_of_a_few_of_them():
    root, keys = plain(torch.eye(6).double()), numbers(6, 300)
    watch = watched(lambda: root.with_keys(keys).without_keys(keys))
    assert [side for _, side in watch.factorized] == [128, 128, 44] * 2


def test_a_key_that_held_nearly_all_the_energy_leaves_with_a_warning():
    key = torch.tensor([[1e4], [0.0]], dtype=torch.float64)
    more = plain(torch.eye(2).double()).with_keys(key)
    with pytest.warns(NumericalWarning, match="result is less exact"):
        less = more.without_keys(key)
    assert relative_error(less.matrix, torch.eye(2)) < 0.1


# --- in single precision -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [-1.0, 0.0, 1.0, 2.0])
def test_keys_far_longer_than_their_part_in_the_space_are_projected_to_seven_digits(top: float):
    moment, keys, threshold = steep_space(top)
    space = Spectrum.of(moment).null_space(threshold)
    root = root_of(space, torch.ones(space.rank).double(), torch.float32)
    exact = space.basis @ (space.basis.T @ keys)
    assert root.matrix.dtype == torch.float32
    assert relative_error(root.matrix.double() @ root.project(keys), exact) < 6e-7
    assert relative_error(root.lift(root.project(keys)), exact) < 6e-7


def test_without_its_strong_directions_a_steep_spectrum_would_cost_a_digit():
    moment, keys, threshold = steep_space(2.0)
    space = Spectrum.of(moment).null_space(threshold)
    root = root_of(space, torch.ones(space.rank).double(), torch.float32)
    assert relative_error(replace(root, strong=root.strong[:, :0]).project(keys), root.project(keys)) > 2e-6


def test_beside_a_root_in_double_no_strong_direction_is_kept():
    moment, _, threshold = steep_space(2.0)
    space = Spectrum.of(moment).null_space(threshold)
    assert space.strong.shape[1] > 0
    assert root_of(space, torch.ones(space.rank).double(), torch.float64).strong.shape == (
        300,
        0,
    )


def test_keys_more_leave_it_in_its_type():
    root, keys = plain(numbers(8, 5), torch.float32), numbers(8, 3)
    more = root.with_keys(keys)
    assert more.matrix.dtype == torch.float32
    assert relative_error(more.matrix, plain(root.matrix.double()).with_keys(keys).matrix) < 1e-6


@pytest.mark.parametrize("top", [-1.0, 2.0])
def test_scaled_by_energies_it_projects_to_six_digits_of_its_norm(top: float):
    moment, keys, threshold = steep_space(top)
    space = Spectrum.of(moment).null_space(threshold)
    energies = 1000 * space.eigenvalues.clamp(min=0) + 10
    root, exact = (root_of(space, energies, dtype) for dtype in (torch.float32, torch.float64))
    error = (root.project(keys) - exact.project(keys)).norm(dim=0)
    assert bool((error < 1e-6 * torch.linalg.matrix_norm(exact.matrix, 2) * keys.norm(dim=0)).all())


@pytest.mark.parametrize("d", [1024, 8192])
def test_the_error_of_a_projection_does_not_grow_with_the_width(d: int):
    matrix = torch.linalg.qr(numbers(d, 16)).Q
    key = numbers(d, 1)
    assert relative_error(plain(matrix, torch.float32).project(key), matrix.T @ key) < 3e-7


@pytest.mark.parametrize("d", [5, 64, 130])
@pytest.mark.parametrize("b", [0, 1, 17, 40])
def test_any_number_of_keys_of_any_width_can_be_projected(d: int, b: int):
    root, keys = plain(torch.eye(d).double(), torch.float32), numbers(d, b)
    torch.testing.assert_close(root.project(keys), keys, rtol=0, atol=1e-5)

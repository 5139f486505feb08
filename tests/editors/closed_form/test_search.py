"""Searches on losses whose lowest point is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from betaedit.editors import EditConfig
from betaedit.editors.closed_form.search import AdamSearch, ProjectedBBSearch, Search, make_search

SLACK = 1 + 1e-9


@dataclass(frozen=True)
class Quadratics:
    """``(x - c)^T A (x - c) / 2`` for every row, to be made small within ``|x| <= radius``; float64."""

    A: Tensor
    c: Tensor
    radius: Tensor

    @classmethod
    def random(cls, seed: int, n: int, d: int, condition: float, radius: float) -> Quadratics:
        """Random ones with eigenvalues between 1 and ``condition``, of random scale."""
        generator = torch.Generator().manual_seed(seed)
        basis, _ = torch.linalg.qr(torch.randn(n, d, d, dtype=torch.float64, generator=generator))
        values = 1 + (condition - 1) * torch.rand(n, d, dtype=torch.float64, generator=generator)
        scale = 10 ** (2 * torch.rand(n, dtype=torch.float64, generator=generator) - 1)
        A = scale[:, None, None] * basis @ torch.diag_embed(values) @ basis.mT
        c = torch.randn(n, d, dtype=torch.float64, generator=generator)
        return cls(A, c, torch.full((n,), radius, dtype=torch.float64))

    def __len__(self) -> int:
        return len(self.c)

    def at(self, rows: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and gradients."""
        away = x - self.c[rows]
        gradient = (self.A[rows] @ away[:, :, None])[:, :, 0]
        return (away * gradient).sum(dim=1) / 2, gradient

    def lowest(self, n_steps: int = 300) -> Tensor:
        """Their losses at the lowest points inside the balls: a great many short projected steps."""
        rows, x = torch.arange(len(self)), torch.zeros_like(self.c)
        pace = 1 / torch.linalg.matrix_norm(self.A, 2)[:, None]
        for _ in range(n_steps):
            x = into_ball(x - pace * self.at(rows, x)[1], self.radius)
        return self.at(rows, x)[0]

    def search(self, **changes: Any) -> Search:
        """A search of them, clamped to their radius: hidden states have length one."""
        config = EditConfig(**{"value_optimizer": "projected_bb", "value_clamp": float(self.radius[0]), **changes})
        hidden = torch.nn.functional.normalize(torch.ones_like(self.c))
        return make_search(hidden, config)


def into_ball(x: Tensor, radius: Tensor) -> Tensor:
    return x * (radius / x.norm(dim=1).clamp(min=1e-300)).clamp(max=1.0)[:, None]


@dataclass(frozen=True)
class Path:
    """Points ``(evaluations, n, d)`` that a search asked for, and their losses ``(evaluations, n)``."""

    points: Tensor
    losses: Tensor

    @property
    def lowest(self) -> Tensor:
        return self.losses.amin(dim=0)


def follow(search: Search, n: int, loss_at: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], n_evaluations: int):
    rows, points, losses = torch.arange(n), [], []
    for _ in range(n_evaluations):
        x = search.points(rows).clone()
        loss, gradient = loss_at(rows, x)
        points.append(x)
        losses.append(loss)
        search.step(rows, loss, gradient)
    return Path(torch.stack(points), torch.stack(losses))


def scripted(heights: list[float], slope: tuple[float, ...] = (1.0, 0.0)):
    """Losses told in advance, always downhill along ``-slope``."""
    remaining = iter(heights)
    return lambda rows, x: (torch.full((len(x),), next(remaining), dtype=x.dtype), torch.tensor([slope], dtype=x.dtype))


def line_search(**changes: Any) -> Search:
    """A search in the plane for a hidden state of length one, in a large ball."""
    config = EditConfig(**{"value_optimizer": "projected_bb", "value_clamp": 100.0, **changes})
    return make_search(torch.tensor([[1.0, 0.0]], dtype=torch.float64), config)


problems = st.builds(
    Quadratics.random,
    seed=st.integers(0, 10**6),
    n=st.integers(1, 4),
    d=st.integers(1, 8),
    condition=st.floats(1.0, 8.0),
    radius=st.floats(0.05, 5.0),
)


# ---- projected gradient with Barzilai-Borwein steps


@given(problems, st.floats(0.01, 3.0), st.floats(0.01, 3.0))
@settings(max_examples=50, deadline=None)
def test_a_projected_bb_search_stays_inside_the_ball(problem: Quadratics, first: float, longest: float):
    path = follow(problem.search(value_first_step=first, value_longest_step=longest), len(problem), problem.at, 25)
    assert torch.isfinite(path.points).all()
    assert bool((path.points.norm(dim=2) <= problem.radius * SLACK).all())


@given(problems)
@settings(max_examples=50, deadline=None)
def test_a_projected_bb_search_finds_the_lowest_point_of_the_ball_within_thirty_evaluations(problem: Quadratics):
    path = follow(problem.search(), len(problem), problem.at, 30)
    start, lowest = path.losses[0], problem.lowest()
    assert bool((path.lowest - lowest <= 1e-6 * (start - lowest) + 1e-12).all())


@given(problems)
@settings(max_examples=50, deadline=None)
def test_after_every_evaluation_a_projected_bb_search_goes_on_downhill_from_the_lowest_point_met(problem: Quadratics):
    """Each point is the projection of a step against the slope of the lowest one so far, never longer than allowed."""
    path = follow(problem.search(value_longest_step=0.5), len(problem), problem.at, 12)
    rows = torch.arange(len(problem))
    for turn in range(1, 12):
        met = path.losses[:turn].argmin(dim=0)
        best = path.points[met, rows]
        _, slope = problem.at(rows, best)
        moved = path.points[turn] - best
        assert bool((moved.norm(dim=1) <= 0.5 * SLACK).all())
        assert bool(((moved * slope).sum(dim=1) <= 1e-12).all())


def test_where_a_loss_bends_alike_in_all_directions_the_third_evaluation_is_at_its_lowest_point():
    c = torch.tensor([[0.3, -0.4, 1.2]], dtype=torch.float64)
    for bend in (0.1, 1.0, 30.0):
        problem = Quadratics(bend * torch.eye(3, dtype=torch.float64)[None], c, torch.tensor([5.0]))
        path = follow(problem.search(value_first_step=0.2, value_longest_step=5.0), 1, problem.at, 3)
        torch.testing.assert_close(path.points[2], c)


@pytest.mark.parametrize("first", [0.1, 0.35, 2.0])
def test_the_first_step_has_the_stated_length_in_norms_of_the_hidden_state_against_the_slope(first: float):
    hidden = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    search = make_search(hidden, EditConfig(value_optimizer="projected_bb", value_first_step=first, value_clamp=9.0))
    rows = torch.arange(2)
    assert torch.equal(search.points(rows), torch.zeros(2, 2))
    search.step(rows, torch.tensor([7.0, 8.0]), torch.tensor([[0.0, 1e-3], [500.0, 0.0]]))
    torch.testing.assert_close(search.points(rows), torch.tensor([[0.0, -5 * first], [-first, 0.0]]))


def test_a_first_step_that_leads_out_of_the_ball_ends_on_its_surface():
    search = line_search(value_first_step=2.0, value_clamp=0.75)
    assert follow(search, 1, scripted([3.0, 2.0]), 2).points[1].tolist() == [[-0.75, 0.0]]


def test_a_step_over_a_loss_that_does_not_bend_upwards_has_the_longest_length():
    search = line_search(value_first_step=0.1, value_longest_step=0.5)
    path = follow(search, 1, scripted([3.0, 2.0, 1.0]), 3)
    torch.testing.assert_close(path.points[:, 0, 0], torch.tensor([0.0, -0.1, -0.6], dtype=torch.float64))


def test_a_loss_that_rises_halves_the_reach_until_it_falls():
    search = line_search(value_first_step=0.8)
    path = follow(search, 1, scripted([3.0, 5.0, 4.0, 3.0, 2.0]), 5)
    torch.testing.assert_close(path.points[:, 0, 0], torch.tensor([0.0, -0.8, -0.4, -0.2, -0.1], dtype=torch.float64))


@pytest.mark.parametrize("height", [float("inf"), float("nan")])
def test_a_loss_that_is_not_finite_counts_as_a_rise(height: float):
    search = line_search(value_first_step=0.8)
    path = follow(search, 1, scripted([3.0, height, 2.0]), 3)
    torch.testing.assert_close(path.points[:, 0, 0], torch.tensor([0.0, -0.8, -0.4], dtype=torch.float64))


def test_a_search_at_a_point_without_slope_stays_there():
    path = follow(line_search(), 1, scripted([3.0, 3.0, 3.0], slope=(0.0, 0.0)), 3)
    assert torch.equal(path.points, torch.zeros(3, 1, 2, dtype=torch.float64))


# ---- L-BFGS


@given(problems, st.floats(0.01, 3.0), st.floats(0.01, 3.0))
@settings(max_examples=50, deadline=None)
def test_an_lbfgs_search_stays_inside_the_ball(problem: Quadratics, first: float, longest: float):
    search = problem.search(value_optimizer="lbfgs", value_first_step=first, value_longest_step=longest)
    path = follow(search, len(problem), problem.at, 25)
    assert torch.isfinite(path.points).all()
    assert bool((path.points.norm(dim=2) <= problem.radius * SLACK).all())


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 8), st.floats(1.0, 50.0))
@settings(max_examples=50, deadline=None)
def test_an_lbfgs_search_finds_a_lowest_point_that_lies_inside_the_ball(seed: int, n: int, d: int, condition: float):
    problem = Quadratics.random(seed, n, d, condition, 100.0)
    path = follow(problem.search(value_optimizer="lbfgs", value_longest_step=5.0), n, problem.at, 60)
    assert bool((path.lowest <= 1e-4 * path.losses[0] + 1e-12).all())


@pytest.mark.parametrize("first", [0.1, 0.35, 2.0])
def test_the_first_step_of_lbfgs_has_the_stated_length_against_the_slope(first: float):
    hidden = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    search = make_search(hidden, EditConfig(value_optimizer="lbfgs", value_first_step=first, value_clamp=9.0))
    rows = torch.arange(2)
    search.step(rows, torch.tensor([7.0, 8.0]), torch.tensor([[0.0, 1e-3], [500.0, 0.0]]))
    torch.testing.assert_close(search.points(rows), torch.tensor([[0.0, -5 * first], [-first, 0.0]]))


@pytest.mark.parametrize("height", [5.0, float("inf"), float("nan")])
def test_lbfgs_goes_half_as_far_after_a_loss_that_is_not_lower(height: float):
    search = line_search(value_optimizer="lbfgs", value_first_step=0.8)
    path = follow(search, 1, scripted([3.0, height, height, 2.0]), 4)
    torch.testing.assert_close(path.points[:, 0, 0], torch.tensor([0.0, -0.8, -0.4, -0.2], dtype=torch.float64))


# ---- Adam


@given(problems, st.floats(0.01, 1.0))
@settings(max_examples=30, deadline=None)
def test_an_adam_search_is_torchs_adam_pulled_back_into_the_ball(problem: Quadratics, rate: float):
    search = problem.search(value_optimizer="adam", value_learning_rate=rate)
    path = follow(search, len(problem), problem.at, 15)
    for row in range(len(problem)):
        x = torch.zeros(problem.c.shape[1], dtype=torch.float64, requires_grad=True)
        adam = torch.optim.Adam([x], lr=rate)
        for point in path.points[:, row]:
            torch.testing.assert_close(point, x.detach())
            adam.zero_grad()
            away = x - problem.c[row]
            (away @ problem.A[row] @ away / 2).backward()
            adam.step()
            with torch.no_grad():
                if x.norm() > problem.radius[row]:
                    x.mul_(problem.radius[row] / x.norm())


# ---- both

EVERY = pytest.mark.parametrize("optimizer", ["adam", "projected_bb", "lbfgs"])


@EVERY
@given(seed=st.integers(0, 10**6), lives=st.lists(st.integers(1, 10), min_size=2, max_size=4))
@settings(max_examples=20, deadline=None)
def test_each_row_of_a_batch_goes_the_way_it_goes_alone_however_long_the_others_stay(
    optimizer: str, seed: int, lives: list[int]
):
    problem = Quadratics.random(seed, len(lives), 4, 5.0, 1.0)
    together = problem.search(value_optimizer=optimizer)
    ways: list[list[Tensor]] = [[] for _ in lives]
    for turn in range(max(lives)):
        rows = torch.tensor([row for row, life in enumerate(lives) if turn < life])
        points = together.points(rows).clone()
        for row, point in zip(rows.tolist(), points, strict=True):
            ways[row].append(point)
        together.step(rows, *problem.at(rows, points))
    for row, life in enumerate(lives):
        single = Quadratics(problem.A[row : row + 1], problem.c[row : row + 1], problem.radius[row : row + 1])
        alone = follow(single.search(value_optimizer=optimizer), 1, single.at, life)
        torch.testing.assert_close(torch.stack(ways[row]), alone.points[:, 0])


@EVERY
def test_points_handed_out_are_not_moved_by_later_steps(optimizer: str):
    problem = Quadratics.random(0, 2, 3, 4.0, 1.0)
    search, rows = problem.search(value_optimizer=optimizer), torch.arange(2)
    search.step(rows, *problem.at(rows, search.points(rows)))
    points = search.points(rows)
    before = points.clone()
    search.step(rows, *problem.at(rows, points))
    assert torch.equal(points, before)
    assert not points.requires_grad
    assert not torch.equal(search.points(rows), before)


def test_the_configuration_names_the_search_and_adam_as_published_is_the_default():
    hidden = torch.ones(1, 2)
    assert isinstance(make_search(hidden, EditConfig()), AdamSearch)
    assert isinstance(make_search(hidden, EditConfig(value_optimizer="projected_bb")), ProjectedBBSearch)


def test_only_the_projected_bb_search_keeps_the_lowest_point_met():
    """Adam's last point is the published result; the loop of values asks the search which one counts."""
    assert ProjectedBBSearch.keeps_best
    assert not AdamSearch.keeps_best

"""Minimizers of the loss of values: Adam as published, projected Barzilai-Borwein gradient, or L-BFGS.

A search holds one point per fact, the change ``delta`` ``(d_out,)``, inside a ball around zero. The caller evaluates
loss and gradient at the points of the facts still under way and hands them to ``step``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from betaedit.editors.closed_form.config import EditConfig

_PAIRS = 8
_LEAST_CURVATURE = 1e-6


class Search(Protocol):
    """One point per fact, moved downhill."""

    keeps_best: ClassVar[bool]
    """Whether the lowest point met is the result, or the last one."""

    def points(self, rows: Tensor) -> Tensor:
        """``(a, d_out)`` where the facts ``rows`` ``(a,)`` are to be evaluated next."""

    def step(self, rows: Tensor, loss: Tensor, gradient: Tensor) -> None:
        """Move on, given loss ``(a,)`` and gradient ``(a, d_out)`` of the facts ``rows`` at their points."""


def make_search(initial: Tensor, config: EditConfig) -> Search:
    """The search that ``config`` names, at zero; ``initial`` ``(b, d_out)`` are the hidden states to be changed."""
    return _SEARCHES[config.value_optimizer](initial.norm(dim=1), initial, config)


class AdamSearch:
    """Adam with steps pulled back into the ball (methods.md A.5)."""

    keeps_best: ClassVar[bool] = False

    def __init__(self, lengths: Tensor, initial: Tensor, config: EditConfig) -> None:
        self._radius = config.value_clamp * lengths
        self._points = [torch.zeros_like(row).requires_grad_() for row in initial]
        self._adam = torch.optim.Adam(self._points, lr=config.value_learning_rate)

    def points(self, rows: Tensor) -> Tensor:
        """See ``Search``."""
        return torch.stack([self._points[row] for row in rows.tolist()]).detach()

    def step(self, rows: Tensor, loss: Tensor, gradient: Tensor) -> None:
        """One Adam step of each fact in ``rows``; the others, without a gradient, stay."""
        self._adam.zero_grad()
        for row, slope in zip(rows.tolist(), gradient, strict=True):
            self._points[row].grad = slope
        self._adam.step()
        with torch.no_grad():
            for row in rows.tolist():
                self._points[row].copy_(_into_ball(self._points[row], self._radius[row]))


class _Descent:
    """What searches from the lowest point met have in common: that point, its loss and slope, and how far to go."""

    keeps_best: ClassVar[bool] = True

    def __init__(self, lengths: Tensor, initial: Tensor, config: EditConfig) -> None:
        self._radius = config.value_clamp * lengths
        self._longest = config.value_longest_step * lengths
        self._reach = config.value_first_step * lengths
        self._points = torch.zeros_like(initial)
        self._best = torch.zeros_like(initial)
        self._slope = torch.zeros_like(initial)
        self._loss = torch.full_like(lengths, torch.inf)

    def points(self, rows: Tensor) -> Tensor:
        """See ``Search``."""
        return self._points[rows]

    def _differences(self, rows: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """``(a, d_out)`` how far the points are from the lowest ones met, and how the gradient differs there."""
        return self._points[rows] - self._best[rows], gradient - self._slope[rows]

    def _keep_lower(self, rows: Tensor, lower: Tensor, loss: Tensor, gradient: Tensor) -> None:
        """Make the points of the rows that are ``lower`` ``(a,)`` the lowest ones met."""
        keep = lower[:, None]
        self._best[rows] = torch.where(keep, self._points[rows], self._best[rows])
        self._slope[rows] = torch.where(keep, gradient, self._slope[rows])
        self._loss[rows] = torch.where(lower, loss, self._loss[rows])


class ProjectedBBSearch(_Descent):
    """Projected gradient with Barzilai-Borwein step lengths (Birgin, Martinez and Raydan 2000), safeguarded.

    From the lowest point met, ``s`` and ``y`` the last differences of point and gradient, the step is
    ``-(s.s / s.y) g``, no longer than ``value_longest_step``; the first one has length ``value_first_step``, both in
    norms of the hidden state. A point that is not lower is given up: the next one is half as far.
    """

    def step(self, rows: Tensor, loss: Tensor, gradient: Tensor) -> None:
        """See ``Search``."""
        lower, begun = loss < self._loss[rows], torch.isfinite(self._loss[rows])
        moved, turned = self._differences(rows, gradient)
        curvature = (moved * turned).sum(dim=1)
        longer = moved.square().sum(dim=1) / curvature * gradient.norm(dim=1)
        longer = torch.where(curvature > 0, longer, torch.inf).minimum(self._longest[rows])
        onward = torch.where(begun, longer, self._reach[rows])
        self._reach[rows] = torch.where(lower, onward, moved.norm(dim=1) / 2)
        self._keep_lower(rows, lower, loss, gradient)
        slope = self._slope[rows]
        steepest = slope / slope.norm(dim=1, keepdim=True).clamp(min=torch.finfo(slope.dtype).tiny)
        ahead = self._best[rows] - self._reach[rows, None] * steepest
        self._points[rows] = _into_ball(ahead, self._radius[rows, None])


class QuasiNewtonSearch(_Descent):
    """L-BFGS (Liu and Nocedal 1989) within the ball, from the lowest point met.

    The direction is ``-H g`` with ``H`` made of the last eight pairs of differences of point and gradient. A first step
    has length ``value_first_step``, none is longer than ``value_longest_step``, both in norms of the hidden state. A
    point that is not lower still tells of the curvature, and halves the length of the next step.
    """

    def __init__(self, lengths: Tensor, initial: Tensor, config: EditConfig) -> None:
        super().__init__(lengths, initial, config)
        self._moved = initial.new_zeros(_PAIRS, *initial.shape)
        self._turned = initial.new_zeros(_PAIRS, *initial.shape)

    def step(self, rows: Tensor, loss: Tensor, gradient: Tensor) -> None:
        """See ``Search``."""
        lower, begun = loss < self._loss[rows], torch.isfinite(self._loss[rows])
        moved, turned = self._differences(rows, gradient)
        self._learn(rows[begun], moved[begun], turned[begun])
        onward = torch.where(begun, self._longest[rows], self._reach[rows])
        self._reach[rows] = torch.where(lower, onward, moved.norm(dim=1) / 2)
        self._keep_lower(rows, lower, loss, gradient)
        direction, known = self._direction(rows)
        length = direction.norm(dim=1).clamp(min=torch.finfo(direction.dtype).tiny)
        wanted = torch.where(known, length.minimum(self._reach[rows]), self._reach[rows])
        ahead = self._best[rows] + direction * (wanted / length)[:, None]
        self._points[rows] = _into_ball(ahead, self._radius[rows, None])

    def _learn(self, rows: Tensor, moved: Tensor, turned: Tensor) -> None:
        """Remember a pair of each of ``rows`` whose curvature is positive, in the place of its oldest."""
        curved = (moved * turned).sum(dim=1) > _LEAST_CURVATURE * moved.norm(dim=1) * turned.norm(dim=1)
        for pairs, new in ((self._moved, moved), (self._turned, turned)):
            held = pairs[:, rows[curved]]
            pairs[:, rows[curved]] = torch.cat([held[1:], new[curved][None]])

    def _direction(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """``-H g`` ``(a, d_out)`` by the two loops over the pairs, and which rows have any; ``-g`` without."""
        moved, turned = self._moved[:, rows], self._turned[:, rows]
        curvature = (moved * turned).sum(dim=2)  # zero where there is no pair yet
        weight = torch.where(curvature > 0, 1 / curvature, 0.0)
        found, shares = self._slope[rows].clone(), []
        for at in reversed(range(_PAIRS)):
            shares.append(weight[at] * (moved[at] * found).sum(dim=1))
            found -= shares[-1][:, None] * turned[at]
        known = curvature[-1] > 0
        scale = torch.where(known, curvature[-1] / turned[-1].square().sum(dim=1), 1.0)
        found *= scale[:, None]
        for at in range(_PAIRS):
            back = weight[at] * (turned[at] * found).sum(dim=1)
            found += (shares[_PAIRS - 1 - at] - back)[:, None] * moved[at]
        return -found, known


def _into_ball(points: Tensor, radius: Tensor) -> Tensor:
    """``points`` ``(..., d_out)`` pulled back to at most ``radius`` from zero."""
    shrink: Tensor = radius / points.norm(dim=-1, keepdim=points.dim() > 1)
    return points * shrink.clamp(max=1.0)


_SEARCHES: dict[str, Callable[[Tensor, Tensor, EditConfig], Search]] = {
    "adam": AdamSearch,
    "projected_bb": ProjectedBBSearch,
    "lbfgs": QuasiNewtonSearch,
}

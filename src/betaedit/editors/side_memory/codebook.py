"""The entries of a codebook: which prompt finds which, and how a new one changes the radii (methods.md F.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

Label = tuple[int, ...]

_GAP = 1e-5
_ROUNDINGS = 64.0


@dataclass(frozen=True)
class Codebook:
    """Keys with values, radii and the answers that they stand for.

    Args:
        keys: ``(m, d_in)``.
        values: ``(m, d_out)``.
        radii: ``(m,)``.
        labels: The answer's token ids, of each.
        first_radius: Radius of a new entry.
    """

    keys: Tensor
    values: Tensor
    radii: Tensor
    labels: tuple[Label, ...]
    first_radius: float

    @classmethod
    def empty(cls, d_in: int, d_out: int, first_radius: float, device: torch.device) -> Codebook:
        """One without entries."""
        keys, values, radii = (torch.zeros(shape, device=device) for shape in ((0, d_in), (0, d_out), (0,)))
        return cls(keys, values, radii, (), first_radius)

    def __len__(self) -> int:
        """How many entries there are."""
        return len(self.labels)

    def tell(self, query: Tensor, label: Label, start: Tensor) -> tuple[Codebook, int]:
        """The codebook after the fact with key ``query`` ``(d_in,)`` and answer ``label``; the entry that serves it.

        A new entry has the value ``start`` ``(d_out,)``.
        """
        if not len(self):
            return self._with(query, label, start, self.first_radius), 0
        distances = distances_between(query[None], self.keys)[0]
        nearest = int(distances.argmin())
        distance, radius = float(distances[nearest]), float(self.radii[nearest])
        if distance > self.first_radius + radius:
            return self._with(query, label, start, self.first_radius), len(self)
        if label != self.labels[nearest]:
            split = self._resized(nearest, distance / 2 - _GAP)
            return split._with(query, label, start, distance / 2), len(self)
        return (self._resized(nearest, distance) if distance > radius else self), nearest

    def with_value(self, entry: int, value: Tensor) -> Codebook:
        """The same with another value of one entry."""
        values = self.values.clone()
        values[entry] = value
        return replace(self, values=values)

    def find(self, queries: Tensor) -> Tensor:
        """``(n,)`` the entry that each of ``queries`` ``(n, d_in)`` is within, ``-1`` for none.

        Radii are wider by what rounding moves a key: padding and other rows change how a pass is rounded.
        """
        if not len(self):
            return torch.full((len(queries),), -1, device=queries.device)
        distances, nearest = distances_between(queries, self.keys.to(queries.device)).min(dim=1)
        slack = _ROUNDINGS * torch.finfo(queries.dtype).eps * queries.float().norm(dim=1)
        within = distances <= self.radii.to(queries.device)[nearest] + slack
        return nearest.where(within, -1)

    def _with(self, query: Tensor, label: Label, value: Tensor, radius: float) -> Codebook:
        return replace(
            self,
            keys=torch.cat([self.keys, query[None].to(self.keys)]),
            values=torch.cat([self.values, value[None].to(self.values)]),
            radii=torch.cat([self.radii, self.radii.new_tensor([radius])]),
            labels=(*self.labels, label),
        )

    def _resized(self, entry: int, radius: float) -> Codebook:
        radii = self.radii.clone()
        radii[entry] = radius
        return replace(self, radii=radii)


def distances_between(queries: Tensor, keys: Tensor) -> Tensor:
    """``(n, m)`` Euclidean distances in float32, from differences: products would lose those of near keys."""
    return torch.cdist(queries.float(), keys.float(), compute_mode="donot_use_mm_for_euclid_dist")

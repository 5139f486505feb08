"""The parts of a layer of the Llama kind, each with its way back: it returns its result and a function of the gradient.

Hidden states are rows ``(n, d)``. That a model's layers compute just this is for models/lean.py to see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache

from betaedit.models.native.kernels import Kernels, Matrices, kernels_for

Back = Callable[[Tensor], Tensor]
Part = Callable[[Tensor], tuple[Tensor, Back]]
Pause = Callable[[Tensor], None]
Places = tuple[Tensor, Tensor]


class Positions(NamedTuple):
    """What the layers of one run share.

    Args:
        cosines: ``(n, 1, head_dim)`` of the rotary angles.
        sines: Likewise, those of the first half negated.
        mask: ``(g * kv, h / kv * width, prior + width)``, added to attention scores.
        grid: ``(g, width)``: attention runs over so many rows of so many entries.
        places: Row and entry of each of the ``n`` positions there; all of them, one row after the other, without.
    """

    cosines: Tensor
    sines: Tensor
    mask: Tensor
    grid: tuple[int, int]
    places: Places | None

    @property
    def all_places(self) -> Places:
        """Row and entry of each position, whether or not all of the grid are positions."""
        if self.places is not None:
            return self.places
        n, width = math.prod(self.grid), self.grid[1]
        each = torch.arange(n, device=self.mask.device)
        return each // width, each % width

    @classmethod
    def of(
        cls,
        angles: tuple[Tensor, Tensor],
        mask: Tensor,
        heads: tuple[int, int],
        places: Places | None = None,
    ) -> Positions:
        """From a layer's arguments and its ``(kv, h / kv)`` heads.

        Angles are two of ``(g or 1, width, head_dim)``; a mask ``(g, 1, width, prior + width)`` is added or allows.
        """
        g, width = mask.shape[0], mask.shape[2]
        cosines, sines = (taken(each.expand(g, -1, -1), places)[:, None] for each in angles)
        half = sines.shape[-1] // 2
        sines = torch.cat([-sines[..., :half], sines[..., half:]], dim=-1)
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=cosines.dtype).masked_fill_(~mask, torch.finfo(cosines.dtype).min)
        kv, share = heads
        mask = mask[:, :, None].expand(-1, kv, share, -1, -1).reshape(g * kv, share * width, -1)
        return cls(cosines, sines, mask.to(cosines.dtype), (g, width), places)

    def turn(self, heads: Tensor) -> Tensor:
        """``heads`` ``(n, h, head_dim)`` turned by the angles."""
        return (heads * self.cosines).addcmul_(heads.roll(heads.shape[-1] // 2, -1), self.sines)

    def turn_back(self, gradient: Tensor) -> Tensor:
        """The gradient before ``turn``."""
        return (gradient * self.cosines).add_((gradient * self.sines).roll(gradient.shape[-1] // 2, -1))

    def by_heads(self, rows: Tensor) -> Tensor:
        """``(n, h, dim)`` as ``(g, h, width, dim)``, zero where no position is."""
        return given_back(rows, self.grid, self.places).transpose(1, 2)

    def by_positions(self, heads: Tensor) -> Tensor:
        """``(g, h, width, dim)`` as ``(n, h, dim)``."""
        return taken(heads.transpose(1, 2), self.places)


@dataclass(frozen=True)
class Norm:
    """RMSNorm over the last axis, computed in float32 at least.

    Args:
        weight: ``(size,)``.
        epsilon: ``(1,)``.
    """

    weight: Tensor
    epsilon: Tensor

    @classmethod
    def of(cls, norm: Any) -> Norm:
        """Of the model's own."""
        weight: Tensor = norm.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        return cls(weight, torch.full((1,), norm.variance_epsilon, dtype=wide, device=weight.device))

    def __call__(self, x: Tensor) -> tuple[Tensor, Back]:
        """``x`` ``(..., size)`` normed, and the way back."""
        dtype, size = x.dtype, x.shape[-1]
        x = x.to(self.epsilon.dtype)
        squares = (x * x).sum(dim=-1, keepdim=True)
        scale = torch.add(self.epsilon, squares, alpha=1 / size).rsqrt_()
        normed = x * scale

        def back(gradient: Tensor) -> Tensor:
            slope = (gradient * self.weight).to(normed.dtype)
            along = (slope * normed).sum(dim=-1, keepdim=True)
            return slope.addcmul_(normed, along, value=-1 / size).mul_(scale).to(dtype)

        return normed.to(dtype) * self.weight, back


@dataclass(frozen=True)
class Projections:
    """``W x + b`` for one ``x`` and several ``W``.

    Args:
        weights: ``(d_out, d_in)`` of each.
        biases: ``(d_out,)`` or nothing, of each.
        sizes: ``d_out`` of each.
        native: Kernels for all of them, and the same as these take them; none where they do not.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    sizes: tuple[int, ...]
    native: tuple[Kernels, Matrices] | None = None

    @classmethod
    def of(cls, *linears: nn.Linear) -> Projections:
        """Those of the model's own layers, read once: a module takes longer to tell its weight than a view to make."""
        weights, biases = (tuple(getattr(linear, name) for linear in linears) for name in ("weight", "bias"))
        kernels = kernels_for(*weights)
        native = None if kernels is None else (kernels, Matrices(weights, biases))
        return cls(weights, biases, tuple(map(len, weights)), native)

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        """``(n, d_out)`` of rows ``x`` ``(n, d_in)``, for each of them."""
        if self.native_at(len(x)) is not None:
            return self.together(x).split_with_sizes(self.sizes, 1)
        return [nn.functional.linear(x, *pair) for pair in zip(self.weights, self.biases, strict=True)]

    def together(self, x: Tensor) -> Tensor:
        """The same side by side."""
        if (native := self.native_at(len(x))) is not None:
            kernels, matrices = native
            return kernels.product(matrices, x).to(x.dtype)
        products = self(x)
        return products[0] if len(products) == 1 else torch.cat(list(products), dim=1)

    def back(self, *gradients: Tensor) -> Tensor:
        """``(n, d_in)`` the gradient of ``x``, from that of each product."""
        if (native := self.native_at(len(gradients[0]))) is not None:
            kernels, matrices = native
            return kernels.product_back(matrices, torch.cat(gradients, dim=1)).to(gradients[0].dtype)
        rows = torch.mm(gradients[0], self.weights[0])
        for gradient, weight in zip(gradients[1:], self.weights[1:], strict=True):
            rows.addmm_(gradient, weight)
        return rows

    def native_at(self, n: int) -> tuple[Kernels, Matrices] | None:
        """``native`` where that is quicker at so many rows."""
        quicker = self.native is not None and 0 < n <= self.native[0].most_rows[self.weights[0].dtype]
        return self.native if quicker else None


@dataclass(frozen=True)
class Attention:
    """Attention of the new positions to those before and to one another, without its residual connection.

    Args:
        entering: The projections to queries, keys and values.
        leaving: The one behind attention.
        norms: Of queries and of keys, head by head; none in most models.
        scaling: Of the scores.
        head_dim: Width of a head.
        cache: Puts keys and values of the positions before in front of new ones, or keeps these.
        index: The layer's number there.
        positions: Angles and mask.
    """

    entering: Projections
    leaving: Projections
    norms: tuple[Norm, ...]
    scaling: float
    head_dim: int
    cache: Cache | None
    index: int
    positions: Positions

    def __call__(self, x: Tensor) -> tuple[Tensor, Back]:
        """What attention adds ``(n, d)`` at normed states ``x`` ``(n, d)``, and the way back."""
        heads = [size // self.head_dim for size in self.entering.sizes]
        n_turned = heads[0] + heads[1]
        entering = _heads(self.entering.together(x), self.head_dim)
        turning, values = entering[:, :n_turned], entering[:, n_turned:]
        normed = [norm(each) for norm, each in zip(self.norms, turning.split_with_sizes(heads[:2], 1), strict=False)]
        turned = self.positions.turn(torch.cat([each for each, _ in normed], dim=1) if normed else turning)
        mixed, mixed_back = self._mix(turned, values)

        def back(gradient: Tensor) -> Tensor:
            slope = mixed_back(self.leaving.back(gradient))
            slopes = list(self.positions.turn_back(slope[:, :n_turned]).split_with_sizes(heads[:2], 1))
            if normed:
                slopes = [norm_back(slope) for (_, norm_back), slope in zip(normed, slopes, strict=True)]
            return self.entering.back(*(each.flatten(1) for each in (*slopes, slope[:, n_turned:])))

        return self.leaving.together(mixed), back

    def _mix(self, turned: Tensor, values: Tensor) -> tuple[Tensor, Back]:
        """``(n, h * head_dim)``, from queries and keys ``(n, h + kv, head_dim)`` and values ``(n, kv, head_dim)``.

        The way back gives ``(n, h + 2 kv, head_dim)``, of all three.
        """
        kv, dim = values.shape[1:]
        h, (g, width) = turned.shape[1] - kv, self.positions.grid
        both = self.positions.by_heads(turned)
        queries = both[:, :h].reshape(g * kv, -1, dim)
        new = both[:, h:], self.positions.by_heads(values)
        if self.cache is not None:
            new = self.cache.update(*new, self.index)
        keys, all_values = (each.reshape(g * kv, -1, dim) for each in new)
        prior = keys.shape[1] - width
        scores = torch.baddbmm(self.positions.mask, queries, keys.transpose(1, 2), alpha=self.scaling)
        shares = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)

        def back(gradient: Tensor) -> Tensor:
            slope = self.positions.by_heads(_heads(gradient, dim)).reshape(g * kv, -1, dim)
            value_slope = torch.bmm(shares[:, :, prior:].transpose(1, 2), slope)
            slope = torch.bmm(slope, all_values.transpose(1, 2))
            slope = torch._softmax_backward_data(slope, shares, -1, shares.dtype)
            key_slope = self._scaled(slope[:, :, prior:].transpose(1, 2), queries)
            slopes = (self._scaled(slope, keys), key_slope, value_slope)
            return self.positions.by_positions(torch.cat([each.view(g, -1, width, dim) for each in slopes], dim=1))

        return self.positions.by_positions(torch.bmm(shares, all_values).view(g, h, width, dim)).flatten(1), back

    def _scaled(self, left: Tensor, right: Tensor) -> Tensor:
        """Batched product, scaled like the scores."""
        return torch.baddbmm(left.new_empty(()), left, right, beta=0, alpha=self.scaling)


@dataclass(frozen=True)
class Mlp:
    """``W_down (silu(W_gate x) * W_up x)``.

    Args:
        entering: ``W_gate`` and ``W_up``.
        leaving: ``W_down``.
        pause: Is given what enters ``W_down``, ``(n, d_in)``, and may change that before it is used.
    """

    entering: Projections
    leaving: Projections
    pause: Pause | None = None

    def __call__(self, x: Tensor) -> tuple[Tensor, Back]:
        """What the MLP adds ``(n, d)`` at normed states ``x`` ``(n, d)``, and the way back."""
        gate, up = self.entering(x)
        active = nn.functional.silu(gate)
        product = active * up
        if self.pause is not None:
            self.pause(product)

        def back(gradient: Tensor) -> Tensor:
            slope = self.leaving.back(gradient)
            gate_slope = torch.ops.aten.silu_backward(slope * up, gate)
            return self.entering.back(gate_slope, slope.mul_(active))

        return self.leaving.together(product), back


@dataclass(frozen=True)
class Layer:
    """One decoder layer."""

    first_norm: Norm
    attention: Attention
    second_norm: Norm
    mlp: Mlp

    def __call__(self, x: Tensor) -> tuple[Tensor, Back]:
        """States ``(n, d)`` after the layer, and the way back."""
        normed, first_back = self.first_norm(x)
        attended, attention_back = self.attention(normed)
        middle = attended.add_(x)
        normed, second_back = self.second_norm(middle)
        changed, mlp_back = self.mlp(normed)

        def back(gradient: Tensor) -> Tensor:
            slope = second_back(mlp_back(gradient)).add_(gradient)
            return first_back(attention_back(slope)).add_(slope)

        return changed.add_(middle), back


def _heads(rows: Tensor, dim: int) -> Tensor:
    """``(n, h * dim)`` as ``(n, h, dim)``."""
    return rows.view(len(rows), rows.shape[1] // dim, dim)


def taken(entries: Tensor, places: Places | None) -> Tensor:
    """``(n, ...)`` at their places in ``(g, width, ...)``."""
    return entries.flatten(0, 1).contiguous() if places is None else entries[places]


def given_back(rows: Tensor, grid: Sequence[int], places: Places | None) -> Tensor:
    """``(n, ...)`` in their places in ``grid``: ``(g, width, ...)``, zero elsewhere."""
    if places is None:
        return rows.view(*grid, *rows.shape[1:])
    return rows.new_zeros(*grid, *rows.shape[1:]).index_put_(places, rows)

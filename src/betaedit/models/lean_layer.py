"""The parts of a layer of the Llama kind, each with its way back: it returns its result and a function of the gradient.

Hidden states are columns ``(d, n)``, the quick way round for the products (models/linear.py). That a model's layers
compute just this is for models/lean.py to see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache

from betaedit.models.copies import packed_product
from betaedit.models.linear import column_product, is_by_avx2

Back = Callable[[Tensor], Tensor]
Pause = Callable[[Tensor], None]


class Positions(NamedTuple):
    """What the layers of one run share.

    Args:
        cosines: ``(head_dim, g * width)`` of the rotary angles.
        sines: Likewise, those of the first half negated.
        mask: ``(g * kv, h / kv * width, prior + width)``, added to attention scores.
    """

    cosines: Tensor
    sines: Tensor
    mask: Tensor

    @classmethod
    def of(cls, angles: tuple[Tensor, Tensor], mask: Tensor, heads: tuple[int, int]) -> Positions:
        """From a layer's arguments and its ``(kv, h / kv)`` heads.

        Angles are two of ``(g or 1, width, head_dim)``; a mask ``(g, 1, width, prior + width)`` is added or allows.
        """
        g, width = mask.shape[0], mask.shape[2]
        cosines, sines = (each.expand(g, -1, -1).reshape(g * width, -1).t().contiguous() for each in angles)
        half = len(sines) // 2
        sines = torch.cat([-sines[:half], sines[half:]])
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=cosines.dtype).masked_fill_(~mask, torch.finfo(cosines.dtype).min)
        kv, share = heads
        mask = mask[:, :, None].expand(-1, kv, share, -1, -1).reshape(g * kv, share * width, -1)
        return cls(cosines, sines, mask.to(cosines.dtype))

    def turn(self, heads: Tensor) -> Tensor:
        """``heads`` ``(h, head_dim, n)`` turned by the angles."""
        return (heads * self.cosines).addcmul_(heads.roll(heads.shape[1] // 2, 1), self.sines)

    def turn_back(self, gradient: Tensor) -> Tensor:
        """The gradient before ``turn``."""
        return (gradient * self.cosines).add_((gradient * self.sines).roll(gradient.shape[1] // 2, 1))


@dataclass(frozen=True)
class Norm:
    """RMSNorm over the second last axis, computed in float32 at least.

    Args:
        weight: ``(size, 1)``.
        epsilon: ``(1, 1)``.
    """

    weight: Tensor
    epsilon: Tensor

    @classmethod
    def of(cls, norm: Any) -> Norm:
        """Of the model's own."""
        weight: Tensor = norm.weight[:, None]
        wide = torch.promote_types(weight.dtype, torch.float32)
        return cls(weight, torch.full((1, 1), norm.variance_epsilon, dtype=wide, device=weight.device))

    def __call__(self, x: Tensor) -> tuple[Tensor, Back]:
        """``x`` ``(..., size, n)`` normed, and the way back."""
        dtype, size = x.dtype, x.shape[-2]
        x = x.to(self.epsilon.dtype)
        squares = (x * x).sum(dim=-2, keepdim=True)
        scale = torch.add(self.epsilon, squares, alpha=1 / size).rsqrt_()
        normed = x * scale

        def back(gradient: Tensor) -> Tensor:
            slope = (gradient * self.weight).to(normed.dtype)
            along = (slope * normed).sum(dim=-2, keepdim=True)
            return slope.addcmul_(normed, along, value=-1 / size).mul_(scale).to(dtype)

        return normed.to(dtype) * self.weight, back


@dataclass(frozen=True)
class Projection:
    """``W x + b``, of columns.

    Args:
        weight: ``(d_out, d_in)``.
        bias: ``(d_out,)``, if there is one.
    """

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """``W x + b`` ``(d_out, n)``; its way back is ``_back_products``, for several of them at once."""
        product = column_product(self.weight, x)
        return product if self.bias is None else product.add_(self.bias[:, None])


def _back_products(*slopes: tuple[Tensor, Projection]) -> Tensor:
    """The sum of ``W^T g`` over gradients ``g`` of products of one ``x``; without AVX2 ``g^T W`` is quicker."""
    (gradient, projection), *others = slopes
    if is_by_avx2(projection.weight):
        columns = torch.mm(projection.weight.t(), gradient)
        for gradient, projection in others:
            columns.addmm_(projection.weight.t(), gradient)
        return columns
    rows = torch.mm(gradient.t(), projection.weight)
    for gradient, projection in others:
        rows.addmm_(gradient.t(), projection.weight)
    return rows.t().contiguous()


@dataclass(frozen=True)
class Attention:
    """Attention of the new positions to those before and to one another, without its residual connection.

    Args:
        query, key, value, output: The projections.
        norms: Of queries and of keys, head by head; none in most models.
        scaling: Of the scores.
        head_dim: Width of a head.
        cache: Puts keys and values of the positions before in front of new ones, or keeps these.
        index: The layer's number there.
        positions: Angles and mask.
    """

    query: Projection
    key: Projection
    value: Projection
    output: Projection
    norms: tuple[Norm, ...]
    scaling: float
    head_dim: int
    cache: Cache | None
    index: int
    positions: Positions

    def __call__(self, x: Tensor) -> tuple[Tensor, Back]:
        """What attention adds ``(d, n)`` at normed states ``x`` ``(d, n)``, and the way back."""
        queries, keys, values = (_heads(each(x), self.head_dim) for each in (self.query, self.key, self.value))
        normed = [norm(each) for norm, each in zip(self.norms, (queries, keys), strict=False)]
        turned = self.positions.turn(torch.cat([each for each, _ in normed] or [queries, keys]))
        mixed, mixed_back = self._mix(turned, values)

        def back(gradient: Tensor) -> Tensor:
            slope, value_slope = torch.split(
                mixed_back(_back_products((gradient, self.output))), [len(turned), len(values)]
            )
            slopes = list(torch.split(self.positions.turn_back(slope), [len(queries), len(keys)]))
            if normed:
                slopes = [norm_back(slope) for (_, norm_back), slope in zip(normed, slopes, strict=True)]
            projections = (self.query, self.key, self.value)
            return _back_products(
                *(
                    (slope.view(-1, slope.shape[-1]), projection)
                    for slope, projection in zip([*slopes, value_slope], projections, strict=True)
                )
            )

        return self.output(mixed), back

    def _mix(self, turned: Tensor, values: Tensor) -> tuple[Tensor, Back]:
        """``(h * head_dim, n)``, from queries and keys ``(h + kv, head_dim, n)`` and values ``(kv, head_dim, n)``.

        The way back gives ``(h + 2 kv, head_dim, n)``, of all three.
        """
        kv, dim = len(values), self.head_dim
        h, g = len(turned) - kv, len(self.positions.mask) // kv
        rows = _rows(turned, g)
        width = rows.shape[2]
        queries = rows[:, :h].reshape(g * kv, -1, dim)
        both = rows[:, h:], _rows(values, g)
        if self.cache is not None:
            both = self.cache.update(*both, self.index)
        keys, all_values = (each.reshape(g * kv, -1, dim) for each in both)
        prior = keys.shape[1] - width
        scores = torch.baddbmm(self.positions.mask, queries, keys.transpose(1, 2), alpha=self.scaling)
        shares = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)

        def back(gradient: Tensor) -> Tensor:
            slope = _rows(_heads(gradient, dim), g).reshape(g * kv, -1, dim)
            value_slope = torch.bmm(shares[:, :, prior:].transpose(1, 2), slope)
            slope = torch.bmm(slope, all_values.transpose(1, 2))
            slope = torch._softmax_backward_data(slope, shares, -1, shares.dtype)
            key_slope = self._scaled(slope[:, :, prior:].transpose(1, 2), queries).view(g, kv, width, dim)
            query_slope = self._scaled(slope, keys).view(g, h, width, dim)
            return _columns(torch.cat([query_slope, key_slope, value_slope.view(g, kv, width, dim)], dim=1))

        mixed = torch.bmm(shares, all_values).view(g, h, width, dim)
        return _columns(mixed).view(h * dim, -1), back

    def _scaled(self, left: Tensor, right: Tensor) -> Tensor:
        """Batched product, scaled like the scores."""
        return torch.baddbmm(left.new_empty(()), left, right, beta=0, alpha=self.scaling)


@dataclass(frozen=True)
class Mlp:
    """``W_down (silu(W_gate x) * W_up x)``."""

    gate: Projection
    up: Projection
    down: Projection
    pause: Pause | None = None
    """Is given what enters ``W_down``, ``(d_in, n)``, and may change that before it is used."""

    def __call__(self, x: Tensor) -> tuple[Tensor, Back]:
        """What the MLP adds ``(d, n)`` at normed states ``x`` ``(d, n)``, and the way back."""
        gate, up = self.gate(x), self.up(x)
        active = nn.functional.silu(gate)
        entering = active * up
        if self.pause is not None:
            self.pause(entering)

        def back(gradient: Tensor) -> Tensor:
            slope = _back_products((gradient, self.down))
            gate_slope = torch.ops.aten.silu_backward(slope * up, gate)
            return _back_products((gate_slope, self.gate), (slope.mul_(active), self.up))

        return self.down(entering), back


@dataclass(frozen=True)
class PackedMlp:
    """The same without biases at the first ``n`` positions alone, by packed weights (models/copies.py).

    Args:
        gate_up: ``W_gate`` above ``W_up``, and that transposed.
        down: Likewise.
        n: The positions behind them are padding: they get nothing.
    """

    gate_up: tuple[Tensor, ...]
    down: tuple[Tensor, ...]
    n: int

    def __call__(self, x: Tensor) -> tuple[Tensor, Back]:
        """What the MLP adds ``(d, n)`` at normed states ``x`` ``(d, n)``, and the way back."""
        gate, up = self._product(x, self.gate_up[0]).chunk(2, dim=1)
        active = nn.functional.silu(gate)

        def back(gradient: Tensor) -> Tensor:
            slope = self._product(gradient, self.down[1])
            slopes = torch.cat([torch.ops.aten.silu_backward(slope * up, gate), slope.mul_(active)], dim=1)
            return self._padded(packed_product(slopes, self.gate_up[1]), x)

        return self._padded(packed_product(active * up, self.down[0]), x), back

    def _product(self, columns: Tensor, packed: Tensor) -> Tensor:
        return packed_product(columns[:, : self.n].t(), packed)

    def _padded(self, rows: Tensor, like: Tensor) -> Tensor:
        columns = torch.zeros_like(like)
        columns[:, : self.n] = rows.t()
        return columns


class Layer(NamedTuple):
    """One decoder layer."""

    first_norm: Norm
    attention: Attention
    second_norm: Norm
    mlp: Mlp | PackedMlp

    def __call__(self, x: Tensor) -> tuple[Tensor, Back]:
        """States ``(d, n)`` after the layer, and the way back."""
        normed, first_back = self.first_norm(x)
        attended, attention_back = self.attention(normed)
        middle = attended.add_(x)
        normed, second_back = self.second_norm(middle)
        changed, mlp_back = self.mlp(normed)

        def back(gradient: Tensor) -> Tensor:
            slope = second_back(mlp_back(gradient)).add_(gradient)
            return first_back(attention_back(slope)).add_(slope)

        return changed.add_(middle), back


def _heads(columns: Tensor, dim: int) -> Tensor:
    """``(h * dim, n)`` as ``(h, dim, n)``."""
    return columns.view(-1, dim, columns.shape[-1])


def _rows(heads: Tensor, g: int) -> Tensor:
    """``(h, dim, g * width)`` as ``(g, h, width, dim)``."""
    return heads.view(*heads.shape[:2], g, -1).permute(2, 0, 3, 1)


def _columns(rows: Tensor) -> Tensor:
    """``(g, h, width, dim)`` as ``(h, dim, g * width)``."""
    g, h, width, dim = rows.shape
    return rows.permute(1, 3, 0, 2).contiguous().view(h, dim, g * width)

"""Layers of the Llama kind at a few positions, forward and backward, in as few operations of torch as they take.

At the few dozen positions of a fact's prompts, calling operations one by one and recording them for the gradient takes
a third of the time (docs/benchmarks.md). Here such layers are read as what they compute:

    y = x + Attention(RMSNorm(x)),    z = y + W_down (silu(W_gate h) * W_up h),    h = RMSNorm(y)

with rotary positions, grouped queries, and norms of queries and keys where the model has them: Llama, Mistral, Qwen 2
and 3. Each part returns its result and a function that takes the gradient of the result to that of its input. Hidden
states are rows ``(n, d)``, one per real position. Whether a model's layers compute just this, trust.py finds out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import Cache

from betaedit.models.grid import PaddedGrid
from betaedit.models.prefix_cache import PrefixRecorder
from betaedit.models.replay import LayerCall
from betaedit.models.runners.linear import Linears
from betaedit.models.runners.trust import HEAD_NORMS

Backward = Callable[[Tensor], Tensor]
Part = Callable[[Tensor], tuple[Tensor, Backward]]
BeforeDown = Callable[[Tensor], None]

_MOST_SCORES = 2**26
"""All attention scores of a layer are in memory at once, which is too much for long prompts."""


class Positions(NamedTuple):
    """The positions of the layers of one run.

    Args:
        cosines: ``(n, 1, head_dim)`` of the rotary angles.
        sines: ``(n, 1, head_dim)`` of the rotary angles, those of the first half negated.
        mask: ``(g * kv, h / kv * width, prior + width)``, added to attention scores.
        grid: Where the ``n`` positions are in the ``(g, width)`` over which attention runs.
    """

    cosines: Tensor
    sines: Tensor
    mask: Tensor
    grid: PaddedGrid

    @classmethod
    def of(cls, angles: tuple[Tensor, Tensor], mask: Tensor, heads: tuple[int, int], grid: PaddedGrid) -> Positions:
        """From a layer's arguments and its ``(kv, h / kv)`` heads.

        Angles are two of ``(g or 1, width, head_dim)``; a mask ``(g, 1, width, prior + width)`` is added or allows.
        """
        g, width = grid.shape
        cosines, sines = (grid.gather(each.expand(g, -1, -1))[:, None] for each in angles)
        half = sines.shape[-1] // 2
        sines = torch.cat([-sines[..., :half], sines[..., half:]], dim=-1)
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=cosines.dtype).masked_fill_(~mask, torch.finfo(cosines.dtype).min)
        kv, group = heads
        mask = mask[:, :, None].expand(-1, kv, group, -1, -1).reshape(g * kv, group * width, -1)
        return cls(cosines, sines, mask.to(cosines.dtype), grid)

    def rotate(self, heads: Tensor) -> Tensor:
        """``heads`` ``(n, h, head_dim)`` rotated by the angles."""
        return (heads * self.cosines).addcmul_(heads.roll(heads.shape[-1] // 2, -1), self.sines)

    def rotate_backward(self, gradient: Tensor) -> Tensor:
        """The gradient of what was rotated."""
        return (gradient * self.cosines).add_((gradient * self.sines).roll(gradient.shape[-1] // 2, -1))

    def by_heads(self, rows: Tensor) -> Tensor:
        """``(n, h, dim)`` as ``(g, h, width, dim)``, zero on padding."""
        return self.grid.scatter(rows).transpose(1, 2)

    def by_positions(self, heads: Tensor) -> Tensor:
        """``(g, h, width, dim)`` as ``(n, h, dim)``."""
        return self.grid.gather(heads.transpose(1, 2))


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

    def __call__(self, x: Tensor) -> tuple[Tensor, Backward]:
        """``x`` ``(..., size)`` normed, and its backward function."""
        dtype, size = x.dtype, x.shape[-1]
        x = x.to(self.epsilon.dtype)
        squares = (x * x).sum(dim=-1, keepdim=True)
        scale = torch.add(self.epsilon, squares, alpha=1 / size).rsqrt_()
        normed = x * scale

        def backward(gradient: Tensor) -> Tensor:
            slope = (gradient * self.weight).to(normed.dtype)
            along = (slope * normed).sum(dim=-1, keepdim=True)
            return slope.addcmul_(normed, along, value=-1 / size).mul_(scale).to(dtype)

        return normed.to(dtype) * self.weight, backward


@dataclass(frozen=True)
class Attention:
    """Attention of the new positions to those before and to one another, without its residual connection.

    Args:
        entering: Maps to queries, keys and values.
        leaving: The map behind attention.
        norms: Of queries and of keys, head by head; none in most models.
        scaling: Of the scores.
        head_dim: Width of a head.
        cache: Puts the prefix's keys and values in front of the new ones, or records these.
        index: The layer's number there.
        positions: Angles and mask.
    """

    entering: Linears
    leaving: Linears
    norms: tuple[Norm, ...]
    scaling: float
    head_dim: int
    cache: Cache | None
    index: int
    positions: Positions

    def __call__(self, x: Tensor) -> tuple[Tensor, Backward]:
        """What attention adds ``(n, d)`` at normed states ``x`` ``(n, d)``, and its backward function."""
        heads = [size // self.head_dim for size in self.entering.sizes]
        n_rotated = heads[0] + heads[1]
        entering = _heads(self.entering.joined(x), self.head_dim)
        rotating, values = entering[:, :n_rotated], entering[:, n_rotated:]
        normed = [norm(each) for norm, each in zip(self.norms, rotating.split_with_sizes(heads[:2], 1), strict=False)]
        rotated = self.positions.rotate(torch.cat([each for each, _ in normed], dim=1) if normed else rotating)
        mixed, mix_backward = self._mix(rotated, values)

        def backward(gradient: Tensor) -> Tensor:
            slope = mix_backward(self.leaving.backward(gradient))
            slopes = list(self.positions.rotate_backward(slope[:, :n_rotated]).split_with_sizes(heads[:2], 1))
            if normed:
                slopes = [norm_backward(slope) for (_, norm_backward), slope in zip(normed, slopes, strict=True)]
            return self.entering.backward(*(each.flatten(1) for each in (*slopes, slope[:, n_rotated:])))

        return self.leaving.joined(mixed), backward

    def _mix(self, rotated: Tensor, values: Tensor) -> tuple[Tensor, Backward]:
        """``(n, h * head_dim)``, from queries and keys ``(n, h + kv, head_dim)`` and values ``(n, kv, head_dim)``.

        The backward function gives ``(n, h + 2 kv, head_dim)``, of all three.
        """
        kv, dim = values.shape[1:]
        h, (g, width) = rotated.shape[1] - kv, self.positions.grid.shape
        both = self.positions.by_heads(rotated)
        queries = both[:, :h].reshape(g * kv, -1, dim)
        new = both[:, h:], self.positions.by_heads(values)
        if self.cache is not None:
            new = self.cache.update(*new, self.index)
        keys, all_values = (each.reshape(g * kv, -1, dim) for each in new)
        prior = keys.shape[1] - width
        scores = torch.baddbmm(self.positions.mask, queries, keys.transpose(1, 2), alpha=self.scaling)
        probabilities = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)

        def backward(gradient: Tensor) -> Tensor:
            slope = self.positions.by_heads(_heads(gradient, dim)).reshape(g * kv, -1, dim)
            value_slope = torch.bmm(probabilities[:, :, prior:].transpose(1, 2), slope)
            slope = torch.bmm(slope, all_values.transpose(1, 2))
            slope = torch._softmax_backward_data(slope, probabilities, -1, probabilities.dtype)
            key_slope = self._scaled(slope[:, :, prior:].transpose(1, 2), queries)
            slopes = (self._scaled(slope, keys), key_slope, value_slope)
            return self.positions.by_positions(torch.cat([each.view(g, -1, width, dim) for each in slopes], dim=1))

        mixed = torch.bmm(probabilities, all_values).view(g, h, width, dim)
        return self.positions.by_positions(mixed).flatten(1), backward

    def _scaled(self, left: Tensor, right: Tensor) -> Tensor:
        """Batched product, scaled like the scores."""
        return torch.baddbmm(left.new_empty(()), left, right, beta=0, alpha=self.scaling)


@dataclass(frozen=True)
class Mlp:
    """``W_down (silu(W_gate x) * W_up x)``.

    Args:
        entering: ``W_gate`` and ``W_up``.
        leaving: ``W_down``.
        before_down: Is given what enters ``W_down``, ``(n, d_in)``, and may change ``W_down`` before it is used.
    """

    entering: Linears
    leaving: Linears
    before_down: BeforeDown | None = None

    def __call__(self, x: Tensor) -> tuple[Tensor, Backward]:
        """What the MLP adds ``(n, d)`` at normed states ``x`` ``(n, d)``, and its backward function."""
        gate, up = self.entering.split(x)
        active = nn.functional.silu(gate)
        product = active * up
        if self.before_down is not None:
            self.before_down(product)

        def backward(gradient: Tensor) -> Tensor:
            slope = self.leaving.backward(gradient)
            gate_slope = torch.ops.aten.silu_backward(slope * up, gate)
            return self.entering.backward(gate_slope, slope.mul_(active))

        return self.leaving.joined(product), backward


@dataclass(frozen=True)
class FusedLayer:
    """One decoder layer."""

    first_norm: Norm
    attention: Attention
    second_norm: Norm
    mlp: Mlp

    def __call__(self, x: Tensor) -> tuple[Tensor, Backward]:
        """States ``(n, d)`` after the layer, and its backward function."""
        normed, first_backward = self.first_norm(x)
        attended, attention_backward = self.attention(normed)
        middle = attended.add_(x)
        normed, second_backward = self.second_norm(middle)
        changed, mlp_backward = self.mlp(normed)

        def backward(gradient: Tensor) -> Tensor:
            slope = second_backward(mlp_backward(gradient)).add_(gradient)
            return first_backward(attention_backward(slope)).add_(slope)

        return changed.add_(middle), backward

    def without_recorder(self) -> FusedLayer:
        """The same layer, recording no attention state: for a trial."""
        if not isinstance(self.attention.cache, PrefixRecorder):
            return self
        return replace(self, attention=replace(self.attention, cache=None))


@dataclass(frozen=True)
class FusedLayers:
    """Layers one after another, as a function of ``(g, width, d)`` states with a gradient for these alone.

    Args:
        parts: The layers, or several as one part.
        grid: Which positions are real: states on padding mean nothing, and come out as zero.
    """

    parts: Sequence[Part]
    grid: PaddedGrid

    def __call__(self, hidden: Tensor) -> Tensor:
        """``(g, width, d)`` after the last layer; tensors for the gradient are kept only if one can be requested."""
        if torch.is_grad_enabled():
            return cast(Tensor, _Run.apply(hidden, self))  # type: ignore[no-untyped-call]
        rows = self.grid.gather(hidden)
        for part in self.parts:
            rows = part(rows)[0]
        return self.grid.scatter(rows)


class _Run(torch.autograd.Function):
    """All layers one after another, and their gradients in reverse."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, layers: FusedLayers) -> Tensor:
        """``(g, width, d)`` after the last layer."""
        rows, ctx.backwards, ctx.grid = layers.grid.gather(hidden), [], layers.grid
        for part in layers.parts:
            rows, backward = part(rows)
            ctx.backwards.append(backward)
        return layers.grid.scatter(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """``(g, width, d)`` before the first."""
        rows = ctx.grid.gather(gradient)
        for backward in reversed(ctx.backwards):
            rows = backward(rows)
        return ctx.grid.scatter(rows), None


def read_layer(
    layer: Any,
    call: LayerCall,
    index: int,
    grid: PaddedGrid,
    shared: dict[tuple[int, ...], Positions],
    *,
    use_kernels: bool,
) -> FusedLayer | None:
    """What a plain ``layer`` (``trust.is_plain_layer``) computes; ``None`` if it is not of this kind.

    Args:
        layer: The module.
        call: Its arguments besides the hidden states.
        index: Its number.
        grid: The real positions.
        shared: Positions of the layers read so far: layers that have their arguments in common share them.
        use_kernels: Whether linear maps may run by the compiled kernels.
    """
    attention, mlp, given = layer.self_attn, layer.mlp, call.kwargs
    angles, mask = given.get("position_embeddings"), given["attention_mask"]
    head_norms = [attention._modules[name] for name in HEAD_NORMS if name in attention._modules]
    norms = [layer.input_layernorm, layer.post_attention_layernorm, *head_norms]
    if (
        not isinstance(angles, tuple)
        or angles[0].shape[-1] != getattr(attention, "head_dim", None)
        or mask.shape[1] != 1
        or not all(hasattr(norm, "variance_epsilon") for norm in norms)
    ):
        return None
    kv = attention.k_proj.out_features // attention.head_dim
    group = attention.q_proj.out_features // attention.head_dim // kv
    if kv * group * mask.numel() > _MOST_SCORES:
        return None
    arguments = (id(angles[0]), id(mask), kv, group)
    if arguments not in shared:
        shared[arguments] = Positions.of(angles, mask, (kv, group), grid)

    def linears(*modules: nn.Linear) -> Linears:
        weights, biases = [module.weight for module in modules], [module.bias for module in modules]
        return Linears.of(weights, biases, use_kernels=use_kernels)

    return FusedLayer(
        Norm.of(layer.input_layernorm),
        Attention(
            linears(attention.q_proj, attention.k_proj, attention.v_proj),
            linears(attention.o_proj),
            tuple(Norm.of(norm) for norm in head_norms),
            attention.scaling,
            attention.head_dim,
            next((value for value in given.values() if isinstance(value, Cache)), None),
            index,
            shared[arguments],
        ),
        Norm.of(layer.post_attention_layernorm),
        Mlp(linears(mlp.gate_proj, mlp.up_proj), linears(mlp.down_proj)),
    )


def _heads(rows: Tensor, dim: int) -> Tensor:
    """``(n, h * dim)`` as ``(n, h, dim)``."""
    return rows.view(len(rows), rows.shape[1] // dim, dim)

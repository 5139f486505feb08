"""Layers of the Llama kind at a few positions, forward and back, in as few operations as they take.

At the few dozen positions of a fact's prompts, calling operations one by one and recording them for the gradient takes
a third of the time (docs/benchmarks.md). Here such layers are read as what they compute:

    y = x + Attention(RMSNorm(x)),    z = y + W_down (silu(W_gate h) * W_up h),    h = RMSNorm(y)

with rotary positions, grouped queries, and norms of queries and keys where the model has them: Llama, Mistral, Qwen 2
and 3. Hidden states are columns ``(d, n)``, the quick way round for the products (models/linear.py). Nothing is taken
on trust: a model whose own modules give something else runs by those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from betaedit.models.anatomy import Anatomy
from betaedit.models.linear import column_product, is_by_mkl, narrow_linears
from betaedit.models.pack import PriorState
from betaedit.models.partial import LayerCall, layer_output, run_layers

_LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = ("q_norm", "k_norm")
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
_HALF_TOLERANCE = 0.05
TURNED_BYTES = 2**30
"""Weights of the layers of a search that are kept a second time, turned round for the way back, if they fit in this."""

_Back = Callable[[Tensor], Tensor]
_trusted: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_turned: WeakKeyDictionary[nn.Module, tuple[int, int, Tensor]] = WeakKeyDictionary()


def lean_layers(
    anatomy: Anatomy, calls: dict[int, LayerCall], hidden: Tensor, layers: range
) -> Callable[[Tensor], Tensor]:
    """What ``run_layers`` computes, as a function of the hidden states and with a gradient for them alone, sooner.

    Args:
        anatomy: The model, its weights frozen.
        calls: The layers' other arguments, for positions after an earlier pack whose state they hold.
        hidden: ``(g, width, d)`` such states entering the first of the layers, to try it with.
        layers: Which.
    """
    lean = _read(anatomy, calls, hidden, layers)

    def run(hidden: Tensor) -> Tensor:
        if lean is not None:
            return cast(Tensor, _Run.apply(hidden, lean))  # type: ignore[no-untyped-call]
        with narrow_linears(anatomy.layers[layer] for layer in layers):
            return run_layers(anatomy, calls, hidden, layers.start, layers.stop - 1)

    return run


class _Run(torch.autograd.Function):
    """All layers one after another, and back."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, layers: Sequence[_Layer]) -> Tensor:
        """``(g, width, d)`` after the last layer."""
        g, width, d = hidden.shape
        columns, ctx.backs = hidden.reshape(g * width, d).t().contiguous(), []
        for layer in layers:
            columns, back = layer(columns)
            ctx.backs.append(back)
        return columns.t().reshape(g, width, d)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """``(g, width, d)`` before the first."""
        g, width, d = gradient.shape
        columns = gradient.reshape(g * width, d).t().contiguous()
        for back in reversed(ctx.backs):
            columns = back(columns)
        return columns.t().reshape(g, width, d), None


class _Positions(NamedTuple):
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
    def of(cls, angles: tuple[Tensor, Tensor], mask: Tensor, heads: tuple[int, int]) -> _Positions:
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
        return cls(cosines, sines, mask)

    def turn(self, heads: Tensor) -> Tensor:
        """``heads`` ``(h, head_dim, n)`` turned by the angles."""
        return (heads * self.cosines).addcmul_(heads.roll(heads.shape[1] // 2, 1), self.sines)

    def turn_back(self, gradient: Tensor) -> Tensor:
        """The gradient before ``turn``."""
        return (gradient * self.cosines).add_((gradient * self.sines).roll(gradient.shape[1] // 2, 1))


@dataclass(frozen=True)
class _Norm:
    """RMSNorm over the second last axis, computed in float32 at least.

    Args:
        weight: ``(size, 1)``.
        epsilon: ``(1, 1)``.
    """

    weight: Tensor
    epsilon: Tensor

    @classmethod
    def of(cls, norm: Any) -> _Norm:
        """Of the model's own."""
        weight: Tensor = norm.weight[:, None]
        wide = torch.promote_types(weight.dtype, torch.float32)
        return cls(weight, torch.full((1, 1), norm.variance_epsilon, dtype=wide, device=weight.device))

    def __call__(self, x: Tensor) -> tuple[Tensor, _Back]:
        dtype, size = x.dtype, x.shape[-2]
        x = x.to(self.epsilon.dtype)
        squares = (x * x).sum(dim=-2, keepdim=True)
        scale = torch.add(self.epsilon, squares, alpha=1 / size).rsqrt_()

        def back(gradient: Tensor) -> Tensor:
            slope = (gradient * self.weight).to(x.dtype)
            along = (slope * x).sum(dim=-2, keepdim=True).mul_(scale * scale).mul_(scale)
            return (slope * scale).addcmul_(x, along, value=-1 / size).to(dtype)

        return (x * scale).to(dtype).mul_(self.weight), back


@dataclass(frozen=True)
class _Projection:
    """``W x + b``, of columns.

    Args:
        weight: ``(d_out, d_in)``.
        bias: ``(d_out,)``, if there is one.
        turned: ``W^T`` ``(d_in, d_out)`` with its rows side by side in memory, if there is room for it: the way back
            takes two thirds of the time with it.
    """

    weight: Tensor
    bias: Tensor | None
    turned: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        product = column_product(self.weight, x)
        return product if self.bias is None else product.add_(self.bias[:, None])


def _back_products(*slopes: tuple[Tensor, _Projection]) -> Tensor:
    """The sum of ``W^T g`` over gradients ``g`` of products of one ``x``."""
    if all(projection.turned is not None for _, projection in slopes):
        columns: Tensor | None = None
        for gradient, projection in slopes:
            columns = column_product(cast(Tensor, projection.turned), gradient, columns)
        return cast(Tensor, columns)
    (gradient, projection), *others = slopes
    rows = torch.mm(gradient.t(), projection.weight)
    for gradient, projection in others:
        rows.addmm_(gradient.t(), projection.weight)
    return rows.t().contiguous()


@dataclass(frozen=True)
class _Attention:
    """Attention of the new positions to those before and to one another, without its residual connection.

    Args:
        query, key, value, output: The projections.
        norms: Of queries and of keys, head by head; none in most models.
        scaling: Of the scores.
        head_dim: Width of a head.
        prior: Keys and values ``(g, kv, prior, head_dim)`` of the positions before.
        positions: Angles and mask.
    """

    query: _Projection
    key: _Projection
    value: _Projection
    output: _Projection
    norms: tuple[_Norm, ...]
    scaling: float
    head_dim: int
    prior: tuple[Tensor, Tensor]
    positions: _Positions

    def __call__(self, x: Tensor) -> tuple[Tensor, _Back]:
        queries, keys, values = (_heads(each(x), self.head_dim) for each in (self.query, self.key, self.value))
        normed = [norm(each) for norm, each in zip(self.norms, (queries, keys), strict=False)]
        turned = self.positions.turn(torch.cat([each for each, _ in normed] or [queries, keys]))
        mixed, mixed_back = self._mix(turned, values)

        def back(gradient: Tensor) -> Tensor:
            slope, value_slope = mixed_back(_back_products((gradient, self.output)))
            slope = self.positions.turn_back(slope)
            slopes = [slope[: len(queries)], slope[len(queries) :]]
            if normed:
                slopes = [norm_back(slope) for (_, norm_back), slope in zip(normed, slopes, strict=True)]
            projections = (self.query, self.key, self.value)
            return _back_products(
                *(
                    (slope.reshape(-1, slope.shape[-1]), projection)
                    for slope, projection in zip([*slopes, value_slope], projections, strict=True)
                )
            )

        return self.output(mixed), back

    def _mix(self, turned: Tensor, values: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """``(h * head_dim, n)``, from queries and keys ``(h + kv, head_dim, n)`` and values ``(kv, head_dim, n)``."""
        held_keys, held_values = self.prior
        g, kv, prior, dim = held_keys.shape
        h = len(turned) - kv
        rows = _rows(turned, g)
        width = rows.shape[2]
        queries = rows[:, :h].reshape(g * kv, -1, dim)
        keys = torch.cat([held_keys, rows[:, h:]], dim=2).view(g * kv, -1, dim)
        all_values = torch.cat([held_values, _rows(values, g)], dim=2).view(g * kv, -1, dim)
        scores = torch.baddbmm(self.positions.mask, queries, keys.transpose(1, 2), alpha=self.scaling)
        shares = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)

        def back(gradient: Tensor) -> tuple[Tensor, Tensor]:
            slope = _rows(_heads(gradient, dim), g).reshape(g * kv, -1, dim)
            value_slope = torch.bmm(shares[:, :, prior:].transpose(1, 2), slope)
            slope = torch.bmm(slope, all_values.transpose(1, 2))
            slope = torch._softmax_backward_data(slope, shares, -1, shares.dtype)
            key_slope = self._scaled(slope[:, :, prior:].transpose(1, 2), queries).view(g, kv, width, dim)
            both = torch.cat([self._scaled(slope, keys).view(g, h, width, dim), key_slope], dim=1)
            return _columns(both), _columns(value_slope.view(g, kv, width, dim))

        mixed = torch.bmm(shares, all_values).view(g, h, width, dim)
        return _columns(mixed).view(h * dim, -1), back

    def _scaled(self, left: Tensor, right: Tensor) -> Tensor:
        """Batched product, scaled like the scores."""
        return torch.baddbmm(left.new_empty(()), left, right, beta=0, alpha=self.scaling)


@dataclass(frozen=True)
class _Mlp:
    """``W_down (silu(W_gate x) * W_up x)``."""

    gate: _Projection
    up: _Projection
    down: _Projection

    def __call__(self, x: Tensor) -> tuple[Tensor, _Back]:
        gate, up = self.gate(x), self.up(x)
        active = nn.functional.silu(gate)

        def back(gradient: Tensor) -> Tensor:
            slope = _back_products((gradient, self.down))
            gate_slope = torch.ops.aten.silu_backward(slope * up, gate)
            return _back_products((gate_slope, self.gate), (slope.mul_(active), self.up))

        return self.down(active * up), back


class _Layer(NamedTuple):
    """One decoder layer."""

    first_norm: _Norm
    attention: _Attention
    second_norm: _Norm
    mlp: _Mlp

    def __call__(self, x: Tensor) -> tuple[Tensor, _Back]:
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


def _read(anatomy: Anatomy, calls: dict[int, LayerCall], hidden: Tensor, layers: range) -> list[_Layer] | None:
    """The layers as what they compute; ``None`` if one of them is of another kind or somebody watches it."""
    if len(layers) == 0 or not all(_is_plain(anatomy.layers[layer], hidden) for layer in layers):
        return None
    shared: dict[tuple[int, int], _Positions] = {}
    room = _has_room([anatomy.layers[layer] for layer in layers])
    lean = [_layer_of(anatomy.layers[layer], calls[layer], layer, shared, room) for layer in layers]
    found = [layer for layer in lean if layer is not None]
    if len(found) < len(lean):
        return None
    if anatomy.model not in _trusted:
        first = layers.start
        _trusted[anatomy.model] = _agrees(anatomy.layers[first], calls[first], found[0], hidden.detach())
    return found if _trusted[anatomy.model] else None


def _is_plain(layer: nn.Module, hidden: Tensor) -> bool:
    """Whether the layer has the parts of the kind and no others: frozen, like ``hidden``, none replaced or hooked."""
    attention, mlp = layer._modules.get("self_attn"), layer._modules.get("mlp")
    if attention is None or mlp is None:
        return False
    linears = [part for name, part in (*attention._modules.items(), *mlp._modules.items()) if name.endswith("_proj")]
    return (
        set(layer._modules) == _LAYER
        and set(attention._modules) in (_ATTENTION, _ATTENTION | set(_HEAD_NORMS))
        and set(mlp._modules) == _MLP
        and all(type(linear) is nn.Linear for linear in linears)
        and not any(_is_watched(part) for part in layer.modules())
        and all(
            (w.device, w.dtype, w.requires_grad) == (hidden.device, hidden.dtype, False) for w in layer.parameters()
        )
    )


def _is_watched(module: nn.Module) -> bool:
    return bool("forward" in module.__dict__ or module._forward_hooks or module._forward_pre_hooks)


def _layer_of(
    layer: Any, call: LayerCall, index: int, shared: dict[tuple[int, int], _Positions], room: bool
) -> _Layer | None:
    """What the plain ``layer`` computes; layers that have their arguments in common share them here too."""
    attention, mlp, given = layer.self_attn, layer.mlp, call.kwargs
    angles, mask = given.get("position_embeddings"), given["attention_mask"]
    state = next((value for value in given.values() if isinstance(value, PriorState)), None)
    norms = [
        layer.input_layernorm,
        layer.post_attention_layernorm,
        *(attention._modules[name] for name in _HEAD_NORMS if name in attention._modules),
    ]
    if (
        state is None
        or not isinstance(angles, tuple)
        or angles[0].shape[-1] != getattr(attention, "head_dim", None)
        or mask.shape[1] != 1
        or not all(hasattr(norm, "variance_epsilon") for norm in norms)
    ):
        return None
    arguments = (id(angles[0]), id(mask))
    if arguments not in shared:
        kv = state.held[index][0].shape[1]
        heads = attention.q_proj.out_features // attention.head_dim
        shared[arguments] = _Positions.of(angles, mask, (kv, heads // kv))
    first, second, *head_norms = (_Norm.of(norm) for norm in norms)
    query, key, value, output = (
        _projection(linear, room) for linear in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    )
    mixing = (attention.scaling, attention.head_dim, state.held[index], shared[arguments])
    return _Layer(
        first,
        _Attention(query, key, value, output, tuple(head_norms), *mixing),
        second,
        _Mlp(*(_projection(linear, room) for linear in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))),
    )


def _has_room(layers: Sequence[nn.Module]) -> bool:
    """Whether the weights of ``layers`` may be kept turned round: on the CPU, where it pays, and not too many."""
    weights = [weight for layer in layers for weight in layer.parameters()]
    plain = all(is_by_mkl(weight) and not weight.is_inference() for weight in weights)
    return plain and sum(weight.nbytes for weight in weights) <= TURNED_BYTES


def turned_bytes(model: nn.Module) -> int:
    """Bytes of the weights of ``model`` that are kept turned round."""
    return sum(_turned[module][-1].nbytes for module in model.modules() if module in _turned)


def _projection(linear: nn.Linear, room: bool) -> _Projection:
    """The layer with its weights turned round if there is ``room``, the ones kept if they are of its weights still."""
    weight: Tensor = linear.weight
    if not room:
        return _Projection(weight, linear.bias, None)
    place, row = (weight.data_ptr(), weight._version), len(weight) // 2
    *kept_place, turned = _turned.get(linear, (0, 0, weight))
    # Weights changed through `.data` keep place and version; hardly any change spares a whole row.
    if tuple(kept_place) != place or not torch.equal(turned[:, row], weight[row]):
        turned = weight.detach().t().contiguous()
        _turned[linear] = (*place, turned)
    return _Projection(weight, linear.bias, turned)


def _agrees(layer: nn.Module, call: LayerCall, lean: _Layer, hidden: Tensor) -> bool:
    """Whether the lean layer gives what the model's own gives, and its gradient."""
    with torch.enable_grad():
        hidden = hidden.clone().requires_grad_()
        both = [layer_output(layer(hidden, **call.kwargs)), _Run.apply(hidden, [lean])]  # type: ignore[no-untyped-call]
        slope = both[0].detach().roll(1, -1)
        both += [torch.autograd.grad(output, hidden, slope)[0] for output in both]
    own, lean_own, own_slope, lean_slope = (each.detach().double() for each in both)
    tolerance = _TOLERANCE.get(hidden.dtype, _HALF_TOLERANCE)
    return all(
        bool((ours - theirs).norm() <= tolerance * theirs.norm())
        for ours, theirs in ((lean_own, own), (lean_slope, own_slope))
    )

"""Layers of the Llama kind at a few positions, forward and back, in as few operations as they take.

At the few dozen positions of a fact's prompts, calling operations one by one and recording them for the gradient takes
a third of the time (docs/benchmarks.md). Here such layers are read as what they compute:

    y = x + Attention(RMSNorm(x)),    z = y + W_down (silu(W_gate h) * W_up h),    h = RMSNorm(y)

with rotary positions, grouped queries, and norms of queries and keys where the model has them: Llama, Mistral, Qwen 2
and 3. Nothing is taken on trust: a model whose own modules give something else runs by those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import Cache

from betaedit.models.anatomy import Anatomy
from betaedit.models.lean_layer import (
    Attention,
    Layer,
    Mlp,
    Norm,
    Part,
    Places,
    Positions,
    Projections,
    given_back,
    taken,
)
from betaedit.models.narrow import narrow_linears
from betaedit.models.native.layers import NativeLayers
from betaedit.models.pack import KeptState
from betaedit.models.partial import LayerCall, hooks, layer_output, run_layers

_LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = ("q_norm", "k_norm")
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
_HALF_TOLERANCE = 0.05
_MOST_SCORES = 2**26
"""Attention scores of a layer are held at once, so of long prompts there would be too many."""

_trusted: WeakKeyDictionary[nn.Module, dict[torch.dtype, bool]] = WeakKeyDictionary()
_trusted_natively: WeakKeyDictionary[nn.Module, dict[torch.dtype, bool]] = WeakKeyDictionary()


def lean_layers(
    anatomy: Anatomy, calls: dict[int, LayerCall], hidden: Tensor, layers: range
) -> Callable[[Tensor], Tensor]:
    """What ``run_layers`` computes, as a function of the hidden states and with a gradient for them alone, sooner.

    On padding only attention is computed; states there mean nothing.

    Args:
        anatomy: The model, its weights frozen.
        calls: The layers' other arguments, those of a pack.
        hidden: ``(g, width, d)`` such states entering the first of the layers, to try it with.
        layers: Which.
    """
    lean = _read(anatomy, calls, hidden, layers)

    def run(hidden: Tensor) -> Tensor:
        if lean is None:
            with narrow_linears(anatomy.layers[layer] for layer in layers):
                return run_layers(anatomy, calls, hidden, layers.start, layers.stop - 1)
        if not torch.is_grad_enabled():
            return _forward(hidden, lean)
        return cast(Tensor, _Run.apply(hidden, lean))  # type: ignore[no-untyped-call]

    return run


def run_lean_layers(anatomy: Anatomy, calls: dict[int, LayerCall], hidden: Tensor, first: int, last: int) -> Tensor:
    """``run_layers`` sooner, once."""
    return lean_layers(anatomy, calls, hidden, range(first, last + 1))(hidden)


@torch.no_grad()
def pass_projection(
    anatomy: Anatomy, calls: dict[int, LayerCall], hidden: Tensor, layer: int, pause: Callable[[Tensor], None]
) -> Tensor:
    """``(g, width, d)`` states after one layer, halfway through which its MLP's output projection may be changed.

    ``pause`` is given what enters the projection, ``(g, width, d_in)``; the states after the layer are those under the
    weight that it leaves.
    """
    plain = _read_plain(anatomy, calls, hidden, range(layer, layer + 1))
    if plain is None:
        shape = *hidden.shape[:2], -1  # some families lay all positions in one row (OPT)
        handle = anatomy.projection(layer).register_forward_pre_hook(lambda _, args: pause(args[0].view(shape)))
        with hooks([handle]):
            return run_layers(anatomy, calls, hidden, layer, layer)
    (one,), places = plain
    mlp = replace(one.mlp, pause=lambda entering: pause(given_back(entering, hidden.shape[:2], places)))
    return _forward(hidden, _Lean([replace(one, mlp=mlp)], places))


class _Lean(NamedTuple):
    """Layers as what they compute, and where what they compute is: everywhere without ``places``."""

    layers: Sequence[Part]
    places: Places | None


def _forward(hidden: Tensor, lean: _Lean) -> Tensor:
    """``(g, width, d)`` after the last of the layers; what they need for the way back is let go."""
    rows = taken(hidden, lean.places)
    for layer in lean.layers:
        rows = layer(rows)[0]
    return given_back(rows, hidden.shape[:2], lean.places)


class _Run(torch.autograd.Function):
    """All layers one after another, and back."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, lean: _Lean) -> Tensor:
        """``(g, width, d)`` after the last layer."""
        rows, ctx.backs, ctx.places = taken(hidden, lean.places), [], lean.places
        for layer in lean.layers:
            rows, back = layer(rows)
            ctx.backs.append(back)
        return given_back(rows, hidden.shape[:2], lean.places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """``(g, width, d)`` before the first."""
        rows = taken(gradient, ctx.places)
        for back in reversed(ctx.backs):
            rows = back(rows)
        return given_back(rows, gradient.shape[:2], ctx.places), None


def _read(anatomy: Anatomy, calls: dict[int, LayerCall], hidden: Tensor, layers: range) -> _Lean | None:
    """The layers as what they compute; ``None`` if one of them is of another kind or somebody watches it."""
    plain = _read_plain(anatomy, calls, hidden, layers)
    if plain is None:
        return None
    lean, places = plain
    native = NativeLayers.of(lean) if torch.is_grad_enabled() else None
    if native is None or not all(
        _is_trusted_natively(anatomy.layers[index], calls[index], layer, places, hidden.detach())
        for index, layer in zip(layers, lean, strict=True)
    ):
        return _Lean(lean, places)
    return _Lean([native], places)


def _read_plain(
    anatomy: Anatomy, calls: dict[int, LayerCall], hidden: Tensor, layers: range
) -> tuple[list[Layer], Places | None] | None:
    """The same by torch's operations alone."""
    if len(layers) == 0 or not all(_is_plain(anatomy.layers[layer], hidden) for layer in layers):
        return None
    places = _places(calls[layers.start].real, hidden.device)
    shared: dict[tuple[int, ...], Positions] = {}
    lean: list[Layer] = []
    for layer in layers:
        module = anatomy.layers[layer]
        one = _layer_of(module, calls[layer], layer, shared, places)
        if one is None or not _is_trusted(module, calls[layer], layer, hidden.detach()):
            return None
        lean.append(one)
    return lean, places


def _places(real: Tensor | None, device: torch.device) -> Places | None:
    if real is None or bool(real.all()):
        return None
    row, entry = (index.to(device) for index in real.nonzero(as_tuple=True))
    return row, entry


def _is_trusted(module: nn.Module, call: LayerCall, index: int, hidden: Tensor) -> bool:
    """Whether the plain layer does what its parts say, as was seen when first met in its type and told something."""
    trusted = _trusted.setdefault(module, {})
    if hidden.dtype not in trusted:
        if not _is_telling(call):
            return False
        call = call.map(lambda value: None if isinstance(value, KeptState) else value)
        lean = _layer_of(module, call, index, {})
        trusted[hidden.dtype] = lean is not None and _agrees(module, call, _Lean([lean], None), hidden)
    return trusted[hidden.dtype]


def _is_trusted_natively(
    module: nn.Module, call: LayerCall, layer: Layer, places: Places | None, hidden: Tensor
) -> bool:
    """Likewise by the kernels."""
    trusted = _trusted_natively.setdefault(module, {})
    if hidden.dtype not in trusted:
        if not _is_telling(call):
            return False
        native = NativeLayers.of([layer])
        trusted[hidden.dtype] = native is not None and _agrees(module, call, _Lean([native], places), hidden)
    return trusted[hidden.dtype]


def _is_telling(call: LayerCall) -> bool:
    """Whether some position attends to another: where none does, rotary angles and scores show nothing."""
    mask: Tensor = call.kwargs["attention_mask"]
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min
    others = seen.any(dim=1).sum(dim=-1) > 1
    return bool((others if call.real is None else others & call.real.to(others.device)).any())


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
    layer: Any,
    call: LayerCall,
    index: int,
    shared: dict[tuple[int, ...], Positions],
    places: Places | None = None,
) -> Layer | None:
    """What the plain ``layer`` computes; layers that have their arguments in common share them here too."""
    attention, mlp, given = layer.self_attn, layer.mlp, call.kwargs
    angles, mask = given.get("position_embeddings"), given["attention_mask"]
    cache = next((value for value in given.values() if isinstance(value, Cache)), None)
    norms = [
        layer.input_layernorm,
        layer.post_attention_layernorm,
        *(attention._modules[name] for name in _HEAD_NORMS if name in attention._modules),
    ]
    if (
        not isinstance(angles, tuple)
        or angles[0].shape[-1] != getattr(attention, "head_dim", None)
        or mask.shape[1] != 1
        or not all(hasattr(norm, "variance_epsilon") for norm in norms)
    ):
        return None
    kv = attention.k_proj.out_features // attention.head_dim
    share = attention.q_proj.out_features // attention.head_dim // kv
    if kv * share * mask.numel() > _MOST_SCORES:
        return None
    arguments = (id(angles[0]), id(mask), kv, share)
    if arguments not in shared:
        shared[arguments] = Positions.of(angles, mask, (kv, share), places)
    first, second, *head_norms = (Norm.of(norm) for norm in norms)
    mixing = (attention.scaling, attention.head_dim, cache, index, shared[arguments])
    return Layer(
        first,
        Attention(
            Projections.of(attention.q_proj, attention.k_proj, attention.v_proj),
            Projections.of(attention.o_proj),
            tuple(head_norms),
            *mixing,
        ),
        second,
        Mlp(Projections.of(mlp.gate_proj, mlp.up_proj), Projections.of(mlp.down_proj)),
    )


def _agrees(layer: nn.Module, call: LayerCall, lean: _Lean, hidden: Tensor) -> bool:
    """Whether the lean layer adds to the states what the model's own adds, and the same to their gradient."""
    padding = None if call.real is None else ~call.real[:, :, None].to(hidden.device)
    with torch.enable_grad():
        hidden = hidden.clone().requires_grad_()
        both = [layer_output(layer(hidden, **call.kwargs)), cast(Tensor, _Run.apply(hidden, lean))]  # type: ignore[no-untyped-call]
        slope = both[0].detach().roll(1, -1)
        if padding is not None:  # the gradient of a norm at zero, which padding may be, would hide all others
            slope = slope.masked_fill(padding, 0)
        slopes = [torch.autograd.grad(output, hidden, slope)[0] for output in both]
    if lean.places is not None and padding is not None:
        both, slopes = ([each.masked_fill(padding, 0) for each in pair] for pair in (both, slopes))
        hidden = hidden.masked_fill(padding, 0)
    tolerance = _TOLERANCE.get(hidden.dtype, _HALF_TOLERANCE)
    # States pass by the layer as they are, and large ones would hide what it does to them.
    return all(
        bool((ours - theirs).double().norm() <= tolerance * (theirs - through).double().norm())
        for (theirs, ours), through in ((both, hidden), (slopes, slope))
    )

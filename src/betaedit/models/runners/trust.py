"""Decides whether another form may replace a module of the model.

Two conditions: the module has only the parts that the form supports, as transformers made them
(``is_frozen_linear``, ``is_plain_layer``, ``is_readable``), and the form's outputs agree with the module's
(``agrees``). ``Trust`` checks the second condition of each layer once per form, device and dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from betaedit.models.grid import PaddedGrid
from betaedit.models.prefix_cache import PrefixRecorder
from betaedit.models.replay import LayerCall, layer_output

HEAD_NORMS = ("q_norm", "k_norm")
_LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
_HALF_TOLERANCE = 0.05

Form = Callable[[Tensor], Tensor]
"""Another way to compute a layer: from ``(g, width, d)`` states to those after it, with a gradient."""


class Trust:
    """The layers of a model that another form may replace.

    Each form is checked against the module once per device and dtype.
    """

    def __init__(self) -> None:
        self._verdicts: WeakKeyDictionary[nn.Module, dict[tuple[str, torch.device, torch.dtype], bool]]
        self._verdicts = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type[Trust], tuple[()]]:
        """A copy, and what comes out of a pickle, belongs to other modules: it checks them itself."""
        return Trust, ()

    def holds(self, name: str, module: nn.Module, call: LayerCall, hidden: Tensor, make: Callable[[], Form]) -> bool:
        """Whether the form ``name`` of ``module`` agrees with the module.

        If no position of the call attends to another, the result is ``False`` and the next call is checked.

        Args:
            name: Name of the form.
            module: The layer.
            call: Its arguments besides the hidden states.
            hidden: ``(g, width, d)`` states for the check.
            make: Makes the form, which records no attention state.
        """
        verdicts = self._verdicts.setdefault(module, {})
        key = name, hidden.device, hidden.dtype
        if key not in verdicts:
            if not _attends_to_others(call):
                return False
            call = call.map(lambda value: None if isinstance(value, PrefixRecorder) else value)
            verdicts[key] = layer_agrees(module, call, make(), hidden.detach())
        return verdicts[key]


def runs_its_own_forward(module: nn.Module) -> bool:
    """Whether the module has its own ``forward``, not one set by accelerate, for example."""
    return "forward" not in module.__dict__


def is_unwatched(module: nn.Module) -> bool:
    """Whether the module has its own ``forward`` and no hooks."""
    return runs_its_own_forward(module) and not module._forward_hooks and not module._forward_pre_hooks


def is_frozen_linear(module: nn.Module) -> bool:
    """Whether it is exactly ``nn.Linear``, no subclass, with a frozen weight."""
    return type(module) is nn.Linear and not module.weight.requires_grad


def is_plain_layer(layer: nn.Module, hidden: Tensor) -> bool:
    """Whether the layer has the parts of Llama's and no others: frozen, like ``hidden``, none replaced or hooked."""
    attention, mlp = layer._modules.get("self_attn"), layer._modules.get("mlp")
    if attention is None or mlp is None:
        return False
    parts = (*attention._modules.items(), *mlp._modules.items())
    return (
        set(layer._modules) == _LAYER
        and set(attention._modules) in (_ATTENTION, _ATTENTION | set(HEAD_NORMS))
        and set(mlp._modules) == _MLP
        and all(part is not None and is_frozen_linear(part) for name, part in parts if name.endswith("_proj"))
        and all(is_unwatched(part) for part in layer.modules())
        and all(
            (w.device, w.dtype, w.requires_grad) == (hidden.device, hidden.dtype, False) for w in layer.parameters()
        )
    )


def is_readable(weight: Tensor) -> bool:
    """Whether ``weight`` is contiguous in this process's memory, where C code can read it."""
    return (
        type(weight) in (Tensor, nn.Parameter)
        and (weight.device.type, weight.layout) == ("cpu", torch.strided)
        and weight.is_contiguous()
        and weight.numel() > 0
    )


def agrees(found: Tensor, expected: Tensor, tolerance: float, through: Tensor | float = 0.0) -> bool:
    """Whether ``found`` is ``expected`` to ``tolerance`` of its norm, after ``through`` is subtracted from it."""
    return bool((found - expected).double().norm() <= tolerance * (expected - through).double().norm())


def layer_agrees(layer: nn.Module, call: LayerCall, form: Form, hidden: Tensor) -> bool:
    """Whether ``form`` adds to the states what ``layer`` adds, and the same to their gradient, at real positions.

    States pass by a layer as they are, and large ones would hide what it does to them: so only what it adds counts.
    """
    grid = (call.grid or PaddedGrid.full(hidden)).to(hidden.device)
    with torch.enable_grad():
        hidden = hidden.clone().requires_grad_()
        theirs, ours = layer_output(layer(hidden, **call.kwargs)), form(hidden)
        # None at padding: the gradient of a norm at zero, which padding may be, would hide all others.
        slope = theirs.detach().roll(1, -1).masked_fill(~grid.real[:, :, None], 0)
        slopes = [torch.autograd.grad(output, hidden, slope)[0] for output in (theirs, ours)]
    tolerance = _TOLERANCE.get(hidden.dtype, _HALF_TOLERANCE)
    theirs, ours, entering, their_slope, our_slope, slope = map(grid.gather, (theirs, ours, hidden, *slopes, slope))
    return agrees(ours, theirs, tolerance, entering) and agrees(our_slope, their_slope, tolerance, slope)


def _attends_to_others(call: LayerCall) -> bool:
    """Whether some position attends to another: where none does, rotary angles and scores show nothing."""
    mask: Tensor = call.kwargs["attention_mask"]
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min
    others = seen.any(dim=1).sum(dim=-1) > 1
    return bool((others if call.grid is None else others & call.grid.real.to(others.device)).any())

"""Runs only the layers whose output can change.

One forward pass records what the model hands to each of its decoder layers: masks, positions, rotary tables. Afterwards
any layer can be called again by itself on other hidden states, at all positions or at chosen ones (packing.py).
Because every argument is the model's own, this holds for every family: rotary or learned positions, parallel attention,
sliding windows, grouped queries.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from betaedit.models.anatomy import Anatomy
from betaedit.models.grid import PaddedGrid
from betaedit.models.lookup import EncodedPrompts


class ForwardEnded(Exception):  # noqa: N818 - an event, not an error
    """Raised by a hook to end a forward pass once everything of interest has run."""


@cache
def _argument_names(forward: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(forward).parameters)[1:]


@dataclass(frozen=True)
class LayerCall:
    """The arguments of one decoder layer besides the hidden states, as the model itself passed them.

    Args:
        kwargs: By name.
        grid: Which of the positions are real; all of them without it.
    """

    kwargs: dict[str, Any]
    grid: PaddedGrid | None = None

    @classmethod
    def of(cls, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, LayerCall]:
        """The hidden states handed to ``layer``, and the call with every other argument under its name."""
        names = _argument_names(type(layer).forward)
        named = {**dict(zip(names, args, strict=False)), **kwargs}
        hidden: Tensor = named.pop(names[0])
        return hidden, cls(named)

    def map(self, change: Callable[[Any], Any]) -> LayerCall:
        """The same call with ``change`` applied to every argument."""
        return replace(self, kwargs={key: change(value) for key, value in self.kwargs.items()})


@dataclass(frozen=True)
class Recording:
    """The recording of one forward pass over a batch.

    Args:
        inputs: Hidden states entering each asked-for layer, ``(n, length, hidden_size)`` by layer.
        calls: The other arguments of every layer.
        prompts: The batch.
    """

    inputs: dict[int, Tensor]
    calls: dict[int, LayerCall]
    prompts: EncodedPrompts


def layer_output(output: Any) -> Tensor:
    """The hidden states a decoder layer returned, alone or first in a tuple."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


@contextmanager
def hooks(handles: list[Any]) -> Iterator[None]:
    """A context that removes the hooks at its end."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def record(anatomy: Anatomy, prompts: EncodedPrompts, *, run: int, keep: tuple[int, ...]) -> Recording:
    """One forward pass in which the first ``run`` layers compute; of the others only the arguments are recorded.

    Args:
        anatomy: The model.
        prompts: The batch.
        run: How many layers compute.
        keep: Layers, up to ``run``, whose input hidden states are kept; ``n_layers`` is the output of the last.
    """
    inputs: dict[int, Tensor] = {}
    calls: dict[int, LayerCall] = {}

    def note(index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        hidden, calls[index] = LayerCall.of(layer, args, kwargs)
        if index in keep:
            inputs[index] = hidden.detach()
        return hidden

    def before(index: int) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            note(index, layer, args, kwargs)

        return hook

    def after(_: nn.Module, __: Any, output: Any) -> None:
        inputs[anatomy.n_layers] = layer_output(output).detach()
        raise ForwardEnded

    def stand_in(index: int, layer: nn.Module) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = note(index, layer, args, kwargs)
            if index == anatomy.n_layers - 1:
                raise ForwardEnded
            return (hidden,) if returns_tuple else hidden

        return forward

    returns_tuple = False

    def look(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal returns_tuple
        returns_tuple = isinstance(output, tuple)

    layers = list(anatomy.layers)
    handles = [layer.register_forward_pre_hook(before(i), with_kwargs=True) for i, layer in enumerate(layers[:run])]
    if run > 0:
        handles.append(layers[run - 1].register_forward_hook(after if run == len(layers) else look))
    forwards = {layers[i]: stand_in(i, layers[i]) for i in range(run, len(layers))}
    with hooks(handles), replaced_forwards(forwards), suppress(ForwardEnded):
        anatomy.body(
            input_ids=prompts.input_ids,
            attention_mask=prompts.attention_mask,
            past_key_values=DynamicCache(),
            use_cache=True,
        )
    return Recording(inputs, calls, prompts)


@contextmanager
def replaced_forwards(forwards: dict[nn.Module, Any]) -> Iterator[None]:
    """A context with other forward functions of modules; those that accelerate set before are restored."""
    own = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, forward in own.items():
            del module.__dict__["forward"]
            if forward is not None:
                module.__dict__["forward"] = forward


def run_layers(anatomy: Anatomy, calls: dict[int, LayerCall], hidden: Tensor, first: int, last: int) -> Tensor:
    """Hidden states after layers ``first`` to ``last`` (both included), with the recorded arguments."""
    for index in range(first, last + 1):
        hidden = layer_output(anatomy.layers[index](hidden, **calls[index].kwargs))
    return hidden


def take_rows(calls: dict[int, LayerCall], rows: Tensor, n_rows: int) -> dict[int, LayerCall]:
    """The calls for some rows of the batch; arguments shared by all rows are not changed."""

    def take(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(take(item) for item in value)
        batched = isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == n_rows
        return value[rows.to(value.device)] if batched else value

    return {
        index: replace(call.map(take), grid=None if call.grid is None else call.grid.take(rows))
        for index, call in calls.items()
    }

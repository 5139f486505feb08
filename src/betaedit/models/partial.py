"""Running only the layers and positions whose result can change.

One ordinary forward pass records what the model hands to each of its decoder layers: masks, positions, rotary tables,
and (where asked) the attention keys and values. Afterwards any layer can be called again by itself on other hidden
states, for all positions or only for those from a row's lookup token on. Because every argument is the model's own,
this holds for every family: rotary or learned positions, parallel attention, sliding windows, grouped queries.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from betaedit.errors import ModelError
from betaedit.models.anatomy import Anatomy
from betaedit.models.lookup import EncodedPrompts


class ForwardEnded(Exception):  # noqa: N818 - an event, not an error
    """Raised by a hook to end a forward pass once everything of interest has run."""


@dataclass(frozen=True)
class LayerCall:
    """The arguments of one decoder layer besides the hidden states, as the model itself passed them."""

    kwargs: dict[str, Any]

    @classmethod
    def of(cls, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, LayerCall]:
        """The hidden states handed to ``layer``, and the call with every other argument under its name."""
        names = list(inspect.signature(type(layer).forward).parameters)[1:]
        named = {**dict(zip(names, args, strict=False)), **kwargs}
        hidden: Tensor = named.pop(names[0])
        return hidden, cls(named)

    def map(self, change: Callable[[Any], Any]) -> LayerCall:
        """The same call with ``change`` applied to every argument."""
        return LayerCall({key: change(value) for key, value in self.kwargs.items()})


@dataclass(frozen=True)
class Recording:
    """What one forward pass over a batch left behind.

    Args:
        inputs: Hidden states entering each asked-for layer, ``(n, length, hidden_size)`` by layer.
        calls: The other arguments of every layer that ran.
        cache: Attention keys and values of every layer that ran, when asked for.
        prompts: The batch.
    """

    inputs: dict[int, Tensor]
    calls: dict[int, LayerCall]
    cache: DynamicCache | None
    prompts: EncodedPrompts


def layer_output(output: Any) -> Tensor:
    """The hidden states a decoder layer returned, alone or first in a tuple."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


@contextmanager
def hooks(handles: list[Any]) -> Iterator[None]:
    """A context at whose end the hooks are removed."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def record(
    anatomy: Anatomy, prompts: EncodedPrompts, *, keep: tuple[int, ...], until: int | None = None, cache: bool = False
) -> Recording:
    """One forward pass, stopped before layer ``until`` runs, remembering what ``Recording`` holds.

    Args:
        anatomy: The model.
        prompts: The batch.
        keep: Layers whose input hidden states are kept; ``n_layers`` means the output of the last layer.
        until: First layer that need not run; ``None`` runs all.
        cache: Whether attention keys and values are kept.
    """
    last = anatomy.n_layers if until is None else until
    inputs: dict[int, Tensor] = {}
    calls: dict[int, LayerCall] = {}

    def before(index: int) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden, calls[index] = LayerCall.of(layer, args, kwargs)
            if index in keep:
                inputs[index] = hidden.detach()
            if index == last:
                raise ForwardEnded

        return hook

    def after(_: nn.Module, __: Any, output: Any) -> None:
        inputs[anatomy.n_layers] = layer_output(output).detach()
        raise ForwardEnded

    layers = anatomy.layers
    handles = [
        layers[i].register_forward_pre_hook(before(i), with_kwargs=True) for i in range(min(last + 1, len(layers)))
    ]
    if last == anatomy.n_layers:
        handles.append(layers[-1].register_forward_hook(after))
    memory = DynamicCache() if cache else None
    with hooks(handles), suppress(ForwardEnded):
        anatomy.body(
            input_ids=prompts.input_ids,
            attention_mask=prompts.attention_mask,
            past_key_values=memory,
            use_cache=cache,
        )
    return Recording(inputs, calls, memory, prompts)


def run_layers(anatomy: Anatomy, calls: dict[int, LayerCall], hidden: Tensor, first: int, last: int) -> Tensor:
    """Hidden states after layers ``first`` to ``last`` (both included), with the recorded arguments."""
    for index in range(first, last + 1):
        call = calls[index]
        hidden = layer_output(anatomy.layers[index](hidden, **call.kwargs))
    return hidden


def without_cache(calls: dict[int, LayerCall]) -> dict[int, LayerCall]:
    """The recorded calls without the cache that the recording pass filled."""
    return {index: call.map(lambda value: None if isinstance(value, Cache) else value) for index, call in calls.items()}


def take_rows(calls: dict[int, LayerCall], rows: Tensor, n_rows: int) -> dict[int, LayerCall]:
    """The recorded calls for some rows of the batch; arguments that all rows share stay as they are."""

    def take(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(take(item) for item in value)
        batched = isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == n_rows
        return value[rows.to(value.device)] if batched else value

    return {index: call.map(take) for index, call in calls.items()}


class _PrefixCache(Cache):
    """Gives each layer the attention keys and values of the prefix, and stores nothing."""

    def __init__(self, prefix: dict[int, tuple[Tensor, Tensor]]) -> None:
        self.prefix = prefix
        self.layers = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Prefix and new positions, along the sequence axis."""
        keys, values = self.prefix[layer_idx]
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions held before the new ones."""
        return int(next(iter(self.prefix.values()))[0].shape[-2])


@dataclass(frozen=True)
class Suffix:
    """A batch reduced to what follows each row's lookup token, everything before it held as attention state.

    Args:
        start: ``(n, width, hidden_size)`` hidden states entering layer ``first`` from each lookup token on.
        calls: Arguments for the layers from ``first`` on, cut to those positions.
        positions: ``(n, width)`` index in the full prompt of each kept position (clamped on padding).
    """

    start: Tensor
    calls: dict[int, LayerCall]
    positions: Tensor


def cut_to_suffix(recording: Recording, first: int, last: int | None = None) -> Suffix:
    """The part of a recorded batch that a change at the lookup tokens, entering layer ``first``, can reach.

    Exact in a causal model: positions before the lookup token do not see the change, so their attention keys and
    values are taken from the recording (docs/methods.md A.5, docs/design/0003).

    Raises:
        ModelError: The recording lacks attention state, or the attention takes no explicit mask.
    """
    if recording.cache is None:
        raise ModelError("the recording holds no attention state.", mend="Record with cache=True.")
    window = _Window.of(recording.prompts)
    prefix: dict[int, tuple[Tensor, Tensor]] = {}
    calls = {}
    for index, call in recording.calls.items():
        if index < first or (last is not None and index > last):
            continue
        layer: Any = recording.cache.layers[index]
        prefix[index] = (window.prefix_state(layer.keys), window.prefix_state(layer.values))
        calls[index] = call.map(window.cut)
    shared = _PrefixCache(prefix)
    calls = {index: call.map(lambda v: shared if isinstance(v, Cache) else v) for index, call in calls.items()}
    calls = {index: _with_mask(call, recording.calls[index], window) for index, call in calls.items()}
    return Suffix(window.rows(recording.inputs[first]), calls, window.positions)


@dataclass(frozen=True)
class _Window:
    """Which positions of each row are prefix and which are suffix.

    Args:
        positions: ``(n, width)`` suffix positions, clamped to the padded length.
        columns: ``(n, longest_prefix + width)`` full-prompt index of every attended column, -1 where there is none.
        length: Padded length of the full batch.
    """

    positions: Tensor
    columns: Tensor
    length: int

    @classmethod
    def of(cls, prompts: EncodedPrompts) -> _Window:
        lookup, lengths, length = prompts.lookup, prompts.lengths, prompts.input_ids.shape[1]
        width = int((lengths - lookup).max())
        longest = int(lookup.max())
        steps = torch.arange(width, device=lookup.device)
        positions = lookup[:, None] + steps
        before = torch.arange(longest, device=lookup.device).expand(len(lookup), longest)
        prefix = torch.where(before < lookup[:, None], before, -1)
        suffix = torch.where(positions < lengths[:, None], positions, -1)
        return cls(positions.clamp(max=length - 1), torch.cat([prefix, suffix], dim=1), length)

    def rows(self, value: Tensor) -> Tensor:
        """``(n or 1, length, ...)`` cut to the suffix positions: ``(n, width, ...)``."""
        n = len(self.positions)
        value = value.expand(n, *value.shape[1:])
        index = self.positions.to(value.device).view(n, -1, *[1] * (value.dim() - 2))
        return value.gather(1, index.expand(-1, -1, *value.shape[2:]))

    def prefix_state(self, state: Tensor) -> Tensor:
        """``(n, heads, length, width)`` cut to the longest prefix; what is not prefix in a row is masked elsewhere."""
        return state[:, :, : self.columns.shape[1] - self.positions.shape[1]]

    def cut(self, value: Any) -> Any:
        """A layer argument cut to the suffix: position tensors along axis 1; everything else as it is."""
        if isinstance(value, tuple):
            return tuple(self.cut(item) for item in value)
        if isinstance(value, Tensor) and value.dim() in (2, 3) and value.shape[1] == self.length:
            return self.rows(value)
        return value

    def attention(self, mask: Tensor | None) -> Tensor:
        """``(n, heads, width, columns)`` mask of the suffix, cut from the model's own or plainly causal without one."""
        n = len(self.positions)
        device = self.positions.device if mask is None else mask.device
        rows, columns = self.positions.to(device), self.columns.to(device)
        there = (columns >= 0)[:, None, None, :]
        if mask is None:
            return (columns[:, None, None, :] <= rows[:, None, :, None]) & there
        full = mask[..., : self.length].expand(n, -1, -1, -1)
        index = rows[:, None, :, None].expand(-1, full.shape[1], -1, self.length)
        cut = full.gather(2, index)
        index = columns.clamp(min=0)[:, None, None, :].expand(-1, full.shape[1], rows.shape[1], -1)
        cut = cut.gather(3, index)
        return cut & there if cut.dtype == torch.bool else cut.masked_fill(~there, torch.finfo(cut.dtype).min)


def _with_mask(cut: LayerCall, full: LayerCall, window: _Window) -> LayerCall:
    """``cut`` with the attention mask of the suffix in place of the model's own."""
    if "attention_mask" not in full.kwargs:
        raise ModelError("the layers take no attention mask.", mend="Report the model's name with `betaedit env`.")
    mask = window.attention(_checked(full.kwargs["attention_mask"]))
    return LayerCall({**cut.kwargs, "attention_mask": mask})


_MASK_DIM = 4


def _checked(mask: Any) -> Tensor | None:
    if mask is None or (isinstance(mask, Tensor) and mask.dim() == _MASK_DIM):
        return mask
    raise ModelError(
        "the model's attention does not use a plain mask (flash or flex attention).",
        mend='Load the model with attn_implementation="sdpa" or "eager".',
    )


_TOLERANCE = 0.02


@torch.no_grad()
def check_partial(anatomy: Anatomy) -> None:
    """Refuse a model whose layers know more of positions than their arguments say (ALiBi, masks built inside)."""
    device = anatomy.model.get_input_embeddings().get_parameter("weight").device
    ids = torch.arange(16, device=device).view(2, 8) % anatomy.model.config.get_text_config().vocab_size
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    prompts = EncodedPrompts(ids, mask, torch.tensor([5, 1], device=device))
    recording = record(anatomy, prompts, keep=(0, anatomy.n_layers), cache=True)
    try:
        suffix = cut_to_suffix(recording, 0)
        hidden = run_layers(anatomy, suffix.calls, suffix.start, 0, anatomy.n_layers - 1)
    except RuntimeError as error:
        raise _refused(anatomy) from error
    for row, (start, end) in enumerate(zip(prompts.lookup.tolist(), prompts.lengths.tolist(), strict=True)):
        expected = recording.inputs[anatomy.n_layers][row, start:end].float()
        found = hidden[row, : end - start].float().to(expected.device)
        if not float((found - expected).norm()) <= _TOLERANCE * float(expected.norm()):
            raise _refused(anatomy)


def _refused(anatomy: Anatomy) -> ModelError:
    return ModelError(
        f"the layers of {type(anatomy.model).__name__} cannot be run on a part of the positions.",
        mend="Models with ALiBi or masks of their own (BLOOM, MPT, GPT-Neo) are not supported.",
    )

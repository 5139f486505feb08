"""Chosen positions of recorded prompts, side by side without padding, and the layers' arguments cut to them.

Whatever an edit needs to run again is a few positions of a few prompts. A pack puts those of several prompts into one
row; a mask keeps every prompt to itself. The arguments are the model's own (models/partial.py), so a pack of any
family gives what the full forward pass gives at those positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from betaedit.errors import ModelError
from betaedit.models.anatomy import Anatomy
from betaedit.models.lookup import EncodedPrompts
from betaedit.models.partial import ForwardEnded, LayerCall, Recording, record, run_layers

RunLayers = Callable[[Anatomy, dict[int, LayerCall], Tensor, int, int], Tensor]
_MASK_DIM = 4


class KeptState(Cache):
    """Attention keys and values of one pack, by layer: kept while it runs, then given to the pack that follows.

    Nothing but them is wanted, so the state of the layer ``last`` ends the run.
    """

    def __init__(self, last: int) -> None:
        self.held: dict[int, tuple[Tensor, Tensor]] = {}
        self.layers = []
        self._last = last

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Remember a layer's state.

        Raises:
            ForwardEnded: It is that of the last one.
        """
        self.held[layer_idx] = key_states.contiguous(), value_states.contiguous()
        if layer_idx == self._last:
            raise ForwardEnded
        return self.held[layer_idx]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Nothing comes before."""
        return 0


class PriorState(Cache):
    """Puts the attention state of an earlier pack before the new positions, and stores nothing."""

    def __init__(self, held: dict[int, tuple[Tensor, Tensor]]) -> None:
        self.held = held
        self.layers = []

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Prior and new positions, along the sequence axis."""
        keys, values = self.held[layer_idx]
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions held before the new ones."""
        return int(self.held[layer_idx][0].shape[-2])

    def take(self, rows: Tensor) -> PriorState:
        """The state of some rows of the pack."""
        held = {layer: [state[rows.to(state.device)] for state in pair] for layer, pair in self.held.items()}
        return PriorState({layer: (keys, values) for layer, (keys, values) in held.items()})


@dataclass(frozen=True)
class Pack:
    """Positions ``begin[i]`` to ``end[i] - 1`` of chosen prompts, those of one row after another.

    Args:
        prompts: ``(g, width)`` recorded prompt of each entry.
        positions: ``(g, width)`` its position there.
        real: ``(g, width)`` false on the padding that evens out the rows.
        starts: ``(g, p)`` entry at which each chosen prompt begins in its row.
    """

    prompts: Tensor
    positions: Tensor
    real: Tensor
    starts: Tensor

    @classmethod
    def of(cls, chosen: Tensor, begin: Tensor, end: Tensor) -> Pack:
        """The pack of ``chosen`` ``(g, p)`` prompts, row by row; ``begin`` and ``end`` are ``(n,)``, of all prompts."""
        sizes = torch.where(chosen >= 0, (end - begin)[chosen], 0)
        ends = sizes.cumsum(dim=1)
        starts = ends - sizes
        entries = torch.arange(max(int(ends.max()), 1), device=chosen.device)
        slot = (entries[None, :, None] >= ends[:, None, :]).sum(dim=2)
        real = slot < chosen.shape[1]
        slot = slot.clamp(max=chosen.shape[1] - 1)
        prompts = chosen.gather(1, slot).clamp(min=0)
        positions = begin[prompts] + entries - starts.gather(1, slot)
        return cls(prompts, torch.where(real, positions, begin[prompts]), real, starts)

    def gather(self, value: Tensor) -> Tensor:
        """``(n or 1, length, ...)`` cut to the entries: ``(g, width, ...)``."""
        prompts, positions = self.prompts.to(value.device), self.positions.to(value.device)
        return value[prompts if value.shape[0] > 1 else torch.zeros_like(prompts), positions]

    def scatter(self, entries: Tensor, recorded: EncodedPrompts) -> Tensor:
        """``(g, width, d)`` entries in their places in the recorded prompts: ``(n, length, d)``, zero elsewhere."""
        spread = entries.new_zeros(*recorded.input_ids.shape, entries.shape[-1])
        prompts, positions, real = (each.to(entries.device) for each in (self.prompts, self.positions, self.real))
        spread[prompts[real], positions[real]] = entries[real]
        return spread

    def calls(
        self, recording: Recording, layers: range, state: Cache | None = None, prior: Pack | None = None
    ) -> dict[int, LayerCall]:
        """The arguments of ``layers`` for these entries, after those of ``prior`` whose attention ``state`` is held.

        Raises:
            ModelError: The attention takes no explicit mask.
        """
        length = recording.prompts.input_ids.shape[1]
        masks: dict[int, Tensor] = {}

        def cut(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(cut(item) for item in value)
            if isinstance(value, Cache):
                return state
            if isinstance(value, Tensor) and value.dim() in (2, 3) and value.shape[1] == length:
                return self.gather(value)
            return value

        def cut_call(call: LayerCall) -> LayerCall:
            if "attention_mask" not in call.kwargs:
                raise ModelError("the layers take no attention mask.", hint="Report the model with `betaedit env`.")
            mask = _checked(call.kwargs["attention_mask"])
            if id(mask) not in masks:  # layers share their masks
                masks[id(mask)] = self._mask(mask, recording.prompts, prior)
            plain = LayerCall({key: value for key, value in call.kwargs.items() if key != "attention_mask"})
            return LayerCall({**plain.map(cut).kwargs, "attention_mask": masks[id(mask)]}, self.real)

        return {layer: cut_call(recording.calls[layer]) for layer in layers}

    def _mask(self, mask: Tensor | None, recorded: EncodedPrompts, prior: Pack | None) -> Tensor:
        """``(g, heads, width, columns)``: the model's own mask within a prompt, plainly causal without one."""
        device = self.prompts.device if mask is None else mask.device
        packs = [self] if prior is None else [prior, self]
        rows = [self.prompts[:, :, None].to(device), self.positions[:, :, None].to(device)]
        prompts, positions, real = (
            torch.cat([getattr(pack, name) for pack in packs], dim=1)[:, None, :].to(device)
            for name in ("prompts", "positions", "real")
        )
        seen = (rows[0] == prompts) & real
        width = self.prompts.shape[1]
        seen[:, :, -width:] |= torch.eye(width, dtype=torch.bool, device=device)  # padding must see something
        if mask is None:
            return (seen & (positions <= rows[1]))[:, None]
        n, length = recorded.input_ids.shape
        full = mask[..., :length].expand(n, -1, -1, -1)
        cut = full[rows[0], :, rows[1], positions].permute(0, 3, 1, 2)
        seen = seen[:, None]
        return cut & seen if cut.dtype == torch.bool else cut.masked_fill(~seen, torch.finfo(cut.dtype).min)


def keep_state(
    anatomy: Anatomy, recording: Recording, pack: Pack, layers: range, run: RunLayers = run_layers
) -> PriorState:
    """The attention state of ``pack`` at ``layers``, from the recorded hidden states entering the first of them.

    ``run`` runs the layers. Raises: ModelError when the attention takes no explicit mask.
    """
    state = KeptState(layers.stop - 1)
    calls = pack.calls(recording, layers, state)
    with torch.no_grad(), suppress(ForwardEnded):
        run(anatomy, calls, pack.gather(recording.inputs[layers.start]), layers.start, layers.stop - 1)
    return PriorState(state.held)


@torch.no_grad()
def extend(
    anatomy: Anatomy, recording: Recording, chosen: Tensor, keep: Sequence[int], run: RunLayers = run_layers
) -> Recording:
    """The recording with what enters the layers ``keep`` too, above those it has.

    Args:
        anatomy: The model.
        recording: The recording.
        chosen: ``(g, p)`` prompts that run in one row each, without padding; of others there are zeros.
        keep: The layers, ``n_layers`` for the output of the last.
        run: What runs layers.

    Raises:
        ModelError: The attention takes no explicit mask.
    """
    inputs, prompts = dict(recording.inputs), recording.prompts
    at = max(inputs)
    pack = Pack.of(chosen, torch.zeros_like(prompts.lengths), prompts.lengths)
    hidden, calls = pack.gather(inputs[at]), pack.calls(recording, range(at, max(keep)))
    for layer in sorted(set(keep) - set(inputs)):
        hidden, at = run(anatomy, calls, hidden, at, layer - 1), layer
        inputs[layer] = pack.scatter(hidden, prompts)
    return replace(recording, inputs=inputs)


def _checked(mask: Any) -> Tensor | None:
    if mask is None or (isinstance(mask, Tensor) and mask.dim() == _MASK_DIM):
        return mask
    raise ModelError(
        "the model's attention does not use a plain mask (flash or flex attention).",
        hint='Load the model with attn_implementation="sdpa" or "eager".',
    )


_TOLERANCE = 0.02
_ROUNDINGS = 4.0


@torch.no_grad()
def check_packs(anatomy: Anatomy) -> None:
    """Refuse a model of which layers run on a part of the positions, or logits, are not what its whole pass gives.

    So it is with ALiBi, masks built inside the layers, and whatever stands between the last layer and the head unknown
    to ``Anatomy``.

    Raises:
        ModelError: The model is such a one, or its logits are not finite.
    """
    device = anatomy.model.get_input_embeddings().get_parameter("weight").device
    ids = torch.arange(16, device=device).view(2, 8) % anatomy.model.config.get_text_config().vocab_size
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    prompts = EncodedPrompts(ids, mask, torch.tensor([5, 1], device=device))
    try:
        recording = record(anatomy, prompts, run=anatomy.n_layers, keep=tuple(range(anatomy.n_layers + 1)))
        _check_logits(anatomy, recording)
        _check_layers(anatomy, recording)
    except ModelError:
        raise
    except Exception as error:  # whatever a family's layers trip over when they are called by themselves
        raise _refused(anatomy) from error


def _check_layers(anatomy: Anatomy, recording: Recording) -> None:
    """Layer by layer from the states that enter it in a whole pass: so rounding has no layers to grow over."""
    prompts = recording.prompts
    both = torch.arange(2, device=prompts.lookup.device)[None]
    prefix = Pack.of(both, torch.zeros_like(prompts.lookup), prompts.lookup)
    suffix = Pack.of(both, prompts.lookup, prompts.lengths)
    for layer in range(anatomy.n_layers):
        entering, leaving = (suffix.gather(recording.inputs[at]) for at in (layer, layer + 1))
        one = range(layer, layer + 1)
        calls = suffix.calls(recording, one, keep_state(anatomy, recording, prefix, one), prefix)
        found = run_layers(anatomy, calls, entering, layer, layer)
        added = (leaving - entering.to(leaving.device)).float().norm(dim=2)
        rounded = _ROUNDINGS * torch.finfo(leaving.dtype).eps * leaving.float().norm(dim=2)
        wrong = (found.to(leaving.device) - leaving).float().norm(dim=2) > _TOLERANCE * added + rounded
        if bool(wrong.any()) or not bool(torch.isfinite(found).all()):
            raise _refused(anatomy)


def _check_logits(anatomy: Anatomy, recording: Recording) -> None:
    prompts, last = recording.prompts, recording.inputs[anatomy.n_layers]
    real = prompts.attention_mask.bool()
    logits = anatomy.model(input_ids=prompts.input_ids, attention_mask=prompts.attention_mask).logits
    theirs = logits[real.to(logits.device)].float()
    if not bool(torch.isfinite(theirs).all()):
        raise ModelError(
            f"the logits of {type(anatomy.model).__name__} are not finite in {last.dtype}.",
            hint="Load it with another --dtype (bfloat16, float32), or check its weights.",
        )
    ours = anatomy.logits(last)[real.to(logits.device)].to(theirs)
    if bool(((ours - theirs).norm(dim=1) > _TOLERANCE * theirs.norm(dim=1)).any()):
        raise ModelError(
            f"the logits of {type(anatomy.model).__name__} are not what its norm and head make of its last layer.",
            hint="This family is not supported; report its name with `betaedit env`.",
        )


def _refused(anatomy: Anatomy) -> ModelError:
    return ModelError(
        f"the layers of {type(anatomy.model).__name__} cannot be run on a part of the positions.",
        hint="Models with ALiBi or masks of their own (BLOOM, MPT, GPT-Neo) are not supported.",
    )

"""Chosen positions of recorded prompts, side by side without padding, and the layers' arguments cut to them.

Whatever an edit needs to run again is a few positions of a few prompts. A pack puts those of several prompts into one
row; a mask keeps every prompt to itself. The arguments are the model's own (models/replay.py), so a pack of any
family gives what the full forward pass gives at those positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from betaedit.errors import ModelError
from betaedit.models.grid import PaddedGrid
from betaedit.models.lookup import EncodedPrompts
from betaedit.models.replay import LayerCall, Recording

RunLayers = Callable[[dict[int, LayerCall], Tensor, int, int], Tensor]
"""From the layers' arguments, the hidden states entering the first layer, and the first and last layer."""

_MASK_DIM = 4


@dataclass(frozen=True)
class Pack:
    """Positions ``begin[i]`` to ``end[i] - 1`` of chosen prompts, those of one row after another.

    Args:
        prompts: ``(g, width)`` recorded prompt of each entry.
        positions: ``(g, width)`` its position there.
        grid: Which entries are real; padding evens out the rows.
        starts: ``(g, p)`` entry at which each chosen prompt begins in its row.
    """

    prompts: Tensor
    positions: Tensor
    grid: PaddedGrid
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
        return cls(prompts, torch.where(real, positions, begin[prompts]), PaddedGrid(real), starts)

    def gather(self, value: Tensor) -> Tensor:
        """``(n or 1, length, ...)`` cut to the entries: ``(g, width, ...)``."""
        prompts, positions = self.prompts.to(value.device), self.positions.to(value.device)
        return value[prompts if value.shape[0] > 1 else torch.zeros_like(prompts), positions]

    def scatter(self, entries: Tensor, recorded: EncodedPrompts) -> Tensor:
        """``(g, width, d)`` entries in their places in the recorded prompts: ``(n, length, d)``, zero elsewhere."""
        spread = entries.new_zeros(*recorded.input_ids.shape, entries.shape[-1])
        grid = self.grid.to(entries.device)
        prompts, positions = (grid.gather(each.to(entries.device)) for each in (self.prompts, self.positions))
        spread[prompts, positions] = grid.gather(entries)
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
            return LayerCall({**plain.map(cut).kwargs, "attention_mask": masks[id(mask)]}, self.grid)

        return {layer: cut_call(recording.calls[layer]) for layer in layers}

    def _mask(self, mask: Tensor | None, recorded: EncodedPrompts, prior: Pack | None) -> Tensor:
        """``(g, heads, width, columns)``: the model's own mask within a prompt, plainly causal without one."""
        device = self.prompts.device if mask is None else mask.device
        packs = [self] if prior is None else [prior, self]
        rows = [self.prompts[:, :, None].to(device), self.positions[:, :, None].to(device)]
        prompts, positions, real = (
            torch.cat(list(parts), dim=1)[:, None, :].to(device)
            for parts in zip(*((pack.prompts, pack.positions, pack.grid.real) for pack in packs), strict=True)
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


@torch.no_grad()
def extend(recording: Recording, chosen: Tensor, keep: Sequence[int], run: RunLayers) -> Recording:
    """The recording with what enters the layers ``keep`` too, above those it has.

    Args:
        recording: The recording.
        chosen: ``(g, p)`` prompts that run in one row each, without padding; of others there are zeros.
        keep: The layers, ``n_layers`` for the output of the last.
        run: Runs layers: ``LayerRunner.run``, or ``run_layers`` of one model.

    Raises:
        ModelError: The attention takes no explicit mask.
    """
    inputs, prompts = dict(recording.inputs), recording.prompts
    at = max(inputs)
    pack = Pack.of(chosen, torch.zeros_like(prompts.lengths), prompts.lengths)
    hidden, calls = pack.gather(inputs[at]), pack.calls(recording, range(at, max(keep)))
    for layer in sorted(set(keep) - set(inputs)):
        hidden, at = run(calls, hidden, at, layer - 1), layer
        inputs[layer] = pack.scatter(hidden, prompts)
    return replace(recording, inputs=inputs)


def _checked(mask: Any) -> Tensor | None:
    if mask is None or (isinstance(mask, Tensor) and mask.dim() == _MASK_DIM):
        return mask
    raise ModelError(
        "the model's attention does not use a plain mask (flash or flex attention).",
        hint='Load the model with attn_implementation="sdpa" or "eager".',
    )

"""The attention state of the positions before a pack: recorded once, then put before the new positions at every run."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from betaedit.models.packing import Pack, RunLayers
from betaedit.models.replay import ForwardEnded, Recording


class PrefixRecorder(Cache):
    """Attention keys and values of one pack, by layer: recorded while it runs, for the next pack.

    The run ends as soon as the layer ``last`` has handed over its state: nothing later is needed.
    """

    def __init__(self, last: int) -> None:
        self.held: dict[int, tuple[Tensor, Tensor]] = {}
        self.layers = []
        self._last = last

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Store a layer's state.

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


class PrefixCache(Cache):
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

    def take(self, rows: Tensor) -> PrefixCache:
        """The state of some rows of the pack."""
        held = {layer: [state[rows.to(state.device)] for state in pair] for layer, pair in self.held.items()}
        return PrefixCache({layer: (keys, values) for layer, (keys, values) in held.items()})


@torch.no_grad()
def compute_prefix(recording: Recording, pack: Pack, layers: range, run: RunLayers) -> PrefixCache:
    """The attention state of ``pack`` at ``layers``, from the recorded hidden states entering the first of them.

    ``run`` is as in ``extend``.

    Raises:
        ModelError: The attention takes no explicit mask.
    """
    recorder = PrefixRecorder(layers.stop - 1)
    calls = pack.calls(recording, layers, recorder)
    with suppress(ForwardEnded):
        run(calls, pack.gather(recording.inputs[layers.start]), layers.start, layers.stop - 1)
    return PrefixCache(recorder.held)

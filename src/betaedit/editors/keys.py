"""The keys of facts, and the walk through the edited layers that yields them one layer at a time.

A key is the input of a layer's MLP output projection at the lookup token, averaged over contexts with the bare prompt
weighing one half (methods.md A.4). Keys of a layer are taken after the lower layers were updated (A.7); so the walk
keeps the hidden states entering the next layer and never starts again from the bottom.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from betaedit.editors.config import EditConfig
from betaedit.facts.fact import Fact
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import Prompt, encode_prompts
from betaedit.models.partial import hooks, record, run_layers, take_rows, without_cache


class LayerWalk:
    """Hidden states of a batch of facts in all contexts, moved up layer by layer.

    Args:
        model: The model, with its current weights.
        facts: The batch.
        contexts: Templates, the bare one first.
        config: Layers and lookup strategy.
    """

    def __init__(
        self, model: LanguageModel, facts: Sequence[Fact], contexts: tuple[str, ...], config: EditConfig
    ) -> None:
        prompts = [Prompt.fill(template, fact.prompt, fact.subject) for fact in facts for template in contexts]
        encoded = encode_prompts(model.tokenizer, prompts, strategy=config.lookup, device=model.device)
        encoded = encoded.cut_after_lookup()
        first, self._last = config.layers[0], config.layers[-1]
        recording = record(model.anatomy, encoded, keep=(first,), until=self._last)
        self._anatomy = model.anatomy
        self._calls = without_cache(recording.calls)
        self._hidden = recording.inputs[first]
        self._layer = first
        self._lookup = encoded.lookup
        self._n_contexts = len(contexts)
        self._bare = torch.arange(0, len(prompts), self._n_contexts, device=encoded.lookup.device)

    @torch.no_grad()
    def keys(self, layer: int) -> Tensor:
        """``(d_in, b)`` keys of ``layer`` under the current weights; moves up to it first."""
        self._advance(layer)
        with _projection_input(self._anatomy.projection(layer)) as caught:
            run_layers(self._anatomy, self._calls, self._hidden, layer, layer)
        return average_keys(_at(caught[0], self._lookup), self._n_contexts)

    @torch.no_grad()
    def outputs(self) -> Tensor:
        """``(d_out, b)`` current output of the last edited layer at the bare prompts' lookup tokens."""
        calls = take_rows(self._calls, self._bare, len(self._hidden))
        hidden = run_layers(self._anatomy, calls, self._hidden[self._bare], self._layer, self._last)
        return _at(hidden, self._lookup[self._bare]).float().T

    def _advance(self, layer: int) -> None:
        if layer > self._layer:
            self._hidden = run_layers(self._anatomy, self._calls, self._hidden, self._layer, layer - 1)
            self._layer = layer


def average_keys(keys: Tensor, n_contexts: int) -> Tensor:
    """``(d_in, b)`` keys from ``(b * n_contexts, d_in)`` inputs: bare prompt and mean of the others, one half each."""
    by_fact = keys.float().view(-1, n_contexts, keys.shape[-1])
    bare = by_fact[:, 0]
    if n_contexts == 1:
        return bare.T
    return ((bare + by_fact[:, 1:].mean(dim=1)) / 2).T


def _at(hidden: Tensor, positions: Tensor) -> Tensor:
    """``(n, width)`` rows of ``hidden`` ``(n, length, width)`` at one position each."""
    return hidden[torch.arange(len(hidden), device=hidden.device), positions.to(hidden.device)]


@contextmanager
def _projection_input(projection: nn.Module) -> Iterator[list[Tensor]]:
    caught: list[Tensor] = []
    with hooks([projection.register_forward_pre_hook(lambda _, args: caught.append(args[0].detach()))]):
        yield caught

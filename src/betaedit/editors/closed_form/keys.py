"""The keys of facts, and the walk through the edited layers that yields them one layer at a time.

A key is the input of a layer's MLP output projection at the lookup token, averaged over contexts with the bare prompt
weighing one half (methods.md A.4). Keys of a layer are taken after the lower layers were updated (A.7); so the walk
keeps the hidden states entering the next layer, and each layer runs once: it stops at its projection until the update
is written, and goes on with the new weight.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from betaedit.editors.closed_form.config import EditConfig
from betaedit.editors.closed_form.encode import EncodedBatch
from betaedit.facts.fact import SLOT, Fact
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import Prompt, encode_prompts, encode_target
from betaedit.models.packing import Pack
from betaedit.models.replay import ForwardEnded, hooks


class LayerWalk:
    """Hidden states of some encoded facts up to their lookup tokens, moved up layer by layer.

    Args:
        model: The model, with its current weights.
        encoded: The encoded prompts.
        facts: Which of them walk.
        config: Layers.
    """

    def __init__(self, model: LanguageModel, encoded: EncodedBatch, facts: Sequence[int], config: EditConfig) -> None:
        first, self._last = config.layers[0], config.layers[-1]
        layers = range(first, self._last + 1)
        prompts, leading = encoded.prompts(facts)[:, :-1], encoded.leading(facts)
        begin, end = torch.zeros_like(encoded.lookup), encoded.lookup + 1
        pack, leaders = (Pack.of(rows, begin, end) for rows in (prompts, leading))
        self._runner = model.runner
        self._calls = pack.calls(encoded.recording, layers)
        self._leaders_calls = leaders.calls(encoded.recording, layers)
        self._hidden = pack.gather(encoded.recording.inputs[first])
        self._next = first
        self._weights = [encoded.key_weights(fact) for fact in facts]
        self._lookup = torch.where(prompts >= 0, pack.starts + encoded.lookup[prompts], 0)
        self._leaders_lookup = torch.where(leading >= 0, leaders.starts + encoded.lookup[leading], 0)
        entry = torch.zeros_like(encoded.lookup)  # of each prompt's first token among those of its row
        entry[prompts[prompts >= 0]] = pack.starts[prompts >= 0]
        self._leaders = entry[leaders.prompts] + leaders.positions
        self.bare_keys: Tensor
        self.prompt_keys: list[Tensor]

    @torch.no_grad()
    def pass_layer(self, layer: int, write: Callable[[Tensor, Tensor], None]) -> None:
        """Run up to the projection of ``layer``, let ``write`` change its weight, and go on with the new one.

        ``write`` is given the keys ``(d_in, c)`` of ``layer``, those of one fact after another, and the output
        ``(d_out, c)`` that the last edited layer has at the lookup token of each key's first prompt, both under the
        weights as they are when it is called. Meanwhile ``bare_keys`` holds, for each of them, the ``(d_in, c)`` key
        of its fact's bare prompt alone, and ``prompt_keys``, for each fact, the ``(wordings, d_in)`` keys of its
        prompts.
        """
        self._hidden = self._runner.run(self._calls, self._hidden, self._next, layer - 1)
        self._next = layer
        output = self._output()

        def pause(entering: Tensor) -> None:
            keys = [
                rows[: w.shape[1]].float() for rows, w in zip(_at(entering, self._lookup), self._weights, strict=True)
            ]
            self.prompt_keys = keys
            self.bare_keys = torch.cat(
                [rows[:1].expand(len(w), -1) for rows, w in zip(keys, self._weights, strict=True)]
            ).T
            averaged = [w.to(rows) @ rows for rows, w in zip(keys, self._weights, strict=True)]
            write(torch.cat(averaged).T, output)
            if layer == self._last:
                raise ForwardEnded

        with suppress(ForwardEnded):
            self._hidden = self._runner.pass_projection(self._calls, self._hidden, layer, pause)
            self._next = layer + 1

    def _output(self) -> Tensor:
        """``(d_out, c)`` of the last edited layer at the lookup token of each key's first prompt."""
        places = self._leaders.to(self._hidden.device)[:, :, None].expand(-1, -1, self._hidden.shape[2])
        entering = self._hidden.gather(1, places)
        hidden = self._runner.run(self._leaders_calls, entering, self._next, self._last)
        outputs = _at(hidden, self._leaders_lookup)
        return torch.cat([rows[: len(w)] for rows, w in zip(outputs, self._weights, strict=True)]).float().T


@torch.no_grad()
def present_keys(model: LanguageModel, encoded: EncodedBatch, config: EditConfig) -> dict[int, Tensor]:
    """By layer, the ``(d_in, c)`` keys of all encoded facts under the current weights, one fact after another."""
    found: dict[int, Tensor] = {}
    walk = LayerWalk(model, encoded, range(len(encoded)), config)
    for layer in config.layers:

        def keep(keys: Tensor, _: Tensor, layer: int = layer) -> None:
            found[layer] = keys

        walk.pass_layer(layer, keep)
    return found


@torch.no_grad()
def bare_outputs(model: LanguageModel, encoded: EncodedBatch, facts: Sequence[int], config: EditConfig) -> Tensor:
    """``(b, d_out)`` output of the last edited matrix at the bare prompts' lookup tokens, under the current weights."""
    walk, last = LayerWalk(model, encoded, facts, config), config.layers[-1]
    walk.pass_layer(last, lambda *_: None)
    projection = model.anatomy.projection(last)
    firsts = [0, *itertools.accumulate(encoded.n_keys(fact) for fact in facts[:-1])]
    outputs: Tensor = projection(walk.bare_keys.T[firsts].to(projection.get_parameter("weight")))
    return outputs.float()


@torch.no_grad()
def token_keys(model: LanguageModel, facts: Sequence[Fact], config: EditConfig) -> dict[int, Tensor]:
    """``(d_in, n)`` inputs of every edited matrix at all tokens of the facts' prompts and new targets (SimIE)."""
    tokenizer, anatomy = model.tokenizer, model.anatomy
    encoded = encode_prompts(
        tokenizer,
        [Prompt.fill(SLOT, fact.prompt, fact.subject) for fact in facts],
        continuations=[tuple(encode_target(tokenizer, fact.text, fact.target_new, fact.joint)) for fact in facts],
        strategy=config.lookup,
        device=model.device,
    )
    found: dict[int, Tensor] = {}

    def collect(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            real = encoded.attention_mask.flatten().bool()
            found[layer] = args[0].flatten(0, -2)[real.to(args[0].device)].float().T
            if layer == config.layers[-1]:
                raise ForwardEnded

        return hook

    handles = [anatomy.projection(layer).register_forward_pre_hook(collect(layer)) for layer in config.layers]
    with hooks(handles), suppress(ForwardEnded):
        anatomy.body(input_ids=encoded.input_ids, attention_mask=encoded.attention_mask, use_cache=False)
    return found


def _at(hidden: Tensor, positions: Tensor) -> Tensor:
    """``(b, contexts, width)`` rows of ``hidden`` ``(b, entries, width)`` at the ``(b, contexts)`` positions."""
    rows = torch.arange(len(hidden), device=hidden.device)[:, None]
    return hidden[rows, positions.to(hidden.device)]

"""Forward and backward passes over the edited layers alone: what lies below them runs once per text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from betaedit.evaluation.scoring import Continuation
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import EncodedPrompts, pad_rows, pad_token_id
from betaedit.models.replay import hooks, record, run_layers

Row = tuple[int, ...]
"""Token ids of one text."""


def read_tokens(asked: Continuation) -> Row:
    """Prompt and answer, whose last token is only said and never read."""
    return (*asked.prompt, *asked.target[:-1])


@dataclass(frozen=True)
class Texts:
    """Prompts with their answers, right-padded.

    Args:
        rows: Token ids of each, the answer's last one left out.
        prompts: The same as a batch.
        row: ``(t,)`` for each answer token, its row.
        place: ``(t,)`` the position that says it.
        target: ``(t,)`` its id.
        weight: ``(t,)`` one over the number of its row's answer tokens.
    """

    rows: tuple[Row, ...]
    prompts: EncodedPrompts
    row: Tensor
    place: Tensor
    target: Tensor
    weight: Tensor

    @classmethod
    def of(cls, model: LanguageModel, asked: Sequence[Continuation]) -> Texts:
        """One row for each of ``asked``."""
        rows = tuple(read_tokens(one) for one in asked)
        ids, mask = (each.to(model.device) for each in pad_rows(rows, pad_token_id(model.tokenizer)))
        tokens = [
            (row, len(one.prompt) - 1 + offset, token, 1 / len(one.target))
            for row, one in enumerate(asked)
            for offset, token in enumerate(one.target)
        ]
        row, place, target, weight = (torch.tensor(each, device=model.device) for each in zip(*tokens, strict=True))
        return cls(rows, EncodedPrompts(ids, mask, mask.sum(dim=1) - 1), row, place, target, weight)

    @property
    def answer_mask(self) -> Tensor:
        """``(n, length)``: the positions that say the answers."""
        mask = torch.zeros_like(self.prompts.input_ids, dtype=torch.bool)
        mask[self.row, self.place] = True
        return mask

    def losses(self, logs: Tensor) -> Tensor:
        """``(n,)`` mean negative log-likelihood of each answer, of log-probabilities ``(t, vocabulary)``."""
        likelihood = logs.gather(1, self.target[:, None])[:, 0] * self.weight
        return -logs.new_zeros(len(self.rows)).index_add(0, self.row, likelihood)

    def divergences(self, before: Tensor, after: Tensor) -> Tensor:
        """``(n,)`` mean KL divergence of ``after`` from ``before`` at the answers' tokens."""
        each = (before.exp() * (before - after)).sum(dim=1) * self.weight
        return after.new_zeros(len(self.rows)).index_add(0, self.row, each)

    def are_all(self, right: Tensor) -> list[bool]:
        """Of each row, whether all its tokens are ``right`` ``(t,)``."""
        wrong = torch.zeros(len(self.rows), device=right.device).index_add(0, self.row, (~right).float())
        return [not one for one in wrong.tolist()]


@dataclass(frozen=True)
class Factors:
    """A change ``left right^T`` of one matrix, or one for each row of a batch.

    Args:
        left: ``(d_out, t)`` or ``(n, d_out, t)``.
        right: ``(d_in, t)`` or ``(n, d_in, t)``.
    """

    left: Tensor
    right: Tensor

    def added(self, inputs: Tensor) -> Tensor:
        """What ``inputs`` ``(n, length, d_in)`` get more at the output: ``(n, length, d_out)``."""
        return inputs @ self.right.to(inputs) @ self.left.mT.to(inputs)

    def dense(self) -> Tensor:
        """``(d_out, d_in)`` or ``(n, d_out, d_in)``, without the graph."""
        return (self.left @ self.right.mT).detach()

    def squared_norm(self) -> Tensor:
        """Of the change; the mean over the rows, where each has its own."""
        gram = (self.left.mT @ self.left) * (self.right.mT @ self.right)
        return gram.sum(dim=(-2, -1)).mean()

    def detached(self) -> Factors:
        """Without the graph."""
        return Factors(self.left.detach(), self.right.detach())


Dense = Mapping[int, Tensor]


@dataclass(frozen=True)
class TokenGradients:
    """What one backward pass leaves of a layer's tokens.

    Args:
        u: ``(n, length, d_in)`` inputs of the projection, float32.
        v: ``(n, length, d_out)`` gradients of its output.
        real: ``(n, length)`` tokens at which neither is all zero.
    """

    u: Tensor
    v: Tensor
    real: Tensor


_WINDOW, _TOGETHER = 128, 16
"""How many texts that come again are looked at in one go, and how many of about one length then run in one pass."""


class EditedLayers:
    """The layers from the first edited one on.

    Args:
        model: The model; its weights below the first layer must not change.
        layers: The edited layers.
        again: Texts that come again, in the order in which they come first. The hidden states that enter the first
            layer are kept for them: ``4 hidden_size`` bytes per token in float32. Which texts run in one pass follows
            from this order alone, and not from what is asked when: so a resumed training finds the same bits.
    """

    def __init__(self, model: LanguageModel, layers: Sequence[int], *, again: Iterable[Row] = ()) -> None:
        self.model, self.layers = model, tuple(layers)
        self._again = tuple(dict.fromkeys(again))
        self._number = {row: number for number, row in enumerate(self._again)}
        self._kept: dict[Row, Tensor] = {}

    def log_probabilities(self, texts: Texts, base: Dense, changes: Mapping[int, Factors]) -> Tensor:
        """``(t, vocabulary)`` log-probabilities at the answers' places.

        Args:
            texts: What is asked.
            base: ``(d_out, d_in)`` added to the matrices, by layer.
            changes: Added to them further.
        """
        with self._changed(base, changes, len(texts.rows)):
            return self._run(texts)

    def gradients(self, texts: Texts, base: Dense) -> tuple[dict[int, TokenGradients], float]:
        """By layer, the inputs and output gradients of the sum of the rows' losses; and the mean of these losses.

        A row's loss is the mean over its answer tokens, so that its gradients do not depend on the other rows. ``base``
        as in ``log_probabilities``.
        """
        n = len(texts.rows)
        inputs: dict[int, Tensor] = {}
        outputs: dict[int, Tensor] = {}

        def note(layer: int) -> Any:
            def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
                inputs[layer] = args[0].detach().reshape(n, -1, args[0].shape[-1]).float()
                outputs[layer] = output if output.requires_grad else output.requires_grad_()
                return outputs[layer]

            return hook

        with self._changed(base, {}, n):
            projections = {layer: self.model.anatomy.projection(layer) for layer in self.layers}
            with hooks([each.register_forward_hook(note(layer)) for layer, each in projections.items()]):
                losses = texts.losses(self._run(texts))
        slopes = torch.autograd.grad(losses.sum(), [outputs[layer] for layer in self.layers])
        found = {}
        for layer, slope in zip(self.layers, slopes, strict=True):
            u, v = inputs[layer], slope.reshape(n, -1, slope.shape[-1]).float()
            real = (u != 0).any(dim=-1) & (v != 0).any(dim=-1) & texts.prompts.attention_mask.bool()
            found[layer] = TokenGradients(u, v, real)
        return found, losses.mean().item()

    def _run(self, texts: Texts) -> Tensor:
        anatomy = self.model.anatomy
        calls = {
            index: call.map(_without_cache)
            for index, call in record(anatomy, texts.prompts, run=0, keep=()).calls.items()
        }
        hidden = self._entering(texts)
        hidden = run_layers(anatomy, calls, hidden, self.layers[0], anatomy.n_layers - 1)
        return anatomy.logits(hidden[texts.row, texts.place]).float().log_softmax(dim=-1)

    def _entering(self, texts: Texts) -> Tensor:
        """``(n, length, hidden_size)`` states that enter the first edited layer."""
        states = [self._state(row) for row in texts.rows]
        hidden = states[0].new_zeros(*texts.prompts.input_ids.shape, states[0].shape[-1])
        for row, state in enumerate(states):
            hidden[row, : len(state)] = state
        return hidden

    def _state(self, row: Row) -> Tensor:
        """``(length, hidden_size)`` of one text; one that does not come again is run by itself."""
        if row not in self._number:
            return self._below([row])[0]
        if row not in self._kept:
            first = self._number[row] // _WINDOW * _WINDOW
            window = sorted(self._again[first : first + _WINDOW], key=len)
            for at in range(0, len(window), _TOGETHER):
                together = window[at : at + _TOGETHER]
                self._kept.update(zip(together, self._below(together), strict=True))
        return self._kept[row]

    def _below(self, rows: Sequence[Row]) -> list[Tensor]:
        """``(length, hidden_size)`` of each text, run in one pass."""
        ids, mask = (each.to(self.model.device) for each in pad_rows(rows, pad_token_id(self.model.tokenizer)))
        prompts, first = EncodedPrompts(ids, mask, mask.sum(dim=1) - 1), self.layers[0]
        states = record(self.model.anatomy, prompts, run=first, keep=(first,)).inputs[first]
        return [state[: len(row)].clone() for row, state in zip(rows, states, strict=True)]

    @contextmanager
    def _changed(self, base: Dense, changes: Mapping[int, Factors], n: int) -> Iterator[None]:
        def adding(layer: int) -> Any:
            def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
                inputs = args[0].reshape(n, -1, args[0].shape[-1])
                if layer in base:
                    output = output + (inputs @ base[layer].T.to(inputs)).reshape(output.shape)
                if layer in changes:
                    output = output + changes[layer].added(inputs).reshape(output.shape)
                return output

            return hook

        projections = {layer: self.model.anatomy.projection(layer) for layer in {*base, *changes}}
        with hooks([each.register_forward_hook(adding(layer)) for layer, each in projections.items()]):
            yield


def _without_cache(value: Any) -> Any:
    return None if isinstance(value, Cache) else value

"""A model from one layer's MLP output projection on, run again and again with another output there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache

from betaedit.models.load import LanguageModel
from betaedit.models.lookup import EncodedPrompts, pad_rows, pad_token_id
from betaedit.models.replay import hooks, record, run_layers

Replace = Callable[[Tensor, Tensor], Tensor]
"""From what enters the projection ``(n, width, d_in)`` and leaves it ``(n, width, d_out)`` to what takes its place."""


@dataclass(frozen=True)
class Pass:
    """What one run gave.

    Args:
        loss: Mean over the rows that have targets of the mean negative log-likelihood of theirs.
        is_said: Whether every target token is the most probable one.
    """

    loss: Tensor
    is_said: bool


class Tail:
    """Prompts with their targets, run once up to ``layer``.

    Nothing before the projection depends on what is put in the place of its output.

    Args:
        model: The model.
        layer: Whose projection.
        pairs: Token ids of prompts and targets; a row without target tokens adds nothing to the loss.
    """

    def __init__(self, model: LanguageModel, layer: int, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
        self._anatomy, self._layer = model.anatomy, layer
        rows = [[*prompt, *target[:-1]] for prompt, target in pairs]
        ids, mask = (part.to(model.device) for part in pad_rows(rows, pad_token_id(model.tokenizer)))
        lengths = torch.tensor([len(prompt) for prompt, _ in pairs], device=model.device)
        recording = record(self._anatomy, EncodedPrompts(ids, mask, lengths - 1), run=layer, keep=(layer,))
        self._hidden = recording.inputs[layer]
        self._calls = {
            index: call.map(lambda value: None if isinstance(value, Cache) else value)
            for index, call in recording.calls.items()
        }
        self.prompt = torch.arange(ids.shape[1], device=model.device) < lengths[:, None]
        """``(n, width)`` true at the tokens of prompts."""
        places = [
            (row, len(prompt) - 1 + offset, token, 1 / len(target))
            for row, (prompt, target) in enumerate(pairs)
            for offset, token in enumerate(target)
        ]
        rows_at, at, tokens, shares = zip(*places, strict=True)
        self._places = torch.tensor(rows_at), torch.tensor(at)
        self._tokens = torch.tensor(tokens, device=model.device)
        self._weights = torch.tensor(shares, device=model.device) / len(set(rows_at))

    def run(self, replace: Replace) -> Pass:
        """The rest of the model, with what ``replace`` gives in place of the projection's output."""
        shape = self._hidden.shape[:2]

        def hook(_: object, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            changed = replace(*(each.view(*shape, -1) for each in (args[0], output)))
            return changed.view(output.shape)

        last = self._anatomy.n_layers - 1
        with hooks([self._anatomy.projection(self._layer).register_forward_hook(hook)]):
            hidden = run_layers(self._anatomy, self._calls, self._hidden, self._layer, last)
        rows, at = (index.to(hidden.device) for index in self._places)
        logs = self._anatomy.logits(hidden[rows, at]).float().log_softmax(dim=-1)
        tokens = self._tokens.to(logs.device)
        found = -logs.gather(1, tokens[:, None])[:, 0]
        loss = (found * self._weights.to(found)).sum()
        return Pass(loss, bool((logs.detach().argmax(dim=1) == tokens).all()))

    @torch.no_grad()
    def keys(self) -> Tensor:
        """``(n, width, d_in)`` what enters the projection."""
        found: list[Tensor] = []

        def note(entering: Tensor, leaving: Tensor) -> Tensor:
            found.append(entering.detach().clone())
            return leaving

        self.run(note)
        return found[0]

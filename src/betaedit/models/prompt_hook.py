"""Changes of what one module gives that depend on the prompt of each row, in every way a model is run.

An editor that changes no weights (a codebook, a side memory) decides from a row's prompt what a module gives for it. A
pass over padded rows, on either side, a pass over prompts with their answers, and generation with a cache must all
decide alike: from the tokens of the prompt and nothing else. Which tokens those are is found from the attention mask,
and where a row goes on behind its prompt, from ``prompt_lengths``.

The layers' other ways to run (models/lean.py) leave a module with hooks to itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import Cache

from betaedit.errors import ModelError
from betaedit.models.anatomy import Anatomy
from betaedit.models.module_hook import ModuleHook

_lengths: ContextVar[Sequence[int] | None] = ContextVar("prompt_lengths", default=None)


@contextmanager
def prompt_lengths(lengths: Sequence[int] | None) -> Iterator[None]:
    """A context in which the rows of a pass begin with prompts of so many tokens, padding not counted.

    Without it, or with ``None``, the whole row is the prompt.
    """
    token = _lengths.set(lengths)
    try:
        yield
    finally:
        _lengths.reset(token)


class PromptChange(Protocol):
    """What is done to a module's output."""

    def begin(self, entering: Tensor, leaving: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor | None]:
        """For rows from their first token on.

        Args:
            entering: ``(n, width, d_in)`` the module's input.
            leaving: ``(n, width, d_out)`` its output.
            prompt: ``(n, width)`` true at the tokens of the prompts.

        Returns:
            What takes the output's place; and what ``go_on`` needs to know of each row, ``(n, ...)``.
        """

    def go_on(self, entering: Tensor, leaving: Tensor, known: Tensor | None) -> Tensor:
        """What takes the output's place for tokens behind those of an earlier pass, whose attention is in a cache."""


class PromptHook(ModuleHook):
    """A ``PromptChange`` on one module of a model, while it is ``attached``.

    Args:
        anatomy: The model.
        path: The module's place in it.
        change: What is done to its output.
    """

    def __init__(self, anatomy: Anatomy, path: str, change: PromptChange) -> None:
        super().__init__(anatomy.model)
        self._stack = anatomy.layers_path.rpartition(".")[0]
        self._path, self._change = path, change
        self._known: WeakKeyDictionary[Cache, Tensor | None] = WeakKeyDictionary()
        self._pass: _Pass | None = None

    def _register(self) -> Sequence[Any]:
        stack, module = self._model.get_submodule(self._stack), self._model.get_submodule(self._path)
        return (
            stack.register_forward_pre_hook(self._enter, with_kwargs=True),
            stack.register_forward_hook(self._leave, with_kwargs=True, always_call=True),
            module.register_forward_hook(self._changed),
        )

    def _detached(self) -> None:
        self._pass = None
        self._known.clear()

    def _enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._pass = _Pass.of(args, kwargs)

    def _leave(self, _: nn.Module, __: Any, kwargs: dict[str, Any], output: Any) -> None:
        ended, self._pass = self._pass, None
        cache = getattr(output, "past_key_values", None)
        if ended is not None and ended.prompt is not None and isinstance(cache, Cache):
            self._known[cache] = ended.known

    def _changed(self, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        now = self._pass
        if now is None:  # single layers that are run by themselves
            return output
        # Some families lay all positions in one row (OPT).
        entering, leaving = (each.view(*now.shape, -1) for each in (args[0], output))
        if now.prompt is not None:
            changed, now.known = self._change.begin(entering, leaving, now.prompt.to(leaving.device))
        elif now.cache in self._known:
            changed = self._change.go_on(entering, leaving, self._known[now.cache])
        else:  # begun without this hook
            changed = leaving
        return changed.view(output.shape)


class _Pass:
    """One pass of the model.

    Args:
        shape: Rows and tokens of each.
        prompt: ``(n, width)`` true at the tokens of the prompts; ``None`` where the pass goes on from a cache.
        cache: The cache that it was given.
    """

    def __init__(self, shape: tuple[int, int], prompt: Tensor | None, cache: Any) -> None:
        self.shape, self.prompt, self.cache = shape, prompt, cache
        self.known: Tensor | None = None

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Pass:
        """From the arguments of the module that runs the layers.

        Raises:
            ModelError: The attention mask says nothing of single tokens.
        """
        ids = args[0] if args else kwargs.get("input_ids")
        rows: Tensor = kwargs["inputs_embeds"] if ids is None else ids
        shape, cache = (rows.shape[0], rows.shape[1]), kwargs.get("past_key_values")
        if cache is not None and int(cache.get_seq_length()) > 0:
            return cls(shape, None, cache)
        mask = kwargs.get("attention_mask")
        real = torch.ones(*shape, dtype=torch.bool, device=rows.device) if mask is None else mask
        if not isinstance(real, Tensor) or tuple(real.shape) != shape:
            raise ModelError(
                "the prompts of this pass cannot be told: its attention mask is not one number per token.",
                hint="Give a mask of shape (rows, tokens), or none.",
            )
        real, lengths = real.bool(), _lengths.get()
        if lengths is not None:
            real = real & (real.cumsum(dim=1) <= torch.tensor(lengths, device=real.device)[:, None])
        return cls(shape, real, cache)


def last_of(prompt: Tensor) -> Tensor:
    """``(n, width)`` true at the last true entry of each row of ``prompt`` alone."""
    counts = prompt.cumsum(dim=1)
    return prompt & (counts == counts[:, -1:])

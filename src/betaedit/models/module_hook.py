"""Hooks by which an editor changes a model's passes without changing its weights; a model has one at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import nn

from betaedit.errors import ModelError

_hooks: WeakKeyDictionary[nn.Module, WeakSet[ModuleHook]] = WeakKeyDictionary()


class ModuleHook(ABC):
    """Changes the passes of one model while it is ``attached``.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handles: list[Any] = []

    @property
    def attached(self) -> bool:
        """Whether the model's passes are changed."""
        return bool(self._handles)

    def attach(self) -> None:
        """Change the model's passes from now on.

        Raises:
            ModelError: Another hook does already.
        """
        if self.attached:
            return
        check_no_hook(self._model)
        self._handles = list(self._register())
        _hooks.setdefault(self._model, WeakSet()).add(self)

    def detach(self) -> None:
        """Leave the model's passes as they are."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._detached()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A context in which it is not attached."""
        was_attached = self.attached
        self.detach()
        try:
            yield
        finally:
            if was_attached:
                self.attach()

    @abstractmethod
    def _register(self) -> Sequence[Any]:
        """Register what changes the passes; returns torch's handles."""

    @abstractmethod
    def _detached(self) -> None:
        """Drop what is known of passes that are over."""


def check_no_hook(model: nn.Module) -> None:
    """Refuse a model that a hook changes already.

    Raises:
        ModelError: There is one.
    """
    if any(hook.attached for hook in _hooks.get(model, ())):
        raise ModelError(
            "the model answers with the codebook, side memory or gated memory of another editor.",
            hint="Go on with that one, call its reset() first, or load the model once more.",
        )

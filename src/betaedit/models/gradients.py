"""Runs a function with gradients enabled, even if the caller disabled them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])


def usual_gradients(function: _Function) -> _Function:
    """A function, or a generator between its yields, that runs outside of ``no_grad`` and ``inference_mode``.

    For what seeks by gradient, and for what makes tensors that are kept: those made within ``torch.inference_mode``
    cannot be changed outside of it.
    """
    return torch.inference_mode(False)(torch.enable_grad()(function))

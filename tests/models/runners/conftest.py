"""What the tests of runners share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from betaedit.compiled.library import NoKernelsError
from betaedit.models import Anatomy, find_anatomy
from betaedit.models.packing import Pack
from betaedit.models.prefix_cache import compute_prefix
from betaedit.models.replay import LayerCall, record, run_layers
from betaedit.models.runners.kernel_layers import KernelLayers
from betaedit.models.runners.kernels import Kernels, find_kernels
from support.families import N_LAYERS
from support.recordings import random_prompts

LAYERS = range(1, N_LAYERS)
LENGTHS, LOOKUPS = (12, 9, 11, 7, 5, 10), (5, 0, 8, 6, 2, 9)


@pytest.fixture(params=["fused", "kernels"])
def backend(request: pytest.FixtureRequest) -> str:
    """Either backend that does without the modules."""
    name: str = request.param
    if name == "kernels":
        demand_kernels()
    return name


@pytest.fixture
def module_runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[PreTrainedModel, Callable[[], Any]], int]:
    """How many of a model's layers run by their own modules during some work."""

    def count(model: PreTrainedModel, work: Callable[[], Any]) -> int:
        ran: list[None] = []
        kind = type(find_anatomy(model).layers[0])
        forward = kind.forward

        @functools.wraps(forward)
        def counted(*args: Any, **kwargs: Any) -> Any:
            ran.append(None)
            return forward(*args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(kind, "forward", counted)
            work()
        return len(ran)

    return count


@pytest.fixture
def kernel_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each run by the kernels had, those of trials too."""
    rows: list[int] = []
    run = KernelLayers.__call__

    def heard(self: KernelLayers, x: Tensor) -> object:
        rows.append(len(x))
        return run(self, x)

    monkeypatch.setattr(KernelLayers, "__call__", heard)
    return rows


def demand_kernels() -> Kernels:
    found = find_kernels()
    if isinstance(found, NoKernelsError):
        pytest.skip(f"no kernels on this machine: {found}")
    return found


def problem(
    anatomy: Anatomy, chosen: tuple[tuple[int, ...], ...], lookups: tuple[int, ...] = LOOKUPS
) -> tuple[dict[int, LayerCall], Tensor]:
    """Packed prompts from their lookup tokens on: the layers' arguments, and the hidden states entering the first."""
    prompts = random_prompts(LENGTHS, lookups)
    recording = record(anatomy, prompts, run=N_LAYERS, keep=(LAYERS.start,))
    rows = torch.tensor(chosen)
    prefix = Pack.of(rows, torch.zeros_like(prompts.lookup), prompts.lookup)
    suffix = Pack.of(rows, prompts.lookup, prompts.lengths)
    state = compute_prefix(recording, prefix, LAYERS, functools.partial(run_layers, anatomy))
    return suffix.calls(recording, LAYERS, state, prefix), suffix.gather(recording.inputs[LAYERS.start])


def output_and_gradient(run: Callable[[Tensor], Tensor], hidden: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """What ``run`` makes of ``hidden``, and the gradient of a random slope at the real positions."""
    hidden = hidden.detach().clone().requires_grad_()
    output = run(hidden)
    slope = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output) * real[:, :, None]
    (gradient,) = torch.autograd.grad(output, hidden, slope)
    return output.detach(), gradient

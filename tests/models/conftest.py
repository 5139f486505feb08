"""What the tests of models share."""

from __future__ import annotations

import pytest
import torch

from betaedit.models.native import kernels
from betaedit.native.library import NoKernelsError


def leave_kernels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "find_kernels", lambda: NoKernelsError("a test"))


@pytest.fixture(params=["AVX2", "AVX512", "kernels"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By torch on a processor that is slow at odd numbers of columns or one that is not, or by the kernels."""
    way: str = request.param
    if way == "kernels":
        demand_kernels()
    else:
        leave_kernels_alone(monkeypatch)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: way)
    return way


@pytest.fixture(params=["torch", "kernels"])
def hand(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Layers by torch or by the kernels."""
    if request.param == "kernels":
        demand_kernels()
    else:
        leave_kernels_alone(monkeypatch)
    name: str = request.param
    return name


def demand_kernels() -> kernels.Kernels:
    found = kernels.find_kernels()
    if isinstance(found, NoKernelsError):
        pytest.skip(f"no kernels on this machine: {found}")
    return found

"""What the tests of models share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(params=["AVX2", "AVX512"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A processor that is slow at odd numbers of columns, or one that is not."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
    name: str = request.param
    return name

"""A row of a benchmark, and the timing of runs."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil
import torch

_STREAM = 2**26
_SQUARE = 2048


@dataclass(frozen=True)
class Row:
    """The same work done twice.

    Args:
        name: What was timed.
        ours_seconds: By this engine.
        reference_seconds: By the published procedure; ``None`` where there is none.
        relative_error: Of our result against the reference's; ``None`` where they need not agree.
        floor_seconds: What the machine needs for the bytes or operations alone; ``None`` where it is not known.
        details: Sizes and settings.
    """

    name: str
    ours_seconds: float
    reference_seconds: float | None = None
    relative_error: float | None = None
    floor_seconds: float | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """How many times faster than the reference."""
        return None if self.reference_seconds is None else self.reference_seconds / self.ours_seconds

    def to_dict(self) -> dict[str, Any]:
        """The row as ``--json`` prints it."""
        return {**asdict(self), "ratio": self.ratio}


def seconds(work: Callable[[], Any], *, repeat: int = 1, device: torch.device | str = "cpu") -> float:
    """The smallest wall-clock time of ``repeat`` runs."""
    best = float("inf")
    for _ in range(repeat):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return best


def bandwidth(device: torch.device | str = "cpu") -> float:
    """Bytes per second that this machine reads from memory."""
    stream = torch.ones(_STREAM, device=device)
    return stream.numel() * stream.element_size() / seconds(stream.sum, repeat=5, device=device)


def arithmetic(device: torch.device | str = "cpu") -> float:
    """Float32 operations per second of this machine in a large product."""
    factor = torch.ones(_SQUARE, _SQUARE, device=device)
    return 2 * _SQUARE**3 / seconds(lambda: factor @ factor, repeat=5, device=device)


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """The machine of the figures."""
    on_gpu = torch.device(device).type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "bandwidth_bytes_per_second": bandwidth(device),
        "operations_per_second": arithmetic(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Frobenius norm of the difference, as a share of ``expected``."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def _wait(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)

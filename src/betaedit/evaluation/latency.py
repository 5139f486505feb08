"""Latency and peak memory of queries (metrics.md G.8)."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch

from betaedit.errors import ConfigError
from betaedit.models.generate import continue_rows, most_likely
from betaedit.models.load import LanguageModel
from betaedit.progress import Progress, SilentProgress


@dataclass(frozen=True, slots=True)
class Latency:
    """Wall-clock time of queries asked one at a time.

    Args:
        seconds: Time of each query.
        n_tokens: New tokens of each.
    """

    seconds: tuple[float, ...]
    n_tokens: int

    @property
    def mean(self) -> float:
        """Mean seconds per query; a method's relative latency is this, divided by the unedited model's."""
        return sum(self.seconds) / len(self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {**asdict(self), "mean": self.mean}


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """The most memory held so far, in bytes.

    Args:
        process: Resident memory of this process since it started.
        device: Allocated on the model's GPU since ``reset_peak``; ``None`` without one.
    """

    process: int
    device: int | None

    def to_dict(self) -> dict[str, int | None]:
        """The figures as plain data."""
        return asdict(self)


def measure_latency(
    model: LanguageModel,
    prompts: Sequence[str],
    *,
    n_tokens: int = 50,
    n_warm_up: int = 2,
    progress: Progress | None = None,
) -> Latency:
    """Seconds for exactly ``n_tokens`` greedy tokens after each prompt, one prompt at a time.

    A query's time begins with its text: framing it (retrieval, confirmation) is part of it where an editor does so.
    End tokens do not end a text, so every query does the same work. The first prompt is run
    ``n_warm_up`` times before anything is timed, and the device is synchronized around each query.

    Raises:
        ConfigError: There is no prompt, or a prompt leaves no room for the tokens.
    """
    rows = model.encode(prompts)
    if not rows:
        raise ConfigError("there is no prompt to time.", hint="Give at least one.")
    if max(map(len, rows)) + n_tokens > model.max_length:
        raise ConfigError(
            f"a prompt and {n_tokens} tokens exceed the {model.max_length} positions of the model.",
            hint="Give shorter prompts or fewer tokens.",
        )
    for _ in range(n_warm_up):
        _timed(model, prompts[0], n_tokens)
    seconds = []
    with (progress or SilentProgress()).task("timing", len(prompts), "queries") as task:
        for prompt in prompts:
            seconds.append(_timed(model, prompt, n_tokens))
            task.advance()
    return Latency(tuple(seconds), n_tokens)


def _timed(model: LanguageModel, prompt: str, n_tokens: int) -> float:
    _synchronize(model.device)
    start = time.perf_counter()
    continue_rows(model, model.encode([prompt], fresh=True), [n_tokens], most_likely)
    _synchronize(model.device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(device: torch.device) -> PeakMemory:
    """The most memory this process and its GPU held so far."""
    return PeakMemory(
        process=_peak_of_process(), device=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    )


def reset_peak(device: torch.device) -> None:
    """Count the device's peak from now on; that of the process cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_of_process() -> int:
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # noqa: PLC0415 - not there on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others KiB

"""Latency and peak memory of queries (metrics.md G.8)."""

from __future__ import annotations

import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from statistics import NormalDist, stdev
from typing import Any

import psutil
import torch

from betaedit.errors import ConfigError
from betaedit.evaluation.interval import Estimate
from betaedit.models.generate import continue_rows, most_likely
from betaedit.models.load import LanguageModel
from betaedit.progress import Progress, SilentProgress

_FEWEST_PAIRS = 2


@dataclass(frozen=True, slots=True)
class Latency:
    """Wall-clock time of queries asked one at a time.

    Args:
        seconds: Time of each query.
        n_tokens: New tokens of each.
        parts: Time of each query that the editor spent before the model answered, by the names of ``timed_part``;
            empty for most editors.
    """

    seconds: tuple[float, ...]
    n_tokens: int
    parts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Mean seconds per query; a method's relative latency is this, divided by the unedited model's."""
        return sum(self.seconds) / len(self.seconds)

    @property
    def mean_parts(self) -> dict[str, float]:
        """Mean seconds per query of each part, and of the rest as ``answer``; empty if no part was timed."""
        if not self.parts:
            return {}
        found = {name: sum(seconds) / len(self.seconds) for name, seconds in self.parts.items()}
        return {**found, "answer": self.mean - sum(found.values())}

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {**asdict(self), "mean": self.mean}


@dataclass(frozen=True, slots=True)
class RelativeLatency:
    """The same queries on the model as it is and on the unedited one, in turn.

    Args:
        edited: Of the model as it is.
        unedited: Of the unedited model, query by query right before or after.
    """

    edited: Latency
    unedited: Latency

    @property
    def ratio(self) -> Estimate:
        """Mean seconds divided by the unedited model's, with a 95% interval from the differences within pairs."""
        now, before = self.edited.seconds, self.unedited.seconds
        count, ratio = len(now), self.edited.mean / self.unedited.mean
        error = stdev([a - ratio * b for a, b in zip(now, before, strict=True)]) / math.sqrt(count)
        spread = _student_95(count - 1) * error / self.unedited.mean
        return Estimate(ratio, count, ratio - spread, ratio + spread)


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


_parts: ContextVar[dict[str, float] | None] = ContextVar("timed_parts", default=None)


@contextmanager
def timed_part(name: str) -> Iterator[None]:
    """A context whose time is one part of the query that is being timed; without such a query it costs nothing.

    For what an editor does before the model answers. It must leave nothing to be computed on a device.
    """
    parts = _parts.get()
    if parts is None:
        yield
        return
    start = time.perf_counter()
    try:
        yield
    finally:
        parts[name] = parts.get(name, 0.0) + time.perf_counter() - start


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
    _check(model, prompts, n_tokens)
    timed = _Stopwatch(model, n_tokens)
    timed.warm_up(prompts[0], n_warm_up)
    with (progress or SilentProgress()).task("timing", len(prompts), "queries") as task:
        for prompt in prompts:
            timed.ask(prompt)
            task.advance()
    return timed.latency


def measure_relative_latency(
    model: LanguageModel,
    prompts: Sequence[str],
    unedited: Callable[[], AbstractContextManager[None]],
    *,
    n_tokens: int = 50,
    n_warm_up: int = 2,
    progress: Progress | None = None,
) -> RelativeLatency:
    """``measure_latency`` of the model as it is and of the unedited one, each prompt on both in turn.

    What else the machine does meanwhile slows both alike. Which of the two is asked first alternates.

    Args:
        model: With its edits.
        prompts: At least two; the same one may come several times.
        unedited: Gives a context in which the model is unedited; entering and leaving it is not timed.
        n_tokens: New tokens of each query.
        n_warm_up: How often the first prompt is run on both before anything is timed.
        progress: Hears of every prompt.

    Raises:
        ConfigError: There are fewer than two prompts, or one leaves no room for the tokens.
    """
    if len(prompts) < _FEWEST_PAIRS:
        raise ConfigError("one prompt gives no interval.", hint="Give two or more; the same one may come twice.")
    _check(model, prompts, n_tokens)
    now, before = _Stopwatch(model, n_tokens), _Stopwatch(model, n_tokens, unedited)
    for stopwatch in (before, now):
        stopwatch.warm_up(prompts[0], n_warm_up)
    with (progress or SilentProgress()).task("timing", len(prompts), "queries") as task:
        for number, prompt in enumerate(prompts):
            for stopwatch in (now, before) if number % 2 else (before, now):
                stopwatch.ask(prompt)
            task.advance()
    return RelativeLatency(now.latency, before.latency)


def _check(model: LanguageModel, prompts: Sequence[str], n_tokens: int) -> None:
    """Refuse prompts that cannot be timed."""
    rows = model.encode(prompts)
    if not rows:
        raise ConfigError("there is no prompt to time.", hint="Give at least one.")
    if max(map(len, rows)) + n_tokens > model.max_length:
        raise ConfigError(
            f"a prompt and {n_tokens} tokens exceed the {model.max_length} positions of the model.",
            hint="Give shorter prompts or fewer tokens.",
        )


class _Stopwatch:
    """Times queries of one model, in a context of its own."""

    def __init__(
        self,
        model: LanguageModel,
        n_tokens: int,
        within: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._model, self._n_tokens, self._within = model, n_tokens, within
        self._seconds: list[float] = []
        self._parts: defaultdict[str, list[float]] = defaultdict(list)

    @property
    def latency(self) -> Latency:
        """Of all queries asked."""
        parts = {name: tuple(seconds) for name, seconds in self._parts.items()}
        return Latency(tuple(self._seconds), self._n_tokens, parts)

    def warm_up(self, prompt: str, times: int) -> None:
        """Ask without counting it."""
        for _ in range(times):
            self._timed(prompt)

    def ask(self, prompt: str) -> None:
        """Time one query."""
        seconds, parts = self._timed(prompt)
        self._seconds.append(seconds)
        for name, value in parts.items():
            self._parts[name].append(value)

    def _timed(self, prompt: str) -> tuple[float, dict[str, float]]:
        parts: dict[str, float] = {}
        model = self._model
        with self._within():
            token = _parts.set(parts)
            try:
                _synchronize(model.device)
                start = time.perf_counter()
                continue_rows(model, model.encode([prompt], fresh=True), [self._n_tokens], most_likely)
                _synchronize(model.device)
                return time.perf_counter() - start, parts
            finally:
                _parts.reset(token)


def _student_95(freedom: int) -> float:
    """The 97.5% quantile of Student's distribution, by the first terms of its expansion around the normal one.

    Exact to 0.5% from five degrees of freedom on; too small below.
    """
    z = NormalDist().inv_cdf(0.975)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


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

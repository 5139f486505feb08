from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch

from betaedit.errors import ConfigError
from betaedit.evaluation import (
    Latency,
    RelativeLatency,
    latency,
    measure_latency,
    measure_relative_latency,
    peak_memory,
    reset_peak,
    timed_part,
)
from support.chain import chain_model
from support.tiny import RecordedProgress, count_calls, tiny_llama


def test_every_query_runs_the_same_number_of_steps_even_past_the_end_token():
    model = chain_model(" king is")
    with count_calls(model.model.base_model) as calls:
        found = measure_latency(model, ["the king", "a"], n_tokens=7, n_warm_up=1)
    assert len(calls) == 3 * 7
    assert all(n_rows == 1 for n_rows, _ in calls.rows)
    assert (len(found.seconds), found.n_tokens) == (2, 7)
    assert min(found.seconds) > 0


def test_fifty_tokens_are_the_default_and_warm_up_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    ticks = iter([0.0, 100.0, 100.0, 200.0, 0.0, 1.0, 10.0, 13.0])  # two queries of warm-up, then 1 s and 3 s
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(ticks))
    found = measure_latency(tiny_llama(), ["the king", "a"])
    assert found == Latency((1.0, 3.0), 50)
    assert found.mean == 2.0
    assert found.to_dict() == {"seconds": (1.0, 3.0), "n_tokens": 50, "parts": {}, "mean": 2.0}


def test_framing_a_prompt_is_timed_and_done_anew_for_every_query():
    asked: list[tuple[list[str], bool]] = []

    def frame(prompts: list[str], *, fresh: bool = False) -> list[str]:
        asked.append((list(prompts), fresh))
        return [f"the river {prompt}" for prompt in prompts]

    measure_latency(replace(tiny_llama(), frame=frame), ["the king", "a"], n_tokens=2, n_warm_up=1)
    assert asked == [(["the king", "a"], False), (["the king"], True), (["the king"], True), (["a"], True)]


def test_the_clock_is_read_when_the_device_has_finished(monkeypatch: pytest.MonkeyPatch):
    events: list[str] = []
    monkeypatch.setattr(latency, "_synchronize", lambda device: events.append("wait"))
    monkeypatch.setattr(latency, "continue_rows", lambda *args: events.append("run"))
    monkeypatch.setattr(latency.time, "perf_counter", lambda: events.append("clock") or 0.0)
    measure_latency(tiny_llama(), ["the king"], n_warm_up=0)
    assert events == ["wait", "clock", "run", "wait", "clock"]


@pytest.mark.parametrize(("prompts", "n_tokens"), [([], 50), (["the king"], 600)])
def test_what_cannot_be_timed_is_refused(prompts: list[str], n_tokens: int):
    with pytest.raises(ConfigError):
        measure_latency(tiny_llama(), prompts, n_tokens=n_tokens)


def test_progress_hears_of_every_query():
    progress = RecordedProgress()
    measure_latency(tiny_llama(), ["the king", "a"], n_tokens=2, progress=progress)
    assert [(task.total, sum(task.steps)) for task in progress.tasks] == [(2, 2)]


def test_the_peak_of_the_process_is_what_it_held_at_most():
    device = torch.device("cpu")
    held = np.ones(5_000_000)
    resident = psutil.Process().memory_info().rss
    del held
    reset_peak(device)
    found = peak_memory(device)
    assert found.process >= 0.99 * resident  # the kernel counts pages in lots, a little behind
    assert found.device is None
    assert found.to_dict() == {"process": found.process, "device": None}


# Relative to the unedited model, and in parts


def test_each_prompt_is_asked_of_both_models_in_turn_and_which_is_first_alternates(monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    now = ["edited"]

    @contextmanager
    def unedited() -> Iterator[None]:
        now.append("unedited")
        yield
        now.pop()

    monkeypatch.setattr(latency, "continue_rows", lambda *args: asked.append(now[-1]))
    measure_relative_latency(tiny_llama(), ["the king", "a", "the"], unedited, n_warm_up=1)
    assert asked[:2] == ["unedited", "edited"]  # warm-up
    assert asked[2:] == ["unedited", "edited", "edited", "unedited", "unedited", "edited"]


def test_the_ratio_is_of_mean_times_and_its_interval_of_the_differences_within_pairs():
    """Against Student's interval of the linearized ratio, with the quantile of four degrees of freedom from a table."""
    now, before = np.array([1.1, 2.3, 1.2, 4.6, 1.0]), np.array([1.0, 2.0, 1.0, 4.0, 1.0])
    found = RelativeLatency(Latency(tuple(now), 50), Latency(tuple(before), 50)).ratio
    ratio = now.mean() / before.mean()
    spread = 2.7764 * (now - ratio * before).std(ddof=1) / np.sqrt(5) / before.mean()
    assert (found.mean, found.count) == (pytest.approx(ratio), 5)
    assert found.low == pytest.approx(ratio - spread, rel=2e-3)
    assert found.high == pytest.approx(ratio + spread, rel=2e-3)


def test_load_that_slows_both_models_alike_leaves_the_ratio():
    load = [1.0, 5.0, 2.0, 9.0]
    found = RelativeLatency(Latency(tuple(1.5 * each for each in load), 50), Latency(tuple(load), 50)).ratio
    assert (found.low, found.mean, found.high) == (pytest.approx(1.5),) * 3


def test_one_prompt_gives_no_ratio():
    with pytest.raises(ConfigError, match="no interval"):
        measure_relative_latency(tiny_llama(), ["the king"], contextmanager(lambda: iter([None])))


def test_the_parts_that_an_editor_times_and_the_answer_make_the_whole(monkeypatch: pytest.MonkeyPatch):
    # Two queries, of 6 s and 8 s: of each 1 s and 2 s retrieval, 3 s confirmation.
    ticks = iter([0.0, 0.0, 1.0, 1.0, 4.0, 6.0, 10.0, 10.0, 12.0, 12.0, 15.0, 18.0])
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(ticks))

    def frame(prompts: list[str], *, fresh: bool = False) -> list[str]:
        with timed_part("retrieval"):
            pass
        with timed_part("confirmation"):
            pass
        return list(prompts)

    found = measure_latency(replace(tiny_llama(), frame=frame), ["the king", "a"], n_tokens=2, n_warm_up=0)
    assert found.parts == {"retrieval": (1.0, 2.0), "confirmation": (3.0, 3.0)}
    assert found.mean_parts == {"retrieval": 1.5, "confirmation": 3.0, "answer": 2.5}
    assert sum(found.mean_parts.values()) == found.mean == 7.0


def test_a_part_outside_a_timed_query_reads_no_clock(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(latency.time, "perf_counter", lambda: pytest.fail("the clock was read"))
    with timed_part("retrieval"):
        pass

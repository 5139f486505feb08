from __future__ import annotations

from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch

from betaedit.errors import ConfigError
from betaedit.evaluation import Latency, latency, measure_latency, peak_memory, reset_peak
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
    assert found.to_dict() == {"seconds": (1.0, 3.0), "n_tokens": 50, "mean": 2.0}


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

"""Ways of doing the same work take turns, each with its own weights."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from betaedit.benchmarks import turns
from betaedit.benchmarks.turns import Contestant, take_turns
from betaedit.facts import Fact

FACTS = [Fact("{} is", str(at), "so") for at in range(5)]


def test_each_does_all_the_work_in_order_as_much_at_once_as_it_asks_for() -> None:
    done: list[tuple[str, list[int]]] = []

    def way(name: str, step: int) -> Contestant:
        return Contestant(name, lambda facts: done.append((name, [int(fact.subject) for fact in facts])), step)

    take_turns([way("one", 1), way("two", 2), way("all", 9)], FACTS)
    assert done == [
        ("one", [0]),
        ("one", [1]),
        ("two", [0, 1]),
        ("one", [2]),
        ("one", [3]),
        ("two", [2, 3]),
        ("one", [4]),
        ("two", [4]),
        ("all", [0, 1, 2, 3, 4]),
    ]


def test_each_finds_the_weights_as_it_left_them() -> None:
    weight = torch.ones(2)

    def adding(amount: float) -> Contestant:
        return Contestant("", lambda facts: weight.add_(amount * len(facts)), 1, [weight])

    small, large = adding(1.0), adding(10.0)
    take_turns([small, large], FACTS)
    assert small.left[0].tolist() == [6.0, 6.0]
    assert large.left[0].tolist() == [51.0, 51.0]


def test_seconds_are_those_of_the_work_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Sequence[Fact]] = []

    def seconds(work, *, device) -> float:  # type: ignore[no-untyped-def]
        assert device == "cpu"
        work()
        return 2.0

    monkeypatch.setattr(turns, "seconds", seconds)
    contestant = Contestant("", taken.append, 2)
    take_turns([contestant], FACTS)
    assert contestant.taken == 6.0
    assert [len(facts) for facts in taken] == [2, 2, 1]

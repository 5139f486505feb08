"""Interleaves several ways of doing the same work, fact by fact, so that changes of the machine's speed affect all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from betaedit.benchmarks.rows import seconds
from betaedit.facts.fact import Fact


@dataclass
class Contestant:
    """One way.

    Args:
        name: What it is called.
        work: Does it for some facts.
        step: For how many facts at once.
        weights: The frozen weights that it changes, of the model; each contestant finds them as it left them.
        ready: Called when they are in the model, before its time begins.
    """

    name: str
    work: Callable[[Sequence[Fact]], object]
    step: int = 1
    weights: Sequence[Tensor] = ()
    ready: Callable[[], object] | None = None
    taken: float = field(default=0.0, init=False)
    """Seconds so far."""
    left: list[Tensor] = field(init=False)
    """The weights as it left them."""

    def __post_init__(self) -> None:
        self.left = [weight.clone() for weight in self.weights]

    def turn(self, facts: Sequence[Fact], device: torch.device | str) -> None:
        """Work on the next facts, with its own weights in the model."""
        for weight, mine in zip(self.weights, self.left, strict=True):
            weight.copy_(mine)
        if self.ready is not None:
            self.ready()
        self.taken += seconds(lambda: self.work(facts), device=device)
        self.left = [weight.clone() for weight in self.weights]


def take_turns(contestants: Sequence[Contestant], facts: Sequence[Fact], device: torch.device | str = "cpu") -> None:
    """Run all of them for all facts; one that processes several facts at once waits for these."""
    for end in range(1, len(facts) + 1):
        for contestant in contestants:
            begin = (end - 1) // contestant.step * contestant.step
            if end - begin == contestant.step or end == len(facts):
                contestant.turn(facts[begin:end], device)

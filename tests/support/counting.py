"""A made-up editor with which everything around editors is tried: it counts facts, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from pydantic import Field

from betaedit.editors.asked import plan_fact, with_status
from betaedit.editors.method import EditingMethod, EditResult, Method, MethodConfig, PlannedEdit, WrittenBatch
from betaedit.editors.resources import Resources
from betaedit.facts.fact import Fact
from betaedit.models.load import LanguageModel


class CountingConfig(MethodConfig):
    """How it counts."""

    step: int = Field(1, ge=1, description="What is added for each fact.")


@dataclass(frozen=True, kw_only=True)
class Counting(Method):
    """Its row."""

    family: ClassVar[str] = "counting"
    config: ClassVar[type[MethodConfig]] = CountingConfig

    def build(self, model: LanguageModel, config: MethodConfig, resources: Resources) -> EditingMethod:
        """A counter at zero."""
        return Counter(model, cast(CountingConfig, config))


class Counter:
    """Counts facts."""

    def __init__(self, model: LanguageModel, config: CountingConfig) -> None:
        self.model, self.config = model, config
        self.count = 0
        self._results: list[EditResult] = []

    @property
    def results(self) -> Sequence[EditResult]:
        """One per fact counted."""
        return tuple(self._results)

    def prepare(self) -> None:
        """Nothing takes long."""

    def plan(self, fact: Fact) -> PlannedEdit:
        """Its tokens."""
        return plan_fact(self.model, fact)

    def check(self, facts: Sequence[Fact], batch_size: int) -> None:
        """Everything can be counted."""

    def stride(self, batch_size: int) -> int:
        """A batch is counted by itself."""
        return batch_size

    def write(self, facts: Sequence[Fact], *, batch_size: int) -> Iterator[WrittenBatch]:
        """Count each batch."""
        for at in range(0, len(facts), batch_size):
            batch = facts[at : at + batch_size]
            results = [
                EditResult(fact, 0.0, figures={"count": self.count + number * self.config.step})
                for number, fact in enumerate(batch, start=1)
            ]
            written = WrittenBatch(with_status(self.model, results), {"count": torch.tensor([len(batch)])})
            self._count(written)
            yield written

    def replay(self, batch: WrittenBatch) -> None:
        """Count it again."""
        self._count(batch)

    def unedited(self) -> AbstractContextManager[None]:
        """The model never changes."""
        return nullcontext()

    def reset(self) -> None:
        """Back to zero."""
        self.count, self._results = 0, []

    def describe(self) -> dict[str, Any]:
        """Nothing else decides."""
        return {}

    def _count(self, batch: WrittenBatch) -> None:
        self.count += int(batch.tensors["count"]) * self.config.step
        self._results += batch.results


COUNTING = Counting(name="counting", title="counts facts", paper="nowhere", aliases=("counts",))

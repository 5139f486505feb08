"""What editors share that work on one batch after another, each by itself, and keep a result for every fact."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from betaedit.editors.asked import plan_fact
from betaedit.editors.method import EditResult, PlannedEdit, WrittenBatch
from betaedit.facts.fact import Fact
from betaedit.models.gradients import usual_gradients
from betaedit.models.load import LanguageModel


class BatchEditor(ABC):
    """The part of ``EditingMethod`` that does not depend on how a batch is written.

    Args:
        model: The model as served.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self._results: list[EditResult] = []

    @property
    def results(self) -> Sequence[EditResult]:
        """One per fact written."""
        return tuple(self._results)

    def plan(self, fact: Fact) -> PlannedEdit:
        """See ``EditingMethod.plan``."""
        return plan_fact(self.model, fact)

    def check(self, facts: Sequence[Fact], batch_size: int) -> None:  # noqa: B027 - most take any fact
        """See ``EditingMethod.check``: every fact that can be planned can be written."""

    def stride(self, batch_size: int) -> int:
        """A batch is worked on by itself."""
        return batch_size

    @usual_gradients
    def write(self, facts: Sequence[Fact], *, batch_size: int) -> Iterator[WrittenBatch]:
        """Write each batch, then ask the model about its facts.

        Raises:
            NumericalError: A result is not finite; the batch is undone.
            WeightsChangedError: A matrix is not as it was written last.
        """
        for at in range(0, len(facts), batch_size):
            batch = self._write(facts[at : at + batch_size])
            self._results += batch.results
            yield batch

    @abstractmethod
    def _write(self, facts: Sequence[Fact]) -> WrittenBatch:
        """Write one batch; whatever ends it early, the model is as it was before."""

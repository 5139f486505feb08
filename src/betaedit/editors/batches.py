"""What editors share that work on one batch after another, each by itself, and keep a result for every fact."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

from betaedit.editors.asked import plan_fact
from betaedit.editors.matrix import EditedMatrix, check_unedited, edited_matrices, held_bytes, set_aside
from betaedit.editors.method import EditResult, EditsMatrices, MemoryUse, PlannedEdit, WrittenBatch
from betaedit.errors import AnatomyError
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
            self._keep(batch.results)
            yield batch

    def _keep(self, results: Sequence[EditResult]) -> None:
        """Count ``results`` among those of the facts that the model holds."""
        self._results += results

    @abstractmethod
    def _write(self, facts: Sequence[Fact]) -> WrittenBatch:
        """Write one batch; whatever ends it early, the model is as it was before."""


class MatrixEditor(BatchEditor, EditsMatrices):
    """A ``BatchEditor`` whose edits are changes of the MLP output projections of some layers.

    Args:
        model: Unedited.
        layers: Which decoder layers.

    Raises:
        AnatomyError: The model has no such layer.
        ModelError: It holds edits of another editor that is still there.
    """

    def __init__(self, model: LanguageModel, layers: Sequence[int]) -> None:
        super().__init__(model)
        for layer in layers:
            check_layer(model, layer)
        self.layers = tuple(layers)
        check_unedited(model.anatomy, self.layers)
        self._matrices: dict[int, EditedMatrix] = {}

    @property
    def matrices(self) -> Mapping[int, EditedMatrix]:
        """The edited matrices by layer."""
        if not self._matrices:
            check_unedited(self.model.anatomy, self.layers)
            self._matrices = edited_matrices(self.model.anatomy, self.layers)
        return self._matrices

    @property
    def memory_use(self) -> MemoryUse:
        """See ``HoldsMemory``: the edits are in the weights."""
        return MemoryUse(editing=held_bytes(self._matrices))

    def prepare(self) -> None:
        """Take up the matrices."""
        _ = self.matrices

    def unedited(self) -> AbstractContextManager[None]:
        """The original matrices."""
        return set_aside(self.matrices)

    def reset(self) -> None:
        """The original matrices for good, and no results.

        Raises:
            WeightsChangedError: The model has neither them nor those that were written last.
        """
        for matrix in self._matrices.values():
            matrix.restore()
        self._matrices, self._results = {}, []


def check_layer(model: LanguageModel, layer: int) -> None:
    """Refuse a decoder layer that the model does not have.

    Raises:
        AnatomyError: It has no such layer.
    """
    n_layers = model.anatomy.n_layers
    if layer >= n_layers:
        raise AnatomyError(f"there is no layer {layer}.", hint=f"The model has layers 0 to {n_layers - 1}.")

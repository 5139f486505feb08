"""Locate-then-edit: values, then layer by layer keys, residuals and the memory's update (methods.md A.7)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from betaedit.editors.config import EditConfig
from betaedit.editors.keys import LayerWalk
from betaedit.editors.matrix import EditedMatrix
from betaedit.editors.pose import Pose, pose
from betaedit.editors.recipes import Recipe
from betaedit.editors.values import Value, optimize_values
from betaedit.errors import NumericalError
from betaedit.facts.fact import Fact
from betaedit.memory.associative import AssociativeMemory
from betaedit.memory.update import Update
from betaedit.models.anatomy import projection_shape
from betaedit.models.load import LanguageModel
from betaedit.models.pack import check_packs
from betaedit.statistics.moments import Moments


@dataclass(frozen=True)
class EditResult:
    """What writing one fact took.

    Args:
        fact: The fact.
        target_probability: Mean probability per target token when the value search ended, over all contexts.
        value_length: Length of the value's change in norms of the hidden state.
        n_evaluations: Evaluations of the value's loss.
        update_norms: Frobenius norm of its batch's update, by layer.
        seconds: Wall-clock time, its share of the batch.
    """

    fact: Fact
    target_probability: float
    value_length: float
    n_evaluations: int
    update_norms: dict[int, float]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        return {
            "id": self.fact.id,
            "prompt": self.fact.text,
            "subject": self.fact.subject,
            "target_new": self.fact.target_new,
            "target_probability": self.target_probability,
            "value_length": self.value_length,
            "evaluations": self.n_evaluations,
            "update_norms": {str(layer): norm for layer, norm in self.update_norms.items()},
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class WrittenBatch:
    """One batch of facts as it was written: enough to write it again without searching.

    Args:
        results: One per fact.
        keys: (d_in, b) keys by layer.
        updates: What was added to each layer's matrix.
    """

    results: tuple[EditResult, ...]
    keys: dict[int, Tensor]
    updates: dict[int, Update]


class Engine:
    """One model under one recipe: the edited matrices and what each remembers.

    Args:
        model: The model whose weights change.
        recipe: The method.
        config: Its hyper-parameters.
        moments: ``C0`` of the edited layers.
        contexts: Context templates, the bare one first.

    Raises:
        StatisticsError: The moments do not fit the model.
        NumericalError: A projector or system cannot be built from them.
    """

    def __init__(
        self, model: LanguageModel, recipe: Recipe, config: EditConfig, moments: Moments, contexts: tuple[str, ...]
    ) -> None:
        self.model, self.recipe, self.config, self.contexts = model, recipe, config, contexts
        check_packs(model.anatomy)
        projections = {layer: model.anatomy.projection(layer) for layer in config.layers}
        moments.require({layer: projection_shape(module)[1] for layer, module in projections.items()})
        self.matrices = {layer: EditedMatrix(module) for layer, module in projections.items()}
        rule = recipe.rule(config)
        self.memories = {
            layer: AssociativeMemory(
                moments.matrices[layer].to(module.get_parameter("weight").device),
                rule,
                basis_dtype=getattr(torch, config.solver_basis),
            )
            for layer, module in projections.items()
        }

    def write(self, facts: Sequence[Fact], *, batch_size: int = 1) -> Iterator[WrittenBatch]:
        """Write facts, ``batch_size`` at a time, each batch solved together; the weights change in place.

        The values of all of ``facts`` are sought together first, under the weights as they are: more than one batch of
        them is a look-ahead, which changes the result. Yields every batch when it is written.

        Raises:
            NumericalError: An update is not finite or longer than allowed. Every weight is as it was before its batch.
        """
        started = time.perf_counter()
        posed = pose(self.model, facts, self.contexts, self.config)
        values = optimize_values(self.model, posed, self.config)
        share = (time.perf_counter() - started) / len(facts)
        for at in range(0, len(facts), batch_size):
            batch = range(at, min(at + batch_size, len(facts)))
            started = time.perf_counter()
            self._refresh()
            keys, updates = self._write_values(posed, batch, [values[index] for index in batch])
            self._remember(keys)
            seconds = share + (time.perf_counter() - started) / len(batch)
            norms = {layer: update.norm() for layer, update in updates.items()}
            results = tuple(_result(facts[index], values[index], norms, seconds) for index in batch)
            yield WrittenBatch(results, keys, updates)

    def replay(self, keys: dict[int, Tensor], updates: dict[int, Update]) -> None:
        """Write a batch that was written before, in its place in the same sequence: the same weights, bit for bit."""
        self._refresh()
        for layer, matrix in self.matrices.items():
            matrix.add(updates[layer])
        self._remember(keys)

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """A context in which the model has its original weights."""
        kept = {layer: matrix.snapshot() for layer, matrix in self.matrices.items()}
        self.restore()
        try:
            yield
        finally:
            for layer, matrix in self.matrices.items():
                matrix.restore(kept[layer])

    def restore(self) -> None:
        """The original weights, bit for bit."""
        for matrix in self.matrices.values():
            matrix.restore()

    def _refresh(self) -> None:
        for memory in self.memories.values():
            if memory.refresh_due():
                memory.refresh()

    def _remember(self, keys: dict[int, Tensor]) -> None:
        for layer, memory in self.memories.items():
            memory.remember(keys[layer])

    def _write_values(
        self, posed: Pose, batch: range, values: Sequence[Value]
    ) -> tuple[dict[int, Tensor], dict[int, Update]]:
        """Spread the residual over the layers, updating each in turn; all or nothing."""
        targets = torch.stack([value.target for value in values], dim=1)
        walk = LayerWalk(self.model, posed, batch, self.config)
        keys: dict[int, Tensor] = {}
        updates: dict[int, Update] = {}
        before: dict[int, Tensor] = {}
        try:
            for step, layer in enumerate(self.config.layers):
                share = len(self.config.layers) - step

                def write(key: Tensor, output: Tensor, layer: int = layer, share: int = share) -> None:
                    residual = (targets.to(output) - output) / share
                    update = self.memories[layer].solve(key, residual.to(key.device))
                    keys[layer], updates[layer] = key, update
                    self._check_norm(layer, update.norm(), len(batch))
                    before[layer] = self.matrices[layer].snapshot()
                    self.matrices[layer].add(update)

                walk.pass_layer(layer, write)
        except BaseException:
            for layer, snapshot in before.items():
                self.matrices[layer].restore(snapshot)
            raise
        return keys, updates

    def _check_norm(self, layer: int, norm: float, n_facts: int) -> None:
        limit = self.config.update_norm_limit
        if limit is not None and norm / n_facts**0.5 > limit:
            raise NumericalError(
                f"the update of layer {layer} has norm {norm:.3g}, over the limit of {limit:g} per root fact.",
                mend="The model is near collapse: stop here, or raise update_norm_limit.",
            )


def _result(fact: Fact, value: Value, norms: dict[int, float], seconds: float) -> EditResult:
    return EditResult(fact, value.target_probability, value.relative_length, value.n_evaluations, norms, seconds)

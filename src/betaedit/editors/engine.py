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
from betaedit.editors.keys import LayerWalk, token_keys
from betaedit.editors.matrix import EditedMatrix
from betaedit.editors.pose import Pose, pose
from betaedit.editors.recipes import Recipe
from betaedit.editors.values import Value, optimize_values
from betaedit.errors import NumericalError
from betaedit.facts.fact import Fact
from betaedit.memory.associative import AssociativeMemory
from betaedit.memory.postprocess import Postprocessor
from betaedit.memory.random_keys import RandomKeys
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
        updates: What each layer's memory answered: what was added to the matrix, save for what the recipe's operator
            made of it.
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
        at_weights = {
            layer: moments.matrices[layer].to(module.get_parameter("weight").device)
            for layer, module in projections.items()
        }
        rule, processing = recipe.rule(config), recipe.postprocessing(config)
        self.memories = {layer: AssociativeMemory(moment, rule) for layer, moment in at_weights.items()}
        self.postprocessors = {
            layer: Postprocessor(processing, moment)
            for layer, moment in at_weights.items()
            if recipe.operator != "none"
        }
        self._random_keys = {
            layer: RandomKeys(moment, config.seed + layer)
            for layer, moment in at_weights.items()
            if recipe.random_history
        }
        self._tokens: dict[int, Tensor] = {}

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
            self._begin([facts[index] for index in batch])
            keys, updates, norms = self._write_values(posed, batch, [values[index] for index in batch])
            self._remember(keys)
            seconds = share + (time.perf_counter() - started) / len(batch)
            results = tuple(_result(facts[index], values[index], norms, seconds) for index in batch)
            yield WrittenBatch(results, keys, updates)

    def replay(self, batch: WrittenBatch) -> None:
        """Write a batch that was written before, in its place in the same sequence: the same weights, bit for bit."""
        self._begin([result.fact for result in batch.results])
        for layer in self.matrices:
            self._add(layer, batch.updates[layer])
        self._remember(batch.keys)

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

    def _begin(self, facts: Sequence[Fact]) -> None:
        """Make ready for a batch under the weights before it."""
        for memory in self.memories.values():
            if memory.refresh_due():
                memory.refresh()
        if self.recipe.operator == "simie":
            self._tokens = token_keys(self.model, facts, self.config)

    def _remember(self, keys: dict[int, Tensor]) -> None:
        for layer, memory in self.memories.items():
            random = self._random_keys.get(layer)
            memory.remember(keys[layer] if random is None else random.like(keys[layer]))
        for layer, postprocessor in self.postprocessors.items():
            postprocessor.settle(self._tokens.get(layer))

    def _solve(self, layer: int, keys: Tensor, residuals: Tensor, bare_keys: Tensor) -> Update:
        residuals = residuals.to(keys.device)
        if layer in self.postprocessors:
            residuals = self.postprocessors[layer].residuals(keys, residuals)
        return self.memories[layer].solve(keys, residuals, bare_keys if self.recipe.reaches_bare_key else None)

    def _add(self, layer: int, update: Update) -> float:
        """Add an update to its matrix as the recipe processes it; the norm of what was added."""
        matrix, postprocessor = self.matrices[layer], self.postprocessors.get(layer)
        if postprocessor is None:
            matrix.add(update)
            return update.norm()
        change = postprocessor.process(update, matrix.current(), self._tokens.get(layer))
        matrix.add_dense(change)
        return float(change.norm())

    def _write_values(
        self, posed: Pose, batch: range, values: Sequence[Value]
    ) -> tuple[dict[int, Tensor], dict[int, Update], dict[int, float]]:
        """Spread the residual over the layers, updating each in turn; all or nothing."""
        targets = torch.stack([value.target for value in values], dim=1)
        walk = LayerWalk(self.model, posed, batch, self.config)
        keys: dict[int, Tensor] = {}
        updates: dict[int, Update] = {}
        norms: dict[int, float] = {}
        before: dict[int, Tensor] = {}
        try:
            for step, layer in enumerate(self.config.layers):
                share = self.recipe.share(len(self.config.layers) - step)

                def write(key: Tensor, output: Tensor, layer: int = layer, share: float = share) -> None:
                    residual = (targets.to(output) - output) / share
                    update = self._solve(layer, key, residual, walk.bare_keys)
                    keys[layer], updates[layer] = key, update
                    before[layer] = self.matrices[layer].snapshot()
                    norms[layer] = self._add(layer, update)
                    self._check_norm(layer, norms[layer], len(batch))

                walk.pass_layer(layer, write)
        except BaseException:
            for layer, snapshot in before.items():
                self.matrices[layer].restore(snapshot)
            raise
        return keys, updates, norms

    def _check_norm(self, layer: int, norm: float, n_facts: int) -> None:
        limit = self.config.update_norm_limit
        if limit is not None and norm / n_facts**0.5 > limit:
            raise NumericalError(
                f"the update of layer {layer} has norm {norm:.3g}, over the limit of {limit:g} per root fact.",
                mend="The model is near collapse: stop here, or raise update_norm_limit.",
            )


def _result(fact: Fact, value: Value, norms: dict[int, float], seconds: float) -> EditResult:
    return EditResult(fact, value.target_probability, value.relative_length, value.n_evaluations, norms, seconds)

"""Editing with a trained hypernetwork: one backward pass per batch, and a change of each matrix from it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from betaedit.editors.asked import with_status
from betaedit.editors.batches import MatrixEditor
from betaedit.editors.hypernet.config import HypernetConfig
from betaedit.editors.hypernet.passes import EditedLayers, Texts
from betaedit.editors.hypernet.trained import TrainedEditor
from betaedit.editors.hypernet.training import edit_factors
from betaedit.editors.matrix import undone_by_failure
from betaedit.editors.method import EditResult, MemoryUse, WrittenBatch
from betaedit.errors import NumericalError
from betaedit.evaluation.scoring import Continuation
from betaedit.facts.fact import Fact
from betaedit.memory.update import Update
from betaedit.models.gradients import usual_gradients
from betaedit.models.load import LanguageModel


class HypernetEditing(MatrixEditor):
    """One model under a trained hypernetwork: an ``EditingMethod`` that ``EditsMatrices``.

    The gradient of a batch is taken on the weights that the edits before it left; the statistics that normalize it stay
    those of the training (the published code of MALMEN and RLEdit goes on counting).

    Args:
        model: Unedited.
        config: Names the trained editor.
        trained: What it holds.

    Raises:
        ConfigError: It was trained for a model of other sizes.
        ModelError: The model holds edits of another editor that is still there.
    """

    def __init__(self, model: LanguageModel, config: HypernetConfig, trained: TrainedEditor) -> None:
        self.config, self._trained = config, trained
        trained.check_fits(model)
        super().__init__(model, trained.network.layers)
        trained.network.to(model.device)

    @property
    def memory_use(self) -> MemoryUse:
        """See ``HoldsMemory``: the hypernetwork is needed for editing alone."""
        network = sum(tensor.nbytes for tensor in self._trained.network.state_dict().values())
        return MemoryUse(editing={**super().memory_use.editing, "hypernetwork": network})

    @usual_gradients
    def replay(self, batch: WrittenBatch) -> None:
        """Add the change that the batch made."""
        self._add(batch.tensors)
        self._keep(batch.results)

    def describe(self) -> dict[str, Any]:
        """The layers, and a hash of the trained editor: another one in the same folder writes other changes."""
        return {"layers": list(self._trained.network.layers), "editor_weights": self._trained.fingerprint}

    def _write(self, facts: Sequence[Fact]) -> WrittenBatch:
        started = time.perf_counter()
        with undone_by_failure(self.matrices):
            tensors, loss = self._tensors(facts)
            norms = self._add(tensors)
            share = (time.perf_counter() - started) / len(facts)
            figures = {"loss": loss, "update_norms": norms}
            results = with_status(self.model, [EditResult(fact, share, figures=figures) for fact in facts])
        return WrittenBatch(results, tensors)

    def _tensors(self, facts: Sequence[Fact]) -> tuple[dict[str, Tensor], float]:
        """The factors of every layer's change by name, and the mean loss of the facts before it."""
        network = self._trained.network
        asked = Continuation.encode(self.model, [(fact.text, fact.target_new, fact.joint) for fact in facts])
        texts = Texts.of(self.model, asked)
        gradients, loss = EditedLayers(self.model, network.layers).gradients(texts, {})
        tensors: dict[str, Tensor] = {}
        with torch.no_grad():
            for layer, found in gradients.items():
                left, right = edit_factors(network, layer, found, texts)
                if not (torch.isfinite(left).all() and torch.isfinite(right).all()):
                    raise NumericalError(
                        f"the change of layer {layer} is not finite; the batch is undone.",
                        hint="Train the editor with a lower learning rate, or write fewer facts with it.",
                    )
                tensors |= {f"{layer}.left": left.contiguous(), f"{layer}.right": right.contiguous()}
        return tensors, loss

    def _add(self, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Add the changes; their norms by layer."""
        updates = {
            layer: Update(tensors[f"{layer}.left"], tensors[f"{layer}.right"]) for layer in self._trained.network.layers
        }
        for layer, update in updates.items():
            self.matrices[layer].add(update)
        return {str(layer): update.norm() for layer, update in updates.items()}

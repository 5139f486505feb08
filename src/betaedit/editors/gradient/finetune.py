"""Fine-tuning of one MLP output matrix on the facts' answers (methods.md E.2)."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from betaedit.editors.asked import with_status
from betaedit.editors.batches import BatchEditor
from betaedit.editors.gradient.config import DECAY_LOG_SCALE, DECAY_POWER, FineTuneConfig
from betaedit.editors.gradient.targets import TargetBatch, encode_targets
from betaedit.editors.matrix import EditedMatrix, check_unedited, edited_matrices, set_aside
from betaedit.editors.method import EditResult, WrittenBatch
from betaedit.errors import AnatomyError, NumericalError
from betaedit.facts.fact import Fact
from betaedit.models.anatomy import is_transposed
from betaedit.models.load import LanguageModel
from betaedit.progress import Progress

_PUBLISHED_LAYER, _PUBLISHED_DEPTH = 21, 32


class FineTuning(BatchEditor):
    """One model under fine-tuning of one matrix: an ``EditingMethod`` that ``EditsMatrices``.

    Args:
        model: Unedited.
        config: Hyper-parameters.
        progress: Where long work shows how far it is.

    Raises:
        AnatomyError: The model has no such layer.
        ModelError: It holds edits of another editor that is still there.
    """

    def __init__(self, model: LanguageModel, config: FineTuneConfig, progress: Progress) -> None:
        super().__init__(model)
        self.config, self._progress = config, progress
        n_layers = model.anatomy.n_layers
        self.layer = n_layers * _PUBLISHED_LAYER // _PUBLISHED_DEPTH if config.layer is None else config.layer
        if self.layer >= n_layers:
            raise AnatomyError(f"there is no layer {self.layer}.", hint=f"The model has layers 0 to {n_layers - 1}.")
        check_unedited(model.anatomy, [self.layer])
        self._matrix: EditedMatrix | None = None

    @property
    def matrices(self) -> Mapping[int, EditedMatrix]:
        """The one matrix, by its layer."""
        if self._matrix is None:
            check_unedited(self.model.anatomy, [self.layer])
            self._matrix = edited_matrices(self.model.anatomy, [self.layer])[self.layer]
        return {self.layer: self._matrix}

    def prepare(self) -> None:
        """Take up the matrix."""
        _ = self.matrices

    def replay(self, batch: WrittenBatch) -> None:
        """Add the change that the batch made."""
        self.matrices[self.layer].add_dense(batch.tensors[self._change_name])
        self._results += batch.results

    def unedited(self) -> AbstractContextManager[None]:
        """The original matrix."""
        return set_aside(self.matrices)

    def reset(self) -> None:
        """The original matrix, for good.

        Raises:
            WeightsChangedError: The model has neither it nor the one that was written.
        """
        if self._matrix is not None:
            self._matrix.restore()
        self._matrix, self._results = None, []

    def describe(self) -> dict[str, Any]:
        """The layer, which follows from the depth where it is not given."""
        return {"layer": self.layer}

    @property
    def _change_name(self) -> str:
        return f"{self.layer}.change"

    def _write(self, facts: Sequence[Fact]) -> WrittenBatch:
        started = time.perf_counter()
        matrix = self.matrices[self.layer]
        matrix.check()
        change, loss, steps = self._train(matrix.current(), encode_targets(self.model, facts, self.config.loss))
        before = matrix.snapshot()
        matrix.add_dense(change)
        try:
            share = (time.perf_counter() - started) / len(facts)
            figures = {"loss": loss, "steps": steps, "update_norms": {str(self.layer): float(change.norm())}}
            results = with_status(self.model, [EditResult(fact, share, figures=figures) for fact in facts])
        except BaseException:
            matrix.restore(before)
            raise
        return WrittenBatch(results, {self._change_name: change})

    def _train(self, before: Tensor, batch: TargetBatch) -> tuple[Tensor, float, int]:
        """What training adds to the matrix ``before`` (d_out, d_in); the loss at its end, and the steps taken."""
        weight = before.detach().clone().requires_grad_()
        decay = decay_of(self.config, len(batch.ids))
        optimizer = torch.optim.Adam([weight], lr=self.config.learning_rate, weight_decay=decay)
        loss, steps = self._loss(weight, batch), 0
        while steps < self.config.steps and loss.item() >= self.config.stop_loss:
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if self.config.norm_limit is not None:
                with torch.no_grad():
                    weight.clamp_(before - self.config.norm_limit, before + self.config.norm_limit)
            loss, steps = self._loss(weight, batch), steps + 1
        if not torch.isfinite(weight).all() or not torch.isfinite(loss):
            raise NumericalError(
                "fine-tuning did not stay finite.", hint="Lower learning_rate, or set norm_limit; the batch is undone."
            )
        return (weight.detach() - before).contiguous(), loss.item(), steps

    def _loss(self, weight: Tensor, batch: TargetBatch) -> Tensor:
        """Mean over facts of the mean negative log-likelihood of the target tokens."""
        anatomy = self.model.anatomy
        projection = anatomy.projection(self.layer)
        own = projection.get_parameter("weight")
        stored = (weight.T if is_transposed(projection) else weight).to(own)
        name = f"{anatomy.projection_path(self.layer)}.weight"
        output: Any = torch.func.functional_call(self.model.model, {name: stored}, kwargs=batch.inputs)
        return batch.mean_over_facts(output.logits)


def decay_of(config: FineTuneConfig, n_facts: int) -> float:
    """Weight decay for a batch of ``n_facts``: as given, or ``n^a e^b`` (methods.md E.3)."""
    if config.weight_decay != "by_count":
        return config.weight_decay
    return float(n_facts**DECAY_POWER * math.exp(DECAY_LOG_SCALE))

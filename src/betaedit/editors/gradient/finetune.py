"""Fine-tuning of one MLP output matrix on the facts' answers (methods.md E.2)."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from betaedit.editors.asked import with_status
from betaedit.editors.batches import MatrixEditor
from betaedit.editors.gradient.config import DECAY_LOG_SCALE, DECAY_POWER, FineTuneConfig
from betaedit.editors.gradient.targets import TargetBatch, encode_targets
from betaedit.editors.matrix import undone_by_failure
from betaedit.editors.method import EditResult, WrittenBatch
from betaedit.errors import NumericalError
from betaedit.facts.fact import Fact
from betaedit.models.anatomy import is_transposed
from betaedit.models.load import LanguageModel

_PUBLISHED_LAYER, _PUBLISHED_DEPTH = 21, 32


class FineTuning(MatrixEditor):
    """One model under fine-tuning of one matrix: an ``EditingMethod`` that ``EditsMatrices``.

    Args:
        model: Unedited.
        config: Hyper-parameters.

    Raises:
        AnatomyError: The model has no such layer.
        ModelError: It holds edits of another editor that is still there.
    """

    def __init__(self, model: LanguageModel, config: FineTuneConfig) -> None:
        self.config = config
        published = model.anatomy.n_layers * _PUBLISHED_LAYER // _PUBLISHED_DEPTH
        super().__init__(model, [published if config.layer is None else config.layer])
        (self.layer,) = self.layers

    def replay(self, batch: WrittenBatch) -> None:
        """Add the change that the batch made."""
        self.matrices[self.layer].add_dense(batch.tensors[self._change_name])
        self._keep(batch.results)

    def describe(self) -> dict[str, Any]:
        """The layer, which follows from the depth where it is not given."""
        return {"layer": self.layer}

    @property
    def _change_name(self) -> str:
        return f"{self.layer}.change"

    def _write(self, facts: Sequence[Fact]) -> WrittenBatch:
        started = time.perf_counter()
        matrix = self.matrices[self.layer]
        with undone_by_failure(self.matrices):
            change, loss, steps = self._train(matrix.current(), encode_targets(self.model, facts, self.config.loss))
            matrix.add_dense(change)
            share = (time.perf_counter() - started) / len(facts)
            figures = {"loss": loss, "steps": steps, "update_norms": {str(self.layer): float(change.norm())}}
            results = with_status(self.model, [EditResult(fact, share, figures=figures) for fact in facts])
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

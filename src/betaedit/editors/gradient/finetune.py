"""Fine-tuning of one MLP output matrix on the facts' answers (methods.md E.2)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from betaedit.editors.asked import plan_fact, with_status
from betaedit.editors.gradient.config import FineTuneConfig, Loss
from betaedit.editors.matrix import EditedMatrix, check_unedited, edited_matrices, set_aside
from betaedit.editors.method import EditResult, PlannedEdit, WrittenBatch
from betaedit.errors import AnatomyError, NumericalError
from betaedit.facts.fact import Fact
from betaedit.models.anatomy import is_transposed
from betaedit.models.gradients import usual_gradients
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import pad_rows, pad_token_id
from betaedit.progress import Progress

_PUBLISHED_LAYER, _PUBLISHED_DEPTH = 21, 32


@dataclass(frozen=True)
class _Batch:
    """Prompts with their targets, right-padded.

    Args:
        ids: ``(n, length)`` token ids of prompts and all target tokens but the last.
        mask: ``(n, length)``, 1 on real tokens.
        rows: ``(t,)`` for each target token, its row.
        places: ``(t,)`` the position at which it is scored.
        targets: ``(t,)`` its id.
        weights: ``(t,)`` one over the number of target tokens of its row.
    """

    ids: Tensor
    mask: Tensor
    rows: Tensor
    places: Tensor
    targets: Tensor
    weights: Tensor


class FineTuning:
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
        self.model, self.config, self._progress = model, config, progress
        n_layers = model.anatomy.n_layers
        self.layer = n_layers * _PUBLISHED_LAYER // _PUBLISHED_DEPTH if config.layer is None else config.layer
        if self.layer >= n_layers:
            raise AnatomyError(f"there is no layer {self.layer}.", hint=f"The model has layers 0 to {n_layers - 1}.")
        check_unedited(model.anatomy, [self.layer])
        self._matrix: EditedMatrix | None = None
        self._results: list[EditResult] = []

    @property
    def matrices(self) -> Mapping[int, EditedMatrix]:
        """The one matrix, by its layer."""
        if self._matrix is None:
            check_unedited(self.model.anatomy, [self.layer])
            self._matrix = edited_matrices(self.model.anatomy, [self.layer])[self.layer]
        return {self.layer: self._matrix}

    @property
    def results(self) -> Sequence[EditResult]:
        """One per fact written."""
        return tuple(self._results)

    def prepare(self) -> None:
        """Take up the matrix."""
        _ = self.matrices

    def plan(self, fact: Fact) -> PlannedEdit:
        """See ``EditingMethod.plan``."""
        return plan_fact(self.model, fact)

    def check(self, facts: Sequence[Fact], batch_size: int) -> None:
        """Everything can be trained on."""

    def stride(self, batch_size: int) -> int:
        """A batch is trained on by itself."""
        return batch_size

    @usual_gradients
    def write(self, facts: Sequence[Fact], *, batch_size: int) -> Iterator[WrittenBatch]:
        """Train on the facts of each batch until its loss is low, then ask the model about them.

        Raises:
            NumericalError: The loss is not finite; the batch is undone.
            WeightsChangedError: The matrix is not as it was written last.
        """
        for at in range(0, len(facts), batch_size):
            yield self._write(facts[at : at + batch_size])

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
        change, loss, steps = self._train(matrix.current(), self._encode(facts))
        before = matrix.snapshot()
        matrix.add_dense(change)
        try:
            share = (time.perf_counter() - started) / len(facts)
            figures = {"loss": loss, "steps": steps, "update_norms": {str(self.layer): float(change.norm())}}
            results = with_status(self.model, [EditResult(fact, share, figures=figures) for fact in facts])
        except BaseException:
            matrix.restore(before)
            raise
        self._results += results
        return WrittenBatch(results, {self._change_name: change})

    def _train(self, before: Tensor, batch: _Batch) -> tuple[Tensor, float, int]:
        """What training adds to the matrix ``before`` (d_out, d_in); the loss at its end, and the steps taken."""
        weight = before.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([weight], lr=self.config.learning_rate, weight_decay=self.config.weight_decay)
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

    def _loss(self, weight: Tensor, batch: _Batch) -> Tensor:
        """Mean over facts of the mean negative log-likelihood of the target tokens."""
        anatomy = self.model.anatomy
        projection = anatomy.projection(self.layer)
        own = projection.get_parameter("weight")
        stored = (weight.T if is_transposed(projection) else weight).to(own)
        name = f"{anatomy.projection_path(self.layer)}.weight"
        output: Any = torch.func.functional_call(
            self.model.model,
            {name: stored},
            kwargs={"input_ids": batch.ids, "attention_mask": batch.mask, "use_cache": False},
        )
        logs = output.logits[batch.rows, batch.places].float().log_softmax(dim=-1)
        likelihood: Tensor = logs.gather(1, batch.targets[:, None])[:, 0]
        return -(likelihood * batch.weights).sum() / len(batch.ids)

    def _encode(self, facts: Sequence[Fact]) -> _Batch:
        pairs = self.model.encode_pairs([(fact.text, fact.target_new, fact.joint) for fact in facts])
        ids, mask = pad_rows([[*prompt, *target[:-1]] for prompt, target in pairs], pad_token_id(self.model.tokenizer))
        rows, places, targets, weights = [], [], [], []
        for row, (prompt, target) in enumerate(pairs):
            for offset, token in enumerate(target):
                rows.append(row)
                places.append(len(prompt) - 1 + _offset(self.config.loss, offset))
                targets.append(token)
                weights.append(1 / len(target))
        device = self.model.device
        numbers = (torch.tensor(each, device=device) for each in (rows, places, targets, weights))
        return _Batch(ids.to(device), mask.to(device), *numbers)


def _offset(loss: Loss, offset: int) -> int:
    """How far behind the last token of the prompt the target token number ``offset`` is scored."""
    return 0 if loss == "prompt_last" else offset

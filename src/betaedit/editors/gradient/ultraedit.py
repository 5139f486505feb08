"""UltraEdit: one backward pass, gradients normalized by all seen so far, one ridge solution (methods.md B.10)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from betaedit.editors.asked import with_status
from betaedit.editors.batches import MatrixEditor
from betaedit.editors.gradient.config import UltraEditConfig
from betaedit.editors.gradient.targets import TargetBatch, encode_targets
from betaedit.editors.matrix import undone_by_failure
from betaedit.editors.method import EditResult, MemoryUse, WrittenBatch
from betaedit.errors import NumericalError
from betaedit.facts.fact import Fact
from betaedit.memory.update import Update
from betaedit.models.load import LanguageModel

_PUBLISHED_LAYERS, _PUBLISHED_DEPTH = (18, 26), 28


@dataclass(frozen=True)
class RunningMoments:
    """Mean and spread of all rows seen so far (Welford).

    Args:
        count: How many rows, a tensor without dimensions.
        mean: ``(d,)``.
        squares: ``(d,)`` sums of squared distances from the mean.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    @classmethod
    def none(cls, like: Tensor, size: int) -> RunningMoments:
        """No rows of ``size`` entries, of the type and on the device of ``like``."""
        return cls(like.new_zeros(()), like.new_zeros(size), like.new_zeros(size))

    def including(self, rows: Tensor) -> RunningMoments:
        """With the ``(n, d)`` ``rows``."""
        count = self.count + len(rows)
        distance = rows.mean(0) - self.mean
        own = (rows - rows.mean(0)).square().sum(0)
        between = distance.square() * (self.count * len(rows) / count)
        return RunningMoments(count, self.mean + distance * len(rows) / count, self.squares + own + between)

    def normalized(self, rows: Tensor) -> Tensor:
        """``rows`` less the mean, in standard deviations; zero where no two rows differed so far."""
        deviation = (self.squares / (self.count - 1).clamp(min=1)).sqrt()
        return (rows - self.mean) / (deviation + torch.finfo(rows.dtype).eps)


@dataclass(frozen=True)
class Traces:
    """What one pass leaves at one projection, at the positions that predict target tokens.

    Args:
        inputs: ``(t, d_in)``.
        gradients: ``(t, d_out)`` gradients of the loss with respect to its output.
    """

    inputs: Tensor
    gradients: Tensor

    @property
    def joint(self) -> Tensor:
        """``(t, d_in + d_out)``."""
        return torch.cat([self.inputs, self.gradients], dim=1)


def ridge_update(inputs: Tensor, normalized: Tensor, learning_rate: float) -> Update:
    """``Delta = V X^T (X X^T + I)^-1`` with ``v_i = -lr |x~_i|^2 g~_i``, by a system of the size of the batch.

    Args:
        inputs: ``(t, d_in)`` the rows of ``X^T``, as they are.
        normalized: ``(t, d_in + d_out)`` the same and their gradients, normalized.
        learning_rate: ``lr``.
    """
    d_in = inputs.shape[1]
    steps, directions = normalized[:, :d_in], normalized[:, d_in:]
    values = -learning_rate * steps.square().sum(1, keepdim=True) * directions
    system = inputs @ inputs.T + torch.eye(len(inputs), dtype=inputs.dtype, device=inputs.device)
    return Update(values.T, torch.linalg.solve(system, inputs).T)


class UltraEdit(MatrixEditor):
    """One model under UltraEdit: an ``EditingMethod`` that ``EditsMatrices``.

    Args:
        model: Unedited.
        config: Hyper-parameters.

    Raises:
        AnatomyError: The model has no such layer.
        ModelError: It holds edits of another editor that is still there.
    """

    def __init__(self, model: LanguageModel, config: UltraEditConfig) -> None:
        self.config = config
        n_layers = model.anatomy.n_layers
        first, last = (n_layers * layer // _PUBLISHED_DEPTH for layer in _PUBLISHED_LAYERS)
        super().__init__(model, config.changed_layers or range(first, last + 1))
        self._moments: dict[str, RunningMoments] = {}

    @property
    def memory_use(self) -> MemoryUse:
        """See ``HoldsMemory``."""
        moments = [getattr(each, part) for each in self._moments.values() for part in _PARTS]
        known = sum(tensor.nbytes for tensor in moments)
        return MemoryUse(editing={**super().memory_use.editing, "means and spreads of gradients": known})

    def replay(self, batch: WrittenBatch) -> None:
        """Add the updates that the batch made, and take over what it knew of gradients."""
        tensors = batch.tensors
        for layer, matrix in self.matrices.items():
            matrix.add(Update(tensors[f"{layer}.left"], tensors[f"{layer}.right"]))
        names = {name.split(".")[1] for name in tensors if name.startswith("moments.")}
        self._moments = {
            name: RunningMoments(*(tensors[f"moments.{name}.{part}"].to(self._device) for part in _PARTS))
            for name in names
        }
        self._keep(batch.results)

    def reset(self) -> None:
        """The original matrices for good, and no gradients known.

        Raises:
            WeightsChangedError: The model has neither them nor those that were written.
        """
        super().reset()
        self._moments = {}

    def describe(self) -> dict[str, Any]:
        """The layers, which follow from the depth where they are not given."""
        return {"layers": list(self.layers)}

    @property
    def _device(self) -> torch.device:
        return next(iter(self.matrices.values())).device

    def _write(self, facts: Sequence[Fact]) -> WrittenBatch:
        started, known = time.perf_counter(), self._moments
        try:
            with undone_by_failure(self.matrices):
                updates, loss = self._updates(facts)
                for layer, update in updates.items():
                    self.matrices[layer].add(update)
                norms = {str(layer): update.norm() for layer, update in updates.items()}
                share = (time.perf_counter() - started) / len(facts)
                figures = {"loss": loss, "update_norms": norms}
                results = with_status(self.model, [EditResult(fact, share, figures=figures) for fact in facts])
        except BaseException:
            self._moments = known
            raise
        return WrittenBatch(results, self._tensors(updates))

    def _tensors(self, updates: Mapping[int, Update]) -> dict[str, Tensor]:
        tensors = {f"{layer}.left": update.left for layer, update in updates.items()}
        tensors |= {f"{layer}.right": update.right for layer, update in updates.items()}
        for name, moments in self._moments.items():
            tensors |= {f"moments.{name}.{part}": getattr(moments, part) for part in _PARTS}
        return {name: tensor.contiguous() for name, tensor in tensors.items()}

    def _updates(self, facts: Sequence[Fact]) -> tuple[dict[int, Update], float]:
        """The update of every layer, and the mean loss before it; the gradients are among those known then."""
        traces: dict[int, list[Traces]] = {layer: [] for layer in self.layers}
        losses = []
        for at in range(0, len(facts), self.config.gradient_batch):
            part = encode_targets(self.model, facts[at : at + self.config.gradient_batch])
            found, loss = self._traces(part)
            losses += [loss] * len(part.ids)
            for layer, trace in found.items():
                traces[layer].append(trace)
                self._include(layer, trace)
        updates = {layer: self._update(layer, parts) for layer, parts in traces.items()}
        if not all(update.is_finite() for update in updates.values()):
            raise NumericalError(
                "an update is not finite.",
                hint="Load the model in float32, or lower learning_rate; the batch is undone.",
            )
        return updates, sum(losses) / len(losses)

    def _include(self, layer: int, trace: Traces) -> None:
        """Matrices of one shape share what is known, as published."""
        name, joint = self._shape(layer), trace.joint
        known = self._moments.get(name) or RunningMoments.none(joint, joint.shape[1])
        self._moments = {**self._moments, name: known.including(joint)}

    def _update(self, layer: int, parts: Sequence[Traces]) -> Update:
        trace = Traces(torch.cat([part.inputs for part in parts]), torch.cat([part.gradients for part in parts]))
        normalized = self._moments[self._shape(layer)].normalized(trace.joint)
        return ridge_update(trace.inputs, normalized, self.config.learning_rate)

    def _shape(self, layer: int) -> str:
        return "x".join(map(str, self.matrices[layer].shape))

    def _traces(self, batch: TargetBatch) -> tuple[dict[int, Traces], float]:
        """Of every layer, by one pass forward and one back; and the loss."""
        anatomy = self.model.anatomy
        with _probed({layer: anatomy.projection(layer) for layer in self.layers}) as (inputs, probes):
            loss = batch.mean_over_tokens(self.model.model(**batch.inputs).logits)
            gradients = torch.autograd.grad(loss, [probes[layer] for layer in self.layers])
        at = (batch.rows, batch.places)
        found = {}
        for layer, gradient in zip(self.layers, gradients, strict=True):
            like = self.matrices[layer].change()
            found[layer] = Traces(inputs[layer][at].to(like), gradient[at].to(like))
        return found, loss.item()


_PARTS = ("count", "mean", "squares")


@contextmanager
def _probed(modules: Mapping[int, nn.Module]) -> Iterator[tuple[dict[int, Tensor], dict[int, Tensor]]]:
    """A context in which the inputs of ``modules`` are kept, and zeros that are added to their outputs."""
    inputs: dict[int, Tensor] = {}
    probes: dict[int, Tensor] = {}

    def hook_of(layer: int) -> Any:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            inputs[layer] = arguments[0].detach()
            probes[layer] = torch.zeros_like(output).requires_grad_()
            return output + probes[layer]

        return hook

    with ExitStack() as stack:
        for layer, module in modules.items():
            stack.callback(module.register_forward_hook(hook_of(layer)).remove)
        yield inputs, probes

"""What a codebook and a side memory do alike."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from hashlib import sha256
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from betaedit.editors.asked import plan_fact, with_status
from betaedit.editors.batches import check_layer
from betaedit.editors.matrix import check_unedited
from betaedit.editors.method import EditResult, PlannedEdit, WrittenBatch
from betaedit.editors.side_memory.config import SideConfig
from betaedit.facts.fact import Fact
from betaedit.models.gradients import usual_gradients
from betaedit.models.load import LanguageModel
from betaedit.models.prompt_hook import PromptHook

_PUBLISHED_LAYER, _PUBLISHED_DEPTH = 27, 32

State = TypeVar("State")
Tensors = dict[str, Tensor]


class SideEditor(ABC, Generic[State]):
    """An ``EditingMethod`` that ``HoldsFacts`` and whose whole memory is one immutable ``State``; no weight changes.

    The model is hooked while it holds facts. Facts are written one after another, those of a batch too: what a fact
    becomes does not depend on the batch it comes in.

    Args:
        model: Unedited.
        config: Hyper-parameters.

    Raises:
        AnatomyError: The model has no such layer.
        ModelError: It holds edits of another editor.
    """

    def __init__(self, model: LanguageModel, config: SideConfig) -> None:
        self.model = model
        n_layers = model.anatomy.n_layers
        self.layer = n_layers * _PUBLISHED_LAYER // _PUBLISHED_DEPTH if config.layer is None else config.layer
        check_layer(model, self.layer)
        check_unedited(model.anatomy, [self.layer])
        self._hook = PromptHook(model.anatomy, model.anatomy.projection_path(self.layer), self)
        self._state = self._empty()

    @property
    @abstractmethod
    def results(self) -> Sequence[EditResult]:
        """One per fact that the model holds."""

    @abstractmethod
    def begin(self, entering: Tensor, leaving: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor | None]:
        """See ``PromptChange.begin``."""

    @abstractmethod
    def go_on(self, entering: Tensor, leaving: Tensor, known: Tensor | None) -> Tensor:
        """See ``PromptChange.go_on``."""

    def prepare(self) -> None:
        """Make what takes long before the first edit."""

    def plan(self, fact: Fact) -> PlannedEdit:
        """See ``EditingMethod.plan``."""
        return plan_fact(self.model, fact)

    def check(self, facts: Sequence[Fact], batch_size: int) -> None:
        """Everything can be written."""

    def stride(self, batch_size: int) -> int:
        """A batch is worked on by itself."""
        return batch_size

    @usual_gradients
    def write(self, facts: Sequence[Fact], *, batch_size: int) -> Iterator[WrittenBatch]:
        """Write the facts of each batch, then ask the model about them.

        Raises:
            NumericalError: A loss is not finite; the batch is undone.
        """
        for at in range(0, len(facts), batch_size):
            yield self._write(facts[at : at + batch_size])

    def replay(self, batch: WrittenBatch) -> None:
        """Take up what the batch was."""
        self._set(self._replayed(batch))

    def unedited(self) -> AbstractContextManager[None]:
        """The model without its hook."""
        return self._hook.aside()

    def reset(self) -> None:
        """Drop all facts."""
        self._set(self._empty())

    def describe(self) -> dict[str, Any]:
        """The layer, which follows from the depth where it is not given."""
        return {"layer": self.layer}

    @abstractmethod
    def _empty(self) -> State:
        """That of a model that was told nothing."""

    @abstractmethod
    def _told(self, state: State, fact: Fact) -> tuple[State, Mapping[str, Any], Tensors]:
        """The state with one fact more, its figures, and what writing it again needs."""

    @abstractmethod
    def _replayed(self, batch: WrittenBatch) -> State:
        """The state with a batch more that was written before."""

    @abstractmethod
    def _with_results(self, state: State, results: Sequence[EditResult]) -> State:
        """``state`` whose last results are ``results``, those of facts that later ones replaced left out."""

    def _write(self, facts: Sequence[Fact]) -> WrittenBatch:
        before, state = self._state, self._state
        results, tensors = [], {}
        for number, fact in enumerate(facts):
            started = time.perf_counter()
            state, figures, found = self._told(state, fact)
            results.append(EditResult(fact, time.perf_counter() - started, figures=figures))
            tensors.update(numbered(number, found))
        self._set(state)
        try:
            asked = with_status(self.model, results)
        except BaseException:
            self._set(before)
            raise
        self._state = self._with_results(self._state, asked)
        return WrittenBatch(asked, tensors)

    def _set(self, state: State) -> None:
        """Answer from ``state``; the model is hooked only if that holds facts."""
        self._state = state
        if self.results:
            self._hook.attach()
        else:
            self._hook.detach()


def seed_of(seed: int, *parts: object) -> torch.Generator:
    """A random generator that depends on nothing but these."""
    digest = sha256(repr((seed, *parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def numbered(number: int, tensors: Tensors) -> Tensors:
    """What ``_told`` gave for the fact ``number`` of a batch, under the names it has in the batch."""
    return {f"{number}.{name}": tensor for name, tensor in tensors.items()}


def tensors_of(batch: WrittenBatch, number: int) -> Tensors:
    """What ``_told`` gave for the fact ``number`` of a batch."""
    prefix = f"{number}."
    return {name.removeprefix(prefix): value for name, value in batch.tensors.items() if name.startswith(prefix)}


def with_last(all_results: Sequence[EditResult], asked: Sequence[EditResult]) -> tuple[EditResult, ...]:
    """``all_results`` in which those of the facts of ``asked`` are what they are there."""
    known = {id(result.fact): result for result in asked}
    return tuple(known.get(id(result.fact), result) for result in all_results)

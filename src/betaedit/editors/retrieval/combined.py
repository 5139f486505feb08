"""Facts written into the weights by any editor, and put before the prompts as well (methods.md F.3, X + SCR)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from betaedit.editors.matrix import EditedMatrix
from betaedit.editors.method import (
    EditingMethod,
    EditResult,
    EditsMatrices,
    Forgets,
    MemoryUse,
    MethodConfig,
    PlannedEdit,
    WrittenBatch,
    memory_use,
)
from betaedit.editors.retrieval.memory import FactMemory
from betaedit.facts.fact import Fact
from betaedit.models.load import LanguageModel

_PREFIX = "memory."


class Combined:
    """An ``EditingMethod`` of two: one writes, and asks a model whose prompts a memory frames.

    Args:
        writer: Built on a model whose frame is the memory, so that the edited model also confirms and answers.
        memory: Empty.

    What it holds, and how it is held, are the writer's ``results``: facts that the writer keeps and the memory has
    replaced are among them.
    """

    def __init__(self, writer: EditingMethod, memory: FactMemory) -> None:
        self.writer, self.memory = writer, memory

    @property
    def config(self) -> MethodConfig:
        """The settings of both."""
        return self.writer.config

    @property
    def model(self) -> LanguageModel:
        """The writer's, whose prompts are framed."""
        return self.writer.model

    @property
    def results(self) -> Sequence[EditResult]:
        """The writer's, measured on framed prompts."""
        return self.writer.results

    @property
    def memory_use(self) -> MemoryUse:
        """What both hold."""
        writer = memory_use(self.writer)
        return MemoryUse({**writer.answering, **self.memory.sizes}, writer.editing)

    def prepare(self) -> None:
        """Make what either needs before the first edit."""
        self.writer.prepare()
        self.memory.retrieve(["a"], 1)

    def plan(self, fact: Fact) -> PlannedEdit:
        """The writer's."""
        return self.writer.plan(fact)

    def check(self, facts: Sequence[Fact], batch_size: int) -> None:
        """What the writer refuses."""
        self.writer.check(facts, batch_size)

    def stride(self, batch_size: int) -> int:
        """The writer's."""
        return self.writer.stride(batch_size)

    def write(self, facts: Sequence[Fact], *, batch_size: int) -> Iterator[WrittenBatch]:
        """Keep the facts of each batch, then write them."""
        writing = self.writer.write(facts, batch_size=batch_size)
        for at in range(0, len(facts), batch_size):
            with self.memory.adding(facts[at : at + batch_size]) as encoded:
                batch = next(writing)
            self._drop_refused(batch)
            kept = {f"{_PREFIX}{name}": tensor for name, tensor in encoded.items()}
            yield WrittenBatch(batch.results, {**batch.tensors, **kept}, batch.again)

    def replay(self, batch: WrittenBatch) -> None:
        """Keep and write the facts of the batch."""
        encoded = {name.removeprefix(_PREFIX): t for name, t in batch.tensors.items() if name.startswith(_PREFIX)}
        own = {name: tensor for name, tensor in batch.tensors.items() if not name.startswith(_PREFIX)}
        with self.memory.adding([result.fact for result in batch.results], encoded):
            self.writer.replay(WrittenBatch(batch.results, own, batch.again))
        self._drop_refused(batch)

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """The original weights, and prompts as they are."""
        with ExitStack() as stack:
            stack.enter_context(self.memory.aside())
            stack.enter_context(self.writer.unedited())
            yield

    def reset(self) -> None:
        """The original weights, and no fact kept."""
        self.writer.reset()
        self.memory.clear()

    def describe(self) -> dict[str, Any]:
        """What decides how the writer writes."""
        return self.writer.describe()

    def _drop_refused(self, batch: WrittenBatch) -> None:
        """What the writer takes back because the model misses it is not kept as text either."""
        with self.memory.dropping([result.fact for result in batch.results if not result.kept]):
            pass


class _Forgetting(Combined):
    def forget(self, results: Sequence[EditResult]) -> None:
        """Take facts out of the weights and of the memory."""
        with self.memory.dropping([result.fact for result in results]):
            cast(Forgets, self.writer).forget(results)


class _OfMatrices(Combined):
    @property
    def matrices(self) -> Mapping[int, EditedMatrix]:
        """The writer's."""
        return cast(EditsMatrices, self.writer).matrices


class _ForgettingOfMatrices(_Forgetting, _OfMatrices):
    pass


_KINDS = {
    (False, False): Combined,
    (True, False): _Forgetting,
    (False, True): _OfMatrices,
    (True, True): _ForgettingOfMatrices,
}


def combine(writer: EditingMethod, memory: FactMemory) -> Combined:
    """Both as one editor, with those capabilities of the writer that a memory does not take away."""
    return _KINDS[isinstance(writer, Forgets), isinstance(writer, EditsMatrices)](writer, memory)

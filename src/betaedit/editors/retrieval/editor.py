"""Editors that keep facts as text and put them before the prompts: no weight changes (methods.md F.3, F.4)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from betaedit.editors.asked import with_status
from betaedit.editors.batches import BatchEditor
from betaedit.editors.method import EditResult, HoldsFacts, MemoryUse, WrittenBatch
from betaedit.editors.retrieval.config import RetrievalConfig
from betaedit.editors.retrieval.memory import FactMemory
from betaedit.facts.fact import Fact
from betaedit.models.load import LanguageModel


class FramingEditor(BatchEditor, HoldsFacts):
    """One model whose prompts are framed with facts: an ``EditingMethod`` that ``HoldsFacts``.

    Args:
        model: The model, which answers and confirms.
        config: Hyper-parameters.
        memory: Keeps the facts and frames the prompts; empty.
    """

    def __init__(self, model: LanguageModel, config: RetrievalConfig, memory: FactMemory) -> None:
        super().__init__(replace(model, frame=memory))
        self.config, self.memory = config, memory

    @property
    def memory_use(self) -> MemoryUse:
        """See ``HoldsMemory``."""
        return MemoryUse(self.memory.sizes)

    def prepare(self) -> None:
        """Load the encoder, where there is one."""
        self.memory.retrieve(["a"], 1)

    def replay(self, batch: WrittenBatch) -> None:
        """Keep the facts of the batch, with the vectors that they were kept with."""
        with self.memory.adding([result.fact for result in batch.results], batch.tensors):
            pass
        self._keep(batch.results)

    def forget(self, results: Sequence[EditResult]) -> None:
        """Drop facts: the model is the one that was never given them."""
        with self.memory.dropping([result.fact for result in results]):
            self._results = [result for result in self._results if result not in results]

    def held(self) -> Sequence[WrittenBatch]:
        """See ``HoldsFacts.held``."""
        pairs = zip(self._results, self.memory.encoded, strict=True)
        return [WrittenBatch((result,), encoded) for result, encoded in pairs]

    def unedited(self) -> AbstractContextManager[None]:
        """Prompts as they are."""
        return self.memory.aside()

    def reset(self) -> None:
        """Drop all facts."""
        self.memory.clear()
        self._results = []

    def describe(self) -> dict[str, Any]:
        """Nothing decides but the configuration."""
        return {}

    def _write(self, facts: Sequence[Fact]) -> WrittenBatch:
        started = time.perf_counter()
        with self.memory.adding(facts) as encoded:
            share = (time.perf_counter() - started) / len(facts)
            results = with_status(self.model, [EditResult(fact, share) for fact in facts])
        return WrittenBatch(results, encoded)

    def _keep(self, results: Sequence[EditResult]) -> None:
        """Add results, each in the place of an earlier one with its prompt."""
        held = {(result.fact.prompt, result.fact.subject): result for result in self._results}
        for result in results:
            question = (result.fact.prompt, result.fact.subject)
            held.pop(question, None)  # so that it stands behind those before it
            held[question] = result
        self._results = list(held.values())

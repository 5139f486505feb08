"""Selective contextual reasoning: facts kept as text, put before the prompts that they bear on (methods.md F.3)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from betaedit.editors.asked import plan_fact, with_status
from betaedit.editors.method import EditResult, PlannedEdit, WrittenBatch
from betaedit.editors.retrieval.bm25 import BM25Index
from betaedit.editors.retrieval.config import ScrConfig
from betaedit.editors.retrieval.prompts import (
    answer_prompt,
    confirm_prompt,
    confirmed,
    confirmed_officially,
    sentence,
)
from betaedit.evaluation.continuing import complete_greedily
from betaedit.facts.fact import Fact
from betaedit.models.load import LanguageModel


class SelectiveContextualReasoning:
    """One model that frames its prompts with facts: an ``EditingMethod`` that ``Forgets``; no weight changes.

    Args:
        model: The model, which answers and confirms.
        config: Hyper-parameters.

    Raises:
        MissingExtraError: The library of the retriever is not installed.
    """

    def __init__(self, model: LanguageModel, config: ScrConfig) -> None:
        self.config = config
        self._base = model
        self.model = replace(model, frame=self._frame)
        self._results: list[EditResult] = []
        self._index = BM25Index()
        self._framed: dict[str, str] = {}
        self._aside = False

    @property
    def results(self) -> Sequence[EditResult]:
        """One per fact kept."""
        return tuple(self._results)

    def prepare(self) -> None:
        """Nothing takes long."""

    def plan(self, fact: Fact) -> PlannedEdit:
        """See ``EditingMethod.plan``."""
        return plan_fact(self._base, fact)

    def check(self, facts: Sequence[Fact], batch_size: int) -> None:
        """Everything can be kept."""

    def stride(self, batch_size: int) -> int:
        """A batch is kept by itself."""
        return batch_size

    def write(self, facts: Sequence[Fact], *, batch_size: int) -> Iterator[WrittenBatch]:
        """Keep the facts of each batch, and ask the model about them."""
        for at in range(0, len(facts), batch_size):
            yield self._write(facts[at : at + batch_size])

    def replay(self, batch: WrittenBatch) -> None:
        """Keep the facts of the batch."""
        self._keep(batch.results)

    def forget(self, results: Sequence[EditResult]) -> None:
        """Drop facts: the model is the one that was never given them."""
        self._set([result for result in self._results if result not in results])

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """Prompts as they are."""
        before, self._aside = self._aside, True
        try:
            yield
        finally:
            self._aside = before

    def reset(self) -> None:
        """Drop all facts."""
        self._set([])

    def describe(self) -> dict[str, Any]:
        """Nothing decides but the configuration."""
        return {}

    def retrieve(self, prompts: Sequence[str]) -> list[list[Fact]]:
        """The facts retrieved for each prompt, best first."""
        found = self._index.top(prompts, self.config.top_k)
        return [[self._results[at].fact for at in positions] for positions in found]

    def confirm(self, prompts: Sequence[str]) -> list[str | None]:
        """The sentence that is put before each prompt; ``None`` where nothing is retrieved or confirmed."""
        retrieved = [[sentence(fact) for fact in facts] for facts in self.retrieve(prompts)]
        if self.config.confirm == "none":
            return [facts[0] if facts else None for facts in retrieved]
        asked = [at for at, facts in enumerate(retrieved) if facts]
        replies = complete_greedily(
            self._base,
            [confirm_prompt(retrieved[at], prompts[at]) for at in asked],
            self.config.confirm_tokens,
            label="confirming",
        )
        read = confirmed if self.config.refusal == "whole" else confirmed_officially
        found: list[str | None] = [None] * len(prompts)
        for at, reply in zip(asked, replies, strict=True):
            found[at] = read(reply, retrieved[at])
        return found

    def _frame(self, prompts: Sequence[str]) -> list[str]:
        """Each prompt with its fact before it; as it is where there is none."""
        if self._aside:
            return list(prompts)
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._framed]
        for prompt, fact in zip(new, self.confirm(new), strict=True):
            self._framed[prompt] = prompt if fact is None else answer_prompt(fact, prompt)
        return [self._framed[prompt] for prompt in prompts]

    def _write(self, facts: Sequence[Fact]) -> WrittenBatch:
        started, before = time.perf_counter(), list(self._results)
        kept = [EditResult(fact, 0.0) for fact in facts]
        self._keep(kept)
        share = (time.perf_counter() - started) / len(facts)
        try:
            results = with_status(self.model, [replace(result, seconds=share) for result in kept])
        except BaseException:
            self._set(before)
            raise
        asked = {id(old): new for old, new in zip(kept, results, strict=True)}
        self._results = [asked.get(id(result), result) for result in self._results]
        return WrittenBatch(results)

    def _keep(self, results: Sequence[EditResult]) -> None:
        """Add facts, each in the place of an earlier one with its prompt."""
        held = {(result.fact.prompt, result.fact.subject): result for result in self._results}
        for result in results:
            question = (result.fact.prompt, result.fact.subject)
            held.pop(question, None)  # so that it stands behind those before it
            held[question] = result
        self._set(list(held.values()))

    def _set(self, results: Sequence[EditResult]) -> None:
        self._results = list(results)
        self._index.replace([sentence(result.fact) for result in results])
        self._framed.clear()

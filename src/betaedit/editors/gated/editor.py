"""Gated memory: one value search per fact, and a residual where its key comes again (methods.md B.11, NeuralDB)."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from betaedit.editors.asked import with_status
from betaedit.editors.batches import BatchEditor, check_layer
from betaedit.editors.closed_form.encode import EncodedBatch, encode_batch
from betaedit.editors.closed_form.keys import LayerWalk
from betaedit.editors.closed_form.readable import check_readable
from betaedit.editors.closed_form.values import Value, optimize_values
from betaedit.editors.gated.config import GatedConfig
from betaedit.editors.gated.ordinary import OrdinaryKeys
from betaedit.editors.matrix import check_unedited
from betaedit.editors.method import EditResult, Forgets, PlannedEdit, WrittenBatch
from betaedit.editors.resources import Resources
from betaedit.errors import NumericalError
from betaedit.facts.fact import Fact
from betaedit.models.gate import GatedResiduals, GateHook, unit
from betaedit.models.gradients import usual_gradients
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import Prompt, find_lookup_token
from betaedit.models.support_check import check_replay
from betaedit.statistics.corpus import corpus_from

logger = logging.getLogger(__name__)

_MEASURED_LAYER, _MEASURED_DEPTH = 8, 30


class Gated(BatchEditor, Forgets):
    """One model with a gated memory.

    What a fact becomes depends on no other fact, but that a later answer to its prompt takes its place. So forgetting
    leaves, bit for bit, the memory that was never told the fact.

    Args:
        model: Unedited.
        config: Hyper-parameters.
        resources: Contexts.

    Raises:
        AnatomyError: The model has no such layer.
        ModelError: Its layers cannot be run on a subset of the positions, or it holds edits of another editor.
    """

    def __init__(self, model: LanguageModel, config: GatedConfig, resources: Resources) -> None:
        super().__init__(model)
        self.config, self._resources = config, resources
        n_layers = model.anatomy.n_layers
        self.layer = n_layers * _MEASURED_LAYER // _MEASURED_DEPTH if config.layer is None else config.layer
        check_layer(model, self.layer)
        check_unedited(model.anatomy, [self.layer])
        check_replay(model.anatomy)
        self._search = config.search(self.layer)
        self._hook = GateHook(model.anatomy, self.layer)

    @property
    def memory(self) -> GatedResiduals:
        """Keys, thresholds and residuals; one residual for each of ``results``, in their order."""
        return self._hook.residuals

    def prepare(self) -> None:
        """Sample the contexts, and take the keys of ordinary text."""
        _ = self._contexts
        if self.config.gate is None:
            _ = self._ordinary

    def plan(self, fact: Fact) -> PlannedEdit:
        """See ``EditingMethod.plan``."""
        prompt = Prompt.fill("{}", fact.prompt, fact.subject)
        lookup = find_lookup_token(self.model.tokenizer, prompt, self.config.lookup)
        check_readable(self.model, fact, self._search, self.__dict__.get("_contexts"))
        return replace(super().plan(fact), lookup=lookup)

    def replay(self, batch: WrittenBatch) -> None:
        """Take up what the batch was."""
        found = {name: tensor.to(self.memory.keys.device) for name, tensor in batch.tensors.items()}
        self._add(batch.results, GatedResiduals(**found))

    @usual_gradients
    def forget(self, results: Sequence[EditResult]) -> None:
        """The memory without these facts; nothing is computed."""
        dropped = {id(result) for result in results}
        self._keep_only([id(result) not in dropped for result in self._results])

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """The model without its memory."""
        was_attached = self._hook.attached
        self._hook.detach()
        try:
            yield
        finally:
            if was_attached:
                self._hook.attach()

    def reset(self) -> None:
        """Forget all facts."""
        self._keep_only([False] * len(self._results))

    def describe(self) -> dict[str, Any]:
        """The layer, and the contexts if they were sampled already."""
        contexts = self.__dict__.get("_contexts")
        return {"layer": self.layer, "contexts": None if contexts is None else list(contexts)}

    @cached_property
    def _contexts(self) -> tuple[str, ...]:
        with self.unedited():
            return self._resources.contexts(self.config)

    @cached_property
    def _ordinary(self) -> OrdinaryKeys:
        corpus = corpus_from(self.config.gate_corpus, seed=self.config.seed)
        with self.unedited():
            return OrdinaryKeys(self.model, self.layer, corpus, self.config.gate_tokens)

    def _keep(self, results: Sequence[EditResult]) -> None:
        """They are counted where their residuals are added."""

    def _write(self, facts: Sequence[Fact]) -> WrittenBatch:
        started = time.perf_counter()
        contexts = self._contexts
        with self.unedited():
            encoded = encode_batch(self.model, facts, contexts, self._search)
            values = optimize_values(self.model, encoded, self._search)
            keys = self._prompt_keys(encoded)
        found, margins = self._gated(encoded, values, keys)
        seconds = (time.perf_counter() - started) / len(facts)
        results = [
            EditResult(fact, seconds, figures=_figures(value, *margin))
            for fact, value, margin in zip(facts, values, margins, strict=True)
        ]
        before = self._results, self.memory
        try:
            asked = self._asked(results, found)
        except BaseException:
            self._set(*before)
            raise
        return WrittenBatch(asked, found.tensors())

    def _asked(self, results: Sequence[EditResult], found: GatedResiduals) -> tuple[EditResult, ...]:
        """Add residuals, and ask the model about their facts."""
        held, memory = self._results, self.memory
        self._add(results, found)
        asked = with_status(self.model, results)
        self._set(held, memory)
        self._add(asked, found)
        return asked

    def _prompt_keys(self, encoded: EncodedBatch) -> list[Tensor]:
        """``(wordings, d_in)`` keys of each fact, one for each of its prompts."""
        walk = LayerWalk(self.model, encoded, range(len(encoded)), self._search)
        walk.pass_layer(self.layer, lambda *_: None)
        return walk.prompt_keys

    def _gated(
        self, encoded: EncodedBatch, values: Sequence[Value], prompt_keys: Sequence[Tensor]
    ) -> tuple[GatedResiduals, list[tuple[float, float]]]:
        """Keys, gates and residuals of some facts; of each, its smallest cosine with its own and its gate.

        Raises:
            NumericalError: A residual is not finite.
        """
        keys, gates, owner, margins = [], [], [], []
        for fact, each in enumerate(prompt_keys):
            weights = encoded.key_weights(fact).to(each)
            stored = unit(weights @ each)
            own = (stored @ unit(each).T).where(weights > 0, 1.0).amin(dim=1)
            gate = self._gates(stored, own)
            keys.append(stored)
            gates.append(gate)
            owner += [fact] * len(stored)
            margins.append((float(own.min()), float(gate.max())))
        residuals = torch.stack([value.target - value.initial for value in values])
        if not bool(torch.isfinite(residuals).all()):
            raise NumericalError("the search for a value did not stay finite.", hint="Lower value_clamp.")
        device = self.memory.keys.device
        found = (torch.cat(keys), torch.cat(gates), torch.tensor(owner), residuals)
        return GatedResiduals(*(tensor.to(device).contiguous() for tensor in found)), margins

    def _gates(self, keys: Tensor, own: Tensor) -> Tensor:
        """``(c,)`` cosine above which each of ``keys`` ``(c, d_in)`` matches, of which ``own`` does in its contexts."""
        if self.config.gate is not None:
            return torch.full_like(own, self.config.gate)
        ordinary = self._ordinary.largest_cosines(keys).to(own)
        between = ordinary + self.config.gate_share * (own - ordinary).clamp(min=0)
        return between.clamp(min=self.config.gate_least)

    def _add(self, results: Sequence[EditResult], found: GatedResiduals) -> None:
        """Hold more facts; an earlier answer to the same prompt leaves."""
        self._set([*self._results, *results], self.memory.with_more(found))
        last = {(result.fact.prompt, result.fact.subject): at for at, result in enumerate(self._results)}
        kept = set(last.values())
        self._keep_only([at in kept for at in range(len(self._results))])

    def _keep_only(self, kept: Sequence[bool]) -> None:
        if not all(kept):
            results = [result for result, stays in zip(self._results, kept, strict=True) if stays]
            self._set(results, self.memory.take(kept))

    def _set(self, results: list[EditResult], memory: GatedResiduals) -> None:
        """Answer from ``memory``; the model is hooked only if it holds facts."""
        self._results, self._hook.residuals = results, memory
        if results:
            self._hook.attach()
        else:
            self._hook.detach()


def _figures(value: Value, own: float, gate: float) -> dict[str, Any]:
    return {
        "sought_probability": value.target_probability,
        "value_length": value.relative_length,
        "evaluations": value.n_evaluations,
        "keys": value.n_keys,
        "own_cosine": own,
        "gate": gate,
    }

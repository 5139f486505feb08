"""Gated memory: one value search per fact, and a residual where its key comes again (methods.md B.11, NeuralDB)."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from betaedit.editors.asked import with_status
from betaedit.editors.batches import BatchEditor, check_layer
from betaedit.editors.closed_form.encode import EncodedBatch, encode_batch
from betaedit.editors.closed_form.keys import LayerWalk
from betaedit.editors.closed_form.live import sharing_a_key
from betaedit.editors.closed_form.readable import check_readable
from betaedit.editors.closed_form.values import Value, optimize_values
from betaedit.editors.gated.config import GatedConfig
from betaedit.editors.gated.ordinary import OrdinaryKeys
from betaedit.editors.matrix import check_unedited
from betaedit.editors.method import (
    EditResult,
    Forgets,
    HoldsMemory,
    MemoryUse,
    PlannedEdit,
    SavesFiles,
    WrittenBatch,
)
from betaedit.editors.resources import Resources
from betaedit.errors import ConfigError, NumericalError
from betaedit.facts.fact import Fact
from betaedit.models.gate import GatedResiduals, GateHook, unit
from betaedit.models.gradients import usual_gradients
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import Prompt, find_lookup_token
from betaedit.models.support_check import check_replay
from betaedit.statistics.corpus import corpus_from

logger = logging.getLogger(__name__)

_KEY_LAYER, _LAYER, _DEPTH = 3, 8, 30


class Gated(BatchEditor, Forgets, HoldsMemory, SavesFiles):
    """One model with a gated memory.

    What a fact becomes depends on no other fact, but that a later answer to its prompt takes its place. So forgetting
    leaves, bit for bit, the memory that was never told the fact.

    Args:
        model: Unedited.
        config: Hyper-parameters.
        resources: Contexts.

    Raises:
        AnatomyError: The model has no such layer.
        ConfigError: ``key_layer`` is above ``layer``.
        ModelError: Its layers cannot be run on a subset of the positions, or it holds edits of another editor.
    """

    def __init__(self, model: LanguageModel, config: GatedConfig, resources: Resources) -> None:
        super().__init__(model)
        self.config, self._resources = config, resources
        depth = model.anatomy.n_layers
        self.layer = depth * _LAYER // _DEPTH if config.layer is None else config.layer
        measured = min(depth * _KEY_LAYER // _DEPTH, self.layer)
        self.key_layer = measured if config.key_layer is None else config.key_layer
        check_layer(model, self.layer)
        if self.key_layer > self.layer:
            raise ConfigError(
                f"key_layer is {self.key_layer}, above layer {self.layer}: the gate would be decided too late.",
                hint="Give a key_layer that is not above the layer.",
            )
        check_unedited(model.anatomy, [self.key_layer, self.layer])
        check_replay(model.anatomy)
        self._search = config.search(self.key_layer, self.layer)
        self._hook = GateHook(model.anatomy, self.key_layer, self.layer)
        self._contexts: tuple[str, ...] | None = None
        self._ordinary: OrdinaryKeys | None = None

    @property
    def memory(self) -> GatedResiduals:
        """Keys, thresholds and residuals; one residual for each of ``results``, in their order."""
        return self._hook.residuals

    @property
    def memory_use(self) -> MemoryUse:
        """See ``HoldsMemory``."""
        answering = {"gated memory": self.memory.nbytes} if self._results else {}
        return MemoryUse(answering, {} if self._ordinary is None else {"keys of ordinary text": self._ordinary.nbytes})

    def prepare(self) -> None:
        """Sample the contexts, and take the keys of ordinary text."""
        with self.unedited():
            if self._contexts is None:
                self._contexts = self._resources.contexts(self.config)
            if self._ordinary is None and self.config.gate is None:
                corpus = corpus_from(self.config.gate_corpus, seed=self.config.seed)
                self._ordinary = OrdinaryKeys(self.model, self.key_layer, corpus, self.config.gate_tokens)

    def plan(self, fact: Fact) -> PlannedEdit:
        """See ``EditingMethod.plan``."""
        prompt = Prompt.fill("{}", fact.prompt, fact.subject)
        lookup = find_lookup_token(self.model.tokenizer, prompt, self.config.lookup)
        check_readable(self.model, fact, self._search, self._contexts)
        return replace(super().plan(fact), lookup=lookup)

    def check(self, facts: Sequence[Fact], batch_size: int) -> None:
        """Warn of facts that share a subject: they may share a key."""
        held = [result.fact for result in self._results]
        if sharing := sharing_a_key(held, facts, self._search):
            logger.warning(
                "%d of %d facts share their subject with another fact (%s): where their keys match, too, one of them "
                "answers for both. lookup=last takes the keys where the prompts end.",
                len(sharing),
                len(facts),
                sharing[0].subject,
            )

    def replay(self, batch: WrittenBatch) -> None:
        """Take up what the batch was."""
        self._add(batch.results, GatedResiduals.from_tensors(batch.tensors, self.memory.keys.device))

    @usual_gradients
    def forget(self, results: Sequence[EditResult]) -> None:
        """The memory without these facts; nothing is computed."""
        dropped = {id(result) for result in results}
        self._keep_only([id(result) not in dropped for result in self._results])

    def unedited(self) -> AbstractContextManager[None]:
        """The model without its memory."""
        return self._hook.aside()

    def reset(self) -> None:
        """Forget all facts."""
        self._keep_only([False] * len(self._results))

    def save_files(self, folder: Path) -> None:
        """See ``GateHook.save``."""
        self._hook.save(folder)

    def describe(self) -> dict[str, Any]:
        """The layers, and the contexts; ``None`` if not made yet."""
        contexts = None if self._contexts is None else list(self._contexts)
        return {"layer": self.layer, "key_layer": self.key_layer, "contexts": contexts}

    def _keep(self, results: Sequence[EditResult]) -> None:
        """They are counted where their residuals are added."""

    def _write(self, facts: Sequence[Fact]) -> WrittenBatch:
        started = time.perf_counter()
        self.prepare()
        with self.unedited():
            encoded = encode_batch(self.model, facts, self._contexts or (), self._search)
            values = optimize_values(self.model, encoded, self._search)
            keys = self._prompt_keys(encoded)
        found, gates = self._gated(encoded, values, keys)
        seconds = (time.perf_counter() - started) / len(facts)
        results = [
            EditResult(fact, seconds, figures=_figures(value, each))
            for fact, value, each in zip(facts, values, gates, strict=True)
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
        walk.pass_layer(self.key_layer, lambda *_: None)
        return walk.prompt_keys

    def _gated(
        self, encoded: EncodedBatch, values: Sequence[Value], prompt_keys: Sequence[Tensor]
    ) -> tuple[GatedResiduals, list[Tensor]]:
        """Keys, gates and residuals of some facts; and of each its gates.

        Raises:
            NumericalError: A residual is not finite.
        """
        residuals = torch.stack([value.target - value.initial for value in values])
        if not bool(torch.isfinite(residuals).all()):
            raise NumericalError("the search for a value did not stay finite.", hint="Lower value_clamp.")
        keys, gates = [], []
        for fact, found in enumerate(prompt_keys):
            stored, own = stored_keys(found, encoded.key_weights(fact).to(found))
            keys.append(stored)
            gates.append(self._gates(stored, own))
        owner = torch.tensor([fact for fact, stored in enumerate(keys) for _ in stored])
        tensors = {"keys": torch.cat(keys), "thresholds": torch.cat(gates), "owner": owner, "residuals": residuals}
        return GatedResiduals.from_tensors(tensors, self.memory.keys.device), gates

    def _gates(self, keys: Tensor, own: Tensor) -> Tensor:
        """``(c,)`` cosine above which each of ``keys`` ``(c, d_in)`` matches, of which ``own`` does in its contexts."""
        if self._ordinary is None:
            return torch.full_like(own, self.config.gate or 1.0)
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


def stored_keys(found: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The keys of a fact, of length one; and of each the smallest cosine with a key that it stands for.

    A prompt that begins a text has a key unlike those that it has behind other text. So a prompt and its contexts give
    two keys: that of the bare prompt, and the mean of the others.

    Args:
        found: ``(wordings, d_in)`` key of each prompt.
        weights: ``(keys, wordings)`` share of each in the keys that an update would be solved for.
    """
    keys, own = [], []
    prompts = unit(found)
    for row in weights:
        first, *others = row.nonzero()[:, 0].tolist()
        for group in filter(None, ([first], others)):
            key = unit(found[group].mean(dim=0, keepdim=True))
            keys.append(key)
            own.append((prompts[group] @ key[0]).amin())
    return torch.cat(keys), torch.stack(own)


def _figures(value: Value, gates: Tensor) -> dict[str, Any]:
    return {
        "sought_probability": value.target_probability,
        "value_length": value.relative_length,
        "evaluations": value.n_evaluations,
        "keys": len(gates),
        "gate": float(gates.amax()),
    }

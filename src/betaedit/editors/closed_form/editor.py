"""The closed-form family as an ``EditingMethod``: an engine with one recipe, made on first use."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from betaedit.editors.asked import plan_fact
from betaedit.editors.closed_form.associative import Associative, Resumable
from betaedit.editors.closed_form.config import EditConfig
from betaedit.editors.closed_form.engine import Engine
from betaedit.editors.closed_form.live import LiveFact, sharing_a_key, sharing_an_id
from betaedit.editors.closed_form.readable import check_readable
from betaedit.editors.closed_form.recipes import Recipe
from betaedit.editors.matrix import EditedMatrix, check_unedited, held_bytes
from betaedit.editors.method import EditResult, EditsMatrices, Forgets, MemoryUse, PlannedEdit, WrittenBatch
from betaedit.editors.resources import Resources
from betaedit.errors import ConfigError, MethodError
from betaedit.facts.fact import Fact
from betaedit.memory.rule import MemoryRule
from betaedit.models.chat import has_chat, typed_specials
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import Prompt, find_lookup_token
from betaedit.models.support_check import check_replay
from betaedit.statistics.moments import Moments

if TYPE_CHECKING:
    from betaedit.editors.editor import Editor

logger = logging.getLogger(__name__)


class ClosedForm(EditsMatrices, Associative):
    """An ``EditingMethod`` that ``EditsMatrices`` and is ``Associative``.

    Args:
        model: Unedited.
        recipe: The method.
        config: Its hyper-parameters, resolved.
        resources: Statistics, contexts and shared values.

    Raises:
        AnatomyError: A layer to be edited does not exist.
        ConfigError: The model cannot be edited with these settings.
        ModelError: Its layers cannot be run on a subset of the positions, or it holds edits of another living editor.
        StatisticsError: Statistics that were given do not fit.
        UnsupportedMatrixError: A matrix to be edited is quantized or one of several experts.
    """

    def __init__(self, model: LanguageModel, recipe: Recipe, config: EditConfig, resources: Resources) -> None:
        self.model, self.recipe, self.config = model, recipe, config
        self._resources = resources
        self._engine: Engine | None = None
        self._check_settings()
        check_unedited(model.anatomy, config.layers)
        resources.check(config)
        check_replay(model.anatomy)

    @property
    def engine(self) -> Engine:
        """The engine, made on first use."""
        if self._engine is None:
            check_unedited(self.model.anatomy, self.config.layers)
            self._engine = self._new_engine(self._resources.contexts(self.config))
            self._resources.warn_of_earlier_edits(self.config)
        return self._engine

    @property
    def results(self) -> Sequence[EditResult]:
        """One per fact that the weights hold."""
        return () if self._engine is None else tuple(held.result for held in self._engine.live_facts)

    @property
    def matrices(self) -> Mapping[int, EditedMatrix]:
        """The edited matrices by layer."""
        return self.engine.matrices

    @property
    def memory_use(self) -> MemoryUse:
        """See ``HoldsMemory``: the edits are in the weights; solvers and matrices are held for editing."""
        if self._engine is None:
            return MemoryUse()
        solvers = sum(memory.nbytes for memory in self._engine.memories.values())
        return MemoryUse(editing={"solvers": solvers, **held_bytes(self._engine.matrices)})

    @property
    def live_facts(self) -> list[LiveFact]:
        """The facts that the weights hold, with their keys and wanted values."""
        return self.engine.live_facts

    @property
    def rule(self) -> MemoryRule:
        """The terms of the recipe's update."""
        return self.recipe.rule(self.config)

    @property
    def statistics(self) -> Moments:
        """``C0`` of the edited layers."""
        return self._resources.statistics(self.config)

    def prepare(self) -> None:
        """Make statistics, contexts and projectors."""
        _ = self.engine

    def plan(self, fact: Fact) -> PlannedEdit:
        """See ``EditingMethod.plan``."""
        prompt = Prompt.fill("{}", fact.prompt, fact.subject)
        lookup = find_lookup_token(self.model.tokenizer, prompt, self.config.lookup)
        planned = plan_fact(self.model, fact)
        check_readable(self.model, fact, self.config, None if self._engine is None else self._engine.contexts)
        return replace(planned, lookup=lookup)

    def check(self, facts: Sequence[Fact], batch_size: int) -> None:
        """Warn of facts that share a subject or an id, and of typed special tokens."""
        held = [result.fact for result in self.results]
        if sharing := sharing_a_key(held, facts, self.config):
            logger.warning(
                "%d of %d facts share their subject with another fact (%s): written apart, each weakens the earlier "
                "ones. shared_subjects=together searches one value for all of them.",
                len(sharing),
                len(facts),
                sharing[0].subject,
            )
        if typed := [fact for fact in facts if typed_specials(self.model.tokenizer, fact.text)]:
            logger.warning(
                "%d of %d prompts contain special tokens (%s): these prompts are used unchanged, as text already in a "
                "chat template. For other prompts, form=chat or both applies the template.",
                len(typed),
                len(facts),
                typed[0].text,
            )
        if named := sharing_an_id(held, facts, self.config):
            logger.warning(
                "%d of %d facts have the id of another fact in the model (%s): forget and replace refuse that id as "
                "ambiguous.",
                len(named),
                len(facts),
                named[0],
            )

    def stride(self, batch_size: int) -> int:
        """Values of ``value_look_ahead`` batches are searched together."""
        return batch_size * self.config.value_look_ahead

    def write(self, facts: Sequence[Fact], *, batch_size: int) -> Iterator[WrittenBatch]:
        """See ``Engine.write``."""
        ahead = self.stride(batch_size)
        for at in range(0, len(facts), ahead):
            yield from self.engine.write(facts[at : at + ahead], batch_size=batch_size)

    def replay(self, batch: WrittenBatch) -> None:
        """See ``Engine.replay``."""
        self.engine.replay(batch)

    def unedited(self) -> AbstractContextManager[None]:
        """The original weights."""
        return self.engine.unedited()

    def reset(self) -> None:
        """The original weights, for good; statistics and contexts are kept.

        Raises:
            WeightsChangedError: The model has neither the original weights nor those of the last edit.
        """
        if self._engine is not None:
            contexts = self._engine.contexts
            self._engine.restore()
            self._engine = self._new_engine(contexts)

    def describe(self) -> dict[str, Any]:
        """Contexts and statistics; ``None`` if not made yet."""
        moments = self._resources.moments
        return {
            "contexts": None if self._engine is None else list(self._engine.contexts),
            "statistics": None if moments is None else moments.to_dict(),
        }

    def _new_engine(self, contexts: tuple[str, ...]) -> Engine:
        resources = self._resources
        return Engine(
            self.model, self.recipe, self.config, self.statistics, contexts, resources.value_cache, resources.progress
        )

    def _check_settings(self) -> None:
        for layer in self.config.layers:
            self.model.anatomy.projection(layer)
        if self.config.form == "chat" and not has_chat(self.model.tokenizer):
            raise ConfigError(
                "the model has no chat template.", hint="Leave out form=chat, or use the chat version of the model."
            )
        loss_layer, n_layers = self.config.value_loss_layer, self.model.anatomy.n_layers
        if loss_layer is not None and not 0 <= loss_layer < n_layers:
            raise ConfigError(
                f"value_loss_layer is {loss_layer}: the model has layers 0 to {n_layers - 1}.",
                hint="Leave it out to use the last layer.",
            )


class ForgettingClosedForm(ClosedForm, Forgets, Resumable):
    """A closed-form editor whose recipe can forget single facts: it ``Forgets``, and is ``Resumable``."""

    def identity(self) -> dict[str, Any]:
        """The rule, and how the residual is spread over the layers."""
        return {"rule": asdict(self.rule), "spread": self.recipe.spread}

    def forget(self, results: Sequence[EditResult]) -> None:
        """See ``Engine.forget``."""
        leaving = set(map(id, results))
        self.engine.forget([held for held in self.engine.live_facts if id(held.result) in leaving])

    def resume(self, live: Sequence[LiveFact], keys: Mapping[int, Iterable[Tensor]]) -> None:
        """See ``Engine.resume``."""
        self.engine.resume(live, keys)

    def rewrite(self) -> None:
        """See ``Engine.rewrite``."""
        self.engine.rewrite()


def closed_form(editor: Editor) -> ClosedForm:
    """The editor's closed-form method, for what only this family has: statistics, projectors, benchmarks.

    Raises:
        MethodError: The editor's method is of another family.
    """
    if isinstance(editor.editing, ClosedForm):
        return editor.editing
    raise MethodError(
        f"{editor.method.name} is not a closed-form method: it uses no statistics.",
        hint="Use a closed-form method, e.g. betaedit, alphaedit or memit-h.",
    )

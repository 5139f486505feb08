"""Locate-then-edit: values, then layer by layer keys, residuals and the memory's update (methods.md A.7)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, groupby

import torch
from torch import Tensor

from betaedit.editors.closed_form.config import EditConfig
from betaedit.editors.closed_form.encode import EncodedBatch, encode_batch
from betaedit.editors.closed_form.keys import LayerWalk, token_keys
from betaedit.editors.closed_form.live import (
    LiveFact,
    facts_to_remove,
    facts_to_rewrite,
    facts_to_search_again,
    search_windows,
    split_into_batches,
)
from betaedit.editors.closed_form.norms import before_norm
from betaedit.editors.closed_form.recipes import Recipe
from betaedit.editors.closed_form.spectra import spectra
from betaedit.editors.closed_form.tensors import from_tensors, n_keys, to_tensors
from betaedit.editors.closed_form.value_cache import ValueCache
from betaedit.editors.closed_form.values import Value, optimize_values
from betaedit.editors.matrix import edited_matrices, set_aside, weight_state
from betaedit.editors.method import EditResult, WrittenBatch
from betaedit.errors import MethodError, NumericalError, WeightsChangedError
from betaedit.evaluation.holding import measure_holding
from betaedit.facts.fact import Fact
from betaedit.memory.associative import AssociativeMemory
from betaedit.memory.conflicts import Associations, forget, segments
from betaedit.memory.postprocess import Postprocessor
from betaedit.memory.random_keys import RandomKeys
from betaedit.memory.update import Update
from betaedit.models.anatomy import projection_shape
from betaedit.models.gradients import usual_gradients
from betaedit.models.load import LanguageModel
from betaedit.progress import Progress, SilentProgress
from betaedit.statistics.moments import Moments

# Of float32's rounding of what was added along a key: 1e-5 of it, far less of the matrix.
_MOST_AMPLIFIED = 100.0


@dataclass(frozen=True)
class _FoundValues:
    """Facts and the values found for them."""

    facts: list[Fact]
    encoded: EncodedBatch
    values: list[Value]


@dataclass(frozen=True)
class _Written:
    """What was written in one layer: what its matrix was asked to add at which keys, the update, and its norm."""

    asked: Associations
    update: Update
    norm: float


_ByLayer = dict[int, _Written]


class Engine:
    """One model under one recipe: the edited matrices and what each remembers.

    Args:
        model: The model whose weights change.
        recipe: The method.
        config: Its hyper-parameters.
        moments: ``C0`` of the edited layers.
        contexts: Context templates, the bare one first.
        value_cache: Values found under the model's unedited weights, shared with other engines.

    ``live_facts`` are the facts that the weights hold, in the order in which they were written.

    Raises:
        StatisticsError: The moments do not fit the model.
        NumericalError: A projector or system cannot be built from them.
    """

    @usual_gradients
    def __init__(
        self,
        model: LanguageModel,
        recipe: Recipe,
        config: EditConfig,
        moments: Moments,
        contexts: tuple[str, ...],
        value_cache: ValueCache | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.recipe, self.contexts = model, recipe, contexts
        self._progress: Progress = progress or SilentProgress()
        self.config = config = recipe.resolve_config(config)
        self._passes = config.passes()
        projections = {layer: model.anatomy.projection(layer) for layer in config.layers}
        moments.require({layer: projection_shape(module)[1] for layer, module in projections.items()})
        self.matrices = edited_matrices(model.anatomy, config.layers)
        self._moments = {layer: moments.matrices[layer].to(matrix.device) for layer, matrix in self.matrices.items()}
        self.memories = self._new_memories()
        processing = recipe.postprocessing(config)
        self.postprocessors = {
            layer: Postprocessor(processing, moment)
            for layer, moment in self._moments.items()
            if recipe.postprocess != "none"
        }
        self._random_keys = {
            layer: RandomKeys(moment, config.seed + layer)
            for layer, moment in self._moments.items()
            if recipe.random_history
        }
        self._tokens: dict[int, Tensor] = {}
        self.live_facts: list[LiveFact] = []
        self._value_cache = value_cache
        self._n_batches = 0

    @usual_gradients
    def write(self, facts: Sequence[Fact], *, batch_size: int = 1) -> Iterator[WrittenBatch]:
        """Write facts, ``batch_size`` at a time, each batch solved together; the weights change in place.

        The values of all of ``facts`` are searched together first, under the present weights: more than one batch of
        them is a look-ahead, which changes the result. For a batch that replaces live facts (``live.py``),
        their contributions are removed first and its values are searched alone. Yields every batch when it is written.

        Raises:
            NumericalError: An update is not finite or longer than allowed.
            WeightsChangedError: As ``check_weights``, or the model was changed between two batches whose values were
                searched together.

        If a batch fails or is interrupted, weights, memories and live facts are as they were before it.
        """
        for window in search_windows(split_into_batches(facts, batch_size, self.config), self.live_facts, self.config):
            yield from self._write_window(window)

    @usual_gradients
    def replay(self, batch: WrittenBatch) -> None:
        """Write a batch that was written before, in its place in the same sequence: the same weights, bit for bit."""
        self.check_weights()
        kept = [result for result in batch.results if result.kept]
        removed = facts_to_remove(self.live_facts, (result.fact for result in kept), self.config)
        with self._transaction():
            self._remove(removed)
            self._prepare([result.fact for result in (*batch.again, *kept)] or [r.fact for r in batch.results])
            if not kept:
                return
            written: dict[int, Associations] = {}
            for layer, (stored_keys, update) in from_tensors(batch.tensors).items():
                matrix = self.matrices[layer]
                keys, residuals = stored_keys.to(matrix.device), update.left.to(matrix.device)
                if layer in self.postprocessors:
                    residuals = self.postprocessors[layer].wanted(keys, residuals)
                written[layer] = Associations.written(matrix.change(), keys, residuals)
                self._add_update(layer, update)
            self._update_memories(written)
            self._update_live_facts(removed, (*batch.again, *kept), written)

    @usual_gradients
    def forget(self, facts: Sequence[LiveFact]) -> None:
        """Remove live facts: afterwards the weights are those that the other facts make of the original weights.

        The other facts keep their keys and values. If the rule has history and no projector was refreshed, the removal
        is the closed form of ``memory/conflicts.py``. Otherwise the other facts are written again from the original
        weights. This repeats every refresh, with one solve per fold between two refreshes; without history, one solve
        per batch. Facts whose values depend on a forgotten one (``facts_to_search_again``) get new values from a search
        and are written last.

        Raises:
            MethodError: The recipe cannot forget (``Recipe.can_forget``).
            NumericalError: The other facts cannot be written again. Nothing has changed then.
        """
        if not self.recipe.can_forget:
            raise MethodError(
                f"{self.recipe.name} cannot forget: its updates do not follow from the facts written alone.",
                hint="Edit with memit-h, alphaedit or betaedit.",
            )
        self.check_weights()
        batches = facts_to_search_again(self.live_facts, facts, self.config)
        removed = [*facts, *chain.from_iterable(batches)]
        with self._transaction():
            self._remove(removed)
            self._drop_live_facts(removed)
            for batch in batches:
                found = self._search([held.fact for held in batch])
                self._write_rows(found, range(len(batch)), 0, (), 0.0)

    @usual_gradients
    def resume(self, live: Sequence[LiveFact], keys: Mapping[int, Iterable[Tensor]]) -> None:
        """Take up a sequence where it was left; its weights are in ``matrices`` already.

        Args:
            live: The facts that the weights hold, in the order in which they were written.
            keys: By layer, the (d_in, b) keys of each of their batches, in order.
        """
        self.live_facts[:] = live
        self._n_batches = max((held.batch for held in live), default=0)
        if any(memory.n_written for memory in self.memories.values()):
            self.memories = self._new_memories()
        for layer, memory in self.memories.items():
            device = self.matrices[layer].device
            memory.recall(batch.to(device) for batch in keys[layer])

    @usual_gradients
    def rewrite(self) -> None:
        """Write the live facts again, from the original weights, with the keys and values they have."""
        self.check_weights()
        self.memories = self._new_memories()
        self._write_stored(self.live_facts)

    def unedited(self) -> AbstractContextManager[None]:
        """A context in which the model has its original weights."""
        return set_aside(self.matrices)

    @usual_gradients
    def restore(self) -> None:
        """The original weights, bit for bit, wherever the model was moved.

        Raises:
            WeightsChangedError: The model has neither them nor those that were written; nothing has changed then.
        """
        for matrix in self.matrices.values():
            matrix.check(or_original=True)
        for matrix in self.matrices.values():
            matrix.restore()

    def check_weights(self) -> None:
        """Make sure that the model computes with what was written last (``EditedMatrix.check``), where that was.

        Raises:
            WeightsChangedError: It does not, or is on another device.
        """
        for layer, matrix in self.matrices.items():
            if (now := matrix.check().device) != matrix.device:
                raise WeightsChangedError(
                    f"layer {layer} is on {now} now, and what the editor remembers is on {matrix.device}.",
                    hint="Move the model back, or call reset() and write the facts again.",
                )

    def _new_memories(self) -> dict[int, AssociativeMemory]:
        rule = self.recipe.rule(self.config)
        basis = getattr(torch, self.config.solver_basis)
        return {
            layer: AssociativeMemory(self._moments[layer], rule, basis_dtype=basis, spectrum=spectrum)
            for layer, spectrum in spectra(self._moments, self._progress)
        }

    @contextmanager
    def _transaction(self) -> Iterator[Callable[[], None]]:
        """A context whose work is undone, bit for bit, when it raises; or when the function that it yields is called.

        It covers weights, memories, post-processors, random keys and live facts.
        """
        with ExitStack() as rollback:
            rollback.callback(setattr, self, "_n_batches", self._n_batches)
            rollback.callback(self.live_facts.__setitem__, slice(None), list(self.live_facts))
            rollback.callback(setattr, self, "memories", self.memories)
            for memory in self.memories.values():
                rollback.callback(memory.restore, memory.snapshot())
            for random in self._random_keys.values():
                rollback.callback(random.restore, random.snapshot())
            for postprocessor in self.postprocessors.values():
                rollback.callback(postprocessor.restore, postprocessor.snapshot())
            for matrix in self.matrices.values():
                rollback.callback(matrix.restore, matrix.snapshot())
            yield rollback.close
            rollback.pop_all()

    def _prepare(self, facts: Sequence[Fact]) -> None:
        """Fold and refresh memories that are due, before a batch is written."""
        self._fold()
        for memory in self.memories.values():
            if memory.refresh_due():
                memory.refresh()
        if self.recipe.postprocess == "simie":
            self._tokens = token_keys(self.model, facts, self.config)

    def _fold(self) -> None:
        """Fold the memories that are due."""
        for memory in self.memories.values():
            if memory.fold_due():
                memory.fold()

    def _update_memories(self, written: dict[int, Associations]) -> None:
        """Add a written batch to memories and post-processors."""
        for layer, memory in self.memories.items():
            keys = written[layer].keys
            if (random := self._random_keys.get(layer)) is not None:
                keys = random.like(keys)
            memory.carry(keys)
        for layer, postprocessor in self.postprocessors.items():
            postprocessor.settle(self._tokens.get(layer))

    def _solve(self, layer: int, keys: Tensor, residuals: Tensor, bare_keys: Tensor) -> Update:
        if layer in self.postprocessors:
            residuals = self.postprocessors[layer].residuals(keys, residuals)
        return self.memories[layer].solve(keys, residuals, bare_keys if self.recipe.reaches_bare_key else None)

    def _add_update(self, layer: int, update: Update) -> float:
        """Add an update to its matrix as the recipe processes it; the norm of what was added."""
        matrix, postprocessor = self.matrices[layer], self.postprocessors.get(layer)
        if postprocessor is None:
            matrix.add(update)
            return update.norm()
        change = postprocessor.process(update, matrix.current(), self._tokens.get(layer))
        matrix.add_dense(change)
        return float(change.norm())

    def _write_window(self, window: list[list[Fact]]) -> Iterator[WrittenBatch]:
        """Write batches whose values are searched together; only a window of one batch may affect live facts."""
        self.check_weights()
        started = time.perf_counter()
        new = [fact for batch in window for fact in batch]
        removed = facts_to_remove(self.live_facts, new, self.config)
        rewritten = facts_to_rewrite(removed, new, self.config)
        # Where nothing is removed, each batch is a transaction of its own, and this one would copy weights for nothing.
        with self._transaction() if removed else nullcontext(_nothing_to_undo) as undo:
            self._remove(removed)
            found = self._search(rewritten + new)
            share = (time.perf_counter() - started) / len(new)
            first, *others = window
            rows = list(range(len(rewritten) + len(first)))
            written = self._write_with_retries(found, rows, len(rewritten), removed, share, undo)
        at = len(rows)
        for batch in others:
            before = self._state_of_other_weights()
            yield written
            if self._state_of_other_weights() != before:
                raise WeightsChangedError(
                    "the model was changed between facts whose values had been searched together.",
                    hint="Write those again that were not reported as written.",
                )
            rows = list(range(at, at + len(batch)))
            written = self._write_with_retries(found, rows, 0, (), share, _nothing_to_undo)
            at += len(batch)
        yield written

    def _write_with_retries(
        self,
        found: _FoundValues,
        rows: list[int],
        n_rewritten: int,
        removed: Sequence[LiveFact],
        seconds: float,
        restore_removed: Callable[[], None],
    ) -> WrittenBatch:
        """Write ``rows`` of ``found`` and check the model's answers; what is missed in the end is left out.

        What the values lack is added up to ``retries`` times (``_corrected``). Of several tries the last with the
        fewest misses counts. If a fact stays missed, the batch is written without it. If live facts were removed for
        the batch, these are restored instead and nothing of the batch is written.
        """
        config, new = self.config, rows[n_rewritten:]
        best: tuple[_FoundValues, tuple[EditResult, ...]] | None = None
        for attempt in range(config.retries + 1):
            with self._transaction() as undo:
                written = self._write_rows(found, rows, n_rewritten, removed, seconds)
                results = self._measure_results(written.results, attempt + 1)
                if best is None or _n_missed(results) <= _n_missed(best[1]):
                    best = found, results
                started = time.perf_counter()
                corrected = self._corrected(found, rows) if attempt < config.retries else None
                seconds += (time.perf_counter() - started) / len(new)
                if corrected is None and best[1] is results and (config.keep_missed or not _n_missed(results)):
                    return replace(written, results=results)
                undo()
            if corrected is None:
                break
            found = corrected
        assert best is not None  # there is at least one try
        found, results = best
        by_row = dict(zip(new, results, strict=True))
        left = [row for row in rows if row not in by_row or by_row[row].is_held or config.keep_missed]
        if len(left) < len(rows) and (removed or len(left) == n_rewritten):
            restore_removed()
            return WrittenBatch(tuple(_not_kept(one) for one in results), self._empty_tensors())
        with self._transaction():
            written = self._write_rows(found, left, n_rewritten, removed, seconds)
            again = self._measure_results(written.results, results[0].tries)
        kept = dict(zip(left[n_rewritten:], again, strict=True))
        return replace(written, results=tuple(kept[row] if row in kept else _not_kept(by_row[row]) for row in new))

    def _measure_results(self, results: Sequence[EditResult], tries: int) -> tuple[EditResult, ...]:
        """``results`` with the answers that the model gives now."""
        found = measure_holding(self.model, [result.fact for result in results])
        measured = [
            replace(one, status=held.status, measured_probability=held.probability, said=held.said, tries=tries)
            for one, held in zip(results, found, strict=True)
        ]
        new = {id(before): after for before, after in zip(results, measured, strict=True)}
        self.live_facts[:] = [
            replace(held, result=new[id(held.result)]) if id(held.result) in new else held for held in self.live_facts
        ]
        return tuple(measured)

    def _corrected(self, found: _FoundValues, rows: list[int]) -> _FoundValues | None:
        """``found`` with what the values of the facts ``rows``, as written now, still lack; ``None`` if nothing.

        A value is searched with its change placed behind the last edited layer. Once written, the change grows from
        layer to layer, and later tokens read it on the way, so the edited model can say less than the search found.
        This search goes on from the edited model, in all prompts, and what it finds is added to the value.
        """
        facts = [found.facts[row] for row in rows]
        config = self._passes[0]
        encoded = encode_batch(self.model, facts, self.contexts, config)
        lacking = optimize_values(self.model, encoded, config.correcting())
        values, changed = list(found.values), False
        for row, value in zip(rows, lacking, strict=True):
            before, change = values[row], value.target - value.initial
            changed = changed or bool(change.any())
            n_evaluations = before.n_evaluations + value.n_evaluations
            target = before.target + change
            values[row] = replace(value, target=target, initial=before.initial, n_evaluations=n_evaluations)
        return _FoundValues(found.facts, found.encoded, values) if changed else None

    def _empty_tensors(self) -> dict[str, Tensor]:
        """The tensors of a batch of which no fact was kept."""
        shapes = {layer: matrix.shape for layer, matrix in self.matrices.items()}
        keys = {layer: torch.zeros(d_in, 0) for layer, (_, d_in) in shapes.items()}
        updates = {
            layer: Update(torch.zeros(d_out, 0), torch.zeros(d_in, 0)) for layer, (d_out, d_in) in shapes.items()
        }
        return to_tensors(keys, updates)

    def _state_of_other_weights(self) -> list[tuple[object, ...]]:
        """The state of all weights except the edited ones, which ``EditedMatrix`` checks."""
        edited = {id(self.model.anatomy.projection(layer).get_parameter("weight")) for layer in self.matrices}
        return [weight_state(weight) for weight in self.model.model.parameters() if id(weight) not in edited]

    def _search(self, facts: list[Fact]) -> _FoundValues:
        """The values of the first pass."""
        config = self._passes[0]
        if self._value_cache is None or self._n_batches > 0:
            return self._search_now(facts, config)
        encoded = encode_batch(self.model, facts, self.contexts, config)
        search = partial(optimize_values, self.model, encoded, config)
        return _FoundValues(facts, encoded, self._value_cache.get_or_search(facts, self.contexts, config, search))

    def _search_now(self, facts: list[Fact], config: EditConfig) -> _FoundValues:
        encoded = encode_batch(self.model, facts, self.contexts, config)
        return _FoundValues(facts, encoded, optimize_values(self.model, encoded, config))

    def _write_rows(
        self,
        found: _FoundValues,
        rows: Sequence[int],
        n_rewritten: int,
        removed: Sequence[LiveFact],
        seconds: float,
    ) -> WrittenBatch:
        """Write ``rows`` of ``found`` in place of the facts ``removed``.

        The first ``n_rewritten`` rows were written before; ``seconds`` were already spent on each of the others.
        """
        started = time.perf_counter()
        self._prepare([found.facts[row] for row in rows])
        by_layer, values = self._write_passes(found, rows)
        written = {layer: one.asked for layer, one in by_layer.items()}
        self._update_memories(written)
        self.check_weights()
        seconds += (time.perf_counter() - started) / max(len(rows) - n_rewritten, 1)
        norms = {layer: one.norm for layer, one in by_layer.items()}
        results = tuple(
            _result(found.facts[row], value, norms, seconds) for row, value in zip(rows, values, strict=True)
        )
        self._update_live_facts(removed, results, written)
        keys = {layer: facts.keys for layer, facts in written.items()}
        updates = {layer: one.update for layer, one in by_layer.items()}
        return WrittenBatch(results[n_rewritten:], to_tensors(keys, updates), results[:n_rewritten])

    def _update_live_facts(
        self,
        removed: Sequence[LiveFact],
        results: Sequence[EditResult],
        written: dict[int, Associations],
    ) -> None:
        """Add ``results`` to the live facts and drop ``removed`` from them."""
        number, new = self._n_batches + 1, []
        first = 0
        for result in results:
            columns = slice(first, first + n_keys(result))
            asked = {layer: facts[columns].to("cpu") for layer, facts in written.items()}
            first = columns.stop
            new.append(LiveFact(result, number, asked))
        self._drop_live_facts(removed)
        self.live_facts.extend(new)
        self._n_batches = number

    def _drop_live_facts(self, removed: Sequence[LiveFact]) -> None:
        if removed:
            self.live_facts[:] = [held for held in self.live_facts if held not in removed]

    def _remove(self, removed: Sequence[LiveFact]) -> None:
        """Remove the contributions of live facts from weights and memories."""
        if not removed:
            return
        self._fold()
        if self._updates_add_up() and self._subtract(removed):
            return
        self.memories = self._new_memories()
        self._write_stored([held for held in self.live_facts if held not in removed])

    def _subtract(self, removed: Sequence[LiveFact]) -> bool:
        """Remove live facts by the closed form; ``False``, with nothing changed, where rounding would be too large."""
        with self._transaction() as undo:
            for layer, matrix in self.matrices.items():
                facts = Associations.joined(held.written[layer] for held in removed).to(matrix.device)
                try:
                    matrix.add(forget(self.memories[layer], matrix.change(), facts, amplification=_MOST_AMPLIFIED))
                except NumericalError:
                    undo()
                    return False
        return True

    def _updates_add_up(self) -> bool:
        """Whether the updates so far equal one joint solution, from which facts can be removed in closed form."""
        return all(memory.rule.history and memory.last_refresh == 0 for memory in self.memories.values())

    def _write_stored(self, facts: Sequence[LiveFact]) -> None:
        """Write ``facts`` with their stored keys and values, from the original weights and new memories."""
        for layer, matrix in self.matrices.items():
            matrix.restore()
            memory, device = self.memories[layer], matrix.device
            batches = (
                Associations.joined(held.written[layer] for held in batch).to(device)
                for _, batch in groupby(facts, key=lambda held: held.batch)
            )
            for segment in segments(memory, batches):
                matrix.add(memory.solve(segment.keys, segment.residuals(matrix.change())))
                memory.remember(segment.keys)

    def _write_passes(self, found: _FoundValues, rows: Sequence[int]) -> tuple[_ByLayer, list[Value]]:
        """Write ``rows`` of ``found``; with ``value_per_layer``, search and write each further layer (B.10, BLUE).

        Returns what was written, and the value of each row: of the last search, with the evaluations of all.
        """
        values = [found.values[row] for row in rows]
        written = self._write_values(found.encoded, rows, values, self._passes[0])
        for config in self._passes[1:]:
            again = self._search_now([found.facts[row] for row in rows], config)
            written |= self._write_values(again.encoded, range(len(rows)), again.values, config)
            values = [
                replace(value, n_evaluations=before.n_evaluations + value.n_evaluations)
                for before, value in zip(values, again.values, strict=True)
            ]
        return written, values

    def _write_values(
        self, encoded: EncodedBatch, batch: Sequence[int], values: Sequence[Value], config: EditConfig
    ) -> _ByLayer:
        """Spread the residual over the layers of ``config``, updating each in turn."""
        changes = [value.target - value.initial for value in values for _ in range(value.n_keys)]
        targets = encoded.leading_states(batch, config.layers[-1] + 1) + torch.stack(changes, dim=1)
        walk = LayerWalk(self.model, encoded, batch, config)
        written: _ByLayer = {}
        for step, layer in enumerate(config.layers):
            share = self.recipe.residual_divisor(len(config.layers) - step)

            def write(key: Tensor, output: Tensor, layer: int = layer, share: float = share) -> None:
                matrix = self.matrices[layer]
                # Laid out as they come back from disk: on some processors products round by how a factor lies.
                key = key.contiguous()
                missing = ((targets.to(output) - output) / share).to(key.device)
                residual = self._before_norm(layer, key, missing).contiguous()
                update = self._solve(layer, key, residual, walk.bare_keys)
                asked = Associations.written(matrix.change(), key, residual)
                written[layer] = _Written(asked, update, self._add_update(layer, update))
                self._check_norm(layer, written[layer].norm, len(batch))

            walk.pass_layer(layer, write)
        return written

    def _before_norm(self, layer: int, keys: Tensor, residuals: Tensor) -> Tensor:
        """Residuals before a norm behind the MLP, which move the residual stream by ``residuals`` ``(d_out, b)``."""
        norm = self.model.anatomy.norm_after_mlp(layer)
        if norm is None:
            return residuals
        current = self.matrices[layer].current()
        return before_norm(norm, current @ keys.to(current), residuals)

    def _check_norm(self, layer: int, norm: float, n_facts: int) -> None:
        limit = self.config.update_norm_limit
        if limit is not None and norm / n_facts**0.5 > limit:
            raise NumericalError(
                f"the update of layer {layer} has norm {norm:.3g}, over the limit of {limit:g} per root fact.",
                hint="The model is near collapse: stop here, or raise update_norm_limit.",
            )


def _result(fact: Fact, value: Value, norms: dict[int, float], seconds: float) -> EditResult:
    figures = {
        "sought_probability": value.target_probability,
        "value_length": value.relative_length,
        "evaluations": value.n_evaluations,
        "keys": value.n_keys,
        "update_norms": {str(layer): norm for layer, norm in norms.items()},
    }
    return EditResult(fact, seconds, figures=figures)


def _n_missed(results: Sequence[EditResult]) -> int:
    return sum(not result.is_held for result in results)


def _not_kept(result: EditResult) -> EditResult:
    return replace(result, kept=False, figures={**result.figures, "keys": 0})


def _nothing_to_undo() -> None:
    """Nothing was done."""

"""Locate-then-edit: values, then layer by layer keys, residuals and the memory's update (methods.md A.7)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, groupby
from typing import Any

import torch
from torch import Tensor

from betaedit.editors.config import EditConfig
from betaedit.editors.keys import LayerWalk, token_keys
from betaedit.editors.known_values import KnownValues
from betaedit.editors.live import LiveFact, holding_traces, in_batches, in_the_way, to_be_kept, windows
from betaedit.editors.matrix import edited_matrices, set_aside, weight_state
from betaedit.editors.norms import before_norm
from betaedit.editors.pose import Pose, pose
from betaedit.editors.recipes import Recipe
from betaedit.editors.spectra import spectra
from betaedit.editors.values import Value, optimize_values
from betaedit.errors import MethodError, NumericalError, WeightsChangedError
from betaedit.evaluation.holding import Status, measure_holding
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
_RENAMED = {"target_probability": "sought_probability"}


@dataclass(frozen=True)
class EditResult:
    """What writing one fact took, and whether the model says it.

    Args:
        fact: The fact.
        sought_probability: Mean probability per target token when the value search ended, over all its prompts.
        value_length: Length of the value's change in norms of the hidden state.
        n_evaluations: Evaluations of the value's loss, in all tries.
        update_norms: Frobenius norm of its batch's update, by layer.
        seconds: Wall-clock time, its share of the batch.
        n_keys: Keys it was written with: one, and one for each further wording that took part; none if it was not kept.
        status: How the model held it on its own prompt once its batch was written (``evaluation.holding``); ``None``
            in records of older versions.
        measured_probability: Mean probability of the target's tokens there.
        said: The model's text there, where it is not the answer.
        tries: Searches for its value.
        kept: Whether it is in the weights: a fact that is missed is taken back, unless ``keep_missed``.
    """

    fact: Fact
    sought_probability: float
    value_length: float
    n_evaluations: int
    update_norms: dict[int, float]
    seconds: float
    n_keys: int = 1
    status: Status | None = None
    measured_probability: float | None = None
    said: str = ""
    tries: int = 1
    kept: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        return {
            "id": self.fact.id,
            "prompt": self.fact.text,
            "subject": self.fact.subject,
            "target_new": self.fact.target_new,
            "joint": self.fact.joint,
            "status": self.status,
            "kept": self.kept,
            "measured_probability": self.measured_probability,
            "sought_probability": self.sought_probability,
            "said": self.said,
            "value_length": self.value_length,
            "evaluations": self.n_evaluations,
            "tries": self.tries,
            "keys": self.n_keys,
            "update_norms": {str(layer): norm for layer, norm in self.update_norms.items()},
            "seconds": self.seconds,
        }

    def figures(self) -> dict[str, Any]:
        """All but the fact, as plain data to keep beside it."""
        plain = asdict(self)
        del plain["fact"]
        return plain

    @classmethod
    def from_figures(cls, fact: Fact, figures: Mapping[str, Any]) -> EditResult:
        """What ``figures`` came from, which may have been JSON meanwhile, or of an older version."""
        renamed = {_RENAMED.get(name, name): value for name, value in figures.items()}
        norms = {int(layer): norm for layer, norm in figures["update_norms"].items()}
        return cls(fact, **{**renamed, "update_norms": norms})

    @property
    def is_held(self) -> bool:
        """Whether a reader of the model's text would call the answer right."""
        return self.kept and self.status == "held"


@dataclass(frozen=True)
class WrittenBatch:
    """One batch of facts as it was written: enough to write it again without searching.

    Args:
        results: One per fact.
        keys: (d_in, b) keys by layer, of ``again`` and then of ``results``.
        updates: What each layer's memory answered: what was added to the matrix, save for what the recipe's operator
            made of it.
        again: One per earlier fact that was taken out and written again with these (``shared_subjects``).

    Facts that were not kept are among the results, and have no keys.
    """

    results: tuple[EditResult, ...]
    keys: dict[int, Tensor]
    updates: dict[int, Update]
    again: tuple[EditResult, ...] = ()


@dataclass(frozen=True)
class _Sought:
    """Facts and the values found for them."""

    facts: list[Fact]
    posed: Pose
    values: list[Value]


class Engine:
    """One model under one recipe: the edited matrices and what each remembers.

    Args:
        model: The model whose weights change.
        recipe: The method.
        config: Its hyper-parameters.
        moments: ``C0`` of the edited layers.
        contexts: Context templates, the bare one first.
        known: Values found under the model's unedited weights, shared with other engines.

    ``live`` holds the facts that the weights hold, in the order in which they were written.

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
        known: KnownValues | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.recipe, self.contexts = model, recipe, contexts
        self._progress: Progress = progress or SilentProgress()
        self.config = config = recipe.settings(config)
        projections = {layer: model.anatomy.projection(layer) for layer in config.layers}
        moments.require({layer: projection_shape(module)[1] for layer, module in projections.items()})
        self.matrices = edited_matrices(model.anatomy, config.layers)
        self._moments = {layer: moments.matrices[layer].to(matrix.device) for layer, matrix in self.matrices.items()}
        self.memories = self._new_memories()
        processing = recipe.postprocessing(config)
        self.postprocessors = {
            layer: Postprocessor(processing, moment)
            for layer, moment in self._moments.items()
            if recipe.operator != "none"
        }
        self._random_keys = {
            layer: RandomKeys(moment, config.seed + layer)
            for layer, moment in self._moments.items()
            if recipe.random_history
        }
        self._tokens: dict[int, Tensor] = {}
        self.live: list[LiveFact] = []
        self._known = known
        self._n_batches = 0

    @usual_gradients
    def write(self, facts: Sequence[Fact], *, batch_size: int = 1) -> Iterator[WrittenBatch]:
        """Write facts, ``batch_size`` at a time, each batch solved together; the weights change in place.

        The values of all of ``facts`` are sought together first, under the weights as they are: more than one batch of
        them is a look-ahead, which changes the result. A batch that concerns live facts (``editors/live.py``) has its
        own search, after their contributions were taken out. Yields every batch when it is written.

        Raises:
            NumericalError: An update is not finite or longer than allowed.
            WeightsChangedError: As ``check_weights``, or the model was changed between two batches whose values were
                sought together.

        Whatever ends a batch early, an interrupt too: weights, memories and live facts are as they were before it.
        """
        for window in windows(in_batches(facts, batch_size, self.config), self.live, self.config):
            yield from self._write_window(window)

    @usual_gradients
    def replay(self, batch: WrittenBatch) -> None:
        """Write a batch that was written before, in its place in the same sequence: the same weights, bit for bit."""
        self.check_weights()
        kept = [result for result in batch.results if result.kept]
        if not kept:
            self._begin([result.fact for result in batch.results])
            return
        leaving = in_the_way(self.live, (result.fact for result in kept), self.config)
        with ExitStack() as undo:
            self._take_out(leaving, undo)
            undo.pop_all()
        self._begin([result.fact for result in (*batch.again, *kept)])
        written: dict[int, Associations] = {}
        for layer, matrix in self.matrices.items():
            keys, update = batch.keys[layer].to(matrix.device), batch.updates[layer]
            residuals = update.left.to(matrix.device)
            if layer in self.postprocessors:
                residuals = self.postprocessors[layer].wanted(keys, residuals)
            written[layer] = Associations.written(matrix.change(), keys, residuals)
            self._add(layer, update)
        with ExitStack() as undo:
            self._remember(written, undo)
            self._hold(leaving, (*batch.again, *kept), written, undo)
            undo.pop_all()

    @usual_gradients
    def forget(self, facts: Sequence[LiveFact]) -> None:
        """Take live facts out: the weights that the others, with the keys and values they have, make of the original.

        By the closed form of ``memory/conflicts.py`` where it holds: the rule has history, and no projector was
        refreshed. Else the others are written again from the original weights: that costs every refresh once more and
        one solve for as many facts as a fold takes between two of them; without history, a solve for every batch.
        Facts whose values hold a trace of a forgotten one (``holding_traces``) get new values, by a search, and are
        written as the last ones.

        Raises:
            MethodError: The recipe's updates do not follow from the live facts alone, so none can be taken out.
            NumericalError: The others cannot be written again. Everything is as it was then.
        """
        if not self.recipe.takes_back:
            raise MethodError(
                f"{self.recipe.name} cannot forget: its updates do not follow from the facts written alone.",
                hint="Edit with memit-h, alphaedit or betaedit.",
            )
        self.check_weights()
        again = holding_traces(self.live, facts, self.config)
        leaving = [*facts, *chain.from_iterable(again)]
        with ExitStack() as undo:
            self._take_out(leaving, undo)
            for memory in self.memories.values():
                undo.callback(memory.restore, memory.snapshot())
            undo.callback(self.live.__setitem__, slice(None), list(self.live))
            self._drop(leaving)
            for batch in again:
                sought = self._seek([held.fact for held in batch])
                self._write_rows(sought, range(len(batch)), 0, (), 0.0, undo)
            undo.pop_all()

    @usual_gradients
    def resume(self, live: Sequence[LiveFact], keys: Mapping[int, Iterable[Tensor]]) -> None:
        """Take up a sequence where it was left; its weights are in ``matrices`` already.

        Args:
            live: The facts that the weights hold, in the order in which they were written.
            keys: By layer, the (d_in, b) keys of each of their batches, in order.
        """
        self.live[:] = live
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
        self._write_again(self.live)

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

    def _begin(self, facts: Sequence[Fact]) -> None:
        """Make ready for a batch under the weights before it."""
        self._fold()
        for memory in self.memories.values():
            if memory.refresh_due():
                memory.refresh()
        if self.recipe.operator == "simie":
            self._tokens = token_keys(self.model, facts, self.config)

    def _fold(self) -> None:
        """Fold where that is due: before a batch, not after it, so that a fold that fails has nothing to undo."""
        for memory in self.memories.values():
            if memory.fold_due():
                memory.fold()

    def _remember(self, written: dict[int, Associations], undo: ExitStack) -> None:
        """Count a batch as written; ``undo`` takes that back."""
        for layer, memory in self.memories.items():
            undo.callback(memory.restore, memory.snapshot())
            keys = written[layer].keys
            if (random := self._random_keys.get(layer)) is not None:
                undo.callback(random.restore, random.snapshot())
                keys = random.like(keys)
            memory.carry(keys)
        for layer, postprocessor in self.postprocessors.items():
            undo.callback(postprocessor.restore, postprocessor.snapshot())
            postprocessor.settle(self._tokens.get(layer))

    def _solve(self, layer: int, keys: Tensor, residuals: Tensor, bare_keys: Tensor) -> Update:
        if layer in self.postprocessors:
            residuals = self.postprocessors[layer].residuals(keys, residuals)
        return self.memories[layer].solve(keys, residuals, bare_keys if self.recipe.reaches_bare_key else None)

    def _add(self, layer: int, update: Update) -> float:
        """Add an update to its matrix as the recipe processes it; the norm of what was added."""
        matrix, postprocessor = self.matrices[layer], self.postprocessors.get(layer)
        if postprocessor is None:
            matrix.add(update)
            return update.norm()
        change = postprocessor.process(update, matrix.current(), self._tokens.get(layer))
        matrix.add_dense(change)
        return float(change.norm())

    def _write_window(self, window: list[list[Fact]]) -> Iterator[WrittenBatch]:
        """Write batches whose values are sought together; only a batch of its own concerns live facts."""
        self.check_weights()
        started = time.perf_counter()
        new = [fact for batch in window for fact in batch]
        leaving = in_the_way(self.live, new, self.config)
        again = to_be_kept(leaving, new, self.config)
        with ExitStack() as undo:
            self._take_out(leaving, undo)
            sought = self._seek(again + new)
            share = (time.perf_counter() - started) / len(new)
            at = 0
            for number, batch in enumerate(window, start=1):
                rows = list(range(at, at + len(again) + len(batch)))
                written = self._write_and_look(sought, rows, len(again), leaving, share, undo)
                at += len(batch)
                before = self._other_weights() if number < len(window) else []
                yield written
                if before and self._other_weights() != before:
                    raise WeightsChangedError(
                        "the model was changed between facts whose values had been sought together.",
                        hint="Write those again that were not reported as written.",
                    )

    def _write_and_look(
        self,
        sought: _Sought,
        rows: list[int],
        n_again: int,
        leaving: Sequence[LiveFact],
        seconds: float,
        undo: ExitStack,
    ) -> WrittenBatch:
        """Write some of the facts sought and ask the model; those that it misses to the last are left out.

        What the values lack is added up to ``retries`` times (``_corrected``); of several tries the last with the
        fewest misses counts. ``undo`` holds what takes ``leaving`` back in; it is used up. A batch with a fact that is
        left out is written without it; where facts were taken out for it, they stay as they were and nothing of the
        batch is written.
        """
        config, new = self.config, rows[n_again:]
        best: tuple[_Sought, tuple[EditResult, ...]] | None = None
        for attempt in range(config.retries + 1):
            with ExitStack() as tried:
                written = self._write_rows(sought, rows, n_again, leaving, seconds, tried)
                results = self._looked_at(written.results, attempt + 1)
                if best is None or _n_missed(results) <= _n_missed(best[1]):
                    best = sought, results
                started = time.perf_counter()
                better = self._corrected(sought, rows) if attempt < config.retries else None
                seconds += (time.perf_counter() - started) / len(new)
                if better is None and best[1] is results and (config.keep_missed or not _n_missed(results)):
                    tried.pop_all()
                    undo.pop_all()
                    return replace(written, results=results)
            if better is None:
                break
            sought = better
        assert best is not None  # there is at least one try
        sought, results = best
        by_row = dict(zip(new, results, strict=True))
        left = [row for row in rows if row not in by_row or by_row[row].is_held or config.keep_missed]
        if len(left) < len(rows) and (leaving or len(left) == n_again):
            undo.close()
            return WrittenBatch(tuple(_not_kept(one) for one in results), *self._nothing())
        with ExitStack() as tried:
            written = self._write_rows(sought, left, n_again, leaving, seconds, tried)
            tried.pop_all()
            undo.pop_all()
        again = self._looked_at(written.results, results[0].tries)
        kept = dict(zip(left[n_again:], again, strict=True))
        return replace(written, results=tuple(kept[row] if row in kept else _not_kept(by_row[row]) for row in new))

    def _looked_at(self, results: Sequence[EditResult], tries: int) -> tuple[EditResult, ...]:
        """``results`` with what the model makes of the facts now."""
        found = measure_holding(self.model, [result.fact for result in results])
        looked = [
            replace(one, status=held.status, measured_probability=held.probability, said=held.said, tries=tries)
            for one, held in zip(results, found, strict=True)
        ]
        by_fact = {id(before): after for before, after in zip(results, looked, strict=True)}
        self.live[:] = [
            replace(held, result=by_fact[id(held.result)]) if id(held.result) in by_fact else held for held in self.live
        ]
        return tuple(looked)

    def _corrected(self, sought: _Sought, rows: list[int]) -> _Sought | None:
        """``sought`` with what the values of the facts ``rows``, as written now, still lack; ``None`` if it is nothing.

        A value is sought with its change put behind the last edited layer. Written, the change grows from layer to
        layer, and what stands behind the subject can read it underway; the edited model says less than was sought.
        Here the search goes on from the edited model, in all prompts, and what it finds is added to the value.
        """
        facts = [sought.facts[row] for row in rows]
        posed = pose(self.model, facts, self.contexts, self.config)
        found = optimize_values(self.model, posed, self.config.correcting())
        values, changed = list(sought.values), False
        for row, lacking in zip(rows, found, strict=True):
            before, change = values[row], lacking.target - lacking.initial
            changed = changed or bool(change.any())
            n_evaluations = before.n_evaluations + lacking.n_evaluations
            target = before.target + change
            values[row] = replace(lacking, target=target, initial=before.initial, n_evaluations=n_evaluations)
        return _Sought(sought.facts, sought.posed, values) if changed else None

    def _nothing(self) -> tuple[dict[int, Tensor], dict[int, Update]]:
        """Keys and updates of a batch of which nothing was kept."""
        keys, updates = {}, {}
        for layer, matrix in self.matrices.items():
            d_out, d_in = matrix.shape
            keys[layer] = torch.zeros(d_in, 0)
            updates[layer] = Update(torch.zeros(d_out, 0), torch.zeros(d_in, 0))
        return keys, updates

    def _other_weights(self) -> list[tuple[object, ...]]:
        """The state of all weights but the edited ones, which the matrices look after."""
        edited = {id(self.model.anatomy.projection(layer).get_parameter("weight")) for layer in self.matrices}
        return [weight_state(weight) for weight in self.model.model.parameters() if id(weight) not in edited]

    def _seek(self, facts: list[Fact]) -> _Sought:
        posed = pose(self.model, facts, self.contexts, self.config)
        search = partial(optimize_values, self.model, posed, self.config)
        if self._known is None or self._n_batches > 0:
            return _Sought(facts, posed, search())
        return _Sought(facts, posed, self._known.of(facts, self.contexts, self.config, search))

    def _write_rows(
        self,
        sought: _Sought,
        rows: Sequence[int],
        n_again: int,
        leaving: Sequence[LiveFact],
        seconds: float,
        undo: ExitStack,
    ) -> WrittenBatch:
        """Write some of the facts whose values were sought, in the place of ``leaving``; ``undo`` takes that back.

        The first ``n_again`` of them were written before; ``seconds`` were spent on each of the others.
        """
        started = time.perf_counter()
        self._begin([sought.facts[row] for row in rows])
        with ExitStack() as own:
            values = [sought.values[row] for row in rows]
            written, updates, norms = self._write_values(sought.posed, rows, values, own)
            self._remember(written, own)
            self.check_weights()
            seconds += (time.perf_counter() - started) / max(len(rows) - n_again, 1)
            results = tuple(_result(sought.facts[row], sought.values[row], norms, seconds) for row in rows)
            self._hold(leaving, results, written, own)
            undo.push(own.pop_all())
        keys = {layer: facts.keys for layer, facts in written.items()}
        return WrittenBatch(results[n_again:], keys, updates, results[:n_again])

    def _hold(
        self,
        leaving: Sequence[LiveFact],
        results: Sequence[EditResult],
        written: dict[int, Associations],
        undo: ExitStack,
    ) -> None:
        """Count ``results`` among the live facts, ``leaving`` no more; ``undo`` takes that back."""
        undo.callback(self.live.__setitem__, slice(None), list(self.live))
        undo.callback(setattr, self, "_n_batches", self._n_batches)
        number, new = self._n_batches + 1, []
        first = 0
        for result in results:
            columns = slice(first, first + result.n_keys)
            asked = {layer: facts[columns].to("cpu") for layer, facts in written.items()}
            first += result.n_keys
            new.append(LiveFact(result, number, asked))
        self._drop(leaving)
        self.live.extend(new)
        self._n_batches = number

    def _drop(self, leaving: Sequence[LiveFact]) -> None:
        if leaving:
            self.live[:] = [held for held in self.live if held not in leaving]

    def _take_out(self, leaving: Sequence[LiveFact], undo: ExitStack) -> None:
        """Take the contributions of live facts out of weights and memories; ``undo`` puts them back."""
        if not leaving:
            return
        self._fold()
        for matrix in self.matrices.values():
            undo.callback(matrix.savepoint())
        if self._adds_up() and self._subtract(leaving, undo):
            return
        undo.callback(setattr, self, "memories", self.memories)
        self.memories = self._new_memories()
        self._write_again([held for held in self.live if held not in leaving])

    def _subtract(self, leaving: Sequence[LiveFact], undo: ExitStack) -> bool:
        """Take live facts out of the sums that the matrices are; ``False`` where rounding forbids it, nothing done."""
        with ExitStack() as back:
            for layer, matrix in self.matrices.items():
                memory = self.memories[layer]
                facts = Associations.joined(held.written[layer] for held in leaving).to(matrix.device)
                back.callback(matrix.savepoint())
                try:
                    matrix.add(forget(memory, matrix.change(), facts, amplification=_MOST_AMPLIFIED))
                except NumericalError:
                    return False
                back.callback(memory.remember, facts.keys)
            undo.push(back.pop_all())
        return True

    def _adds_up(self) -> bool:
        """Whether the updates so far add up to one solution, from which facts can be taken out."""
        return all(memory.rule.history and memory.last_refresh == 0 for memory in self.memories.values())

    def _write_again(self, facts: Sequence[LiveFact]) -> None:
        """From the original weights and new memories, write ``facts`` with the keys and values they have."""
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

    def _write_values(
        self, posed: Pose, batch: Sequence[int], values: Sequence[Value], undo: ExitStack
    ) -> tuple[dict[int, Associations], dict[int, Update], dict[int, float]]:
        """Spread the residual over the layers, updating each in turn; ``undo`` takes that back."""
        changes = [value.target - value.initial for value in values for _ in range(value.n_keys)]
        targets = posed.leading_states(batch, self.config.layers[-1] + 1) + torch.stack(changes, dim=1)
        walk = LayerWalk(self.model, posed, batch, self.config)
        written: dict[int, Associations] = {}
        updates: dict[int, Update] = {}
        norms: dict[int, float] = {}
        for step, layer in enumerate(self.config.layers):
            share = self.recipe.share(len(self.config.layers) - step)

            def write(key: Tensor, output: Tensor, layer: int = layer, share: float = share) -> None:
                matrix = self.matrices[layer]
                # Laid out as they come back from disk: on some processors products round by how a factor lies.
                key = key.contiguous()
                missing = ((targets.to(output) - output) / share).to(key.device)
                residual = self._behind_norm(layer, key, missing).contiguous()
                update = self._solve(layer, key, residual, walk.bare_keys)
                written[layer], updates[layer] = Associations.written(matrix.change(), key, residual), update
                undo.callback(matrix.savepoint())
                norms[layer] = self._add(layer, update)
                self._check_norm(layer, norms[layer], len(batch))

            walk.pass_layer(layer, write)
        return written, updates, norms

    def _behind_norm(self, layer: int, keys: Tensor, residuals: Tensor) -> Tensor:
        """The residuals of the projection's output that move the stream by ``residuals`` ``(d_out, b)``."""
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
    length, n_evaluations = value.relative_length, value.n_evaluations
    return EditResult(fact, value.target_probability, length, n_evaluations, norms, seconds, value.n_keys)


def _n_missed(results: Sequence[EditResult]) -> int:
    return sum(not result.is_held for result in results)


def _not_kept(result: EditResult) -> EditResult:
    return replace(result, kept=False, n_keys=0)

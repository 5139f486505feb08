"""Locate-then-edit: values, then layer by layer keys, residuals and the memory's update (methods.md A.7)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
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
class EditResult:
    """What writing one fact took.

    Args:
        fact: The fact.
        target_probability: Mean probability per target token when the value search ended, over all contexts.
        value_length: Length of the value's change in norms of the hidden state.
        n_evaluations: Evaluations of the value's loss.
        update_norms: Frobenius norm of its batch's update, by layer.
        seconds: Wall-clock time, its share of the batch.
    """

    fact: Fact
    target_probability: float
    value_length: float
    n_evaluations: int
    update_norms: dict[int, float]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        return {
            "id": self.fact.id,
            "prompt": self.fact.text,
            "subject": self.fact.subject,
            "target_new": self.fact.target_new,
            "joint": self.fact.joint,
            "target_probability": self.target_probability,
            "value_length": self.value_length,
            "evaluations": self.n_evaluations,
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
        """What ``figures`` came from, which may have been JSON meanwhile."""
        norms = {int(layer): norm for layer, norm in figures["update_norms"].items()}
        return cls(fact, **{**figures, "update_norms": norms})


@dataclass(frozen=True)
class WrittenBatch:
    """One batch of facts as it was written: enough to write it again without searching.

    Args:
        results: One per fact.
        keys: (d_in, b) keys by layer, of ``again`` and then of ``results``.
        updates: What each layer's memory answered: what was added to the matrix, save for what the recipe's operator
            made of it.
        again: One per earlier fact that was taken out and written again with these (``shared_subjects``).
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
        leaving = in_the_way(self.live, (result.fact for result in batch.results), self.config)
        with ExitStack() as undo:
            self._take_out(leaving, undo)
            undo.pop_all()
        self._begin([result.fact for result in batch.again + batch.results])
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
            undo.pop_all()
        self._hold(leaving, batch.again + batch.results, written)

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
                mend="Edit with memit-h, alphaedit or betaedit.",
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
                self._write_rows(sought, range(len(batch)), len(batch), ())
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
                    mend="Move the model back, or call reset() and write the facts again.",
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
                rows = range(at, at + len(again) + len(batch))
                results, written, updates = self._write_rows(sought, rows, len(batch), leaving, share)
                undo.pop_all()
                at += len(batch)
                keys = {layer: facts.keys for layer, facts in written.items()}
                before = self._other_weights() if number < len(window) else []
                yield WrittenBatch(results[len(again) :], keys, updates, results[: len(again)])
                if before and self._other_weights() != before:
                    raise WeightsChangedError(
                        "the model was changed between facts whose values had been sought together.",
                        mend="Write those again that were not reported as written.",
                    )

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
        self, sought: _Sought, rows: range, n_new: int, leaving: Sequence[LiveFact], seconds: float = 0.0
    ) -> tuple[tuple[EditResult, ...], dict[int, Associations], dict[int, Update]]:
        """Write some of the facts whose values were sought, in the place of ``leaving``; all or nothing.

        ``seconds`` were spent on each of ``n_new`` before.
        """
        started = time.perf_counter()
        self._begin([sought.facts[row] for row in rows])
        with ExitStack() as undo:
            values = [sought.values[row] for row in rows]
            written, updates, norms = self._write_values(sought.posed, rows, values, undo)
            self._remember(written, undo)
            self.check_weights()
            seconds += (time.perf_counter() - started) / n_new
            results = tuple(_result(sought.facts[row], sought.values[row], norms, seconds) for row in rows)
            self._hold(leaving, results, written)
            undo.pop_all()
        return results, written, updates

    def _hold(
        self, leaving: Sequence[LiveFact], results: Sequence[EditResult], written: dict[int, Associations]
    ) -> None:
        """Count ``results`` among the live facts, ``leaving`` no more."""
        number, new = self._n_batches + 1, []
        for column, result in enumerate(results):
            asked = {layer: facts[column].to("cpu") for layer, facts in written.items()}
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
            undo.callback(matrix.restore, matrix.snapshot())
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
                back.callback(matrix.restore, matrix.snapshot())
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
        self, posed: Pose, batch: range, values: Sequence[Value], undo: ExitStack
    ) -> tuple[dict[int, Associations], dict[int, Update], dict[int, float]]:
        """Spread the residual over the layers, updating each in turn; ``undo`` takes that back."""
        targets = torch.stack([value.target for value in values], dim=1)
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
                undo.callback(matrix.restore, matrix.snapshot())
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
                mend="The model is near collapse: stop here, or raise update_norm_limit.",
            )


def _result(fact: Fact, value: Value, norms: dict[int, float], seconds: float) -> EditResult:
    return EditResult(fact, value.target_probability, value.relative_length, value.n_evaluations, norms, seconds)

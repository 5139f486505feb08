"""WISE: facts in trained copies of one matrix, and prompts routed to them by how far they move (methods.md F.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from betaedit.editors.asked import with_status
from betaedit.editors.method import EditResult, MemoryUse, WrittenBatch
from betaedit.editors.resources import Resources
from betaedit.editors.side_memory.base import SideEditor, Tensors, numbered, seed_of, tensors_of, with_last
from betaedit.editors.side_memory.config import WiseConfig
from betaedit.editors.side_memory.memories import (
    Memory,
    choose,
    distances,
    merge_ties,
    original_weight,
    served_distances,
)
from betaedit.editors.side_memory.tail import Tail
from betaedit.editors.side_memory.unrelated import sample_prompts
from betaedit.errors import NumericalError
from betaedit.facts.fact import Fact
from betaedit.models.gradients import usual_gradients
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import Prompt, tokenize

_STILL = 1e-4


@dataclass(frozen=True)
class _State:
    """All that was told.

    Args:
        results: One per fact.
        stored: The memories of shards that are full.
        current: That of the shard being filled; none before its first fact.
        shards: The states in which each shard so far began.
        entries: Of each shard so far, what its last fact left in the entries that it trains.
        distances: Of each fact, the distance of its prompts when it was written.
    """

    results: tuple[EditResult, ...] = ()
    stored: tuple[Memory, ...] = ()
    current: Memory | None = None
    shards: tuple[_State, ...] = field(default=(), repr=False)
    entries: tuple[Tensor, ...] = field(default=(), repr=False)
    distances: tuple[float, ...] = ()

    @property
    def memories(self) -> tuple[Memory, ...]:
        """Those that answer."""
        return self.stored if self.current is None else (*self.stored, self.current)


class Wise(SideEditor[_State]):
    """One model with side memories.

    Facts share the entries of their shard, so none can be subtracted. Forgetting goes back to where the fact's shard
    began and trains the facts after that again, as they would have been: training depends on nothing but the facts
    before, the settings and the seed, so it is, bit for bit on the same machine, the model that was never told the
    fact.

    Args:
        model: Unedited.
        config: Hyper-parameters.
        resources: Where contexts come from.
    """

    def __init__(self, model: LanguageModel, config: WiseConfig, resources: Resources) -> None:
        self.config, self._resources = config, resources
        super().__init__(model, config)
        own = model.model.config.get_text_config()
        names = ("hidden_act", "hidden_activation", "activation_function")
        self._activation = ACT2FN[next(name for key in names if (name := getattr(own, key, None)))]
        self._projection = model.anatomy.projection(self.layer)

    @property
    def results(self) -> Sequence[EditResult]:
        """One per fact that the model holds."""
        return self._state.results

    @property
    def memories(self) -> Sequence[Memory]:
        """Those that answer, the one being filled last."""
        return self._state.memories

    @property
    def memory_use(self) -> MemoryUse:
        """See ``HoldsMemory``; the memories with which shards began are kept for forgetting."""
        answering = {id(memory): memory.weight.nbytes for memory in self.memories}
        earlier = {id(each): each.weight.nbytes for state in self._state.shards for each in state.memories}
        kept = sum(size for memory, size in earlier.items() if memory not in answering)
        return MemoryUse({"side memories": sum(answering.values())}, {"side memories of earlier shards": kept})

    @cached_property
    def contexts(self) -> tuple[str, ...]:
        """In which each fact is trained."""
        with self.unedited():
            return self._resources.contexts(self.config)

    @cached_property
    def unrelated(self) -> tuple[str, ...]:
        """Prompts that facts must not bear on."""
        if self.config.unrelated_prompts is not None:
            return self.config.unrelated_prompts
        with self.unedited():
            return sample_prompts(self.model, self.config.seed)

    def prepare(self) -> None:
        """Sample contexts and unrelated prompts."""
        _ = self.contexts, self.unrelated

    def describe(self) -> dict[str, Any]:
        """The layer, contexts and unrelated prompts."""
        return {**super().describe(), "contexts": list(self.contexts), "unrelated_prompts": list(self.unrelated)}

    def route(self, prompts: Sequence[str]) -> list[int]:
        """The memory that answers each prompt, by its place in ``memories``; ``-1`` for the model itself."""
        routed = []
        for ids in self.model.encode(prompts):
            with self.unedited(), self._noting() as noted, torch.no_grad():
                self.model.anatomy.body(input_ids=torch.tensor([ids], device=self.model.device), use_cache=False)
            entering, leaving = noted[0]
            everything = torch.ones(1, len(ids), dtype=torch.bool, device=leaving.device)
            chosen, _ = self._choose(entering.view(1, len(ids), -1), leaving.view(1, len(ids), -1), everything)
            routed.append(int(chosen[0]))
        return routed

    def begin(self, entering: Tensor, leaving: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor | None]:
        """Each row by the memory that its prompt is routed to."""
        chosen, outputs = self._choose(entering, leaving, prompt)
        return _taken(leaving, outputs, chosen), chosen

    def go_on(self, entering: Tensor, leaving: Tensor, known: Tensor | None) -> Tensor:
        """Each row by the memory that its prompt was routed to."""
        if known is None or not (known >= 0).any():
            return leaving
        outputs = [memory.output(self._projection, entering) for memory in self.memories]
        return _taken(leaving, outputs, known)

    @usual_gradients
    def forget(self, results: Sequence[EditResult]) -> None:
        """Train the facts from the first forgotten one's shard on again, without it.

        Raises:
            NumericalError: A loss is not finite; everything is as it was then.
        """
        before, dropped = self._state, {id(result) for result in results}
        first = min(at for at, result in enumerate(before.results) if id(result) in dropped)
        state = before.shards[first // self.config.shard_size]
        begun = len(state.results)
        kept = [result for result in before.results[begun:] if id(result) not in dropped]
        with self._resources.progress.task("writing again", len(kept), "facts") as task:
            for result in kept:
                state, figures, _ = self._told(state, result.fact)
                again = replace(result, figures=figures)
                state = replace(state, results=(*state.results[:-1], again))
                task.advance()
        self._set(state)
        try:
            asked = with_status(self.model, state.results[begun:])
        except BaseException:
            self._set(before)
            raise
        self._state = self._with_results(self._state, asked)

    def held(self) -> Sequence[WrittenBatch]:
        """See ``HoldsFacts.held``: the last fact of a shard has its entries, the others their distances alone."""
        state, size = self._state, self.config.shard_size
        batches = []
        for at, (result, least) in enumerate(zip(state.results, state.distances, strict=True)):
            tensors = {"distance": _exactly(least)}
            if at % size == size - 1 or at == len(state.results) - 1:
                tensors["entries"] = state.entries[at // size]
            batches.append(WrittenBatch((result,), numbered(0, tensors)))
        return batches

    def _empty(self) -> _State:
        return _State()

    def _told(self, state: _State, fact: Fact) -> tuple[_State, Mapping[str, Any], Tensors]:
        state, mask = self._shard(state)
        assert state.current is not None
        weight, least, figures = self._train(state.current.weight, mask, fact)
        entries = weight[mask]
        state = self._with_fact(state, EditResult(fact, 0.0), weight, entries, least)
        return state, figures, {"entries": entries, "distance": _exactly(least)}

    def _replayed(self, batch: WrittenBatch) -> _State:
        state = self._state
        for number, result in enumerate(batch.results):
            found = tensors_of(batch, number)
            state, mask = self._shard(state)
            assert state.current is not None
            weight = state.current.weight.clone()
            if "entries" in found:  # else a later fact of the shard has them
                weight[mask] = found["entries"].to(weight)
            state = self._with_fact(state, result, weight, weight[mask], float(found["distance"]))
        return state

    def _with_results(self, state: _State, results: Sequence[EditResult]) -> _State:
        return replace(state, results=with_last(state.results, results))

    def _shard(self, state: _State) -> tuple[_State, Tensor]:
        """``state`` with a memory to write to, and the entries ``(d_out, d_in)`` that its shard trains."""
        original = original_weight(self._projection)
        if state.current is None:
            state = replace(state, current=Memory(original, torch.inf), shards=(*state.shards, state))
        generator = seed_of(self.config.seed, "mask", len(state.shards))
        drawn = torch.rand(original.shape, generator=generator) < self.config.mask_share
        return state, drawn.to(original.device)

    def _with_fact(self, state: _State, result: EditResult, weight: Tensor, entries: Tensor, least: float) -> _State:
        """One fact more, its shard stored if it is full, and shards merged if it is time."""
        assert state.current is not None
        current: Memory | None = Memory(weight, min(state.current.least, least))
        results, stored = (*state.results, result), state.stored
        if len(results) % self.config.shard_size == 0 and current is not None:
            stored, current = (*stored, current), None
        if len(results) % self.config.merge_every == 0:
            stored = self._merged(stored)
        return replace(
            state,
            results=results,
            stored=stored,
            current=current,
            entries=(*state.entries[: len(state.shards) - 1], entries),
            distances=(*state.distances, least),
        )

    def _merged(self, stored: tuple[Memory, ...]) -> tuple[Memory, ...]:
        """The memories of the last ``merge_every`` facts as one."""
        count = self.config.merge_every // self.config.shard_size
        last = stored[-count:]
        original = original_weight(self._projection)
        weight = merge_ties(original, [memory.weight for memory in last], self.config.merge_density)
        return (*stored[:-count], Memory(weight, min(memory.least for memory in last)))

    def _train(self, start: Tensor, mask: Tensor, fact: Fact) -> tuple[Tensor, float, Mapping[str, Any]]:
        """The matrix ``(d_out, d_in)`` after training, the distance of the fact's prompts then, and figures."""
        original, settings = original_weight(self._projection), self.config
        tail = self._encode(fact)
        weight, steps, last = start.clone().requires_grad_(), 0, torch.inf
        while steps < settings.steps:
            loss, _, _ = self._loss(tail, weight)
            if loss.item() <= settings.stop_loss and abs(loss.item() - last) <= _STILL:
                break
            last, steps = loss.item(), steps + 1
            (slope,) = torch.autograd.grad(loss, weight)
            with torch.no_grad():
                weight -= settings.learning_rate * mask * (slope + settings.weight_decay * weight)
                if settings.norm_limit is not None:
                    weight.clamp_(original - settings.norm_limit, original + settings.norm_limit)
        with torch.no_grad():
            loss, inside, outside = self._loss(tail, weight)
        if not torch.isfinite(loss):
            raise NumericalError("training a side memory did not stay finite.", hint="Lower learning_rate.")
        least = float(inside.mean())
        figures = {"loss": loss.item(), "steps": steps, "distance": least, "unrelated": float(outside)}
        return weight.detach(), least, figures

    def _encode(self, fact: Fact) -> Tail:
        """The fact in all contexts, and an unrelated prompt without a target as the last row."""
        texts = [Prompt.fill(context, fact.prompt, fact.subject).text for context in self.contexts]
        pairs = self.model.encode_pairs([(text, fact.target_new, fact.joint) for text in texts])
        drawn = torch.randint(len(self.unrelated), (1,), generator=seed_of(self.config.seed, fact.text))
        unrelated = tokenize(self.model.tokenizer, self.unrelated[int(drawn)])
        return Tail(self.model, self.layer, [*pairs, (unrelated, [])])

    def _loss(self, tail: Tail, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of the answer and of the margins; distances ``(n,)`` of the fact's prompts and ``()`` of the other."""
        found: list[Tensor] = []

        def by_memory(entering: Tensor, leaving: Tensor) -> Tensor:
            moved = Memory(weight, 0).output(self._projection, entering)
            found.append(distances(self._activation, leaving, moved, tail.prompt.to(leaving.device)))
            return moved

        answered = tail.run(by_memory).loss
        inside, outside = found[0][:-1], found[0][-1]
        settings = self.config
        margins = (
            (outside - settings.outside_limit)[None],
            settings.inside_limit - inside,
            outside - inside + settings.margin,
        )
        return answered + torch.stack([_mean_positive(each) for each in margins]).sum(), inside, outside

    def _choose(self, entering: Tensor, leaving: Tensor, prompt: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``(n,)`` the memory of each row, and the output ``(n, width, d_out)`` of each memory."""
        outputs = [memory.output(self._projection, entering) for memory in self.memories]
        found = torch.stack([served_distances(self._activation, leaving, each, prompt) for each in outputs])
        return choose(found, self.memories, self.config.routing_ratio), outputs

    @contextmanager
    def _noting(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """What enters and leaves the projection."""
        noted: list[tuple[Tensor, Tensor]] = []
        handle = self._projection.register_forward_hook(lambda _, args, output: noted.append((args[0], output)))
        try:
            yield noted
        finally:
            handle.remove()


def _taken(leaving: Tensor, outputs: Sequence[Tensor], chosen: Tensor) -> Tensor:
    """``leaving`` with the rows that are ``chosen`` for one of ``outputs`` from there."""
    for number, output in enumerate(outputs):
        leaving = torch.where((chosen == number)[:, None, None], output, leaving)
    return leaving


def _exactly(distance: float) -> Tensor:
    return torch.tensor(distance, dtype=torch.float64)


def _mean_positive(values: Tensor) -> Tensor:
    """Mean of the values above zero; zero where there is none."""
    above = values > 0
    return values.clamp(min=0).sum() / above.sum().clamp(min=1)

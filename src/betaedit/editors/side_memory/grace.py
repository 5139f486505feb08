"""GRACE: a codebook of keys and trained values at one layer (methods.md F.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from betaedit.editors.method import EditResult, MemoryUse, WrittenBatch
from betaedit.editors.side_memory.base import SideEditor, Tensors, numbered, seed_of, tensors_of, with_last
from betaedit.editors.side_memory.codebook import Codebook, Label
from betaedit.editors.side_memory.config import GraceConfig
from betaedit.editors.side_memory.tail import Pass, Tail
from betaedit.errors import NumericalError
from betaedit.facts.fact import Fact
from betaedit.models.anatomy import projection_shape
from betaedit.models.gradients import usual_gradients
from betaedit.models.load import LanguageModel
from betaedit.models.prompt_hook import last_of


@dataclass(frozen=True)
class _Learned:
    """What one fact came to, and from what: where that is the same again, so is the outcome.

    Args:
        query: ``(d_in,)`` the key of its prompt's last token.
        served: ``(d_out,)`` the value that its prompt found before; nothing if none.
        start: ``(d_out,)`` where the training of its value began; nothing where the model said the fact already.
        value: ``(d_out,)`` where it ended.
    """

    query: Tensor
    served: Tensor | None
    start: Tensor | None
    value: Tensor | None

    def tensors(self) -> Tensors:
        """Those there are, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class _State:
    """The facts told, each with what it came to, and the codebook that follows from them."""

    results: tuple[EditResult, ...]
    learned: tuple[_Learned, ...]
    book: Codebook

    def with_one(self, result: EditResult, learned: _Learned, book: Codebook) -> _State:
        """One fact more."""
        return _State((*self.results, result), (*self.learned, learned), book)


class Grace(SideEditor[_State]):
    """One model with a codebook.

    A fact told again with another answer takes the earlier one's place. Forgetting makes the codebook that the other
    facts make by themselves, told in their order: bit for bit that of a model that was never told the fact.

    Args:
        model: Unedited.
        config: Hyper-parameters.
    """

    def __init__(self, model: LanguageModel, config: GraceConfig) -> None:
        self.config = config
        super().__init__(model, config)

    @property
    def results(self) -> Sequence[EditResult]:
        """One per fact that the model holds."""
        return self._state.results

    @property
    def codebook(self) -> Codebook:
        """The entries as they are now."""
        return self._state.book

    @property
    def memory_use(self) -> MemoryUse:
        """See ``HoldsMemory``; what each fact came to is kept for forgetting."""
        book = self.codebook
        learned = [tensor for each in self._state.learned for tensor in vars(each).values() if tensor is not None]
        return MemoryUse(
            {"codebook": book.keys.nbytes + book.values.nbytes + book.radii.nbytes},
            {"what the facts came to": sum(tensor.nbytes for tensor in learned)},
        )

    def begin(self, entering: Tensor, leaving: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor | None]:
        """The value of the entry that the last token of a row's prompt is within, in its output's place."""
        last = last_of(prompt)
        found = torch.full((len(prompt),), -1, device=prompt.device)
        found[prompt.any(dim=1)] = self.codebook.find(entering[last])
        hits = found >= 0
        if not hits.any():
            return leaving, None
        values = self.codebook.values.to(leaving)[found.clamp(min=0)]
        where = self._where(last, prompt) & hits[:, None]
        return torch.where(where[..., None], values[:, None], leaving), None

    def go_on(self, entering: Tensor, leaving: Tensor, known: Tensor | None) -> Tensor:
        """Nothing is looked up behind the prompt."""
        return leaving

    @usual_gradients
    def forget(self, results: Sequence[EditResult]) -> None:
        """The codebook without these facts; a value that another one's began from is trained anew.

        Raises:
            NumericalError: A loss is not finite; everything is as it was then.
        """
        dropped = {id(result) for result in results}
        self._set(self._rebuilt(self._state, [id(result) not in dropped for result in self._state.results]))

    def held(self) -> Sequence[WrittenBatch]:
        """See ``HoldsFacts.held``."""
        pairs = zip(self._state.results, self._state.learned, strict=True)
        return [WrittenBatch((result,), numbered(0, learned.tensors())) for result, learned in pairs]

    def _empty(self) -> _State:
        projection = self.model.anatomy.projection(self.layer)
        d_out, d_in = projection_shape(projection)
        device = projection.get_parameter("weight").device
        return _State((), (), Codebook.empty(d_in, d_out, self.config.radius, device))

    def _told(self, state: _State, fact: Fact) -> tuple[_State, Mapping[str, Any], Tensors]:
        state = self._without(state, fact)
        book, learned, figures = self._learn(state.book, fact)
        return state.with_one(EditResult(fact, 0.0), learned, book), figures, learned.tensors()

    def _replayed(self, batch: WrittenBatch) -> _State:
        state = self._state
        device = state.book.keys.device
        for number, result in enumerate(batch.results):
            state = self._without(state, result.fact)
            found = {name: value.to(device) for name, value in tensors_of(batch, number).items()}
            known = _Learned(found["query"], found.get("served"), found.get("start"), found.get("value"))
            book, learned, _ = self._learn(state.book, result.fact, known)
            state = state.with_one(result, learned, book)
        return state

    def _with_results(self, state: _State, results: Sequence[EditResult]) -> _State:
        return replace(state, results=with_last(state.results, results))

    def _without(self, state: _State, fact: Fact) -> _State:
        """``state`` without an earlier answer to the prompt of ``fact``."""
        kept = [result.fact.text != fact.text for result in state.results]
        return state if all(kept) else self._rebuilt(state, kept)

    def _rebuilt(self, state: _State, kept: Sequence[bool]) -> _State:
        """What the ``kept`` facts of ``state`` make by themselves, told in their order."""
        rebuilt = self._empty()
        for result, known, is_kept in zip(state.results, state.learned, kept, strict=True):
            if is_kept:
                book, learned, figures = self._learn(rebuilt.book, result.fact, known)
                changed = result if learned is known else replace(result, figures=figures)
                rebuilt = rebuilt.with_one(changed, learned, book)
        return rebuilt

    def _learn(
        self, book: Codebook, fact: Fact, known: _Learned | None = None
    ) -> tuple[Codebook, _Learned, Mapping[str, Any]]:
        """The codebook with ``fact``; what is ``known`` of it is not computed again where it still holds."""
        ((prompt, target),) = self.model.encode_pairs([(fact.text, fact.target_new, fact.joint)])
        label: Label = tuple(target)
        tail = None if known else Tail(self.model, self.layer, [(prompt, target)])
        query = known.query if known else tail.keys()[0, len(prompt) - 1].float()  # type: ignore[union-attr]
        entry = int(book.find(query[None])[0])
        served = None if entry < 0 else book.values[entry].clone()
        told, at = book.tell(query, label, self._noise(book, fact, label))
        start = told.values[at].clone()
        if known and _same(known.served, served) and (known.start is None or _same(known.start, start)):
            return (book if known.value is None else told.with_value(at, known.value)), known, {}
        tail = tail or Tail(self.model, self.layer, [(prompt, target)])
        if self.config.only_wrong and self._pass(tail, served).is_said:
            return book, _Learned(query, served, None, None), {"entries": len(book), "steps": 0}
        value, loss = self._train(tail, start)
        figures = {"entries": len(told), "steps": self.config.steps, "loss": loss, "radius": float(told.radii[at])}
        return told.with_value(at, value), _Learned(query, served, start, value), figures

    def _noise(self, book: Codebook, fact: Fact, label: Label) -> Tensor:
        """Uniform on (0, 1), of the fact alone: so forgetting another one changes nothing."""
        generator = seed_of(self.config.seed, fact.text, label)
        return torch.rand(book.values.shape[1], generator=generator).to(book.values)

    def _train(self, tail: Tail, start: Tensor) -> tuple[Tensor, float]:
        """The value after training, and the loss with it."""
        value = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([value], lr=self.config.learning_rate)
        for _ in range(self.config.steps):
            optimizer.zero_grad()
            self._pass(tail, value).loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            loss = self._pass(tail, value).loss
        if not torch.isfinite(loss):
            raise NumericalError("training a value did not stay finite.", hint="Lower learning_rate.")
        return value.detach(), loss.item()

    def _pass(self, tail: Tail, value: Tensor | None) -> Pass:
        """The model with ``value`` at the fact's prompt."""
        where = self._where(last_of(tail.prompt), tail.prompt)[..., None]
        return tail.run(
            lambda _, leaving: (
                leaving if value is None else torch.where(where.to(leaving.device), value.to(leaving), leaving)
            )
        )

    def _where(self, last: Tensor, prompt: Tensor) -> Tensor:
        """``(n, width)`` where a value takes the output's place."""
        return prompt if self.config.replacement == "prompt" else last


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)

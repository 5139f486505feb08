"""Facts kept as text under an index, and the prompts that they are put before."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor

from betaedit.editors.retrieval.index import Index
from betaedit.editors.retrieval.prompts import sentence
from betaedit.evaluation.latency import timed_part
from betaedit.facts.fact import Fact

_MOST_SHOWN = 10

PutBefore = Callable[[Sequence[str]], list[str]]
"""From prompts to what is put before the model in their place."""


class FactMemory:
    """The ``frame`` of a model, which ``Retrieves``: facts, each in the place of an earlier one with its question.

    Adding a fact costs its own encoding.

    Args:
        index: Finds them; empty.

    ``put_before`` is what prompts become, and ``demonstrated`` gives the bytes of what it reads beside the facts, by
    what they are; both are set once, by who has the memory.
    """

    def __init__(self, index: Index) -> None:
        self.put_before: PutBefore = list
        self.demonstrated: Callable[[], Mapping[str, int]] = dict
        self._index = index
        self._facts: dict[int, Fact] = {}
        self._next = 0
        self._hidden: frozenset[int] = frozenset()
        self._framed: dict[str, str] = {}
        self._aside = False

    @property
    def facts(self) -> list[Fact]:
        """Those kept, in the order in which they were added."""
        return [fact for key, fact in self._facts.items() if key not in self._hidden]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of what answering reads, by what it is; nothing without facts."""
        if not self._facts:
            return {}
        texts = sum(len(sentence(fact).encode()) for fact in self._facts.values())
        return {"facts": texts, **self._index.sizes, **self.demonstrated()}

    @property
    def encoded(self) -> list[Mapping[str, Tensor]]:
        """What each of ``facts`` was added with, as ``adding`` takes it."""
        return [self._index.encoded(key) for key in self._facts if key not in self._hidden]

    def retrieve(self, prompts: Sequence[str], k: int) -> list[list[Fact]]:
        """The ``k`` facts that are nearest to each prompt, best first; fewer where the index finds fewer."""
        with timed_part("retrieval"):
            found = self._index.top(prompts, k + len(self._hidden))
        return [[self._facts[key] for key in keys if key not in self._hidden][:k] for keys in found]

    def shown(self, prompts: Sequence[str]) -> list[list[Fact]]:
        """See ``evaluation.retrieval.Retrieves``."""
        rows = zip(self(prompts), prompts, self.retrieve(prompts, _MOST_SHOWN), strict=True)
        return [[fact for fact in facts if text != prompt and sentence(fact) in text] for text, prompt, facts in rows]

    def __call__(self, prompts: Sequence[str], *, fresh: bool = False) -> list[str]:
        """See ``models.load.Frame``."""
        if self._aside or not self._facts:
            return list(prompts)
        new = [prompt for prompt in dict.fromkeys(prompts) if fresh or prompt not in self._framed]
        self._framed.update(zip(new, self.put_before(new), strict=True))
        return [self._framed[prompt] for prompt in prompts]

    @contextmanager
    def adding(
        self, facts: Sequence[Fact], encoded: Mapping[str, Tensor] | None = None
    ) -> Iterator[Mapping[str, Tensor]]:
        """A context with ``facts`` added, which are taken out again where it does not end well.

        Args:
            facts: The facts.
            encoded: What this context gave for the same facts before; made when not given.
        """
        texts = [sentence(fact) for fact in facts]
        made = self._index.encode(texts) if encoded is None else encoded
        keys = range(self._next, self._next + len(facts))
        self._next += len(facts)
        try:
            self._facts.update(zip(keys, facts, strict=True))
            self._index.add(keys, texts, made)
            with self._without(self._replaced(facts)):
                yield made
        except BaseException:
            self._remove(keys)
            raise

    @contextmanager
    def dropping(self, facts: Collection[Fact]) -> Iterator[None]:
        """A context without ``facts``, which are there again where it does not end well."""
        with self._without([key for key, fact in self._facts.items() if fact in facts]):
            yield

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A context in which prompts are as they are."""
        before, self._aside = self._aside, True
        try:
            yield
        finally:
            self._aside = before

    def clear(self) -> None:
        """Drop all facts."""
        self._remove(list(self._facts))

    def _replaced(self, facts: Sequence[Fact]) -> list[int]:
        """Keys of the facts that a later one with the same prompt and subject replaces."""
        asked = {(fact.prompt, fact.subject) for fact in facts}
        last: dict[tuple[str, str], int] = {}
        gone = []
        for key, fact in self._facts.items():
            question = (fact.prompt, fact.subject)
            if question not in asked:
                continue
            if question in last:
                gone.append(last[question])
            last[question] = key
        return gone

    @contextmanager
    def _without(self, keys: Sequence[int]) -> Iterator[None]:
        """A context in which these are not found; where it ends well, they are gone."""
        self._hidden = frozenset(keys)
        self._framed.clear()
        try:
            yield
        finally:
            self._hidden = frozenset()
            self._framed.clear()  # what was found under weights that were still being written
        self._remove(keys)

    def _remove(self, keys: Sequence[int]) -> None:
        held = [key for key in keys if key in self._facts]
        for key in held:
            del self._facts[key]
        self._index.remove(held)
        self._framed.clear()

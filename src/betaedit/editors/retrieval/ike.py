"""In-context editing (IKE): a new fact and demonstrations of how new facts are used stand before a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from betaedit.editors.retrieval.framing import Framing
from betaedit.editors.retrieval.index import Index
from betaedit.editors.retrieval.prompts import new_fact_prompt, sentence
from betaedit.evaluation.latency import timed_part
from betaedit.facts.fact import EvaluationCase


class InContext:
    """Puts the fact that is nearest to a prompt before it, untested, with demonstrations before both.

    Args:
        framing: Finds the fact.
        index: Finds demonstrations; empty.
        cases: What demonstrations are made of.
        n_demonstrations: How many stand before a prompt; fewer where the model has too few positions.
    """

    def __init__(
        self,
        framing: Framing,
        index: Index,
        cases: Sequence[EvaluationCase],
        n_demonstrations: int,
    ) -> None:
        self._framing, self._index, self._cases = framing, index, cases
        self._n = n_demonstrations
        self._texts: list[str] = []

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of the demonstrations and of what finds them, by what they are; nothing before the first prompt."""
        if not self._texts:
            return {}
        texts = sum(len(text.encode()) for text in self._texts)
        found_by = {
            name if name == "encoder" else f"{name} of demonstrations": size for name, size in self._index.sizes.items()
        }
        return {"demonstrations": texts, **found_by}

    def put_before(self, prompts: Sequence[str]) -> list[str]:
        """Each prompt behind its fact and the demonstrations nearest to both."""
        found = self._framing.memory.retrieve(prompts, 1)
        newest = self._framing.memory.facts[-1]  # stands before a prompt that shares no word with any
        facts = [sentence(nearest[0] if nearest else newest) for nearest in found]
        asked = [new_fact_prompt([fact], prompt) for fact, prompt in zip(facts, prompts, strict=True)]
        rows = zip(self._nearest(asked), asked, prompts, strict=True)
        return [self._framed(shown, text, prompt) for shown, text, prompt in rows]

    def _framed(self, shown: list[str], text: str, prompt: str) -> str:
        """As many of the demonstrations as fit, the nearest ones."""
        while shown and not self._framing.fits(_joined(shown, text)):
            shown = shown[: len(shown) // 2]
        return self._framing.or_bare(_joined(shown, text), prompt)

    def _nearest(self, asked: Sequence[str]) -> list[list[str]]:
        if self._n == 0:
            return [[] for _ in asked]
        if not self._texts:
            self._texts = [text for case in self._cases for text in _demonstrations(case)]
            self._index.add(range(len(self._texts)), self._texts, self._index.encode(self._texts))
        with timed_part("retrieval"):
            found = self._index.top(asked, self._n)
        return [[self._texts[key] for key in keys] for keys in found]


def _demonstrations(case: EvaluationCase) -> Iterator[str]:
    """The fact copied, its paraphrases answered with it, and neighbors that keep their answer."""
    fact, whole = case.fact, sentence(case.fact)
    yield f"{new_fact_prompt([whole], fact.text)} {fact.target_new}"
    for paraphrase in case.paraphrases:
        yield f"{new_fact_prompt([whole], paraphrase)} {fact.target_new}"
    for probe in case.neighbors:
        if probe.target:
            yield f"{new_fact_prompt([whole], probe.prompt)} {probe.target}"


def _joined(shown: Sequence[str], text: str) -> str:
    return "\n\n".join([*shown, text])

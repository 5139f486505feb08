"""The facts a model holds, and which of them a new one concerns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from betaedit.editors.config import EditConfig
from betaedit.errors import FactError, did_you_mean
from betaedit.facts.fact import Fact
from betaedit.memory.conflicts import Associations

if TYPE_CHECKING:
    from betaedit.editors.engine import EditResult


@dataclass(frozen=True, eq=False)
class LiveFact:
    """A fact that the weights hold.

    Bytes: ``4 (d_in + d_out)`` per edited layer in float32, on the CPU.

    Args:
        result: What writing it took.
        batch: Number of the batch it was written with, rising.
        written: What it asked of the change of each layer's matrix: the value wanted beyond what the unedited matrix
            answers to its key.
    """

    result: EditResult
    batch: int
    written: Mapping[int, Associations]

    @property
    def fact(self) -> Fact:
        """The fact itself."""
        return self.result.fact


def in_the_way(live: Iterable[LiveFact], facts: Iterable[Fact], config: EditConfig) -> list[LiveFact]:
    """The live facts whose contributions must go before ``facts`` are written.

    Those with the prompt and subject of a new one when conflicts are replaced, and all of its subject when facts of
    one subject share a value.
    """
    concerned = {_concern(fact, config) for fact in facts} - {None}
    return [held for held in live if concerned and _concern(held.fact, config) in concerned]


def to_be_kept(leaving: Iterable[LiveFact], facts: Iterable[Fact], config: EditConfig) -> list[Fact]:
    """Those of the facts ``leaving`` that ``facts`` do not replace: they are to be written again with them."""
    replaced = {_question(fact) for fact in facts} if config.conflicts == "replace" else set()
    return [held.fact for held in leaving if _question(held.fact) not in replaced]


def in_batches(facts: Sequence[Fact], size: int, config: EditConfig) -> Iterator[list[Fact]]:
    """``facts``, ``size`` at a time; where conflicts are replaced, a batch ends early before a second answer."""
    for at in range(0, len(facts), size):
        batch: list[Fact] = []
        for fact in facts[at : at + size]:
            if config.conflicts == "replace" and _question(fact) in map(_question, batch):
                yield batch
                batch = []
            batch.append(fact)
        yield batch


def windows(batches: Iterable[list[Fact]], live: list[LiveFact], config: EditConfig) -> Iterator[list[list[Fact]]]:
    """Batches whose values can be sought together: none concerns another, and one that concerns a live fact is alone.

    Batches about one subject are not sought together where facts of a batch share their value.

    ``live`` is looked at again for each batch that is reached.
    """
    window: list[list[Fact]] = []
    concerned: set[object] = set()
    for batch in batches:
        own = {_shared(fact, config) for fact in batch} - {None}
        if window and (own & concerned or in_the_way(live, batch, config)):
            yield window
            window, concerned = [], set()
        if in_the_way(live, batch, config):
            yield [batch]
            continue
        window.append(batch)
        concerned |= own
    if window:
        yield window


def find(live: Sequence[LiveFact], name: str) -> list[LiveFact]:
    """The live facts with the id ``name``; without one, those about the subject ``name``.

    Raises:
        FactError: There is none; the nearest names are suggested.
    """
    found = [held for held in live if held.fact.id == name] or [held for held in live if held.fact.subject == name]
    if found:
        return found
    if not live:
        raise FactError(f"there is no fact {name!r} to forget.", mend="Nothing is written in this model.")
    names = {held.fact.subject for held in live} | {held.fact.id for held in live if held.fact.id is not None}
    mend = did_you_mean(name, names, "Name the subject or the id of a fact that was written.", n=3)
    raise FactError(f"there is no fact {name!r} to forget.", mend=mend)


def sharing_a_key(held: Iterable[Fact], facts: Iterable[Fact], config: EditConfig) -> list[Fact]:
    """Those of ``facts`` that, written apart, weaken a fact held or before them: its subject in another prompt."""
    if config.shared_subjects != "apart" or config.lookup == "last":
        return []
    asked: dict[str, set[str]] = {}
    for fact in held:
        asked.setdefault(fact.subject, set()).add(fact.prompt)
    found = []
    for fact in facts:
        prompts = asked.setdefault(fact.subject, set())
        if prompts - {fact.prompt}:
            found.append(fact)
        prompts.add(fact.prompt)
    return found


def _question(fact: Fact) -> tuple[str, str]:
    return fact.prompt, fact.subject


def _concern(fact: Fact, config: EditConfig) -> object:
    """What two facts have in common when one concerns the other; ``None`` concerns nothing."""
    if config.shared_subjects == "together":
        return fact.subject
    return _question(fact) if config.conflicts == "replace" else None


def _shared(fact: Fact, config: EditConfig) -> object:
    """What two facts have in common when a search for both is another than one for each; ``None`` is nothing."""
    return _concern(fact, config) if config.shared_subjects == "apart" else fact.subject

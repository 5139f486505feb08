"""The facts a model holds, and which of them a new one concerns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
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


def holding_traces(live: Iterable[LiveFact], leaving: Sequence[LiveFact], config: EditConfig) -> list[list[LiveFact]]:
    """The live facts whose values were sought with a trace of those ``leaving``, in batches to be sought again.

    These are the facts with its key that were written after one of them, and with it where a batch shares a value; all
    of its subject where all share one. Later facts with other keys were sought on slightly other weights, no more.
    """
    if config.shared_subjects == "together":
        concerned = in_the_way(live, (held.fact for held in leaving), config)
        sharing = [held for held in concerned if held not in leaving]
        return [sharing] if sharing else []
    first: dict[object, int] = {}
    for held in leaving:
        key = _key(held.fact, config)
        first[key] = min(held.batch, first.get(key, held.batch))
    least = 0 if config.shared_subjects == "batch" else 1
    later = [
        held
        for held in live
        if held not in leaving and (key := _key(held.fact, config)) in first and held.batch >= first[key] + least
    ]
    return [list(batch) for _, batch in groupby(later, key=lambda held: held.batch)]


def find(live: Sequence[LiveFact], name: str | Fact, *, all_matching: bool = False) -> list[LiveFact]:
    """The live fact that is ``name`` or has it for its id; without one, that about the subject ``name``.

    Args:
        live: The facts that the weights hold.
        name: A fact, an id, or a subject.
        all_matching: Whether an id or subject may mean several facts.

    Raises:
        FactError: There is none, and the nearest names are suggested; or there are several, and they are listed.
    """
    if isinstance(name, Fact):
        found = [held for held in live if held.fact == name]
        name = name.text
    else:
        found = [held for held in live if held.fact.id == name] or [held for held in live if held.fact.subject == name]
        if len(found) > 1 and not all_matching:
            listed = "; ".join(f"{held.fact.text} -> {held.fact.target_new}" for held in found)
            raise FactError(
                f"{name!r} means {len(found)} facts: {listed}.",
                hint="Give the Fact itself (results lists them), or all_matching=True to take all of them.",
            )
    if found:
        return found
    if not live:
        raise FactError(f"there is no fact {name!r} to forget.", hint="Nothing is written in this model.")
    names = {held.fact.subject for held in live} | {held.fact.id for held in live if held.fact.id is not None}
    hint = did_you_mean(name, names, "Name the subject or the id of a fact that was written.", n=3)
    raise FactError(f"there is no fact {name!r} to forget.", hint=hint)


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


def sharing_an_id(held: Iterable[Fact], facts: Iterable[Fact], config: EditConfig) -> list[str]:
    """The ids of ``facts`` under which another fact is held, and stays: they name none of the two alone."""
    named: dict[str | None, list[Fact]] = {}
    for fact in held:
        named.setdefault(fact.id, []).append(fact)
    replaces = config.conflicts == "replace"
    return [
        fact.id
        for fact in facts
        if fact.id is not None
        and any(
            _question(other) != _question(fact) or not (replaces or other.target_new == fact.target_new)
            for other in named.get(fact.id, ())
        )
    ]


def _key(fact: Fact, config: EditConfig) -> object:
    """What two facts have in common when their keys nearly coincide."""
    return _question(fact) if config.lookup == "last" else fact.subject


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

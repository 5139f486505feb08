"""The facts written into a model, and which of them have to be removed, rewritten or searched again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from betaedit.editors.closed_form.config import EditConfig
from betaedit.facts.fact import Fact
from betaedit.memory.conflicts import Associations

if TYPE_CHECKING:
    from betaedit.editors.method import EditResult


@dataclass(frozen=True, eq=False)
class LiveFact:
    """A fact that the weights hold.

    Bytes: ``4 (d_in + d_out)`` per edited layer in float32, on the CPU.

    Args:
        result: What writing it took.
        batch: Number of the batch it was written with, rising.
        written: By layer, its keys and the residuals wanted there: what the change of the matrix has to add to
            the output of the unedited matrix.
    """

    result: EditResult
    batch: int
    written: Mapping[int, Associations]

    @property
    def fact(self) -> Fact:
        """The fact itself."""
        return self.result.fact


def facts_to_remove(live: Iterable[LiveFact], facts: Iterable[Fact], config: EditConfig) -> list[LiveFact]:
    """The live facts whose contributions have to be removed before ``facts`` are written.

    Those with the prompt and subject of a new one when conflicts are replaced, and all of its subject when facts of
    one subject share a value.
    """
    concerned = {_concern(fact, config) for fact in facts} - {None}
    return [held for held in live if concerned and _concern(held.fact, config) in concerned]


def facts_to_rewrite(removed: Iterable[LiveFact], facts: Iterable[Fact], config: EditConfig) -> list[Fact]:
    """The facts among ``removed`` that ``facts`` do not replace. They are written again together with ``facts``."""
    replaced = {_question(fact) for fact in facts} if config.conflicts == "replace" else set()
    return [held.fact for held in removed if _question(held.fact) not in replaced]


def split_into_batches(facts: Sequence[Fact], size: int, config: EditConfig) -> Iterator[list[Fact]]:
    """``facts``, ``size`` at a time; where conflicts are replaced, a batch ends early before a second answer."""
    for at in range(0, len(facts), size):
        batch: list[Fact] = []
        for fact in facts[at : at + size]:
            if config.conflicts == "replace" and _question(fact) in map(_question, batch):
                yield batch
                batch = []
            batch.append(fact)
        yield batch


def search_windows(
    batches: Iterable[list[Fact]], live: list[LiveFact], config: EditConfig
) -> Iterator[list[list[Fact]]]:
    """Groups of batches whose values can be searched together.

    No batch of a group removes facts of another one. A batch that removes live facts is a group of its own. Batches
    about one subject are not searched together where the facts of a batch share their value. ``live`` is read again for
    each batch.
    """
    window: list[list[Fact]] = []
    concerned: set[object] = set()
    for batch in batches:
        own = {_shared(fact, config) for fact in batch} - {None}
        if window and (own & concerned or facts_to_remove(live, batch, config)):
            yield window
            window, concerned = [], set()
        if facts_to_remove(live, batch, config):
            yield [batch]
            continue
        window.append(batch)
        concerned |= own
    if window:
        yield window


def facts_to_search_again(
    live: Iterable[LiveFact], removed: Sequence[LiveFact], config: EditConfig
) -> list[list[LiveFact]]:
    """The live facts whose values depend on a removed one, by batch: their values are searched again.

    These are the facts that have the key of a removed fact and were written after it, or in its batch where a batch
    shares a value; with ``shared_subjects=together``, all facts of its subject. Later facts with other keys depend on a
    removed fact only through slightly different weights, and keep their values.
    """
    if config.shared_subjects == "together":
        concerned = facts_to_remove(live, (held.fact for held in removed), config)
        sharing = [held for held in concerned if held not in removed]
        return [sharing] if sharing else []
    first: dict[object, int] = {}
    for held in removed:
        key = _key(held.fact, config)
        first[key] = min(held.batch, first.get(key, held.batch))
    least = 0 if config.shared_subjects == "batch" else 1
    later = [
        held
        for held in live
        if held not in removed and (key := _key(held.fact, config)) in first and held.batch >= first[key] + least
    ]
    return [list(batch) for _, batch in groupby(later, key=lambda held: held.batch)]


def sharing_a_key(held: Iterable[Fact], facts: Iterable[Fact], config: EditConfig) -> list[Fact]:
    """Those of ``facts`` that, written apart, weaken an earlier fact: one of the same subject with another prompt."""
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
    """The ids of ``facts`` that another fact has which stays in the model: such an id is ambiguous."""
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
    """What two facts have in common if their values cannot be searched together; ``None`` is nothing."""
    return _concern(fact, config) if config.shared_subjects == "apart" else fact.subject

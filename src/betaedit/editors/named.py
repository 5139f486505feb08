"""Find facts that a model holds: by the fact itself, its id, or its subject."""

from __future__ import annotations

from collections.abc import Sequence

from betaedit.editors.method import EditResult
from betaedit.errors import FactError, did_you_mean
from betaedit.facts.fact import Fact


def find_results(held: Sequence[EditResult], name: str | Fact, *, all_matching: bool = False) -> list[EditResult]:
    """The results whose fact is ``name`` or has that id; if there is none, those of the subject ``name``.

    Args:
        held: One per fact that the model holds.
        name: A fact, an id, or a subject.
        all_matching: Whether an id or subject may match several facts.

    Raises:
        FactError: There is none, and the nearest names are suggested; or there are several, and they are listed.
    """
    if isinstance(name, Fact):
        found = [one for one in held if one.fact == name]
        name = name.text
    else:
        found = [one for one in held if one.fact.id == name] or [one for one in held if one.fact.subject == name]
        if len(found) > 1 and not all_matching:
            listed = "; ".join(f"{one.fact.text} -> {one.fact.target_new}" for one in found)
            raise FactError(
                f"{name!r} matches {len(found)} facts: {listed}.",
                hint="Give the Fact itself (see results), or all_matching=True for all of them.",
            )
    if found:
        return found
    if not held:
        raise FactError(f"there is no fact {name!r} to forget.", hint="No facts are written into this model.")
    names = {one.fact.subject for one in held} | {one.fact.id for one in held if one.fact.id is not None}
    hint = did_you_mean(name, names, "Name the subject or the id of a fact that was written.", n=3)
    raise FactError(f"there is no fact {name!r} to forget.", hint=hint)

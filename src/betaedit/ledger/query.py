"""Queries of a ledger that need no model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from betaedit.errors import ConfigError, LedgerError, did_you_mean
from betaedit.facts.fact import EvaluationCase
from betaedit.facts.writer import with_unique_ids
from betaedit.ledger.place import LEDGER, model_place
from betaedit.ledger.store import FactVersion, State, Store

_DAY, _MINUTE = len("2026-11-21"), len("2026-11-21T19:30")
_LISTED = 20  # facts named in an error
_LONGEST_NUMBER = 19  # digits: more than SQLite's integers hold


@dataclass(frozen=True)
class FactChanges:
    """The facts gained and lost between two events."""

    gained: list[FactVersion]
    lost: list[FactVersion]


def select(
    facts: Sequence[FactVersion],
    *,
    subject: str | None = None,
    state: State | None = None,
    since: str | None = None,
    until: str | None = None,
) -> list[FactVersion]:
    """The facts about a subject (any case), in a state, written between two dates, or dates and times, in UTC.

    Raises:
        ConfigError: A text is not a date.
    """
    first, last = (None if text is None else _moment(text) for text in (since, until))
    return [
        fact
        for fact in facts
        if (subject is None or fact.fact.subject.casefold() == subject.casefold())
        and (state is None or fact.state == state)
        and (first is None or fact.at[: len(first)] >= first)
        and (last is None or fact.at[: len(last)] <= last)
    ]


def find(store: Store, name: str) -> list[FactVersion]:
    """The live facts that match ``name``: a number (``12`` or ``#12``), an id, a subject, or a text in the prompt.

    Raises:
        LedgerError: No fact matches, and the nearest names are suggested; it is the number of a fact that is not live;
            or it is empty.
    """
    if not name.strip():
        raise LedgerError("the name is empty.", hint="Give a number, an id, a subject, or a part of the prompt.")
    known = store.facts()
    if (numbered := _numbered(known, name)) is not None:
        return [_live(numbered)]
    live = [fact for fact in known if fact.state == "live"]
    for same in (_is_named, _is_about, _mentions):
        if found := [fact for fact in live if same(fact, name)]:
            return found
    names = {fact.fact.subject for fact in live} | {fact.fact.id for fact in live if fact.fact.id is not None}
    hint = did_you_mean(name, names, "`betaedit log --state live` lists the live facts.", n=3)
    raise LedgerError(f"the model holds no fact {name!r}.", hint=hint)


def find_one(store: Store, name: str) -> FactVersion:
    """The one live fact that matches ``name``, as in ``find``.

    Raises:
        LedgerError: No fact matches, or several do.
    """
    found = find(store, name)
    if len(found) > 1:
        listed = [f"#{fact.number} ({fact.fact.text} -> {fact.fact.target_new})" for fact in found[:_LISTED]]
        more = [f"and {len(found) - _LISTED} more"] if len(found) > _LISTED else []
        raise LedgerError(
            f"{name!r} matches {len(found)} facts: {', '.join(listed + more)}.",
            hint="Name one by its number; to forget all of them, add --all-matching (Python: all_matching=True).",
        )
    return found[0]


def history(store: Store, name: str) -> list[FactVersion]:
    """Every version of a fact: by its number in any state, otherwise a live fact as in ``find_one``.

    Raises:
        LedgerError: No fact matches, or several do.
    """
    number = name.removeprefix("#")
    found = store.versions(int(number)) if number.isdecimal() and len(number) < _LONGEST_NUMBER else []
    return found or store.versions(find_one(store, name).number)


def live_cases(folder: str | Path) -> list[EvaluationCase]:
    """The live facts of a workspace, in the order they were written, to be written into another one.

    An id that several facts share, because they came from several files, gets a number for all but the first.

    Raises:
        LedgerError: There is no workspace, or it is damaged.
    """
    with closing(Store(Path(folder) / LEDGER)) as store:
        return [EvaluationCase(fact) for fact in with_unique_ids([version.fact for version in store.live()])]


def latest(store: Store, count: int) -> list[FactVersion]:
    """The live facts that were written last, newest first."""
    return store.live()[::-1][:count]


def compare(store: Store, before: int, after: int) -> FactChanges:
    """The facts gained and lost from the event ``before`` to ``after``.

    Raises:
        LedgerError: There is no such event.
    """
    old = {version.id: version for version in store.live(store.event(before).id)}
    new = {version.id: version for version in store.live(store.event(after).id)}
    return FactChanges(
        gained=[version for key, version in new.items() if key not in old],
        lost=[version for key, version in old.items() if key not in new],
    )


def status(store: Store) -> dict[str, Any]:
    """Model, method, how many facts in which state, and the size of the file."""
    with store.view():
        states, last = store.states(), store.event(store.head)
    n_facts, identity = sum(states.values()), store.identity
    return {
        "workspace": str(store.path.parent),
        "model": model_place(store.path.parent, identity.model),
        "method": identity.method,
        "layers": sorted(identity.shapes),
        "live": states["live"],
        "replaced": states["replaced"],
        "forgotten": states["forgotten"],
        "undone": states["undone"],
        "events": last.id,
        "last": {"event": last.id, "kind": last.kind, "at": last.at},
        "created": identity.created,
        "storage": identity.storage,
        "bytes": store.nbytes,
        "bytes_per_fact": store.nbytes / n_facts if n_facts else None,
    }


def to_dict(version: FactVersion) -> dict[str, Any]:
    """A fact as ``--json`` prints it."""
    fact = version.fact
    return {
        "number": version.number,
        "state": version.state,
        "event": version.event,
        "at": version.at,
        "until": version.until,
        "id": fact.id,
        "prompt": fact.prompt,
        "subject": fact.subject,
        "target_new": fact.target_new,
        "target_true": fact.target_true,
        "joint": fact.joint,
        "wordings": list(fact.wordings),
        "figures": version.figures,
    }


def _moment(text: str) -> str:
    """A date or a date and time as the ledger writes it, to the day or to the minute."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise ConfigError(f"{text!r} is not a date.", hint="Write 2026-11-21, or '2026-11-21 19:30' (UTC).") from error
    return moment.isoformat()[: _DAY if len(text.strip()) <= _DAY else _MINUTE]


def _numbered(known: Sequence[FactVersion], name: str) -> FactVersion | None:
    """The fact with the number ``name``, in any state."""
    number = name.removeprefix("#")
    return next((fact for fact in known if number.isdecimal() and fact.number == int(number)), None)


def _live(version: FactVersion) -> FactVersion:
    """``version`` if the model holds it; otherwise raises, because a number names one fact only."""
    if version.state != "live":
        raise LedgerError(
            f"the fact #{version.number} is {version.state}.", hint="`betaedit log --state live` lists the live facts."
        )
    return version


def _is_named(version: FactVersion, name: str) -> bool:
    return version.fact.id == name


def _is_about(version: FactVersion, name: str) -> bool:
    return version.fact.subject.casefold() == name.casefold()


def _mentions(version: FactVersion, name: str) -> bool:
    return name.casefold() in version.fact.text.casefold()

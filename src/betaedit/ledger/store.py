"""The ledger: one SQLite file with the events and facts of a workspace, and the arrays to repeat them.

The file only grows: an event is committed in one transaction and never changed afterwards; facts removed from the model
stay in the file. Every event has a hash over itself, over the hashes of its arrays and over the previous event, so a
change by another program is found (``verify``).

Tables (docs/file-formats.md): ``events``; ``writings``, a row for every time a fact was written; ``spans``, between
which events a writing was in the model; ``asked``, its key and the output wanted in addition to that of the unedited
matrix, for every layer, or, where no matrix is edited, all its tensors as one safetensors file under layer 0;
``factors``, what an event added to a layer's matrix; ``snapshots``, all that was added to a matrix until an event, so
that a long history loads quickly. Arrays are little-endian numbers without headers, of the type in the identity; this
module handles only bytes and never imports torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from betaedit.errors import LedgerError
from betaedit.facts.fact import EARLIER_JOINT, Fact

Storage = Literal["float32", "float64", "bfloat16"]
Kind = Literal["init", "edit", "forget", "restore"]
Reason = Literal["replaced", "rewritten", "forgotten", "undone"]
State = Literal["live", "replaced", "forgotten", "undone"]

FORMAT = 2
FIRST = 1
_APPLICATION = 0x62657461  # "beta": marks the file as a ledger
_BUSY_SECONDS = 5.0

_SCHEMA = """
CREATE TABLE identity (value TEXT NOT NULL);
CREATE TABLE events (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, parent INTEGER, at TEXT NOT NULL, note TEXT NOT NULL,
    factors TEXT, hash TEXT NOT NULL
);
CREATE TABLE writings (
    id INTEGER PRIMARY KEY, number INTEGER NOT NULL, event INTEGER NOT NULL REFERENCES events (id),
    batch INTEGER NOT NULL, prompt TEXT NOT NULL, subject TEXT NOT NULL, target_new TEXT NOT NULL, target_true TEXT,
    name TEXT, figures TEXT NOT NULL, asked TEXT NOT NULL, joint TEXT, wordings TEXT
);
CREATE INDEX writings_number ON writings (number);
CREATE INDEX writings_subject ON writings (subject);
CREATE INDEX writings_event ON writings (event);
CREATE TABLE spans (
    writing INTEGER NOT NULL REFERENCES writings (id), since INTEGER NOT NULL REFERENCES events (id),
    until INTEGER REFERENCES events (id), why TEXT, PRIMARY KEY (writing, since)
);
CREATE INDEX spans_since ON spans (since);
CREATE INDEX spans_until ON spans (until);
CREATE TABLE asked (
    writing INTEGER NOT NULL REFERENCES writings (id), layer INTEGER NOT NULL, key BLOB NOT NULL, wanted BLOB NOT NULL,
    PRIMARY KEY (writing, layer)
);
CREATE TABLE factors (
    event INTEGER NOT NULL REFERENCES events (id), layer INTEGER NOT NULL, step INTEGER NOT NULL,
    rank INTEGER NOT NULL, lefts BLOB NOT NULL, rights BLOB NOT NULL, PRIMARY KEY (event, layer, step)
);
CREATE TABLE snapshots (
    event INTEGER NOT NULL REFERENCES events (id), layer INTEGER NOT NULL, change BLOB NOT NULL, hash TEXT NOT NULL,
    PRIMARY KEY (event, layer)
);
"""


class Identity(BaseModel):
    """The model, method and statistics of a workspace; anything else is refused.

    Args:
        model: Name or folder.
        weights: Fingerprint of the unedited weights.
        dtype: Type the model is loaded in.
        method: Name of the recipe.
        recipe: Fingerprint of its definition.
        config: Hyper-parameters, context templates included.
        statistics: Fingerprint of the second moments, which are stored beside the ledger.
        origin: Where the statistics come from.
        shapes: (d_out, d_in) of the edited matrices, by layer.
        storage: Type in which keys and wanted values are kept.
        exact: Type of the edited matrices in memory; factors and snapshots are kept in it.
        versions: Of Python and the libraries that made the workspace.
        created: When, in UTC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    model: str
    weights: str
    dtype: str
    method: str
    recipe: str
    config: dict[str, Any]
    statistics: str
    origin: dict[str, Any]
    shapes: dict[int, tuple[int, int]]
    storage: Storage
    exact: Storage
    versions: dict[str, str]
    created: str

    @property
    def holds_facts(self) -> bool:
        """Whether the editor holds its facts beside the weights: no matrix is edited."""
        return not self.shapes


@dataclass(frozen=True)
class Event:
    """An event of the ledger.

    Args:
        id: Its place, from 1.
        kind: ``init``, ``edit``, ``forget`` or ``restore``.
        parent: The event whose weights it added to.
        at: When, in UTC.
        note: The command's note.
        factors: Hash of what was added to the weights; ``None`` for nothing, ``whole`` if only the resulting
            matrices are stored.
        hash: Over all of this, its facts, and the event before it.
    """

    id: int
    kind: Kind
    parent: int | None
    at: str
    note: dict[str, Any]
    factors: str | None
    hash: str


@dataclass(frozen=True)
class FactVersion:
    """A fact as one event wrote it (a row of the table ``writings``).

    Args:
        id: Its row.
        number: The fact's own number, the same whenever it is written again.
        event: The event that wrote it.
        batch: Number of the batch it was written with.
        at: When, in UTC.
        fact: The fact.
        figures_json: Figures of writing it, as JSON.
        state: Whether the model holds it, or why not.
        until: The event that removed it.
    """

    id: int
    number: int
    event: int
    batch: int
    at: str
    fact: Fact
    figures_json: str
    state: State
    until: int | None

    @property
    def figures(self) -> dict[str, Any]:
        """Figures of writing it; parsed on access."""
        found: dict[str, Any] = json.loads(self.figures_json)
        return found


@dataclass(frozen=True)
class NewFactVersion:
    """A fact as an event writes it: ``asked`` has the bytes of its key and wanted value by layer."""

    number: int | None
    batch: int
    fact: Fact
    figures: dict[str, Any]
    asked: Mapping[int, tuple[bytes, bytes]]


@dataclass(frozen=True)
class NewEvent:
    """An event to commit.

    Args:
        kind: As in ``Event``.
        note: The command's note.
        written: Facts that are written.
        ended: Fact versions that leave the model, and why.
        revived: Earlier fact versions that return to the model.
        parent: The event whose weights are added to; the last one when not given.
        factors: By layer, the (rank, lefts, rights) that were added, in order.
        snapshot: By layer, all that was added to the matrix until then.
        whole: Whether the snapshot stands for the factors.
    """

    kind: Kind
    note: dict[str, Any] = field(default_factory=dict)
    written: Sequence[NewFactVersion] = ()
    ended: Mapping[int, Reason] = field(default_factory=dict)
    revived: Sequence[int] = ()
    parent: int | None = None
    factors: Mapping[int, Sequence[tuple[int, bytes, bytes]]] = field(default_factory=dict)
    snapshot: Mapping[int, Callable[[], bytes]] | None = None
    whole: bool = False


class Store:
    """The open ledger of a workspace.

    Args:
        path: The SQLite file.
        write: Whether events are to be appended.

    Raises:
        LedgerError: The file is missing, is not a ledger, is damaged, or was written by a newer version.
    """

    def __init__(self, path: Path, *, write: bool = False) -> None:
        self.path = path
        if not path.is_file():
            raise LedgerError(f"there is no workspace in {path.parent}.", hint="Make one: betaedit init DIR.")
        self._open = _connect(path, "rw" if write else "ro")
        try:
            with self._guarded():
                self._check_kind()
                if write:
                    self._open.execute("PRAGMA journal_mode = WAL")
                    self._open.execute("PRAGMA synchronous = FULL")
                    self._migrate()
                self.identity = self._identity()
        except LedgerError:
            self._open.close()
            raise

    @classmethod
    def create(cls, path: Path, identity: Identity) -> Store:
        """A new ledger with its first event.

        Raises:
            LedgerError: The ledger exists already, or cannot be written.
        """
        if path.exists():
            raise LedgerError(f"{path.parent} is already a workspace.", hint="Use it, or name a new folder.")
        scratch = scratch_files(path)[0]
        with _translated(scratch):
            scratch.unlink(missing_ok=True)  # SQLite itself drops the write-ahead log of a file that is gone
            with closing(_connect(scratch, "rwc")) as opened:
                opened.executescript(_SCHEMA)
                opened.execute(f"PRAGMA application_id = {_APPLICATION}")
                opened.execute(f"PRAGMA user_version = {FORMAT}")
                opened.execute("INSERT INTO identity VALUES (?)", (identity.model_dump_json(),))
        with closing(cls(scratch, write=True)) as first:
            first.append(NewEvent("init"))
        with _translated(scratch):
            scratch.rename(path)
        return cls(path, write=True)

    def close(self) -> None:
        """Close the file."""
        self._open.close()

    @property
    def head(self) -> int:
        """The last event."""
        return int(self._scalar("SELECT max(id) FROM events") or 0)

    @property
    def layers(self) -> list[int]:
        """The edited layers."""
        return sorted(self.identity.shapes)

    @property
    def nbytes(self) -> int:
        """Bytes on disk, including the write-ahead log."""
        files = [self.path, self.path.with_name(self.path.name + "-wal")]
        return sum(file.stat().st_size for file in files if file.exists())

    def append(self, new: NewEvent) -> int:
        """Commit an event and return its id; it is on disk when this returns.

        Raises:
            LedgerError: Disk full, file read-only or locked by another program; nothing has changed.
        """
        with self._guarded(), self._transaction():
            event = self.head + 1
            parent = new.parent or (event - 1 if event > FIRST else None)
            factors = _WHOLE if new.whole else self._add_factors(event, new.factors)
            at = _now()
            note = _json(new.note)
            self._open.execute(
                "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, '')", (event, new.kind, parent, at, note, factors)
            )
            for version in new.written:
                self._add_version(event, version)
            for ended, why in new.ended.items():
                self._open.execute(
                    "UPDATE spans SET until = ?, why = ? WHERE writing = ? AND until IS NULL", (event, why, ended)
                )
            self._open.executemany(
                "INSERT INTO spans VALUES (?, ?, NULL, NULL)", [(version, event) for version in new.revived]
            )
            if new.snapshot is not None:
                self._add_snapshot(event, new.snapshot)
            self._open.execute("UPDATE events SET hash = ? WHERE id = ?", (self._hash(event), event))
        return event

    def event(self, event: int) -> Event:
        """One event.

        Raises:
            LedgerError: There is none of that number.
        """
        found = self._rows("SELECT * FROM events WHERE id = ?", event)
        if not found:
            raise LedgerError(f"there is no event {event}.", hint=f"The workspace has events 1 to {self.head}.")
        return _event(found[0])

    def events(self) -> list[Event]:
        """All events, in order."""
        return [_event(row) for row in self._rows("SELECT * FROM events ORDER BY id")]

    def facts(self, last: int | None = None) -> list[FactVersion]:
        """The newest version of every fact, or of those with the ``last`` numbers, in order of number."""
        numbers = "SELECT DISTINCT number FROM writings ORDER BY number DESC LIMIT ?"
        rows = self._rows(f"{self._select} WHERE w.number IN ({numbers}) ORDER BY w.number, s.since", last or -1)
        newest = {row[1]: row for row in rows}
        return [_version(row) for row in newest.values()]

    def states(self) -> dict[State, int]:
        """The number of facts in each state."""
        rows = self._rows(
            "SELECT s.until IS NULL, s.why, count(*) FROM ("
            "SELECT w.number AS number, max(s.since) AS since FROM writings w JOIN spans s ON s.writing = w.id "
            "GROUP BY w.number) n JOIN writings w ON w.number = n.number "
            "JOIN spans s ON s.writing = w.id AND s.since = n.since GROUP BY 1, 2"
        )
        found: dict[State, int] = dict.fromkeys(get_args(State), 0)
        for live, why, count in rows:
            found[_state(bool(live), why)] += count
        return found

    def versions(self, number: int) -> list[FactVersion]:
        """Every time the fact of that number was written, in order."""
        rows = [
            _version(row) for row in self._rows(f"{self._select} WHERE w.number = ? ORDER BY w.id, s.since", number)
        ]
        return list({version.id: version for version in rows}.values())

    def written(self, event: int) -> list[FactVersion]:
        """The fact versions that one event wrote, in order."""
        return [
            _version(row)
            for row in self._rows(f"{self._select} WHERE w.event = ? AND s.since = w.event ORDER BY w.id", event)
        ]

    def live(self, event: int | None = None) -> list[FactVersion]:
        """The fact versions live after ``event`` (default: the last one), in the order of writing."""
        at = event or self.head
        alive = "WHERE s.since <= ? AND (s.until IS NULL OR s.until > ?) ORDER BY w.id"
        return [_version(row) for row in self._rows(f"{self._select} {alive}", at, at)]

    def asked(self, version: int, layer: int) -> tuple[bytes, bytes]:
        """Key and wanted value of one fact version in one layer."""
        key, wanted = self._array("key, wanted", version, layer)
        return key, wanted

    def key(self, version: int, layer: int) -> bytes:
        """The key of one fact version in one layer, as in ``asked``."""
        return bytes(self._array("key", version, layer)[0])

    def has_arrays(self, versions: Iterable[int]) -> bool:
        """Whether the keys and wanted values of all ``versions`` are still stored."""
        kept = {row[0] for row in self._rows("SELECT DISTINCT writing FROM asked")}
        return kept.issuperset(versions)

    def path_to(self, event: int, *, snapshots: bool = True) -> tuple[int | None, list[int]] | None:
        """The start and the events whose factors lead to the weights after ``event``, in order.

        The start is the event of a snapshot, or ``None`` for the unedited model. Returns ``None`` if ``gc`` dropped
        what is needed. Without ``snapshots``, only snapshots that replace dropped factors are used.
        """
        taken = {row[0] for row in self._rows("SELECT DISTINCT event FROM snapshots")}
        if not snapshots:
            taken = {row[0] for row in self._rows("SELECT id FROM events WHERE factors = ?", _WHOLE)} & taken
        return self._walk(event, taken)

    def _walk(self, event: int, ends: Collection[int]) -> tuple[int | None, list[int]] | None:
        """Back along parents to one of ``ends`` or the unedited model (``None``), and the events that added factors."""
        parents = {row[0]: row[1:] for row in self._rows("SELECT id, parent, factors FROM events")}
        kept = {row[0] for row in self._rows("SELECT DISTINCT event FROM factors")}
        passed: list[int] = []
        at: int | None = event
        while at is not None and at not in ends:
            parent, factors = parents[at]
            if factors is not None:
                if at not in kept:
                    return None
                passed.append(at)
            at = parent
        return at, passed[::-1]

    def factors(self, event: int, layer: int) -> list[tuple[int, bytes, bytes]]:
        """The (rank, lefts, rights) that ``event`` added to one layer, in order."""
        query = "SELECT rank, lefts, rights FROM factors WHERE event = ? AND layer = ? ORDER BY step"
        return self._rows(query, event, layer)

    def following(self, event: int, last: int) -> list[int] | None:
        """The events whose factors lead from the weights after ``event`` to those after ``last``, or ``None``."""
        found = self._walk(last, {event})
        return None if found is None or found[0] != event else found[1]

    def ranks(self, events: Sequence[int]) -> int:
        """The number of rank-one updates that ``events`` added to a layer."""
        layer = min(self.identity.shapes)
        known = dict(self._rows("SELECT event, sum(rank) FROM factors WHERE layer = ? GROUP BY event", layer))
        return sum(known.get(event, 0) for event in events)

    def snapshot(self, event: int, layer: int) -> bytes:
        """All that was added to one matrix until ``event``."""
        rows = self._rows("SELECT change FROM snapshots WHERE event = ? AND layer = ?", event, layer)
        if not rows:
            raise LedgerError(f"{self.path} lacks the snapshot of event {event}, layer {layer}.", hint=_DAMAGED)
        return bytes(rows[0][0])

    @property
    def weight_bytes(self) -> int:
        """Bytes of all factors and snapshots."""
        factors = self._scalar("SELECT coalesce(sum(length(lefts) + length(rights)), 0) FROM factors")
        return int(factors + self._scalar("SELECT coalesce(sum(length(change)), 0) FROM snapshots"))

    def collect(self, snapshot: Mapping[int, Callable[[], bytes]] | None, *, purge: bool) -> None:
        """Replace all factors and snapshots by a snapshot of the present matrices, then free the space.

        Facts, keys and values stay, so an earlier event can still be written again from them; ``purge`` also deletes
        those of facts that are not live. Without a ``snapshot``, factors and snapshots stay.
        """
        with self._guarded():
            with self._transaction():
                head = self.head
                if snapshot is not None:
                    self._open.execute("DELETE FROM factors")
                    self._open.execute("DELETE FROM snapshots")
                    self._add_snapshot(head, snapshot)
                if purge:
                    live = "SELECT writing FROM spans WHERE until IS NULL"
                    self._open.execute(f"DELETE FROM asked WHERE writing NOT IN ({live})")
            self._open.execute("VACUUM")
            self._open.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def verify(self) -> list[str]:
        """The problems of the file: damage, or a record that changed since its commit."""
        with self._guarded(), self.view():
            problems = [str(row[0]) for row in self._open.execute("PRAGMA integrity_check") if row[0] != "ok"]
            problems += [
                f"event {row[0]} was changed after its commit"
                for row in self._rows("SELECT id, hash FROM events ORDER BY id")
                if self._hash(row[0]) != row[1]
            ]
            problems += self._changed_arrays()
        return problems

    def _changed_arrays(self) -> Iterator[str]:
        collected = self._collected()
        for event, recorded_hash in self._rows(
            "SELECT id, factors FROM events WHERE factors != ? AND id > ?", _WHOLE, collected
        ):
            rows = self._rows("SELECT lefts, rights FROM factors WHERE event = ? ORDER BY layer, step", event)
            if _hash_arrays(rows) != recorded_hash:
                yield f"the factors of event {event} were changed after their commit"
        live = {row[0] for row in self._rows("SELECT writing FROM spans WHERE until IS NULL")}
        for version, recorded_hash in self._rows("SELECT id, asked FROM writings"):
            rows = self._rows("SELECT key, wanted FROM asked WHERE writing = ? ORDER BY layer", version)
            if (rows or version in live) and _hash_arrays(rows) != recorded_hash:
                yield f"the arrays of fact version {version} were changed after their commit"
        yield from self._changed_snapshots(collected)

    def _collected(self) -> int:
        """The event at which ``gc`` ran last; 0 for never.

        This is not recorded, but ``gc`` leaves no factors up to its event, and its snapshot is the first; other
        snapshots come with the factors before them.
        """
        first = int(self._scalar("SELECT coalesce(min(event), 0) FROM snapshots"))
        return 0 if self._scalar("SELECT count(*) FROM factors WHERE event <= ?", first) else first

    def _changed_snapshots(self, collected: int) -> Iterator[str]:
        recorded = {tuple(row[:2]): row[2] for row in self._rows("SELECT event, layer, hash FROM snapshots")}
        whole = {row[0] for row in self._rows("SELECT id FROM events WHERE factors = ? AND id > ?", _WHOLE, collected)}
        for event in sorted(whole | {event for event, _ in recorded}):
            for layer in self.layers:
                recorded_hash = recorded.get((event, layer))
                if recorded_hash is None or _hash_arrays([(self.snapshot(event, layer),)]) != recorded_hash:
                    yield f"the snapshot of event {event}, layer {layer}, was changed after its commit"

    def _array(self, columns: str, version: int, layer: int) -> tuple[bytes, ...]:
        rows = self._rows(f"SELECT {columns} FROM asked WHERE writing = ? AND layer = ?", version, layer)
        if not rows:
            raise LedgerError(
                f"the keys and values of fact version {version} are missing.", hint="They were removed by gc --purge."
            )
        found: tuple[bytes, ...] = rows[0]
        return found

    def _add_factors(self, event: int, factors: Mapping[int, Sequence[tuple[int, bytes, bytes]]]) -> str | None:
        rows = [
            (event, layer, step, rank, lefts, rights)
            for layer, steps in sorted(factors.items())
            for step, (rank, lefts, rights) in enumerate(steps)
        ]
        self._open.executemany("INSERT INTO factors VALUES (?, ?, ?, ?, ?, ?)", rows)
        return _hash_arrays((row[4], row[5]) for row in rows) if rows else None

    def _add_version(self, event: int, new: NewFactVersion) -> None:
        number = new.number or int(self._scalar("SELECT coalesce(max(number), 0) + 1 FROM writings"))
        fact, arrays = new.fact, [new.asked[layer] for layer in sorted(new.asked)]
        columns = (fact.prompt, fact.subject, fact.target_new, fact.target_true, fact.id, _json(new.figures))
        written = self._open.execute(
            "INSERT INTO writings VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (number, event, new.batch, *columns, _hash_arrays(arrays), fact.joint, _json_list(fact.wordings)),
        ).lastrowid
        self._open.execute("INSERT INTO spans VALUES (?, ?, NULL, NULL)", (written, event))
        self._open.executemany(
            "INSERT INTO asked VALUES (?, ?, ?, ?)", [(written, layer, *new.asked[layer]) for layer in new.asked]
        )

    def _add_snapshot(self, event: int, snapshot: Mapping[int, Callable[[], bytes]]) -> None:
        for layer, change in snapshot.items():
            data = change()
            self._open.execute(
                "INSERT INTO snapshots VALUES (?, ?, ?, ?)", (event, layer, data, _hash_arrays([(data,)]))
            )

    def _hash(self, event: int) -> str:
        """Hash over the event, its facts and the previous event; over the identity for the first."""
        if event == FIRST:
            before = self._scalar("SELECT value FROM identity")
        else:
            before = self._scalar("SELECT hash FROM events WHERE id = ?", event - 1)
        joint, wordings = self._optional_columns
        parts = [
            before,
            *self._rows("SELECT id, kind, parent, at, note, factors FROM events WHERE id = ?", event),
            *self._rows(f"SELECT {_HASHED} FROM writings WHERE event = ? ORDER BY id", event),
            # Only what format 1 did not have, so that the hashes of its ledgers stay valid.
            *self._rows(
                f"SELECT id, {joint} FROM writings WHERE event = ? AND {joint} IS NOT {_EARLIER} ORDER BY id", event
            ),
            *self._rows(
                f"SELECT id, {wordings} FROM writings WHERE event = ? AND {wordings} IS NOT NULL ORDER BY id", event
            ),
            *self._rows("SELECT writing FROM spans WHERE since = ? ORDER BY writing", event),
            *self._rows("SELECT writing, why FROM spans WHERE until = ? ORDER BY writing", event),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _identity(self) -> Identity:
        try:
            return Identity.model_validate_json(self._scalar("SELECT value FROM identity"))
        except (ValidationError, TypeError) as error:
            raise LedgerError(f"{self.path} has an unreadable identity: {error}", hint=_DAMAGED) from error

    def _check_kind(self) -> None:
        if self._scalar("PRAGMA application_id") != _APPLICATION:
            raise LedgerError(f"{self.path} is not a ledger.", hint="Name the folder of a workspace.")
        if (version := self._scalar("PRAGMA user_version")) > FORMAT:
            raise LedgerError(
                f"{self.path} has format {version}, this version reads up to {FORMAT}.",
                hint="Install a newer betaedit.",
            )

    def _migrate(self) -> None:
        """Migrate a ledger of format 1, which has neither ``joint`` nor ``wordings``."""
        with self._transaction():
            if self._scalar("PRAGMA user_version") < FORMAT:
                self._open.execute(f"ALTER TABLE writings ADD COLUMN joint TEXT DEFAULT {_EARLIER}")
                self._open.execute("ALTER TABLE writings ADD COLUMN wordings TEXT")
                self._open.execute(f"PRAGMA user_version = {FORMAT}")

    @property
    def _optional_columns(self) -> tuple[str, str]:
        """SQL for joint and wordings of a fact version; ledgers of format 1 opened for reading lack these columns."""
        return ("joint", "wordings") if self._scalar("PRAGMA user_version") >= FORMAT else (_EARLIER, "NULL")

    @property
    def _select(self) -> str:
        return (
            "SELECT w.id, w.number, w.event, w.batch, e.at, w.prompt, w.subject, w.target_new, w.target_true, w.name, "
            f"{', '.join(self._optional_columns)}, w.figures, s.until, s.why "
            "FROM writings w JOIN spans s ON s.writing = w.id JOIN events e ON e.id = w.event"
        )

    @contextmanager
    def view(self) -> Iterator[None]:
        """A context with one read transaction: commits of other programs are not seen in it."""
        if self._open.in_transaction:
            yield
            return
        with self._guarded():
            self._open.execute("BEGIN")
        try:
            yield
        finally:
            if self._open.in_transaction:  # a disk error also ends the transaction
                self._open.execute("ROLLBACK")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._open.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._open.execute("COMMIT")
        except BaseException:
            if self._open.in_transaction:
                self._open.execute("ROLLBACK")
            raise

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        with _translated(self.path):
            yield

    def _rows(self, query: str, *values: object) -> list[Any]:
        with self._guarded():
            return self._open.execute(query, values).fetchall()

    def _scalar(self, query: str, *values: object) -> Any:
        found = self._rows(query, *values)
        return found[0][0] if found else None


def scratch_files(path: Path) -> list[Path]:
    """Files that an interrupted creation of the ledger ``path`` may have left: the new file and SQLite's two."""
    return [path.with_name(f"{path.name}.new{ending}") for ending in ("", "-wal", "-shm")]


_WHOLE = "whole"
_EARLIER = f"'{EARLIER_JOINT}'"
_HASHED = "id, number, event, batch, prompt, subject, target_new, target_true, name, figures, asked"
_DAMAGED = "The file is damaged: restore it from a backup."
_ERRORS = {
    "full": "Free some disk space and repeat the command; the event was not committed.",
    "readonly": "Make the file and its folder writable.",
    "locked": "Another program is writing to it; try again when it has finished.",
    "unable to open": "Check the permissions of the file and its folder.",
}


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    # Readers and writers share a file beside the ledger; where it cannot be made, no program writes.
    alone = mode == "ro" and not os.access(path.parent, os.W_OK) and not path.with_name(path.name + "-wal").exists()
    with _translated(path):
        return sqlite3.connect(
            f"{path.resolve().as_uri()}?mode={mode}" + ("&immutable=1" if alone else ""),
            uri=True,
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """A context in which errors of SQLite and the system become ``LedgerError`` with a hint."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        hint = next((hint for sign, hint in _ERRORS.items() if sign in str(error)), _DAMAGED)
        raise LedgerError(f"{path}: {error}", hint=hint) from error


def _event(row: tuple[Any, ...]) -> Event:
    event, kind, parent, at, note, factors, recorded_hash = row
    return Event(event, kind, parent, at, json.loads(note), factors, recorded_hash)


def _version(row: tuple[Any, ...]) -> FactVersion:
    written, number, event, batch, at, prompt, subject, new, true, name, joint, wordings, figures, until, why = row
    fact = Fact(prompt, subject, new, true, name, joint, tuple(json.loads(wordings or "[]")))
    return FactVersion(written, number, event, batch, at, fact, figures, _state(until is None, why), until)


def _state(live: bool, why: str | None) -> State:
    if live:
        return "live"
    state: State = "replaced" if why == "rewritten" else cast(State, why)
    return state


def _json_list(texts: Sequence[str]) -> str | None:
    return json.dumps(texts, ensure_ascii=False) if texts else None


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, sort_keys=True)


def _hash_arrays(arrays: Iterable[tuple[bytes, ...]]) -> str:
    digest = hashlib.sha256()
    for parts in arrays:
        for part in parts:
            digest.update(part)
    return digest.hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

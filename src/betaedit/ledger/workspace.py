"""A workspace: a model, a method, and a ledger of every edit written and undone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from betaedit.editors.closed_form.associative import Resumable
from betaedit.editors.closed_form.live import LiveFact
from betaedit.editors.editor import Editor
from betaedit.editors.matrix import Changes, EditedMatrix, Snapshot, edited_matrices, recording, set_aside
from betaedit.editors.method import EditResult, HoldsFacts, WrittenBatch
from betaedit.errors import ConfigError, LedgerError, NotHeldError, OutputError
from betaedit.facts.fact import EARLIER_JOINT, EvaluationCase, Fact
from betaedit.files import file_errors
from betaedit.ledger.arrays import StoredAssociations, association_bytes, from_bytes
from betaedit.ledger.identity import STATISTICS, checked_model, editor_again, identify, load_kept, resumable
from betaedit.ledger.place import LEDGER, model_place
from betaedit.ledger.query import find, find_one, latest
from betaedit.ledger.store import (
    FIRST,
    FactVersion,
    Identity,
    Kind,
    NewEvent,
    NewFactVersion,
    Reason,
    Storage,
    Store,
    scratch_files,
)
from betaedit.ledger.weights import advance, factor_bytes, rebuild, snapshot_bytes
from betaedit.models.load import DtypeName, LanguageModel
from betaedit.progress import Progress, SilentProgress

UNKNOWN_EVENT = 0
"""``position`` while the weights match no event: they have not been brought to one, or that was interrupted."""
_LOCK = "writer.lock"


class Workspace:
    """A folder that remembers every edit of one model, and the model with all of them in its weights.

    Reading it needs no model; the model is loaded, and given the weights of the last event, on first use. One program
    writes at a time; any number read. Close it, or use it as a context.

    Args:
        folder: The workspace.
        store: Its open ledger.
        model: Gives the unedited model.
        progress: Shows the progress of long work.
        lock: The held lock for writing.

    ``position`` is the event whose weights the model has, or ``UNKNOWN_EVENT``. In that case the next use of the model
    rebuilds the weights of the last event from the unedited ones.
    """

    def __init__(
        self,
        folder: Path,
        store: Store,
        model: Callable[[], LanguageModel],
        progress: Progress,
        lock: FileLock | None = None,
    ) -> None:
        self.folder, self.store, self.progress = folder, store, progress
        self._load, self._lock = model, lock
        self._model: LanguageModel | None = None
        self._matrices: dict[int, EditedMatrix] = {}
        self._editor: Editor | None = None
        self._written: dict[LiveFact, FactVersion] = {}
        self._rank = 0
        self.position = UNKNOWN_EVENT

    @classmethod
    def create(cls, folder: str | Path, editor: Editor, *, storage: Storage | None = None) -> Workspace:
        """A new workspace for an editor that has written nothing yet.

        Args:
            folder: New, or empty.
            editor: Model, method, hyper-parameters and statistics.
            storage: Type in which keys and wanted values are kept; that of the matrices when not given. ``bfloat16``
                halves the file; later removals are then only as exact as that type.

        Raises:
            LedgerError: The folder is a workspace or holds other things, or cannot be written.
            MethodError: As ``resumable``.
            ConfigError: The editor has edits.
        """
        folder = Path(folder)
        kind = cls._kind(isinstance(editor.editing, HoldsFacts))
        if editor.results:
            raise ConfigError("the model already holds edits.", hint="Call reset() first.")
        cut_off = {folder / STATISTICS, folder / _LOCK, *scratch_files(folder / LEDGER)}
        if folder.exists() and (not folder.is_dir() or set(folder.iterdir()) - cut_off):
            raise LedgerError(f"{folder} exists and is not empty.", hint="Name a new folder.")
        kind._check_editor(editor, storage)  # before the folder is made
        with file_errors(folder, LedgerError):
            folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder)
        try:
            kind._prepare_folder(editor, folder)
            store = Store.create(folder / LEDGER, kind._identify(editor, storage))
        except BaseException:
            lock.release()
            raise
        made = kind(folder, store, lambda: editor.resources.model, editor.progress, lock)
        made._adopt(editor)
        made.position = FIRST
        return made

    @classmethod
    def _kind(cls, holds: bool) -> type[Workspace]:
        """The class of workspaces whose editor holds its facts beside the weights, or of the others."""
        if not holds:
            return cls
        from betaedit.ledger.held import HeldWorkspace  # noqa: PLC0415 - it is a subclass of this class

        return HeldWorkspace

    @classmethod
    def _check_editor(cls, editor: Editor, storage: Storage | None) -> None:
        """Refuse an editor that cannot have a workspace."""
        _ = resumable(editor).matrices

    @classmethod
    def _identify(cls, editor: Editor, storage: Storage | None) -> Identity:
        """The identity of a workspace made with ``editor``."""
        return identify(editor, storage)

    @classmethod
    def _prepare_folder(cls, editor: Editor, folder: Path) -> None:
        """Store in the new ``folder`` what the ledger does not."""
        _keep_statistics(resumable(editor), folder / STATISTICS)

    def _adopt(self, editor: Editor) -> None:
        """Take up the editor that the workspace was made with."""
        self._model, self._editor, self._matrices = editor.language_model, editor, dict(resumable(editor).matrices)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        write: bool = False,
        model: LanguageModel | str | None = None,
        device: str | None = None,
        progress: Progress | None = None,
    ) -> Workspace:
        """Open an existing workspace.

        Args:
            folder: The workspace.
            write: Whether to change it.
            model: Its unedited model if that is in memory, or its place if that has changed; loaded on first use.
            device: Device of a loaded model.
            progress: Shows the progress of long work.

        Raises:
            LedgerError: There is none, it is damaged, or another program is writing to it.
        """
        folder = Path(folder)
        store = Store(folder / LEDGER, write=write)
        try:
            lock = _locked(folder) if write else None
        except LedgerError:
            store.close()
            raise
        dtype = cast(DtypeName, store.identity.dtype)

        def load() -> LanguageModel:
            if isinstance(model, LanguageModel):
                return model
            return load_kept(folder, model or model_place(folder, store.identity.model), dtype=dtype, device=device)

        return cls._kind(store.identity.holds_facts)(folder, store, load, progress or SilentProgress(), lock)

    def __enter__(self) -> Workspace:
        """The workspace itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the file; the model is left unchanged."""
        self.store.close()
        if self._lock is not None:
            self._lock.release()

    @property
    def language_model(self) -> LanguageModel:
        """The model, with all facts of the ledger in its weights.

        Raises:
            IdentityError: The model does not have the weights the workspace was made with.
            LedgerError: The weights cannot be built again.
            WeightsChangedError: Other code changed the model.
        """
        model = self._loaded()
        if not self._matrices:
            self._matrices = edited_matrices(model.anatomy, self.store.layers)
        if self.position == UNKNOWN_EVENT:
            self.checkout_head()
        self._check_weights()
        return model

    def _check_weights(self) -> None:
        """Check that a loaded model has the weights written last."""
        for matrix in self._matrices.values():
            matrix.check()

    def _loaded(self) -> LanguageModel:
        """The loaded model, at any event."""
        if self._model is None:
            self._model = checked_model(self.folder, self.store.identity, self._load())
        return self._model

    @property
    def matrices(self) -> Mapping[int, EditedMatrix]:
        """The edited matrices of the model, by layer."""
        _ = self.language_model
        return self._matrices

    def unedited(self) -> AbstractContextManager[None]:
        """A context in which the model is unedited."""
        return set_aside(self.matrices)

    @property
    def editor(self) -> Editor:
        """An editor with the facts of the ledger; to edit, use the workspace, which records every change.

        Raises:
            IdentityError: Statistics, recipe or model are not those the workspace was made with.
        """
        if self._editor is None:
            model = self._loaded()
            self.position = UNKNOWN_EVENT
            for matrix in self._matrices.values():
                matrix.restore()
            try:
                editor = editor_again(self.folder, self.store.identity, model, self.progress)
                matrices = dict(resumable(editor).matrices)
            except BaseException:
                if self._matrices:
                    self.checkout_head()
                raise
            self._matrices, self._editor = matrices, editor
        if self.position == UNKNOWN_EVENT:
            self.checkout_head()
        return self._editor

    @property
    def _editing(self) -> Resumable:
        """What the editor's method built."""
        return resumable(self.editor)

    @property
    def _writable(self) -> Resumable:
        """What the editor's method built, to write with."""
        self._check_writable()
        return self._editing

    def _prepare_writing(self) -> None:
        """Check that facts can be written, and bring the editor to those of the last event."""
        _ = self._writable

    def _check_writable(self) -> None:
        if self._lock is None:
            raise LedgerError(f"{self.folder} is open only for reading.", hint="Open it with write=True.")

    def write(
        self,
        facts: Fact | EvaluationCase | Iterable[Fact | EvaluationCase],
        *,
        batch_size: int = 1,
        note: Mapping[str, Any] | None = None,
    ) -> Iterator[WrittenBatch]:
        """Write facts; each batch is in the ledger when it is yielded. See ``Editor.write`` for what is refused."""
        self._prepare_writing()
        return self._commit_each(self.editor.write(facts, batch_size=batch_size), dict(note or {}))

    def edit(
        self,
        facts: Fact | EvaluationCase | Iterable[Fact | EvaluationCase],
        *,
        batch_size: int = 1,
        note: Mapping[str, Any] | None = None,
    ) -> list[EditResult]:
        """Write facts, each batch an event of its own.

        Raises:
            FactError, LookupTokenError, NumericalError: See ``Editor.edit``.
            LedgerError: The ledger cannot be written; the model has the weights of its last event.
        """
        items = [facts] if isinstance(facts, Fact | EvaluationCase) else list(facts)
        written: list[EditResult] = []
        with self.progress.task("editing", len(items), "facts") as task:
            for batch in self.write(items, batch_size=batch_size, note=note):
                task.advance(len(batch.results))
                written += batch.results
        return written

    def new(self, cases: Iterable[EvaluationCase]) -> list[EvaluationCase]:
        """The cases that are not written yet: neither live nor replaced by an answer that is live; ids are ignored.

        A fact that an earlier version of this package wrote counts as written.
        """
        states = [(held.state, _identity_of(held.fact)) for held in self.store.facts()]
        answered = {words[:2] for state, words in states if state == "live"}
        known = {words for state, words in states if state in ("live", "replaced") and words[:2] in answered}
        return [case for case in cases if known.isdisjoint((_identity_of(case.fact), _earlier_identity_of(case.fact)))]

    def forget(self, *names: str, last: int = 0, all_matching: bool = False) -> list[FactVersion]:
        """Forget facts: by number, id, subject, or a part of the prompt, and the ``last`` ones written.

        The weights become those with only the other facts written, with their keys and values. The values of later
        facts about the same subject are searched again; those of other facts stay (docs/forgetting.md has figures).

        Args:
            names: Each must match one fact.
            last: Also forget this many of the facts written last.
            all_matching: Forget all facts that match a name.

        Raises:
            LedgerError: A name matches no fact, or several without ``all_matching``, or the ledger cannot be written;
                nothing has changed.
        """
        found = (find(self.store, name) if all_matching else [find_one(self.store, name)] for name in names)
        chosen = {fact.id: fact for facts in found for fact in facts}
        chosen |= {fact.id: fact for fact in latest(self.store, last)}
        if not chosen:
            raise LedgerError("there is nothing to forget.", hint="Name a fact: a number, an id, or its subject.")
        self._prepare_writing()
        with self.event("forget", "forgotten"):
            self._remove({fact.number for fact in chosen.values()})
        return list(chosen.values())

    def replace(self, name: str, target: str) -> tuple[FactVersion, EditResult]:
        """Replace the answer of a fact; the old answer is removed.

        Raises:
            LedgerError: No fact or several facts match the name.
            FactError, LookupTokenError, NumericalError: See ``Editor.edit``; the old answer stays then.
            NotHeldError: The model does not say the new answer in the end; the old one stays.
        """
        old = find_one(self.store, name)
        result = self.replace_facts([(old, replace(old.fact, target_new=target))])[0]
        if not result.kept:
            raise _not_held(result)
        return old, result

    def replace_facts(
        self, changes: Sequence[tuple[FactVersion, Fact]], *, note: Mapping[str, Any] | None = None
    ) -> list[EditResult]:
        """Write facts in the place of live ones: the ledger holds one of the two at any time.

        Where writing a fact removes the one it replaces, each is an event of its own. Else all are one: taking facts
        out may mean to write all others again, which is then done once.

        Raises:
            FactError, LookupTokenError: See ``Editor.edit``; nothing has changed.
            NumericalError: See ``Editor.edit``; the facts of its event are as they were.
            LedgerError: The ledger cannot be written; the model has the weights of its last event.
        """
        self._check_writable()
        for _, fact in changes:
            self.editor.plan(fact)
        replaces = all(self.editor.config.leaving([old.fact], [fact]) for old, fact in changes)
        results: list[EditResult] = []
        with self.progress.task("editing", len(changes), "facts") as task:
            for group in ([change] for change in changes) if replaces else [changes]:
                with self.event("edit", "replaced", dict(note or {})):
                    if not replaces:
                        self._remove({old.number for old, _ in group})
                    for _, fact in group:
                        (batch,) = self.editor.write(fact)
                        if not replaces and not batch.results[0].kept:
                            raise _not_held(batch.results[0])  # the event is undone, which restores the old answers
                        results += batch.results
                        task.advance()
        return results

    def _remove(self, numbers: Collection[int]) -> None:
        """Forget the facts of these numbers."""
        self._writable.forget([live.result for live, version in self._written.items() if version.number in numbers])

    def restore(self, event: int) -> None:
        """Restore the weights and facts of an earlier event; later facts stay in the log, as undone.

        Bit for bit; if ``gc`` dropped the factors, by writing the facts again (relative error 1e-6).

        Raises:
            LedgerError: There is no such event, or the arrays of its facts were purged.
            WeightsChangedError: Other code changed the model; nothing was restored.
        """
        self._check_writable()
        self._check_weights()
        then = {version.id: version for version in self.store.live(self.store.event(event).id)}
        now = {version.id for version in self.store.live()}
        if not self.store.has_arrays(then):
            raise LedgerError(f"the facts of event {event} were purged.", hint="Restore a later event.")
        new_event = NewEvent(
            "restore",
            note={"to": event},
            ended=dict.fromkeys(sorted(now - set(then)), "undone"),
            revived=sorted(set(then) - now),
        )
        if self.store.path_to(event) is None:
            self._rewrite_and_commit(then.values(), new_event)
            return
        self.position = UNKNOWN_EVENT  # before the commit, so that an interrupt after it is noticed
        self.store.append(replace(new_event, parent=event))
        if self._matrices or self._editor is not None:
            self.checkout_head()

    def _rewrite_and_commit(self, versions: Iterable[FactVersion], new_event: NewEvent) -> None:
        """Write ``versions`` alone into the unedited model, and commit that."""
        editing = self._writable
        try:
            self._set_live_facts(versions)
            with recording(editing.matrices) as changes:
                editing.rewrite()
            self._append(new_event, changes)
        except BaseException:
            self.checkout_head()
            raise

    @contextmanager
    def at(self, event: int) -> Iterator[LanguageModel]:
        """A context in which the model has the weights of an earlier event: for reading, not for editing.

        Raises:
            LedgerError: There is no such event, or ``gc`` dropped its factors.
        """
        model = self.language_model
        with self._restoring_weights():
            if rebuild(self.store, self.store.event(event).id, self._matrices) is None:
                raise LedgerError(
                    f"gc dropped the factors of event {event}.",
                    hint="`betaedit restore` can still write its facts again.",
                )
            yield model

    @contextmanager
    def _restoring_weights(self) -> Iterator[dict[int, Snapshot]]:
        """A context in which the weights may be changed; yields their snapshots, and restores them at the end."""
        kept = {layer: matrix.snapshot() for layer, matrix in self._matrices.items()}
        try:
            yield kept
        finally:
            here, self.position = self.position, UNKNOWN_EVENT
            for layer, matrix in self._matrices.items():
                matrix.restore(kept[layer])
            self.position = here

    def collect(self, *, purge: bool = False) -> int:
        """Drop from the ledger what the present weights do not need; returns the bytes freed.

        Facts, keys and wanted values stay, so restoring and forgetting still work; see ``Store.collect``. A history
        that is smaller than the matrices is kept.
        """
        self._check_writable()
        before, identity = self.store.nbytes, self.store.identity
        matrices = getattr(torch, identity.exact).itemsize * sum(map(math.prod, identity.shapes.values()))
        self.store.collect(self._snapshot() if self.store.weight_bytes > matrices else None, purge=purge)
        return before - self.store.nbytes

    def verify(self, *, replay: bool = False) -> list[str]:
        """Check the file and its arrays, then the weights; returns the problems found.

        The weights are rebuilt from the unedited model with every update, and compared bit for bit with those built
        from snapshots. With ``replay``, facts are also written again from their keys and wanted values.
        """
        if problems := self.store.verify():
            return problems
        matrices = self.matrices
        with self._restoring_weights() as here:
            # At the event of these weights: other programs may have committed since.
            if rebuild(self.store, self.position, matrices, snapshots=False) is not None:
                problems = [
                    f"layer {layer} differs from the sum of all events"
                    for layer, matrix in matrices.items()
                    if not torch.equal(matrix.change(), here[layer].change)
                ]
        if replay:
            problems += [
                f"layer {layer} differs by {error:.1e} from its facts written again"
                for layer, error in self.replay_errors().items()
                if error > self._tolerance()
            ]
        return problems

    def replay_errors(self) -> dict[int, float]:
        """By layer, the relative distance of the matrix from the one with the live facts written again."""
        editing = self._editing
        here = {layer: matrix.change().clone().double() for layer, matrix in editing.matrices.items()}
        try:
            editing.rewrite()
            there = {layer: matrix.change().clone().double() for layer, matrix in editing.matrices.items()}
        finally:
            self.checkout_head()
        return {
            layer: float((there[layer] - here[layer]).norm() / matrix.current().double().norm())
            for layer, matrix in editing.matrices.items()
        }

    def _tolerance(self) -> float:
        """Expected rounding error: a float32 matrix is rounded at every event; bfloat16 storage has three digits."""
        return 1e-3 if self.store.identity.storage == "bfloat16" else 1e-6 + 1e-7 * self.store.head**0.5

    def _commit_each(self, batches: Iterator[WrittenBatch], note: dict[str, Any]) -> Iterator[WrittenBatch]:
        while True:
            with self.event("edit", "replaced", note):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    @contextmanager
    def event(self, kind: Kind, why: Reason, note: dict[str, Any] | None = None) -> Iterator[None]:
        """A context in which the editor may edit; at its end the changes are committed, or undone after an error."""
        with recording(self._editing.matrices) as changes:
            try:
                yield
                if _has_changes(changes):
                    self._commit(kind, changes, why, note or {})
            except BaseException:
                if _has_changes(changes):
                    self.checkout_head()
                raise

    def _commit(self, kind: Kind, changes: Mapping[int, Changes], why: Reason, note: dict[str, Any]) -> None:
        """Commit the facts that the editor has gained and lost since the last event."""
        live = self._editing.live_facts
        held = set(live)
        ended = {live: version for live, version in self._written.items() if live not in held}
        new = [fact for fact in live if fact not in self._written]
        numbers: defaultdict[Fact, list[int]] = defaultdict(list)
        for version in ended.values():
            numbers[version.fact].append(version.number)
        again = {fact.fact for fact in new}
        identity = self.store.identity
        new_event = NewEvent(
            kind,
            note=note,
            written=[
                NewFactVersion(
                    numbers[fact.fact].pop(0) if numbers[fact.fact] else None,
                    fact.batch,
                    fact.fact,
                    fact.result.without_fact(),
                    association_bytes(fact.written, identity.storage),
                )
                for fact in new
            ],
            ended={version.id: "rewritten" if version.fact in again else why for version in ended.values()},
        )
        self._append(new_event, changes)
        for old in ended:
            del self._written[old]
        for fact, version in zip(new, self.store.written(self.store.head), strict=True):
            self._written[self._with_stored_arrays(fact, version)] = version

    def _append(self, new_event: NewEvent, changes: Mapping[int, Changes]) -> None:
        """Commit an event with its changes of the weights."""
        restarted = any(noted.restarted for noted in changes.values())
        parent = FIRST if restarted else self.store.head
        rank = max((sum(update.left.shape[1] for update in noted.updates) for noted in changes.values()), default=0)
        whole = restarted and rank >= self._rank_limit()
        carried = rank if restarted else self._rank + rank
        full = self._snapshot() if carried >= self._rank_limit() else None
        factors = {} if whole else factor_bytes(changes, self.store.identity)
        event = self.store.append(replace(new_event, parent=parent, factors=factors, snapshot=full, whole=whole))
        self._rank, self.position = 0 if full else carried, event

    def _rank_limit(self) -> float:
        """The number of rank-one updates from which on a whole matrix takes no more bytes than their factors."""
        return min(d_out * d_in / (d_out + d_in) for d_out, d_in in self.store.identity.shapes.values())

    def _snapshot(self) -> dict[int, Callable[[], bytes]]:
        identity = self.store.identity
        return {layer: partial(snapshot_bytes, matrix, identity) for layer, matrix in self.matrices.items()}

    def _with_stored_arrays(self, held: LiveFact, version: FactVersion) -> LiveFact:
        """Replace the arrays of a live fact by those in the ledger, unless it stores fewer digits."""
        if self.store.identity.storage == "bfloat16":
            return held
        light = replace(held, written=StoredAssociations(self.store, version.id))
        live = self._editing.live_facts
        live[live.index(held)] = light
        return light

    def checkout_head(self) -> None:
        """Set the model to the weights of the last event, and the editor to its facts and memories.

        Raises:
            LedgerError: Factors are missing from the ledger.
        """
        self.position = UNKNOWN_EVENT
        with self.store.view():
            head = self.store.head
            added = rebuild(self.store, head, self._matrices)
            if added is None:
                raise LedgerError(
                    f"{self.store.path} lacks factors of event {head}.", hint="Restore the file from a backup."
                )
            if self._editor is not None:
                self._set_live_facts(self.store.live(head))
        self._rank, self.position = added, head

    def follow(self) -> int:
        """Bring a model that is at an event to the last one, and return that; only new updates are added.

        After a restore, after ``gc``, or after an interrupted call the weights are rebuilt from the last snapshot.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        with self.store.view():
            matrices, head = self.matrices, self.store.head
            following = self.store.following(self.position, head)
            if following is None:
                self.checkout_head()
            elif following:
                self.position = UNKNOWN_EVENT  # otherwise a call after an interrupted one would add updates twice
                advance(self.store, following, matrices)
            self.position = head
        return head

    def _set_live_facts(self, versions: Iterable[FactVersion]) -> None:
        """Make ``versions`` the live facts of the editor."""
        assert self._editor is not None
        held = {
            LiveFact(
                EditResult.from_stored(fact.fact, fact.figures), fact.batch, StoredAssociations(self.store, fact.id)
            ): fact
            for fact in versions
        }
        keys = {layer: self._keys(layer, held.values()) for layer in self.store.identity.shapes}
        resumable(self._editor).resume(list(held), keys)
        self._written = held

    def _keys(self, layer: int, versions: Iterable[FactVersion]) -> Iterator[Tensor]:
        """The keys of each batch in one layer, in order."""
        dtype, (_, d_in) = self.store.identity.storage, self.store.identity.shapes[layer]
        for _, batch in groupby(versions, key=lambda fact: fact.batch):
            columns = [from_bytes(self.store.key(fact.id, layer), dtype, d_in, -1) for fact in batch]
            yield torch.cat(columns, dim=1)


def _has_changes(changes: Mapping[int, Changes]) -> bool:
    """Whether the matrices were changed."""
    return any(noted.restarted or noted.updates for noted in changes.values())


def _identity_of(fact: Fact) -> tuple[str, str, str, str | None]:
    """What identifies a fact, whatever its id: the texts that determine how it is written."""
    return fact.prompt, fact.subject, fact.target_new, fact.joint


def _earlier_identity_of(fact: Fact) -> tuple[str, str, str, str | None]:
    """The same for facts of versions without ``joint``: they stripped the prompt and added a space."""
    return fact.prompt.strip(), fact.subject, fact.target_new, EARLIER_JOINT


def _not_held(result: EditResult) -> NotHeldError:
    return NotHeldError(
        f"after {result.fact.text!r} the model answers {result.said!r}, not {result.fact.target_new!r}; the old answer "
        "was kept.",
        hint="Give the fact other wordings, or make the workspace with --set keep_missed=true.",
    )


def _keep_statistics(editing: Resumable, file: Path) -> None:
    try:
        editing.statistics.save(file)
    except OutputError as error:
        raise LedgerError(error.message, hint=error.hint) from error


def _locked(folder: Path) -> FileLock:
    """The lock for writing, held until it is released or the process ends."""
    lock = FileLock(folder / _LOCK)
    with file_errors(folder, LedgerError):
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise LedgerError(
                f"another program is writing to {folder}.",
                hint="Wait until it has finished; reading is still possible.",
            ) from error
    return lock

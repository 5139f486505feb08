"""A workspace: a model, a method, and a ledger of all that was written into it and taken out again."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from betaedit.editors.matrix import Changes, EditedMatrix, Snapshot, edited_matrices, recording
from betaedit.editors.method import EditResult, WrittenBatch
from betaedit.errors import ConfigError, LedgerError, NotHeldError, OutputError
from betaedit.facts.fact import EARLIER_JOINT, EvaluationCase, Fact
from betaedit.files import file_errors
from betaedit.ledger.arrays import Asked, asked_bytes, from_bytes
from betaedit.ledger.identity import STATISTICS, checked_model, editor_again, identify, load_kept, resumable
from betaedit.ledger.place import LEDGER, model_place
from betaedit.ledger.query import find, find_one, latest
from betaedit.ledger.store import (
    FIRST,
    FactVersion,
    Kind,
    NewEvent,
    NewFactVersion,
    Reason,
    Storage,
    Store,
    scratch_files,
)
from betaedit.ledger.weights import factor_bytes, rebuild, snapshot_bytes
from betaedit.models.load import DtypeName, LanguageModel
from betaedit.progress import Progress, SilentProgress

UNKNOWN_EVENT = 0
"""``position`` while the weights are those of no event: bringing them to one has not begun or was interrupted."""
_LOCK = "writer.lock"


class Workspace:
    """A folder that remembers every edit of one model, and the model with all of them in its weights.

    Reading it needs no model; the model is loaded, and brought to where the ledger is, when it is first asked for.
    One program writes at a time; any number read. Close it, or use it as a context.

    Args:
        folder: The workspace.
        store: Its open ledger.
        model: Gives the unedited model.
        progress: Where long work draws itself.
        lock: The right to write, held.

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
                halves the file; what is taken out later is then as exact as that type.

        Raises:
            LedgerError: The folder is a workspace or holds other things, or cannot be written.
            MethodError: Facts of this method cannot be taken back.
            ConfigError: The editor has edits.
        """
        folder = Path(folder)
        editing = resumable(editor)
        if editor.results:
            raise ConfigError("the model holds edits already.", hint="Call reset() first.")
        cut_off = {folder / STATISTICS, folder / _LOCK, *scratch_files(folder / LEDGER)}
        if folder.exists() and (not folder.is_dir() or set(folder.iterdir()) - cut_off):
            raise LedgerError(f"{folder} exists and is not empty.", hint="Name a new folder.")
        matrices = editing.matrices  # before there is a folder: it may fail
        with file_errors(folder, LedgerError):
            folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder)
        try:
            _keep_statistics(editing, folder / STATISTICS)
            store = Store.create(folder / LEDGER, identify(editor, storage))
        except BaseException:
            lock.release()
            raise
        made = cls(folder, store, lambda: editor.language_model, editor.progress, lock)
        made._model, made._editor, made._matrices = editor.language_model, editor, dict(matrices)
        made.position = FIRST
        return made

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
        """A workspace as it was left.

        Args:
            folder: The workspace.
            write: Whether to change it.
            model: Its unedited model, when that is in memory, or where it is, when that is not where it was; loaded
                when first needed.
            device: Where a loaded model goes.
            progress: Where long work draws itself.

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

        return cls(folder, store, load, progress or SilentProgress(), lock)

    def __enter__(self) -> Workspace:
        """The workspace itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Let go of the file; the model stays as it is."""
        self.store.close()
        if self._lock is not None:
            self._lock.release()

    @property
    def language_model(self) -> LanguageModel:
        """The model, with all that the ledger holds in its weights.

        Raises:
            IdentityError: The model has other weights than the workspace was made with.
            LedgerError: The weights cannot be built again.
            WeightsChangedError: Somebody else changed the model since.
        """
        model = self._loaded()
        if not self._matrices:
            self._matrices = edited_matrices(model.anatomy, self.store.layers)
        if self.position == UNKNOWN_EVENT:
            self.checkout_head()
        self._check_weights()
        return model

    def _check_weights(self) -> None:
        """Make sure that a loaded model computes with what was written last."""
        for matrix in self._matrices.values():
            matrix.check()

    def _loaded(self) -> LanguageModel:
        """The model, whatever its weights are at."""
        if self._model is None:
            self._model = checked_model(self.folder, self.store.identity, self._load())
        return self._model

    @property
    def matrices(self) -> Mapping[int, EditedMatrix]:
        """The edited matrices of the model, by layer."""
        _ = self.language_model
        return self._matrices

    @property
    def editor(self) -> Editor:
        """An editor that holds what the ledger does; to change it, use the workspace, which remembers that.

        Raises:
            IdentityError: Statistics or recipe are not those the workspace was made with, or as ``language_model``.
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

    def _check_writable(self) -> None:
        if self._lock is None:
            raise LedgerError(f"{self.folder} is open for reading.", hint="Open it with write=True.")

    def write(
        self,
        facts: Fact | EvaluationCase | Iterable[Fact | EvaluationCase],
        *,
        batch_size: int = 1,
        note: Mapping[str, Any] | None = None,
    ) -> Iterator[WrittenBatch]:
        """Write facts; each batch is in the ledger when it is yielded. See ``Editor.write`` for what is refused."""
        _ = self._writable
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
            LedgerError: The ledger cannot be written; the model is as the ledger says then.
        """
        items = [facts] if isinstance(facts, Fact | EvaluationCase) else list(facts)
        written: list[EditResult] = []
        with self.progress.task("editing", len(items), "facts") as task:
            for batch in self.write(items, batch_size=batch_size, note=note):
                task.advance(len(batch.results))
                written += batch.results
        return written

    def new(self, cases: Iterable[EvaluationCase]) -> list[EvaluationCase]:
        """Those that were not written yet: neither live nor replaced by a later answer that is, whatever their ids.

        A fact that an earlier version wrote counts as written, though this one may ask or join it otherwise.
        """
        told = [(held.state, _words(held.fact)) for held in self.store.facts()]
        answered = {words[:2] for state, words in told if state == "live"}
        known = {words for state, words in told if state in ("live", "replaced") and words[:2] in answered}
        return [case for case in cases if known.isdisjoint((_words(case.fact), _words_of_earlier(case.fact)))]

    def forget(self, *names: str, last: int = 0, all_matching: bool = False) -> list[FactVersion]:
        """Take facts out: by number, id, subject, or a text of the prompt, and the ``last`` ones written.

        The weights become what the other facts, with their keys and values, make of the original ones. Later facts
        about the same subject get new values, by a search each; those of other facts stay as they were sought
        (docs/forgetting.md has figures).

        Args:
            names: Each means one fact.
            last: So many of the facts written last, too.
            all_matching: Take all facts that a name means.

        Raises:
            LedgerError: There is none of a name, or there are several and ``all_matching`` is not set, or the ledger
                cannot be written; nothing has changed then.
        """
        found = (find(self.store, name) if all_matching else [find_one(self.store, name)] for name in names)
        chosen = {fact.id: fact for facts in found for fact in facts}
        chosen |= {fact.id: fact for fact in latest(self.store, last)}
        if not chosen:
            raise LedgerError("there is nothing to forget.", hint="Name a fact: a number, an id, or its subject.")
        _ = self._writable
        with self.event("forget", "forgotten"):
            self._take_out({fact.number for fact in chosen.values()})
        return list(chosen.values())

    def replace(self, name: str, target: str) -> tuple[FactVersion, EditResult]:
        """Give a fact another answer in the place of the one it has; the old one is taken out.

        Raises:
            LedgerError: There is none of that name, or there are several.
            FactError, LookupTokenError, NumericalError: See ``Editor.edit``; the old answer stays then.
            NotHeldError: The model does not say the new answer in the end; the old one stays.
        """
        old = find_one(self.store, name)
        result = self.supersede([(old, replace(old.fact, target_new=target))])[0]
        if not result.kept:
            raise _not_held(result)
        return old, result

    def supersede(
        self, changes: Sequence[tuple[FactVersion, Fact]], *, note: Mapping[str, Any] | None = None
    ) -> list[EditResult]:
        """Write facts in the place of live ones: the ledger holds one of the two at any time.

        Where writing a fact removes the one it replaces, each is an event of its own. Else all are one: taking facts
        out may mean to write all others again, which is then done once.

        Raises:
            FactError, LookupTokenError: See ``Editor.edit``; nothing has changed then.
            NumericalError: See ``Editor.edit``; the facts of its event are as they were.
            LedgerError: The ledger cannot be written; the model is as the ledger says then.
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
                        self._take_out({old.number for old, _ in group})
                    for _, fact in group:
                        (batch,) = self.editor.write(fact)
                        if not replaces and not batch.results[0].kept:
                            raise _not_held(batch.results[0])  # the event is undone: the old answers are back
                        results += batch.results
                        task.advance()
        return results

    def _take_out(self, numbers: Collection[int]) -> None:
        """Forget the facts of these numbers."""
        self._writable.forget([live.result for live, version in self._written.items() if version.number in numbers])

    def restore(self, event: int) -> None:
        """Back to the weights and facts after an earlier event; what came since stays in the log, as undone.

        Bit for bit; where ``gc`` dropped what leads there, by writing the facts of that time again (1e-6).

        Raises:
            LedgerError: There is no such event, or the arrays of its facts were purged.
            WeightsChangedError: Somebody else changed the model; nothing has changed then.
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
            self._write_again(then.values(), new_event)
            return
        self.position = UNKNOWN_EVENT  # before the commit, so that an interrupt after it is noticed
        self.store.append(replace(new_event, parent=event))
        if self._matrices:
            self.checkout_head()

    def _write_again(self, versions: Iterable[FactVersion], new_event: NewEvent) -> None:
        """Write ``versions`` alone into the unedited model, and commit that."""
        editing = self._writable
        try:
            self._hold(versions)
            with recording(editing.matrices) as changes:
                editing.rewrite()
            self._append(new_event, changes)
        except BaseException:
            self.checkout_head()
            raise

    @contextmanager
    def at(self, event: int) -> Iterator[LanguageModel]:
        """A context in which the model is as it was after an earlier event: to look at, not to edit.

        Raises:
            LedgerError: There is no such event, or ``gc`` dropped what leads there.
        """
        model = self.language_model
        with self._kept():
            if rebuild(self.store, self.store.event(event).id, self._matrices) is None:
                raise LedgerError(
                    f"gc dropped what leads to event {event}.", hint="`betaedit restore` can still write it again."
                )
            yield model

    @contextmanager
    def _kept(self) -> Iterator[dict[int, Snapshot]]:
        """A context in which the weights may be changed, given what they are before it and after it."""
        kept = {layer: matrix.snapshot() for layer, matrix in self._matrices.items()}
        try:
            yield kept
        finally:
            here, self.position = self.position, UNKNOWN_EVENT
            for layer, matrix in self._matrices.items():
                matrix.restore(kept[layer])
            self.position = here

    def collect(self, *, purge: bool = False) -> int:
        """Drop from the ledger what the weights of now do not need; returns the bytes given back.

        Facts, keys and wanted values stay, so restoring and forgetting go on working; see ``Store.collect``. A history
        that is smaller than the matrices it leads to is kept.
        """
        self._check_writable()
        before, identity = self.store.nbytes, self.store.identity
        matrices = getattr(torch, identity.exact).itemsize * sum(map(math.prod, identity.shapes.values()))
        self.store.collect(self._snapshot() if self.store.weight_bytes > matrices else None, purge=purge)
        return before - self.store.nbytes

    def verify(self, *, replay: bool = False) -> list[str]:
        """What is wrong: the file and its arrays; where those are well, the weights they lead to. Empty: nothing is.

        The weights are built from the unedited model with everything ever added, and compared bit for bit with those
        built the short way. With ``replay``, facts are also written again from their keys and wanted values.
        """
        if problems := self.store.verify():
            return problems
        matrices = self.matrices
        with self._kept() as here:
            # At the event of these weights: others may have committed since.
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
        """How far each matrix is from what the live facts make of it when they are written again, relative to it."""
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
        """What rounding explains: a float32 matrix is rounded at every event; bfloat16 storage keeps three digits."""
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
        """A context in which the editor works; at its end what it did is committed, or undone."""
        with recording(self._editing.matrices) as changes:
            try:
                yield
                if _any(changes):
                    self._commit(kind, changes, why, note or {})
            except BaseException:
                if _any(changes):
                    self.checkout_head()
                raise

    def _commit(self, kind: Kind, changes: Mapping[int, Changes], why: Reason, note: dict[str, Any]) -> None:
        """Put into the ledger what the editor holds now and did not hold at the last event, and the other way round."""
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
                    asked_bytes(fact.written, identity.storage),
                )
                for fact in new
            ],
            ended={version.id: "rewritten" if version.fact in again else why for version in ended.values()},
        )
        self._append(new_event, changes)
        for old in ended:
            del self._written[old]
        for fact, version in zip(new, self.store.written(self.store.head), strict=True):
            self._written[self._lightened(fact, version)] = version

    def _append(self, new_event: NewEvent, changes: Mapping[int, Changes]) -> None:
        """Commit an event with what it did to the weights."""
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
        """From so many rank-one updates on, a whole matrix takes no more bytes than their factors."""
        return min(d_out * d_in / (d_out + d_in) for d_out, d_in in self.store.identity.shapes.values())

    def _snapshot(self) -> dict[int, Callable[[], bytes]]:
        identity = self.store.identity
        return {layer: partial(snapshot_bytes, matrix, identity) for layer, matrix in self.matrices.items()}

    def _lightened(self, held: LiveFact, version: FactVersion) -> LiveFact:
        """Let the ledger keep the arrays of a live fact, unless it keeps fewer digits of them."""
        if self.store.identity.storage == "bfloat16":
            return held
        light = replace(held, written=Asked(self.store, version.id))
        live = self._editing.live_facts
        live[live.index(held)] = light
        return light

    def checkout_head(self) -> None:
        """Give the model the weights of the last event, and the editor its facts and memories.

        Raises:
            LedgerError: The ledger lacks what leads there.
        """
        self.position = UNKNOWN_EVENT
        with self.store.view():
            head = self.store.head
            added = rebuild(self.store, head, self._matrices)
            if added is None:
                raise LedgerError(
                    f"{self.store.path} lacks what leads to event {head}.", hint="Use the last copy of it."
                )
            if self._editor is not None:
                self._hold(self.store.live(head))
        self._rank, self.position = added, head

    def _hold(self, versions: Iterable[FactVersion]) -> None:
        """Make ``versions`` the live facts of the editor."""
        assert self._editor is not None
        held = {
            LiveFact(EditResult.from_stored(fact.fact, fact.figures), fact.batch, Asked(self.store, fact.id)): fact
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


def _any(changes: Mapping[int, Changes]) -> bool:
    """Whether anything was done to the matrices."""
    return any(noted.restarted or noted.updates for noted in changes.values())


def _words(fact: Fact) -> tuple[str, str, str, str | None]:
    """What writing a fact depends on."""
    return fact.prompt, fact.subject, fact.target_new, fact.joint


def _words_of_earlier(fact: Fact) -> tuple[str, str, str, str | None]:
    """The same as a version wrote it that knew no joint: it took white space off the prompt and put a space behind."""
    return fact.prompt.strip(), fact.subject, fact.target_new, EARLIER_JOINT


def _not_held(result: EditResult) -> NotHeldError:
    return NotHeldError(
        f"the model does not say {result.fact.target_new!r} after {result.fact.text!r}, but {result.said!r}: the old "
        "answer stays.",
        hint="Give the fact other wordings, or make the workspace with --set keep_missed=true.",
    )


def _keep_statistics(editing: Resumable, file: Path) -> None:
    try:
        editing.statistics.save(file)
    except OutputError as error:
        raise LedgerError(error.message, hint=error.hint) from error


def _locked(folder: Path) -> FileLock:
    """The right to write, until it is released or the process ends."""
    lock = FileLock(folder / _LOCK)
    with file_errors(folder, LedgerError):
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise LedgerError(
                f"another program is writing to {folder}.",
                hint="Wait until it has finished; reading is possible meanwhile.",
            ) from error
    return lock

"""A workspace of an editor that holds facts beside the weights: a codebook, side memories, facts kept as text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from betaedit.editors.editor import Editor
from betaedit.editors.matrix import EditedMatrix
from betaedit.editors.method import EditResult, HoldsFacts, WrittenBatch
from betaedit.errors import ConfigError, LedgerError
from betaedit.facts.fact import Fact
from betaedit.ledger.identity import editor_again, holding, identify_holding
from betaedit.ledger.store import FactVersion, Identity, Kind, NewEvent, NewFactVersion, Reason, Storage, Store
from betaedit.ledger.workspace import UNKNOWN_EVENT, Workspace
from betaedit.models.load import LanguageModel

_ONLY = 0
"""The layer under which the tensors of a fact are stored: they belong to no matrix."""


class HeldWorkspace(Workspace):
    """A ``Workspace`` whose editor ``HoldsFacts``: the ledger has the tensors of each fact, and replays them.

    Facts are replayed in the order of their rows. So from the first fact on whose tensors an
    event changed, all are stored again.
    """

    _facts: list[tuple[EditResult, FactVersion]]
    """Those that the editor holds, as the ledger has them."""

    @classmethod
    def _check_editor(cls, editor: Editor, storage: Storage | None) -> None:
        holding(editor)
        if storage is not None:
            raise ConfigError(
                f"a workspace of {editor.method.name} stores every fact exactly as it was written.",
                hint="Leave --storage out.",
            )

    @classmethod
    def _identify(cls, editor: Editor, storage: Storage | None) -> Identity:
        return identify_holding(editor)

    @classmethod
    def _prepare_folder(cls, editor: Editor, folder: Path) -> None:
        """It has no statistics."""

    def _adopt(self, editor: Editor) -> None:
        self._model, self._editor, self._facts = editor.resources.model, editor, []

    @property
    def language_model(self) -> LanguageModel:
        """The model as served, with all facts of the ledger.

        Raises:
            IdentityError: The model does not have the weights the workspace was made with.
        """
        return self.editor.language_model

    @property
    def matrices(self) -> Mapping[int, EditedMatrix]:
        """None: facts are beside the weights."""
        return {}

    def unedited(self) -> AbstractContextManager[None]:
        """See ``Workspace.unedited``."""
        return self.editor.unedited()

    @property
    def editor(self) -> Editor:
        """An editor with the facts of the ledger; to edit, use the workspace, which records every change.

        Raises:
            IdentityError: The method or the model are not those the workspace was made with.
        """
        if self._editor is None:
            self._editor = editor_again(self.folder, self.store.identity, self._loaded(), self.progress)
        if self.position == UNKNOWN_EVENT:
            self.checkout_head()
        return self._editor

    @property
    def _holding(self) -> HoldsFacts:
        return holding(self.editor)

    def _prepare_writing(self) -> None:
        self._check_writable()
        _ = self.editor

    def _remove(self, numbers: Collection[int]) -> None:
        self._holding.forget([result for result, version in self._facts if version.number in numbers])

    @contextmanager
    def event(self, kind: Kind, why: Reason, note: dict[str, Any] | None = None) -> Iterator[None]:
        """A context in which the editor may edit; at its end the changes are committed, or undone after an error."""
        _ = self.editor
        try:
            yield
            self._commit_held(kind, why, note or {})
        except BaseException:
            self.checkout_head()
            raise

    def _commit_held(self, kind: Kind, why: Reason, note: dict[str, Any]) -> None:
        """Commit the facts that the editor has gained and lost since the last event."""
        held, known = self._holding.held(), {id(result): version for result, version in self._facts}
        first = next((at for at, batch in enumerate(held) if id(batch.results[0]) not in known), len(held))
        stay, new = held[:first], held[first:]
        staying = [(batch.results[0], known[id(batch.results[0])]) for batch in stay]
        kept = {version.id for _, version in staying}
        ended = [version for _, version in self._facts if version.id not in kept]
        if not (new or ended):
            return
        numbers: defaultdict[Fact, list[int]] = defaultdict(list)
        for version in ended:
            numbers[version.fact].append(version.number)
        again = {batch.results[0].fact for batch in new}
        number = max((version.batch for _, version in self._facts), default=0) + 1
        new_event = NewEvent(
            kind,
            note=note,
            written=[_as_written(batch, number, numbers[batch.results[0].fact]) for batch in new],
            ended={version.id: "rewritten" if version.fact in again else why for version in ended},
        )
        self.position = UNKNOWN_EVENT  # before the commit, so that an interrupt after it is noticed
        event = self.store.append(new_event)
        written = self.store.written(event)
        self._facts = staying + [(batch.results[0], version) for batch, version in zip(new, written, strict=True)]
        self.position = event

    def checkout_head(self) -> None:
        """Bring the editor to the facts of the last event.

        Raises:
            LedgerError: The tensors of a fact are missing from the ledger.
        """
        if self._editor is None:
            return
        self.position = UNKNOWN_EVENT
        with self.store.view():
            head = self.store.head
            self._take_up(self.store.live(head))
        self.position = head

    def follow(self) -> int:
        """See ``Workspace.follow``: all facts are replayed."""
        with self.store.view():
            if self.position != self.store.head:
                self.checkout_head()
        return self.position

    def _take_up(self, versions: Sequence[FactVersion]) -> None:
        """Make ``versions`` the facts of the editor."""
        assert self._editor is not None
        self._editor.reset()
        self._facts = []
        for version in versions:
            result = EditResult.from_stored(version.fact, version.figures)
            self._editor.replay(WrittenBatch((result,), _tensors(self.store, version)))
            self._facts.append((result, version))

    @contextmanager
    def at(self, event: int) -> Iterator[LanguageModel]:
        """A context in which the model holds the facts of an earlier event: for reading, not for editing.

        Raises:
            LedgerError: There is no such event, or its facts were purged.
        """
        model, before = self.language_model, [version for _, version in self._facts]
        then = self.store.live(self.store.event(event).id)
        if not self.store.has_arrays(version.id for version in then):
            raise LedgerError(f"the facts of event {event} were purged.", hint="Name a later event.")
        try:
            self._take_up(then)
            yield model
        finally:
            here, self.position = self.position, UNKNOWN_EVENT
            self._take_up(before)
            self.position = here

    def collect(self, *, purge: bool = False) -> int:
        """Free unused space; with ``purge`` the tensors of facts that are not live, too. Returns the bytes freed."""
        self._check_writable()
        before = self.store.nbytes
        self.store.collect(None, purge=purge)
        return before - self.store.nbytes

    def verify(self, *, replay: bool = False) -> list[str]:
        """Check the file, then replay it and compare what the editor holds with what it held; returns the problems.

        With ``replay``, facts are also written anew into an editor that holds nothing, and compared.
        """
        if problems := self.store.verify():
            return problems
        before, here, event = self._own_tensors(), [version for _, version in self._facts], self.position
        self.position = UNKNOWN_EVENT
        self._take_up(here)
        self.position = event
        after = self._own_tensors()
        problems = [
            f"fact #{version.number} differs from what the ledger has"
            for version, old, new in zip(here, before, after, strict=True)
            if not _equal(old, new)
        ]
        if replay:
            for number, error in self.replay_errors().items():
                if error > self._tolerance():
                    problems.append(f"fact #{number} differs by {error:.1e} from itself written again")
        return problems

    def replay_errors(self) -> dict[int, float]:
        """By number of the fact, the relative distance of its tensors from those of writing all facts anew."""
        editor, versions, here = self.editor, [version for _, version in self._facts], self._own_tensors()
        try:
            editor.reset()
            for _ in editor.editing.write([version.fact for version in versions], batch_size=1):
                pass
            there = self._own_tensors()
        finally:
            self.checkout_head()
        return {
            version.number: max((_distance(old.get(name), new.get(name)) for name in {*old, *new}), default=0.0)
            for version, old, new in zip(versions, here, there, strict=True)
        }

    def _own_tensors(self) -> list[Mapping[str, Tensor]]:
        return [batch.tensors for batch in self._holding.held()]


def _as_written(batch: WrittenBatch, number: int, earlier: list[int]) -> NewFactVersion:
    """A fact as the ledger stores it: its tensors are one safetensors file."""
    (result,) = batch.results
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in batch.tensors.items()}
    own = earlier.pop(0) if earlier else None
    return NewFactVersion(own, number, result.fact, result.without_fact(), {_ONLY: (b"", save(plain))})


def _tensors(store: Store, version: FactVersion) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load(store.asked(version.id, _ONLY)[1])
    return found


def _equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def _distance(first: Tensor | None, second: Tensor | None) -> float:
    """Relative distance; infinite where one is missing."""
    if first is None or second is None or first.shape != second.shape:
        return torch.inf
    size = float(first.double().norm())
    return float((second.double() - first.double()).norm()) / (size or 1.0)

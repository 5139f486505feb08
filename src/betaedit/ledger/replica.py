"""A model that a process serves while others edit it: brought up to date in place, without being loaded again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from betaedit.ledger.weights import advance
from betaedit.ledger.workspace import UNKNOWN_EVENT, Workspace
from betaedit.models.load import LanguageModel

logger = logging.getLogger(__name__)


class Replica:
    """The model of a workspace in a process that only reads it.

    ``with replica.model() as model: ...`` answers with one state of the model from beginning to end; ``sync`` brings it
    to the last event that any process has committed, between two answers.

    Args:
        folder: The workspace.
        model: As for ``Workspace.open``.
        device: Where a loaded model goes.

    Raises:
        LedgerError: There is no workspace, or it belongs to another model.
    """

    def __init__(
        self, folder: str | Path, *, model: LanguageModel | str | None = None, device: str | None = None
    ) -> None:
        self._workspace = Workspace.open(folder, model=model, device=device)
        self._lock = threading.RLock()
        _ = self._workspace.matrices

    @property
    def event(self) -> int:
        """The event that the served weights are at."""
        return self._workspace.position

    @contextmanager
    def model(self) -> Iterator[LanguageModel]:
        """A context in which nobody changes the model."""
        with self._lock:
            yield self._workspace.language_model

    def sync(self) -> int:
        """Apply what was committed since; returns the event that the model is at.

        Costs the updates that are new; after a restore, where ``gc`` dropped them, or after a sync that was cut off,
        the way from the last snapshot.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        workspace, store = self._workspace, self._workspace.store
        with self._lock, store.view():
            matrices, head = workspace.matrices, store.head
            following = store.following(workspace.position, head)
            if following is None:
                workspace.checkout_head()
            elif following:
                workspace.position = UNKNOWN_EVENT  # cut off within, the updates would be added twice by the next sync
                advance(store, following, matrices)
            workspace.position = head
        return head

    @contextmanager
    def following(self, every: float = 1.0) -> Iterator[None]:
        """A context in which a thread syncs ``every`` so many seconds."""
        stop = threading.Event()

        def follow() -> None:
            while not stop.wait(every):
                try:
                    self.sync()
                except Exception as error:  # whatever it is, the next try may succeed: on a full GPU, for one
                    logger.warning("the model is not brought up to date, which is tried again: %s", error)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def close(self) -> None:
        """Let go of the workspace; the model stays as it is."""
        self._workspace.close()

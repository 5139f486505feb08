"""A served model that other processes edit: updated in place, without loading it again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from betaedit.ledger.workspace import Workspace
from betaedit.models.load import LanguageModel

logger = logging.getLogger(__name__)


class Replica:
    """The model of a workspace in a process that only reads it.

    ``with replica.model() as model: ...`` gives one state of the model from beginning to end; ``sync`` brings it
    to the last event that any process has committed, outside such contexts.

    Args:
        folder: The workspace.
        model: See ``Workspace.open``.
        device: Device of a loaded model.

    Raises:
        LedgerError: There is no workspace, or it belongs to another model.
    """

    def __init__(
        self, folder: str | Path, *, model: LanguageModel | str | None = None, device: str | None = None
    ) -> None:
        self._workspace = Workspace.open(folder, model=model, device=device)
        self._lock = threading.RLock()
        _ = self._workspace.language_model

    @property
    def event(self) -> int:
        """The event of the served weights."""
        return self._workspace.position

    @contextmanager
    def model(self) -> Iterator[LanguageModel]:
        """A context in which the model does not change."""
        with self._lock:
            yield self._workspace.language_model

    def sync(self) -> int:
        """Apply the events committed since; returns the last event.

        See ``Workspace.follow``.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        with self._lock:
            return self._workspace.follow()

    @contextmanager
    def following(self, every: float = 1.0) -> Iterator[None]:
        """A context in which a thread calls ``sync`` every ``every`` seconds."""
        stop = threading.Event()

        def follow() -> None:
            while not stop.wait(every):
                try:
                    self.sync()
                except Exception as error:  # the next try may succeed, for example after a full GPU
                    logger.warning("the model could not be updated, and the update will be tried again: %s", error)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def close(self) -> None:
        """Close the workspace; the model is left unchanged."""
        self._workspace.close()

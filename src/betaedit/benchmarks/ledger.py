"""Times a ledger of many edits: committing one more, opening, rebuilding, and queries."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from betaedit.benchmarks.rows import Row, seconds
from betaedit.editors.closed_form.live import LiveFact
from betaedit.editors.editor import Editor
from betaedit.editors.method import EditResult
from betaedit.facts.fact import Fact
from betaedit.ledger.identity import resumable
from betaedit.ledger.place import LEDGER
from betaedit.ledger.query import select
from betaedit.ledger.store import Store
from betaedit.ledger.workspace import Workspace
from betaedit.memory.conflicts import Associations
from betaedit.memory.update import Update

_LAST = 100


def ledger(editor: Editor, *, n_edits: int) -> list[Row]:
    """A workspace of ``n_edits`` facts with random keys and values of the model's own shapes, one event each.

    The search of values is left out: only what the ledger itself does is timed. Opening leaves out loading the model.
    """
    with TemporaryDirectory() as place:
        folder = Path(place) / "workspace"
        with Workspace.create(folder, editor) as workspace:
            commits = [_commit(workspace, number) for number in range(n_edits)]
        editor.reset()
        model = editor.language_model
        opened: list[Workspace] = []

        def read() -> None:
            opened.append(Workspace.open(folder, model=model))
            _ = opened[0].matrices

        def take_up() -> None:
            opened.append(Workspace.open(folder, write=True, model=model))
            _ = opened[1].editor

        last = commits[-_LAST:]
        size = (folder / LEDGER).stat().st_size
        details = {"edits": n_edits, "bytes": size, "bytes_per_edit": size / n_edits}
        rows = [
            Row(f"ledger, commit after {n_edits}", sum(last) / len(last), details=details),
            Row("ledger, open and rebuild the weights", seconds(read), details={"edits": n_edits}),
        ]
        for matrix in opened[0].matrices.values():
            matrix.restore()
        rows += [
            Row("ledger, open to go on editing", seconds(take_up), details={"edits": n_edits}),
            Row("ledger, log", seconds(lambda: _log(folder)), details={"edits": n_edits}),
            Row("ledger, show", seconds(lambda: _show(folder, n_edits // 2)), details={"edits": n_edits}),
        ]
        for matrix in opened[1].matrices.values():
            matrix.restore()
        for workspace in opened:
            workspace.close()
    return rows


def _commit(workspace: Workspace, number: int) -> float:
    """Add a random fact to the model, and say how long the ledger took to keep it."""
    generator = torch.Generator().manual_seed(number)
    editing = resumable(workspace.editor)
    written, updates = {}, {}
    for layer, matrix in editing.matrices.items():
        d_out, d_in = matrix.shape
        key, value = torch.randn(d_in, 1, generator=generator), torch.randn(d_out, 1, generator=generator)
        written[layer] = Associations(key, value)
        updates[layer] = Update(1e-3 * value, key / key.square().sum())
    fact = Fact("{} has the number", f"Subject {number}", str(number))
    figures = {"keys": 1, "update_norms": {str(layer): update.norm() for layer, update in updates.items()}}

    def commit() -> None:
        with workspace.event("edit", "replaced"):
            for layer, matrix in editing.matrices.items():
                matrix.add(updates[layer])
            editing.live_facts.append(LiveFact(EditResult(fact, 0.0, figures=figures), number + 1, written))

    return seconds(commit)


def _log(folder: Path) -> None:
    store = Store(folder / LEDGER)
    select(store.facts())
    store.close()


def _show(folder: Path, number: int) -> None:
    store = Store(folder / LEDGER)
    store.versions(number)
    store.close()

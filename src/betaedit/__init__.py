"""Write facts into language models, one after another, without damaging the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from betaedit.lazy import imported_when_asked

if TYPE_CHECKING:
    from betaedit.editors.closed_form.config import EditConfig
    from betaedit.editors.editor import Editor
    from betaedit.facts.fact import EvaluationCase, Fact, Probe, Question
    from betaedit.ledger.replica import Replica
    from betaedit.ledger.workspace import Workspace

__version__ = "0.1.0"

__all__ = ["EditConfig", "Editor", "EvaluationCase", "Fact", "Probe", "Question", "Replica", "Workspace", "__version__"]
__getattr__ = imported_when_asked(
    __name__,
    {
        "editors.closed_form.config": ("EditConfig",),
        "editors.editor": ("Editor",),
        "facts.fact": ("EvaluationCase", "Fact", "Probe", "Question"),
        "ledger.replica": ("Replica",),
        "ledger.workspace": ("Workspace",),
    },
)

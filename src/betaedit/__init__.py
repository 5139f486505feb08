"""Write facts into language models, one after another, without wrecking the model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from betaedit.editors.config import EditConfig
    from betaedit.editors.editor import Editor
    from betaedit.facts.fact import EvaluationCase, Fact, Probe, Question
    from betaedit.ledger.replica import Replica
    from betaedit.ledger.workspace import Workspace

__version__ = "0.1.0"

_HOMES = {
    "EditConfig": "betaedit.editors.config",
    "Editor": "betaedit.editors.editor",
    "EvaluationCase": "betaedit.facts.fact",
    "Fact": "betaedit.facts.fact",
    "Probe": "betaedit.facts.fact",
    "Question": "betaedit.facts.fact",
    "Replica": "betaedit.ledger.replica",
    "Workspace": "betaedit.ledger.workspace",
}

__all__ = ["EditConfig", "Editor", "EvaluationCase", "Fact", "Probe", "Question", "Replica", "Workspace", "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that ``import betaedit`` does not import torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'betaedit' has no attribute {name!r}")

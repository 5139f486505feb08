"""Which facts of a workspace the model still answers, and the drift of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from betaedit.evaluation.drift import Drift, compare, held_out_prose
from betaedit.evaluation.interval import Estimate, estimate
from betaedit.evaluation.metrics import measure_edits
from betaedit.facts.fact import EvaluationCase
from betaedit.ledger.query import to_dict
from betaedit.ledger.store import FactVersion
from betaedit.ledger.workspace import Workspace


@dataclass(frozen=True)
class Health:
    """The live facts of a workspace on its model.

    Args:
        holding: Share of the live facts whose every target token is the most probable one; ``None`` without facts.
        slipped: The others.
        drift: How far the model is from the unedited one on ordinary text.
    """

    holding: Estimate | None
    slipped: list[FactVersion]
    drift: Drift

    def to_dict(self) -> dict[str, Any]:
        """The findings as ``--json`` prints them."""
        return {
            "holding": None if self.holding is None else self.holding.to_dict(),
            "slipped": [to_dict(version) for version in self.slipped],
            "drift": self.drift.to_dict(),
        }


def check(workspace: Workspace, *, texts: Sequence[str] | None = None) -> Health:
    """Ask the model for every live fact, and measure its drift on ``texts`` (default: the package's own)."""
    model, progress = workspace.language_model, workspace.progress
    live = workspace.store.live(
        workspace.position
    )  # the facts of these weights: other programs may have committed since
    asked = measure_edits(model, [EvaluationCase(version.fact) for version in live], progress=progress, label="asking")
    holds = [outcome.rewrite[0].wanted.argmax for outcome in asked.outcomes]
    prose = held_out_prose() if texts is None else texts
    drift = compare(model, prose, workspace.unedited, progress=progress)
    return Health(
        holding=estimate([float(held) for held in holds]),
        slipped=[version for version, held in zip(live, holds, strict=True) if not held],
        drift=drift,
    )


def drift_between(workspace: Workspace, before: int, after: int, *, texts: Sequence[str] | None = None) -> Drift:
    """Drift of the model from the event ``before``, in place of the unedited one, to ``after``."""
    prose = held_out_prose() if texts is None else texts
    with workspace.at(after) as model:
        return compare(model, prose, lambda: workspace.at(before), progress=workspace.progress)


def reapply(workspace: Workspace, slipped: Sequence[FactVersion]) -> None:
    """Write again the facts that the model no longer answers; values are searched on the present weights.

    If this is interrupted, every fact is in the weights, as before or written again.
    """
    workspace.replace_facts([(version, version.fact) for version in slipped], note={"reapplied": True})

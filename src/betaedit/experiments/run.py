"""One measured run: the model before, the edits, the model after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from betaedit.editors.editor import Editor
from betaedit.editors.engine import EditResult
from betaedit.evaluation.drift import held_out_prose, leakage, perplexity
from betaedit.evaluation.metrics import EditMeasures, before_and_after, measure_edits
from betaedit.facts.fact import EvaluationCase


@dataclass(frozen=True)
class LayerDrift:
    """How far one layer has moved.

    Args:
        leakage: Root mean square change of the layer's output over ordinary tokens.
        relative_leakage: The same, as a share of the output itself.
        weight_change: ``||W_t - W_0||_F``.
        relative_weight_change: The same, as a share of ``||W_0||_F``.
    """

    leakage: float
    relative_leakage: float
    weight_change: float
    relative_weight_change: float


@dataclass(frozen=True)
class RunReport:
    """What a run did and what it cost the model.

    Args:
        setup: Model, method, hyper-parameters, statistics.
        results: Every edit.
        before: Edit metrics of the unedited model.
        after: Edit metrics of the edited model.
        drift: Per edited layer.
        perplexity_before: On held-out text.
        perplexity_after: On the same text.
    """

    setup: dict[str, Any]
    results: tuple[EditResult, ...]
    before: EditMeasures
    after: EditMeasures
    drift: dict[int, LayerDrift]
    perplexity_before: float
    perplexity_after: float

    @property
    def seconds_per_edit(self) -> float:
        """Mean wall-clock time of an edit; statistics and evaluation are not in it."""
        return sum(result.seconds for result in self.results) / max(len(self.results), 1)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, as ``--json`` prints it."""
        return {
            "edits": len(self.results),
            "method": self.setup["method"],
            "model": self.setup["model"],
            "seconds_per_edit": self.seconds_per_edit,
            "efficacy": before_and_after(self.before.efficacy, self.after.efficacy),
            "generality": before_and_after(self.before.generality, self.after.generality),
            "specificity": before_and_after(self.before.specificity, self.after.specificity),
            "leakage": self._drift("leakage"),
            "weight_change": self._drift("weight_change"),
            "perplexity": {"before": self.perplexity_before, "after": self.perplexity_after},
            "setup": self.setup,
            "results": [result.to_dict() for result in self.results],
        }

    def _drift(self, name: str) -> dict[str, Any]:
        layers = {str(layer): getattr(drift, name) for layer, drift in self.drift.items()}
        relative = {str(layer): getattr(drift, f"relative_{name}") for layer, drift in self.drift.items()}
        return {
            "mean": _mean(layers),
            "relative": _mean(relative),
            "layers": layers,
            "relative_layers": relative,
        }


def run_edits(
    editor: Editor,
    cases: Sequence[EvaluationCase],
    *,
    batch_size: int = 1,
    held_out: Sequence[str] | None = None,
    on_edit: Callable[[EditResult], None] | None = None,
) -> RunReport:
    """Measure, write every case's fact, measure again.

    Everything is checked before the first weight changes (see ``Editor.edit`` for what is refused).

    Args:
        editor: Holds the model, which is changed.
        cases: The facts with the prompts they are measured on.
        batch_size: Facts solved together.
        held_out: Texts for the perplexity; the package's own prose by default.
        on_edit: Hears of every edit as it is made.
    """
    texts = list(held_out) if held_out is not None else held_out_prose()
    model, progress = editor.language_model, editor.progress
    editor.plan(cases)
    editor.prepare()
    before = measure_edits(model, cases, progress=progress, label="measuring before")
    perplexity_before = perplexity(model, texts, progress=progress)
    results = editor.edit(cases, batch_size=batch_size, on_edit=on_edit)
    after = measure_edits(model, cases, progress=progress, label="measuring after")
    return RunReport(
        setup={key: value for key, value in editor.to_dict().items() if key != "edits"},
        results=tuple(results),
        before=before,
        after=after,
        drift=layer_drift(editor),
        perplexity_before=perplexity_before,
        perplexity_after=perplexity(model, texts, progress=progress),
    )


def layer_drift(editor: Editor) -> dict[int, LayerDrift]:
    """How far every edited layer has moved since the first edit."""
    moments = editor.statistics.matrices
    drift = {}
    for layer, matrix in editor.engine.matrices.items():
        change, original, moment = matrix.change(), matrix.original(), moments[layer].cpu()
        leaked, length = leakage(change, moment), float(change.norm())
        drift[layer] = LayerDrift(
            leakage=leaked,
            relative_leakage=leaked / leakage(original, moment),
            weight_change=length,
            relative_weight_change=length / float(original.norm()),
        )
    return drift


def _mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)

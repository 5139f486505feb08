"""Measuring a model: edit metrics in both published forms, leakage, perplexity."""

from betaedit.evaluation.drift import held_out_prose, leakage, perplexity
from betaedit.evaluation.metrics import EditMeasures, Figure, before_and_after, measure_edits, summarize
from betaedit.evaluation.scoring import Score, score_targets

__all__ = [
    "EditMeasures",
    "Figure",
    "Score",
    "before_and_after",
    "held_out_prose",
    "leakage",
    "measure_edits",
    "perplexity",
    "score_targets",
    "summarize",
]

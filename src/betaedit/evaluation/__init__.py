"""Measuring a model: edit metrics in both published forms, leakage, drift, general ability."""

from betaedit.evaluation.abilities import AbilityResult, Classification, measure_abilities
from betaedit.evaluation.drift import Drift, compare, held_out_prose, leakage, perplexity
from betaedit.evaluation.metrics import EditMeasures, Figure, before_and_after, measure_edits, summarize
from betaedit.evaluation.scoring import Score, score_targets

__all__ = [
    "AbilityResult",
    "Classification",
    "Drift",
    "EditMeasures",
    "Figure",
    "Score",
    "before_and_after",
    "compare",
    "held_out_prose",
    "leakage",
    "measure_abilities",
    "measure_edits",
    "perplexity",
    "score_targets",
    "summarize",
]

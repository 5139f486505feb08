"""Measured runs over lists of facts."""

from betaedit.experiments.run import LayerDrift, RunReport, layer_drift, run_edits

__all__ = ["LayerDrift", "RunReport", "layer_drift", "run_edits"]

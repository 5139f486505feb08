"""What to write: facts, the cases they are measured with, and readers for the field's file formats.

Pure data: this room knows no model and no tensor.
"""

from betaedit.facts.fact import EvaluationCase, Fact, Probe, slotted
from betaedit.facts.readers import FactFile, Rejected, demo_path, iter_records, read_cases

__all__ = [
    "EvaluationCase",
    "Fact",
    "FactFile",
    "Probe",
    "Rejected",
    "demo_path",
    "iter_records",
    "read_cases",
    "slotted",
]

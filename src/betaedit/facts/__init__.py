"""What to write: facts, the cases they are measured with, and readers for the field's file formats.

Pure data: this room knows no model and no tensor.
"""

from betaedit.facts.check import Check, check_facts
from betaedit.facts.fact import GROUPS, LOCALITY, PORTABILITY, EvaluationCase, Fact, Group, Probe, Question, slotted
from betaedit.facts.readers import (
    Converted,
    FactFile,
    Rejected,
    demo_path,
    iter_cases,
    iter_records,
    iter_results,
    read_cases,
)
from betaedit.facts.writer import save_facts

__all__ = [
    "GROUPS",
    "LOCALITY",
    "PORTABILITY",
    "Check",
    "Converted",
    "EvaluationCase",
    "Fact",
    "FactFile",
    "Group",
    "Probe",
    "Question",
    "Rejected",
    "check_facts",
    "demo_path",
    "iter_cases",
    "iter_records",
    "iter_results",
    "read_cases",
    "save_facts",
    "slotted",
]

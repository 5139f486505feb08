"""The linear associative memory: projector, solver and thin updates. Tensors only: no model, no file."""

from betaedit.memory.alignment import distance_from, written_at_once, written_in_turn
from betaedit.memory.associative import AssociativeMemory
from betaedit.memory.conflicts import Associations, forget, replace, segments
from betaedit.memory.postprocess import Postprocessing, Postprocessor
from betaedit.memory.projector import NullSpace, Spectrum
from betaedit.memory.random_keys import RandomKeys
from betaedit.memory.rule import MemoryRule
from betaedit.memory.update import Update

__all__ = [
    "Associations",
    "AssociativeMemory",
    "MemoryRule",
    "NullSpace",
    "Postprocessing",
    "Postprocessor",
    "RandomKeys",
    "Spectrum",
    "Update",
    "distance_from",
    "forget",
    "replace",
    "segments",
    "written_at_once",
    "written_in_turn",
]

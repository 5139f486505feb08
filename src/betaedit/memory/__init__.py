"""The linear associative memory: projector, solver and thin updates. Tensors only: no model, no file."""

from betaedit.memory.associative import AssociativeMemory
from betaedit.memory.conflicts import Associations, forget, replace, segments
from betaedit.memory.projector import NullSpace, build_null_space
from betaedit.memory.rule import MemoryRule
from betaedit.memory.update import Update

__all__ = [
    "Associations",
    "AssociativeMemory",
    "MemoryRule",
    "NullSpace",
    "Update",
    "build_null_space",
    "forget",
    "replace",
    "segments",
]

"""The linear associative memory: projector, solver and thin updates. Tensors only: no model, no file."""

from typing import TYPE_CHECKING

from betaedit.lazy import imported_when_asked

if TYPE_CHECKING:
    from betaedit.memory.alignment import distance_from, written_at_once, written_in_turn
    from betaedit.memory.associative import AssociativeMemory
    from betaedit.memory.conflicts import Associations, forget, replace, segments
    from betaedit.memory.postprocess import Postprocessor
    from betaedit.memory.projector import NullSpace, Spectrum
    from betaedit.memory.random_keys import RandomKeys
    from betaedit.memory.rule import MemoryRule, Postprocessing
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

__getattr__ = imported_when_asked(
    __name__,
    {
        "alignment": ("distance_from", "written_at_once", "written_in_turn"),
        "associative": ("AssociativeMemory",),
        "conflicts": ("Associations", "forget", "replace", "segments"),
        "postprocess": ("Postprocessor",),
        "projector": ("NullSpace", "Spectrum"),
        "random_keys": ("RandomKeys",),
        "rule": ("MemoryRule", "Postprocessing"),
        "update": ("Update",),
    },
)

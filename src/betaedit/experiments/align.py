"""How far a sequence of edits is from writing all facts at once, layer by layer.

Alignment theory (methods.md D.1): with history, **given keys and values** and a fixed projector, a sequence gives the
same weights as one update for all its facts. The keys and values here are those of the editor, so the distance shows
only the effect of missing history, a refreshed projector, post-processing, or the type of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

import torch

from betaedit.editors.closed_form.associative import Associative
from betaedit.editors.editor import Editor
from betaedit.editors.method import require
from betaedit.errors import ConfigError
from betaedit.memory.alignment import distance_from, written_at_once, written_in_turn
from betaedit.memory.associative import AssociativeMemory
from betaedit.memory.conflicts import Associations


@dataclass(frozen=True)
class LayerAlignment:
    """Distances of one edited matrix from its one-time solution, relative to the norm of its change.

    Args:
        layer: The layer.
        written: Distance of the model's weights.
        with_history: Distance with the same keys, values and batches, by the method's rule with history.
        without_history: The same without history.
        one_time_change: Norm of the one-time change, relative to the original matrix.
    """

    layer: int
    written: float
    with_history: float
    without_history: float
    one_time_change: float

    def to_dict(self) -> dict[str, Any]:
        """The distances as plain data."""
        return asdict(self)


def measure_alignment(editor: Editor) -> tuple[LayerAlignment, ...]:
    """How far the facts that the editor's model holds are from their one-time solution; changes nothing.

    The one-time solution is that of the method's rule, by a new memory, without post-processing,
    random keys or ROME's second key.
    Cost per layer: three eigendecompositions of ``C0``, a solve for all facts and two for every batch.

    Raises:
        ConfigError: The model holds no edits.
        MethodError: The method writes no keys and values.
        NumericalError: The facts cannot be solved together.
    """
    if not editor.results:
        raise ConfigError("no facts are written.", hint="Write facts first.")
    editing = require(
        editor.editing,
        Associative,  # type: ignore[type-abstract]
        editor.method,
        "be compared with a one-time solution: it writes no keys and values",
        "Use a closed-form method, such as memit-h, alphaedit or betaedit.",
    )
    return tuple(_align(editing, layer) for layer in sorted(editing.matrices))


def _align(editing: Associative, layer: int) -> LayerAlignment:
    matrix = editing.matrices[layer]
    change = matrix.change().double()  # values are relative to the unedited matrix, so all starts from zero
    nothing = torch.zeros_like(change)
    new_memory = _memories(editing, layer)
    batches = [
        Associations.joined(held.written[layer] for held in batch).to(change.device)
        for _, batch in groupby(editing.live_facts, key=lambda held: held.batch)
    ]
    one_time = written_at_once(new_memory(False), nothing, Associations.joined(batches))
    return LayerAlignment(
        layer=layer,
        written=distance_from(one_time, change, nothing),
        with_history=distance_from(one_time, written_in_turn(new_memory(True), nothing, batches), nothing),
        without_history=distance_from(one_time, written_in_turn(new_memory(False), nothing, batches), nothing),
        one_time_change=float(one_time.norm() / matrix.original().norm()),
    )


def _memories(editing: Associative, layer: int) -> Callable[[bool], AssociativeMemory]:
    """Makes fresh memories of the method's rule, with history or without."""
    moment, rule = editing.statistics.matrices[layer].to(editing.matrices[layer].device), editing.rule
    return lambda history: AssociativeMemory(moment, replace(rule, history=history))

"""How far the keys of written facts have moved since they were written, layer by layer.

A memory protects the keys that it wrote. A later write to a lower layer moves the keys that an earlier fact has in the
layers above, and then protects a key that no longer occurs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from betaedit.editors.closed_form.editor import ClosedForm, closed_form
from betaedit.editors.closed_form.encode import encode_batch
from betaedit.editors.closed_form.keys import present_keys
from betaedit.editors.closed_form.live import LiveFact
from betaedit.editors.editor import Editor
from betaedit.errors import ConfigError
from betaedit.evaluation.holding import measure_holding
from betaedit.progress import Progress

PARTS = 4
_TOGETHER = 32


@dataclass(frozen=True)
class MovedKeys:
    """The keys of one layer: stored ``k``, present ``k'``; one number a fact, in the order of writing.

    Args:
        layer: The layer.
        distances: ``|k' - k| / |k'|``; of a fact with several keys the mean.
        cosines: Cosine of ``k`` and ``k'``, likewise.
        held: Whether the model gives the fact's answer now.
    """

    layer: int
    distances: tuple[float, ...]
    cosines: tuple[float, ...]
    held: tuple[bool, ...]

    def by_age(self, parts: int = PARTS) -> list[float]:
        """Mean distance of the oldest part of the facts, ..., of the newest; fewer parts than facts."""
        parts = min(parts, len(self.distances))
        bounds = [len(self.distances) * part // parts for part in range(parts + 1)]
        return [_mean(self.distances[first:end]) for first, end in itertools.pairwise(bounds)]

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain data; means are ``None`` over no facts."""
        pairs = list(zip(self.distances, self.held, strict=True))
        return {
            "layer": self.layer,
            "by_age": self.by_age(),
            "smallest_cosine": min(self.cosines),
            "held": _mean_or_none([distance for distance, held in pairs if held]),
            "missed": _mean_or_none([distance for distance, held in pairs if not held]),
            "distances": list(self.distances),
        }


def measure_moved_keys(editor: Editor, progress: Progress | None = None) -> tuple[MovedKeys, ...]:
    """Compare the keys of all facts that the model holds with those it has for them now; changes nothing.

    Cost: one forward pass per fact up to the last edited layer, and one greedy answer per fact.

    Raises:
        ConfigError: The model holds no edits.
        MethodError: The method writes no keys.
    """
    editing, live = closed_form(editor), list(closed_form(editor).live_facts)
    if not live:
        raise ConfigError("no facts are written.", hint="Write facts first.")
    shown = progress or editor.progress
    parts: list[dict[int, list[tuple[float, float]]]] = []
    with shown.task("keys", len(live), "facts") as task:
        for at in range(0, len(live), _TOGETHER):
            part = live[at : at + _TOGETHER]
            parts.append(_compared(editing, part))
            task.advance(len(part))
    holdings = measure_holding(editor.language_model, [held.result.fact for held in live])
    held = tuple(one.status == "held" for one in holdings)
    found = []
    for layer in editing.config.layers:
        distances, cosines = zip(*(pair for part in parts for pair in part[layer]), strict=True)
        found.append(MovedKeys(layer, distances, cosines, held))
    return tuple(found)


def _compared(editing: ClosedForm, facts: Sequence[LiveFact]) -> dict[int, list[tuple[float, float]]]:
    """By layer, distance and cosine of every fact."""
    engine = editing.engine
    encoded = encode_batch(editing.model, [held.result.fact for held in facts], engine.contexts, engine.config)
    present = present_keys(editing.model, encoded, engine.config)
    return {layer: _moved([held.written[layer].keys for held in facts], keys) for layer, keys in present.items()}


def _moved(stored: Sequence[Tensor], present: Tensor) -> list[tuple[float, float]]:
    found, first = [], 0
    for old in stored:
        new = present[:, first : first + old.shape[1]].cpu()
        first += old.shape[1]
        distance = (new - old).norm(dim=0) / new.norm(dim=0)
        cosine = torch.nn.functional.cosine_similarity(old, new, dim=0)
        found.append((float(distance.mean()), float(cosine.mean())))
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_or_none(values: Sequence[float]) -> float | None:
    return _mean(values) if values else None

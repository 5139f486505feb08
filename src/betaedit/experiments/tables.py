"""Further figures in groups: what each is called and counted in, and one table per group for terminal and page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from betaedit.experiments.record import Checkpoint, Figures, Mean
from betaedit.facts.fact import LOCALITY, PORTABILITY

Unit = Literal["share", "seconds", "times", "bytes", "number"]
Value = Mean | float | None

_UNEDITED = "unedited"
_KIBI = 1024
_SHORT = 0.001


GROUPS = {
    "questions": "Free answers",
    "tokens": "Tokens",
    "chat": "In the chat template",
    "retrieval": "Retrieval",
    "abilities": "Abilities",
    "fluency": "Fluency",
    "costs": "Time and memory",
}
"""Titles of the tables, in order."""


@dataclass(frozen=True)
class _Names:
    """A kind of figures.

    Args:
        pattern: Of their names.
        group: Whose table they are in; those without one are in ``--json`` alone.
        unit: What they are counted in.
        note: What they are, where the name does not say it.
    """

    pattern: str
    group: str | None
    unit: Unit
    note: str = ""


_NAMES = (
    _Names(r"seconds per edit", "costs", "seconds", "seconds per edit: mean over all edits so far"),
    _Names(r"seconds per 50 tokens.*", "costs", "seconds"),
    _Names(r"relative latency", "costs", "times", "relative latency: to the unedited model, asked in turn"),
    _Names(r"relative memory", "costs", "times"),
    _Names(
        r"memory to (answer|edit)",
        "costs",
        "bytes",
        "memory to answer, to edit: beside the model's weights; relative memory: weights and memory to answer, to the "
        "weights alone",
    ),
    _Names(r"memory to (answer|edit), .*", None, "bytes"),
    _Names(r"peak memory, GiB", "costs", "number", "peak memory: of the whole process since it started"),
    _Names(
        r"token accuracy, .*", "tokens", "share", "token accuracy: share of the answer's tokens, those before it given"
    ),
    _Names(
        r"(match ratio|exact match), .*",
        "tokens",
        "share",
        "match ratio, exact match: the same tokens as before the edits, at the places of the neighbors' own answers",
    ),
    _Names(r"retrieved at \d+, .*", "retrieval", "share", "retrieved at K: the own fact is among the K nearest"),
    _Names(r"(shown|shown wrongly), .*", "retrieval", "share", "shown: put before the prompt"),
    _Names(r"chat .*", "chat", "share", "the figures by prompts in the model's chat template"),
    _Names(r"fluency", "fluency", "number", "entropy of the words of sampled text"),
    _Names(r"accuracy, .*", "abilities", "share"),
    _Names(r"macro-F1, .*", "abilities", "number"),
    _Names(r"reliability|generalization", "questions", "share"),
    _Names(r"portability", "questions", "share", "portability: all of its sub-keys together"),
    _Names("|".join(PORTABILITY), "questions", "share"),
    _Names(
        r"locality_(gold|agree)",
        "questions",
        "share",
        "locality: relation specificity and forgetfulness together, by the dataset's answer (gold) and by the answer "
        "before the edits (agree)",
    ),
    _Names("|".join(LOCALITY), "questions", "share"),
    _Names(r".*", "questions", "share"),  # further groups of the data's questions
)
"""In the order of the columns; the first whose pattern fits decides."""


@dataclass(frozen=True)
class FigureTable:
    """The figures of one group, a row per run and number of edits.

    Args:
        key: Of the group.
        names: Of the figures, in columns.
        rows: Name of the run, number of edits, and one value per column. One row stands for the unedited model where
            all runs have the same figures of it.
    """

    key: str
    names: tuple[str, ...]
    rows: tuple[tuple[str, int, tuple[Value, ...]], ...]

    @property
    def title(self) -> str:
        """What the figures are about."""
        return GROUPS[self.key]

    @property
    def note(self) -> str:
        """What the figures are, as far as their names do not say it."""
        return "; ".join(dict.fromkeys(note for name in self.names if (note := _named(name).note)))

    def shown(self, row: int) -> list[str]:
        """The values of a row as text."""
        return [show(name, value) for name, value in zip(self.names, self.rows[row][2], strict=True)]


def figure_tables(runs: Mapping[str, Sequence[Checkpoint]]) -> list[FigureTable]:
    """A table per group of further figures that some run has."""
    found = {name: [(point.edits, _figures(point)) for point in points] for name, points in runs.items()}
    every = dict.fromkeys(figure for points in found.values() for _, figures in points for figure in figures)
    names = sorted(every, key=lambda name: _NAMES.index(_named(name)))
    tables = []
    for key in GROUPS:
        own = tuple(figure for figure in names if _named(figure).group == key)
        if own:
            tables.append(FigureTable(key, own, tuple(_rows(found, own))))
    return tables


def unit_of(name: str) -> Unit:
    """What a figure is counted in."""
    return _named(name).unit


def is_listed(name: str) -> bool:
    """Whether tables and charts have it: parts of a figure stand in ``--json`` alone."""
    return _named(name).group is not None


def show(name: str, value: Value) -> str:
    """A figure as text, in its unit."""
    if value is None:
        return "-"
    number = value.mean if isinstance(value, Mean) else value
    unit = unit_of(name)
    if unit == "share":
        return f"{number:.1%}"
    if unit == "bytes":
        return _show_bytes(number)
    if unit == "seconds":
        return f"{number:.3g}" if number >= _SHORT else f"{1000 * number:.2g} ms"
    return f"{number:.3f}" if unit == "times" else f"{number:.4g}"


def _show_bytes(size: float) -> str:
    """``512 B``, ``3.1 KiB``, ``27.0 MiB``, ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB"):
        if size < _KIBI:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= _KIBI
    return f"{size:.1f} GiB"


def _named(name: str) -> _Names:
    return next(names for names in _NAMES if re.fullmatch(names.pattern, name))


def _figures(point: Checkpoint) -> Figures:
    """Further figures, abilities and the time of editing alike."""
    found: Figures = {}
    for task, ability in point.abilities.items():
        found |= {f"accuracy, {task}": ability.accuracy, f"macro-F1, {task}": ability.macro_f1}
    if point.edits:
        found["seconds per edit"] = point.seconds_editing / point.edits
    return {**found, **point.measures}


def _rows(
    runs: Mapping[str, Sequence[tuple[int, Figures]]], names: Sequence[str]
) -> list[tuple[str, int, tuple[Value, ...]]]:
    """The rows that have a figure; those of the unedited model first, as one if they are the same."""
    rows: list[tuple[str, int, tuple[Value, ...]]] = [
        (run, edits, tuple(figures.get(name) for name in names))
        for run, points in runs.items()
        for edits, figures in points
    ]
    known = [row for row in rows if any(value is not None for value in row[2])]
    before = [row for row in known if row[1] == 0]
    if len(before) < 2 or any(row[2] != before[0][2] for row in before):  # noqa: PLR2004 - one row cannot be merged
        return known
    return [(_UNEDITED, 0, before[0][2]), *(row for row in known if row[1])]

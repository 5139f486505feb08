"""The charts and tables of the report as plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from betaedit.experiments.folder import RunFolder
from betaedit.experiments.record import (
    METRICS,
    Checkpoint,
    EditFigure,
    HiddenView,
    LayerState,
    Mean,
    RunSetup,
    mean_known,
)
from betaedit.experiments.tables import is_listed, unit_of

Scale = Literal["share", "percent", "plain", "wide"]
Cell = str | int | float | None

_MEANING = {
    "efficacy": "The fact's own prompt gives the new answer.",
    "generality": "Other wordings of the prompt give it too.",
    "specificity": "Prompts about other things keep their answer.",
}
_FORMS = ("argmax", "probability")
_LONGEST_LABEL = 20


@dataclass(frozen=True)
class Run:
    """A run folder, read.

    Args:
        name: Unique in the report.
        path: Where it was read.
        setup: What was run.
        checkpoints: In order of edits.
    """

    name: str
    path: str
    setup: RunSetup
    checkpoints: tuple[Checkpoint, ...]


@dataclass(frozen=True)
class Data:
    """Rows that can be downloaded."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Point:
    """A figure with its interval, if it has one."""

    x: int
    y: float
    low: float | None = None
    high: float | None = None
    count: int | None = None


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        name: Whose it is.
        points: In order of ``x``.
        color: Number of its color and marker.
        strength: Opacity, for lines that share a color.
    """

    name: str
    points: tuple[Point, ...]
    color: int
    strength: float = 1.0


@dataclass(frozen=True)
class Chart:
    """Lines over edits or layers.

    Args:
        key: Unique name, also of its downloads.
        title: What is drawn.
        note: What it means.
        lines: One per run, or per layer of one run.
        scale: ``share`` from 0 to 1, ``percent`` with limits of its own, ``plain`` numbers, ``wide`` for numbers that
            may grow by orders of magnitude.
        x: What runs along the bottom.
        by: What a line stands for.
        labels: Write the lines' names at their ends.
    """

    key: str
    title: str
    note: str
    lines: tuple[Line, ...]
    scale: Scale
    x: Literal["edits", "layer"] = "edits"
    by: Literal["run", "layer"] = "run"
    labels: bool = False

    @property
    def data(self) -> Data:
        """Every point."""
        rows = [(line.name, p.x, p.y, p.low, p.high, p.count) for line in self.lines for p in line.points]
        return Data((self.by, self.x, "value", "low", "high", "count"), tuple(rows))


@dataclass(frozen=True)
class Cloud:
    """Hidden states of one run in two dimensions, before and after."""

    key: str
    title: str
    note: str
    view: HiddenView

    @property
    def data(self) -> Data:
        """Every state."""
        rows = [
            (group, number, x0, y0, *self.view.after[group][number])
            for group, points in self.view.before.items()
            for number, (x0, y0) in enumerate(points)
        ]
        return Data(("group", "prompt", "x_before", "y_before", "x_after", "y_after"), tuple(rows))


def name_folders(folders: Sequence[RunFolder]) -> dict[str, RunFolder]:
    """Runs by unique names: that of the folder, numbered if two are the same.

    Where some runs reset the model and others do not, or after another number of facts, the names say so.
    """
    names = [folder.path.resolve().name for folder in folders]
    sizes = [folder.setup.reset_every for folder in folders]
    if len(set(sizes)) > 1:
        names = [f"{name} ({_grouping(size)})" for name, size in zip(names, sizes, strict=True)]
    unique = [
        name if names.count(name) == 1 else f"{name} ({names[: place + 1].count(name)})"
        for place, name in enumerate(names)
    ]
    return dict(zip(unique, folders, strict=True))


def _grouping(size: int | None) -> str:
    return "one sequence" if size is None else f"groups of {size:,}"


def read_runs(folders: Sequence[RunFolder]) -> tuple[Run, ...]:
    """Every run, read, under the name that ``name_folders`` gives it."""
    return tuple(
        Run(name, str(folder.path), folder.setup, tuple(folder.checkpoints()))
        for name, folder in name_folders(folders).items()
    )


def edit_charts(runs: Sequence[Run]) -> list[Chart]:
    """Efficacy, generality and specificity in both forms, and neighbors kept."""
    both = [
        _over_edits(
            runs, f"{metric}-{form}", f"{metric.capitalize()}, {form}", _MEANING[metric], "share", _edit(metric, form)
        )
        for form in _FORMS
        for metric in METRICS
    ]
    note = "Prompts about other things continue as with the unedited model, answer known or not."
    kept = _over_edits(runs, "neighbors-kept", "Neighbors kept", note, "share", lambda c: c.neighbors_kept)
    return _present([*both, kept])


def cost_charts(runs: Sequence[Run]) -> list[Chart]:
    """What the edits did to the model on ordinary text."""
    return _present(
        (
            _over_edits(runs, "perplexity", "Perplexity", "On held-out prose; lower is better.", "wide",
                        lambda c: c.perplexity),
            _over_edits(runs, "agreement", "Next tokens unchanged",
                        "Share of places in that prose where the most probable next token is still the same.",
                        "percent", lambda c: c.agreement),
            _over_edits(runs, "kl", "KL divergence", "From the unedited model's next token, in nats; lower is better.",
                        "wide", lambda c: c.kl),
        )
    )  # fmt: skip


def ability_charts(runs: Sequence[Run]) -> list[Chart]:
    """Accuracy on every task of the general suite."""
    tasks = _names(c.abilities for run in runs for c in run.checkpoints)
    return _present(
        _over_edits(runs, f"ability-{task}", task, "Accuracy of the most probable answer.", "share", _accuracy(task))
        for task in tasks
    )


def measure_charts(runs: Sequence[Run]) -> list[Chart]:
    """Every further figure that tables have."""
    names = [name for name in _names(c.measures for run in runs for c in run.checkpoints) if is_listed(name)]
    return _present(
        _over_edits(runs, f"measure-{name}", name, "", "share" if unit_of(name) == "share" else "plain", _measure(name))
        for name in names
    )


def drift_charts(runs: Sequence[Run]) -> list[Chart]:
    """Leakage and weight change: means over the edited layers, then by layer at the last checkpoint."""
    means = [
        _over_edits(runs, f"{field}-mean", title, f"{note} Mean over the edited layers.", "percent", _layer_mean(field))
        for field, title, note in _DRIFT
    ]
    return _present([*means, *(_last_by_layer(runs, field, title) for field, title, _ in _DRIFT)])


def layer_charts(runs: Sequence[Run]) -> list[Chart]:
    """Leakage and weight change of every layer over edits, run by run."""
    return _present(
        _layers_over_edits(run, place, field, title) for field, title, _ in _DRIFT for place, run in enumerate(runs)
    )


def clouds(runs: Sequence[Run]) -> list[Cloud]:
    """The latest view of hidden states of every run that has one."""
    found = []
    for place, run in enumerate(runs):
        seen = [checkpoint for checkpoint in run.checkpoints if checkpoint.hidden is not None]
        if seen and seen[-1].hidden is not None:
            note = f"Output of layer {seen[-1].hidden.layer} after {seen[-1].edits:,} edits."
            found.append(Cloud(f"hidden-{place + 1}", run.name, note, seen[-1].hidden))
    return found


_DRIFT = (
    ("leakage", "Leakage", "How far the layer's output moved on held-out text, as a share of the output."),
    ("statistics_text_leakage", "Leakage on the statistics' own text",
     "The same on the text of the statistics that the edits were made with, which they hold down most."),
    ("weight_change", "Weight change", "How far the weights moved, as a share of their length."),
)  # fmt: skip
_Figure = Callable[[Checkpoint], Mean | float | None]


def _over_edits(runs: Sequence[Run], key: str, title: str, note: str, scale: Scale, figure: _Figure) -> Chart:
    lines = []
    for place, run in enumerate(runs):
        values = [(c.edits, figure(c)) for c in run.checkpoints]
        if points := _known(values):
            lines.append(Line(run.name, points, place))
    return Chart(key, title, note, tuple(lines), scale, labels=_can_be_labelled(lines))


def _can_be_labelled(lines: Sequence[Line]) -> bool:
    """Whether to name lines in the chart: there are several and the names are short enough."""
    return len(lines) > 1 and max(len(line.name) for line in lines) <= _LONGEST_LABEL


def _last_by_layer(runs: Sequence[Run], field: str, title: str) -> Chart:
    lines = [
        Line(run.name, points, place)
        for place, run in enumerate(runs)
        if (points := _known((layer, _relative(state, field)) for layer, state in _last_layers(run)))
    ]
    note = "At each run's last checkpoint."
    return Chart(
        f"{field}-by-layer", f"{title} by layer", note, tuple(lines), "percent", x="layer",
        labels=_can_be_labelled(lines),
    )  # fmt: skip


def _layers_over_edits(run: Run, place: int, field: str, title: str) -> Chart:
    layers = sorted({layer for checkpoint in run.checkpoints for layer in checkpoint.layers})
    lines = []
    for rank, layer in enumerate(layers):
        seen = [c for c in run.checkpoints if layer in c.layers]
        if points := _known((c.edits, _relative(c.layers[layer], field)) for c in seen):
            lines.append(Line(f"layer {layer}", points, place, 0.4 + 0.6 * (rank + 1) / len(layers)))
    key = f"{field}-layers-{place + 1}"
    return Chart(key, f"{title}: {run.name}", "", tuple(lines), "percent", by="layer", labels=True)


def _present(charts: Iterable[Chart]) -> list[Chart]:
    return [chart for chart in charts if chart.lines]


def _last_layers(run: Run) -> list[tuple[int, LayerState]]:
    return sorted(run.checkpoints[-1].layers.items()) if run.checkpoints else []


def _known(values: Iterable[tuple[int, Mean | float | None]]) -> tuple[Point, ...]:
    """The points whose figure was measured."""
    return tuple(_point(x, value) for x, value in values if value is not None)


def _point(x: int, value: Mean | float) -> Point:
    if isinstance(value, Mean):
        return Point(x, value.mean, value.low, value.high, value.count)
    return Point(x, value)


def _edit(metric: str, form: str) -> _Figure:
    def figure(checkpoint: Checkpoint) -> Mean | None:
        both: EditFigure = getattr(checkpoint, metric)
        found: Mean | None = getattr(both, form)
        return found

    return figure


def _accuracy(task: str) -> _Figure:
    return lambda checkpoint: checkpoint.abilities[task].accuracy if task in checkpoint.abilities else None


def _measure(name: str) -> _Figure:
    return lambda checkpoint: checkpoint.measures.get(name)


def _layer_mean(field: str) -> _Figure:
    def figure(checkpoint: Checkpoint) -> float | None:
        return mean_known([_relative(state, field) for state in checkpoint.layers.values()])

    return figure


def _relative(state: LayerState, field: str) -> float | None:
    found: float | None = getattr(state, f"relative_{field}")
    return found


def _names(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """Keys of all, each once, in the order in which they appear."""
    return list(dict.fromkeys(name for names in found for name in names))

"""The figure of a calibration: the effect of every layer, and the score of each trial."""

from __future__ import annotations

from itertools import accumulate
from math import inf, isfinite
from pathlib import Path

from betaedit.errors import OutputError
from betaedit.experiments.calibrate import Calibration
from betaedit.files import atomic_write, file_errors
from betaedit.reports.figures import need_matplotlib

_SIZE = (9.0, 3.4)
_CHOSEN, _OTHER = "#0072b2", "#b9c2cb"


def plot_calibration(found: Calibration, path: Path) -> None:
    """Draw a calibration into a file of the type that its ending names (``.png``, ``.svg``, ``.pdf``).

    Raises:
        MissingExtraError: matplotlib is absent.
        OutputError: The file cannot be written.
    """
    mpl = need_matplotlib()
    figure = mpl.figure.Figure(figsize=_SIZE, layout="constrained")
    layers, trials = figure.subplots(1, 2)
    chosen = found.best.values["layers"]
    layers.bar(
        range(len(found.trace.effects)),
        found.trace.effects,
        color=[_CHOSEN if layer in chosen else _OTHER for layer in range(len(found.trace.effects))],
    )
    layers.set(title="indirect effect of the MLP (dark: edited)", xlabel="layer", ylabel="probability won back")
    scores = found.scores()
    numbers = range(1, len(scores) + 1)
    tried = [(number, score) for number, score in zip(numbers, scores, strict=True) if isfinite(score)]
    trials.plot(*zip(*tried, strict=True), "o", color=_OTHER)
    trials.step(numbers, list(accumulate(scores, max, initial=-inf))[1:], where="post", color=_CHOSEN)
    trials.set(title="score of every trial (line: the best so far)", xlabel="trial", ylabel="score")
    for axes in (layers, trials):
        axes.xaxis.get_major_locator().set_params(integer=True)
    with file_errors(path, OutputError), atomic_write(path) as scratch:
        figure.savefig(scratch, dpi=150, format=path.suffix.removeprefix("."))

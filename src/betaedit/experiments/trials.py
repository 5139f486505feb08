"""The journal of a calibration: a JSONL file with its setup, the trace of the layers, and every trial."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from betaedit.errors import RunFolderError
from betaedit.experiments.folder import append_line, parse, read_lines, write_text
from betaedit.experiments.record import EditFigure, Record

_HINT = "Repeat that calibration's command, or name a new file."
_PERPLEXITY_WEIGHT = 5.0


class Trace(Record):
    """Causal tracing of every layer.

    Args:
        effects: Mean indirect effect of each layer, in probability of the answer.
        intact: Mean probability of the answers without noise.
        blurred: The same with noise on the subject.
        prompts: Number of prompts.
        samples: Draws of noise per prompt.
    """

    effects: list[float]
    intact: float
    blurred: float
    prompts: int
    samples: int


class Trial(Record):
    """One setting, measured after it wrote all facts into the unedited model.

    Args:
        number: 0 is the unedited model.
        values: The setting.
        efficacy: The edit prompt gives the new target.
        generality: Paraphrases give it.
        specificity: Neighbors keep their own answer.
        perplexity: On the first passages of held-out prose.
        seconds: Time of the trial, measurement included.
        seconds_per_edit: Mean over its facts.
        error: The error, if it failed.
    """

    number: int
    values: dict[str, Any]
    efficacy: EditFigure
    generality: EditFigure
    specificity: EditFigure
    perplexity: float
    seconds: float
    seconds_per_edit: float = 0.0
    error: str | None = None


class CalibrationSetup(Record):
    """Model, method and data of a calibration; it is continued only with the same.

    Args:
        method: The recipe.
        model: Name and fingerprint.
        data: The facts' file, hash and number.
        seed: Seed of noise, contexts and sampled text.
        versions: Versions of the libraries.
    """

    method: str
    model: dict[str, str]
    data: dict[str, Any]
    seed: int
    versions: dict[str, str]

    def identifying_fields(self) -> dict[str, Any]:
        """The fields that determine the figures; names of the model and of the facts' file are excluded."""
        data = {name: value for name, value in self.data.items() if name != "source"}
        return self.model_dump() | {"model": self.model["weights"], "data": data}


class Journal:
    """The trials so far, in a file where each is stored at once, or only in memory.

    Args:
        setup: Setup of this calibration.
        path: The file; the same calibration is continued.

    Raises:
        RunFolderError: The file holds another calibration, or is damaged.
    """

    def __init__(self, setup: CalibrationSetup, path: Path | None = None) -> None:
        self._path = path
        self.trace: Trace | None = None
        self.trials: list[Trial] = []
        self.check: list[Trial] = []
        lines = [] if path is None else list(read_lines(path))
        if lines:
            self._read(setup, lines)
        elif path is not None:
            write_text(path, "")
            append_line(path, {"setup": setup.model_dump()})

    def keep_trace(self, trace: Trace) -> None:
        """Store the trace."""
        self.trace = trace
        self._append("trace", trace)

    def keep_trial(self, trial: Trial) -> None:
        """Store a trial of the search."""
        self.trials.append(trial)
        self._append("trial", trial)

    def keep_check(self, trial: Trial) -> None:
        """Store a measurement on facts that the search did not see: first of the unedited, then of the edited model."""
        self.check.append(trial)
        self._append("check", trial)

    def _append(self, kind: str, kept: Record) -> None:
        if self._path is not None:
            append_line(self._path, {kind: kept.model_dump()})

    def _read(self, setup: CalibrationSetup, lines: list[tuple[str, Any]]) -> None:
        for number, (place, line) in enumerate(lines):
            kind, values = next(iter(line.items())) if isinstance(line, dict) and len(line) == 1 else ("", line)
            if number == 0:
                found = parse(CalibrationSetup, values, place)
                self._compare(setup, found)
            elif kind == "trace":
                self.trace = parse(Trace, values, place)
            elif kind in ("trial", "check"):
                (self.trials if kind == "trial" else self.check).append(parse(Trial, values, place))
            else:
                raise RunFolderError(f"{place}: unknown entry {kind!r}.", hint=_HINT)

    def _compare(self, setup: CalibrationSetup, found: CalibrationSetup) -> None:
        before, now = found.identifying_fields(), setup.identifying_fields()
        for name, value in now.items():
            if before[name] != value:
                raise RunFolderError(f"{self._path} holds a calibration whose {name} differs.", hint=_HINT)


def score(before: Trial, trial: Trial) -> float:
    """How good a trial is; minus infinity where it failed.

    ``0.5 efficacy + 0.3 generality + 0.2 min(1, specificity / specificity before) - 5 ln(perplexity / perplexity
    before)``. Efficacy and generality are the means of their forms; specificity is that by probability. Figures that
    the facts do not have count as 1, and a lower perplexity counts as unchanged.
    """
    if trial.error is not None or not math.isfinite(trial.perplexity):
        return -math.inf
    was, now = _share(before.specificity, "probability"), _share(trial.specificity, "probability")
    kept = min(1.0, now / was) if was else 1.0
    said, rephrased = _share(trial.efficacy), _share(trial.generality)
    growth = max(math.log(trial.perplexity / before.perplexity), 0.0)
    return 0.5 * said + 0.3 * rephrased + 0.2 * kept - _PERPLEXITY_WEIGHT * growth


def _share(figure: EditFigure, *forms: str) -> float:
    """The mean over the forms that were measured; 1 where none was."""
    found = [getattr(figure, form) for form in forms or ("probability", "argmax")]
    known = [form.mean for form in found if form is not None]
    return sum(known) / len(known) if known else 1.0

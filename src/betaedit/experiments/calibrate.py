"""Settings for a new model: layers by causal tracing, then a bounded search with trial edits of a few facts."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from betaedit.editors.closed_form.config import EditConfig
from betaedit.editors.closed_form.recipes import Recipe, find_recipe
from betaedit.editors.closed_form.spectra import spectra
from betaedit.editors.contexts import context_templates
from betaedit.editors.editor import Editor
from betaedit.editors.preset_file import PresetFile
from betaedit.editors.presets import untuned
from betaedit.errors import ConfigError, NumericalError
from betaedit.evaluation.drift import held_out_prose, perplexity
from betaedit.evaluation.metrics import measure_edits
from betaedit.experiments.figures import edit_figures
from betaedit.experiments.record import METRICS, EditFigure, describe_cases
from betaedit.experiments.tracing import trace_layers
from betaedit.experiments.trials import CalibrationSetup, Journal, Trace, Trial, score
from betaedit.facts.fact import EvaluationCase
from betaedit.models.anatomy import projection_shape
from betaedit.models.load import LanguageModel
from betaedit.progress import Progress, SilentProgress
from betaedit.statistics.collect import collect_moments
from betaedit.statistics.corpus import SampledText
from betaedit.statistics.moments import Moments
from betaedit.versions import library_versions

Values = dict[str, Any]

_START: Values = {
    "value_learning_rate": 0.5,
    "value_clamp": 1.5,
    "value_decay": 0.1,
    "value_stop_loss": 0.1,
    "leakage_weight": 1000.0,
}
_MOVES = (
    ("value_learning_rate", 2.5),
    ("value_clamp", 1.5),
    ("leakage_weight", 4.0),
    ("ridge", 4.0),
    ("nullspace_threshold", 3.0),
)
_NORMED_CLAMP = 0.2  # if a norm bounds the output of the MLP
_FINEST = 0.25  # of the exponent of a step
_WINDOWS = 3
_TOKENS_PER_DIMENSION = 4
_NULL_SHARE = 0.93  # of the directions: what the smollm2 preset keeps
_RIDGE_PER_ENERGY = 0.5  # the same
_PASSAGES = 12
_LOOK_AHEAD = 8
_NOTHING: Values = {
    **{name: EditFigure(probability=None, argmax=None) for name in METRICS},
    "perplexity": float("inf"),
}


@dataclass(frozen=True)
class Calibration:
    """The result of a calibration.

    Args:
        setup: Model, facts, seed.
        trace: Causal tracing of the layers.
        trials: The unedited model first.
        check: The unedited model and the best setting on facts that the search did not see; empty without such facts.
        seconds: Time of this call, without earlier ones.
    """

    setup: CalibrationSetup
    trace: Trace
    trials: tuple[Trial, ...]
    check: tuple[Trial, ...]
    seconds: float

    @property
    def best(self) -> Trial:
        """The trial of the highest score; of equal ones the earlier.

        Raises:
            ConfigError: No trial finished.
        """
        return best_of(self.trials)

    def scores(self) -> list[float]:
        """The score of every trial except the unedited model."""
        return [score(self.trials[0], trial) for trial in self.trials[1:]]

    def preset_file(self, name: str) -> PresetFile:
        """The best setting as a file for ``--preset``."""
        best, setup = self.best, self.setup
        middle = max(best.values["layers"], key=lambda layer: self.trace.effects[layer])
        return PresetFile(
            name=name,
            model=setup.model["name"],
            source=f"betaedit calibrate: {setup.method}, {len(self.trials) - 1} trials, {setup.data['records']} facts",
            values=best.values,
            by_method={rule: {"layers": [middle]} for rule in ("rome", "r-rome")},
            measured={
                "weights": setup.model["weights"],
                "data": setup.data,
                "score": round(score(self.trials[0], best), 4),
                "search": _change(self.trials[0], best),
                **({"check": _change(*self.check)} if self.check else {}),
            },
            versions=setup.versions,
            seed=setup.seed,
        )

    def to_dict(self) -> dict[str, Any]:
        """The calibration as plain data, as ``--json`` prints it."""
        return {
            "setup": self.setup.model_dump(mode="json"),
            "trace": self.trace.model_dump(mode="json"),
            "trials": [
                {**trial.model_dump(mode="json"), "score": found if found > float("-inf") else None}
                for trial, found in zip(self.trials, [float("-inf"), *self.scores()], strict=True)
            ],
            "best": self.best.number,
            "check": [trial.model_dump(mode="json") for trial in self.check],
            "seconds": self.seconds,
        }


def calibrate(
    model: LanguageModel,
    cases: Sequence[EvaluationCase],
    *,
    check: Sequence[EvaluationCase] = (),
    method: str = "betaedit",
    n_trials: int = 12,
    minutes: float | None = None,
    seed: int = 0,
    journal: Path | None = None,
    source: str | None = None,
    progress: Progress | None = None,
    on_trial: Callable[[Trial, float], None] | None = None,
) -> Calibration:
    """Search settings for ``model`` with trials on the unedited model, which is unedited again at the end.

    With a journal, the same call continues an interrupted calibration.

    Args:
        model: The unedited model.
        cases: The few facts that every trial writes in sequence.
        check: Other facts, which the best setting writes at the end.
        method: A closed-form method.
        n_trials: Maximum number of settings, including those in the journal.
        minutes: Time limit; a trial starts only if it and the check are likely to finish in time.
        seed: Seed of noise, contexts and sampled text.
        journal: File of the trials.
        source: The file of the facts, for the record.
        progress: Shows the progress.
        on_trial: Called with every new trial and its score.

    Raises:
        MethodError: The method is unknown.
        ConfigError: There are no facts or trials, or no trial finished.
        RunFolderError: The journal holds another calibration, or is damaged.
    """
    started = time.perf_counter()
    if not cases or n_trials < 1:
        raise ConfigError("calibration needs facts and at least one trial.", hint="Give both.")
    recipe = find_recipe(method)
    setup = _setup(model, cases, check, recipe.name, seed, source)
    kept = Journal(setup, journal)
    if kept.trace is None:
        kept.keep_trace(trace_layers(model, [case.fact for case in cases], seed=seed, progress=progress))
    assert kept.trace is not None
    runner = _TrialRunner(model, recipe.name, seed, layer_windows(kept.trace, recipe), progress or SilentProgress())
    if not kept.trials:
        kept.keep_trial(runner.unedited(cases))
    deadline = None if minutes is None else started + 60 * minutes
    _search(runner, cases, kept, n_trials, deadline, 1 + len(check) / len(cases), on_trial)
    if check:
        _check(runner, check, kept)
    return Calibration(setup, kept.trace, tuple(kept.trials), tuple(kept.check[-2:]), time.perf_counter() - started)


def layer_windows(trace: Trace, recipe: Recipe) -> list[tuple[int, ...]]:
    """Windows of layers to try: those of the highest mean effect, no two adjacent, and the untuned one.

    They have the width of the recipe's published layers for this depth, and lie in the first three quarters of it:
    later edits have little effect.
    """
    n_layers = len(trace.effects)
    plain = EditConfig.of(untuned(n_layers).settings(recipe)).layers
    width = len(plain)
    begins = range(max(3 * n_layers // 4 - width, 0) + 1)
    ranked = sorted(begins, key=lambda begin: -sum(trace.effects[begin : begin + width]))
    chosen: list[int] = []
    for begin in [*ranked[:1], plain[0], *ranked[1:]]:
        if len(chosen) < _WINDOWS and all(abs(begin - other) > 1 for other in chosen):
            chosen.append(begin)
    return [tuple(range(begin, begin + width)) for begin in chosen]


def proposals(starts: Sequence[Values]) -> Generator[Values, float, None]:
    """A generator of settings to try, which is sent the score of each.

    It yields every start, then the best so far with one value moved, up or down; if no move has helped, the steps are
    halved. It ends when they are too small to matter.
    """
    best: Values = {}
    record = float("-inf")
    seen: list[Values] = []
    for values in starts:
        seen.append(values)
        if (found := (yield values)) > record or not best:
            best, record = values, found
    step = 1.0
    while step >= _FINEST:
        helped = False
        for name, factor in _MOVES:
            for exponent in (step, -step):
                values = {**best, name: float(f"{best[name] * factor**exponent:.3g}")}
                if values in seen:
                    continue
                seen.append(values)
                if (found := (yield values)) > record:
                    best, record, helped = values, found, True
                    break
        step = step if helped else step / 2


def best_of(trials: Sequence[Trial]) -> Trial:
    """The trial of the highest score.

    Raises:
        ConfigError: No trial finished.
    """
    ranked = sorted(trials[1:], key=lambda trial: -score(trials[0], trial))
    if not ranked or score(trials[0], ranked[0]) == float("-inf"):
        raise ConfigError("no trial finished.", hint="Allow more trials or minutes, or use other facts.")
    return ranked[0]


def _search(
    runner: _TrialRunner,
    cases: Sequence[EvaluationCase],
    kept: Journal,
    n_trials: int,
    deadline: float | None,
    reserve: float,
    on_trial: Callable[[Trial, float], None] | None,
) -> None:
    """Run trials until the number, the time or the proposals run out; kept trials are not repeated.

    ``reserve`` is the time that must be left when a trial starts, in durations of the longest so far.
    """
    known = kept.trials[1:]
    settings = proposals(runner.starts())
    values = next(settings)
    with runner.progress.task("calibrating", n_trials, "trials") as task:
        for number in range(1, n_trials + 1):
            if number <= len(known):
                trial = known[number - 1]
            else:
                longest = max(trial.seconds for trial in kept.trials)
                if deadline is not None and time.perf_counter() + reserve * longest > deadline and number > 1:
                    return
                trial = runner.run(number, values, cases)
                kept.keep_trial(trial)
                if on_trial is not None:
                    on_trial(trial, score(kept.trials[0], trial))
            task.advance()
            try:
                values = settings.send(score(kept.trials[0], trial))
            except StopIteration:
                return


def _check(runner: _TrialRunner, cases: Sequence[EvaluationCase], kept: Journal) -> None:
    """Measure the best setting on facts that the search did not see, unless that is done."""
    best = best_of(kept.trials)
    if not kept.check or kept.check[-1].values != best.values:
        for trial in (runner.unedited(cases), runner.run(best.number, best.values, cases, look_ahead=1)):
            kept.keep_check(trial)


class _TrialRunner:
    """Runs trials on the unedited model, with shared statistics of all candidate layers and shared contexts."""

    def __init__(
        self, model: LanguageModel, method: str, seed: int, spans: list[tuple[int, ...]], progress: Progress
    ) -> None:
        self.progress = progress
        self._model, self._method, self._seed, self._spans = model, method, seed, spans
        self._texts = held_out_prose()[:_PASSAGES]
        self._contexts = context_templates(model, EditConfig.of({"seed": seed}))
        layers = sorted({layer for span in spans for layer in span})
        width = max(projection_shape(model.anatomy.projection(layer))[1] for layer in layers)
        self._tokens = _TOKENS_PER_DIMENSION * width
        self._moments: Moments = collect_moments(
            model, layers, SampledText(seed), n_tokens=self._tokens, progress=progress
        )

    def starts(self) -> list[Values]:
        """A setting for every window of layers, with null space and ridge fitted to its statistics."""
        first = self._spans[0][0]
        clamp = {} if self._model.anatomy.norm_after_mlp(first) is None else {"value_clamp": _NORMED_CLAMP}
        return [{"layers": list(span), **_START, **clamp, **self._fitted(span)} for span in self._spans]

    def unedited(self, cases: Sequence[EvaluationCase]) -> Trial:
        """The figures of the unedited model."""
        started = time.perf_counter()
        figures = self._measured(cases)
        return Trial(number=0, values={}, seconds=time.perf_counter() - started, **figures)

    def run(
        self, number: int, values: Values, cases: Sequence[EvaluationCase], *, look_ahead: int = _LOOK_AHEAD
    ) -> Trial:
        """Write the cases with a setting, measure, and undo them."""
        started = time.perf_counter()
        shared = {"seed": self._seed, "context_templates": self._contexts, "value_look_ahead": look_ahead}
        config = EditConfig.of({**values, **shared})
        editor = Editor(self._model, method=self._method, config=config, statistics=self._moments)
        try:
            with ExitStack() as undo:
                undo.callback(editor.reset)
                with self.progress.task(f"trial {number}", len(cases), "facts") as task:
                    editor.edit([case.fact for case in cases], on_edit=lambda _: task.advance())
                    results = editor.results
                figures = self._measured(cases)
        except NumericalError as error:
            results, figures = [], {**_NOTHING, "error": str(error)}
        per_edit = sum(result.seconds for result in results) / max(len(results), 1)
        return Trial(
            number=number,
            values=values,
            seconds=time.perf_counter() - started,
            seconds_per_edit=per_edit,
            **figures,
        )

    def _measured(self, cases: Sequence[EvaluationCase]) -> dict[str, Any]:
        found = edit_figures(measure_edits(self._model, cases, progress=self.progress, label="measuring"))
        return {**found, "perplexity": perplexity(self._model, self._texts)}

    def _fitted(self, span: Sequence[int]) -> Values:
        """Threshold and ridge from the eigenvalues of ``C0``, whose scale differs between models.

        The threshold gives the null space a fixed share of the directions; the ridge is proportional to the energy of
        an ordinary key there.
        """
        thresholds, energies = [], []
        for _, spectrum in spectra({layer: self._moments.matrices[layer] for layer in span}, self.progress):
            eigenvalues = spectrum.values
            kept = int(_NULL_SHARE * len(eigenvalues))
            thresholds.append(float(eigenvalues[kept]))
            energies.append(float(eigenvalues[:kept].sum()))
        return {
            "ridge": float(f"{_RIDGE_PER_ENERGY * sum(energies) / len(energies):.2g}"),
            "nullspace_threshold": float(f"{sum(thresholds) / len(thresholds):.2g}"),
            "statistics_tokens": self._tokens,
        }


def _setup(
    model: LanguageModel,
    cases: Sequence[EvaluationCase],
    check: Sequence[EvaluationCase],
    method: str,
    seed: int,
    source: str | None,
) -> CalibrationSetup:
    return CalibrationSetup(
        method=method,
        model={"name": model.name, "weights": model.fingerprint()},
        data={**describe_cases(cases, source), "check": len(check)},
        seed=seed,
        versions=library_versions(),
    )


def _change(before: Trial, after: Trial) -> dict[str, Any]:
    """The figures of two trials, before and after, as a preset file lists them."""
    rows: dict[str, Any] = {
        f"{name}, {form}": [round(old.mean, 4), round(new.mean, 4)]
        for name in METRICS
        for form in ("probability", "argmax")
        if (old := getattr(getattr(before, name), form)) and (new := getattr(getattr(after, name), form))
    }
    return {
        **rows,
        "perplexity": [round(before.perplexity, 3), round(after.perplexity, 3)],
        "seconds_per_edit": round(after.seconds_per_edit, 2),
    }

"""A calibration tries settings on the unedited model, keeps each, goes on where it was, and ends in a preset file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from betaedit import EvaluationCase, Probe
from betaedit.editors import Editor, find_recipe, read_preset
from betaedit.errors import ConfigError, RunFolderError
from betaedit.experiments.calibrate import Calibration, best_of, calibrate, layer_windows, proposals
from betaedit.experiments.trials import CalibrationSetup, Journal, Trace, Trial, score
from betaedit.models import LanguageModel
from support.edits import NEAR, unchanged, weights
from support.runs import figure
from support.tiny import tiny_llama

CASES = [EvaluationCase(fact, (f"So {fact.text}",), (Probe("We saw the", "house"),)) for fact in NEAR]
BETAEDIT = find_recipe("betaedit")
START = {
    "layers": [1],
    "value_learning_rate": 0.5,
    "value_clamp": 1.5,
    "leakage_weight": 1000.0,
    "ridge": 10.0,
    "nullspace_threshold": 0.05,
}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_llama()


@pytest.fixture(autouse=True)
def short_prose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Perplexity on a sentence: bytes of whole passages are slow."""
    monkeypatch.setattr("betaedit.experiments.calibrate.held_out_prose", lambda: ["The old town by the river."])


def trial(number: int = 1, **changes: object) -> Trial:
    values: dict[str, object] = {
        "number": number,
        "values": dict(START),
        "efficacy": figure(1.0, 0.8),
        "generality": figure(0.9, 0.5),
        "specificity": figure(0.6, 0.1),
        "perplexity": 20.0,
        "seconds": 1.0,
    }
    return Trial(**{**values, **changes})  # type: ignore[arg-type]


def traced(*effects: float) -> Trace:
    return Trace(effects=list(effects), intact=0.9, blurred=0.1, prompts=5, samples=3)


# --- the layers ---


def test_the_layers_that_win_most_back_come_first_and_the_untuned_ones_are_tried_too() -> None:
    effects = [0.0] * 32
    effects[10:15] = [0.1, 0.3, 0.5, 0.3, 0.1]
    effects[18] = 0.4
    assert layer_windows(traced(*effects), BETAEDIT) == [(10, 11, 12, 13, 14), (4, 5, 6, 7, 8), (8, 9, 10, 11, 12)]


def test_layers_of_the_last_quarter_are_not_tried() -> None:
    effects = [0.0] * 28 + [0.9] * 4
    assert max(layer for window in layer_windows(traced(*effects), BETAEDIT) for layer in window) < 24


def test_a_method_of_one_layer_has_single_layers_to_try() -> None:
    effects = [0.0] * 32
    effects[10:13] = [0.2, 0.9, 0.3]
    assert layer_windows(traced(*effects), find_recipe("rome")) == [(11,), (5,), (0,)]


@pytest.mark.parametrize("depth", range(1, 13))
def test_a_model_of_any_depth_has_layers_to_try(depth: int) -> None:
    found = layer_windows(traced(*[0.1] * depth), BETAEDIT)
    assert found
    assert all(0 <= window[0] <= window[-1] < depth for window in found)


# --- the score ---


def test_the_score_is_the_stated_formula() -> None:
    before = trial(0, perplexity=20.0, specificity=figure(0.8, 0.2))
    expected = 0.5 * 0.9 + 0.3 * 0.7 + 0.2 * (0.6 / 0.8) - 5 * math.log(20.4 / 20.0)
    assert score(before, trial(perplexity=20.4)) == pytest.approx(expected)


def test_perplexity_that_falls_and_neighbors_that_gain_earn_nothing() -> None:
    before = trial(0, perplexity=20.0, specificity=figure(0.5, 0.1))
    assert score(before, trial(perplexity=15.0)) == pytest.approx(0.5 * 0.9 + 0.3 * 0.7 + 0.2)


def test_figures_that_the_facts_do_not_have_count_as_perfect() -> None:
    none = figure(None, None)
    found = trial(efficacy=figure(None, 0.8), generality=none, specificity=none)
    assert score(trial(0, specificity=none), found) == pytest.approx(0.5 * 0.8 + 0.3 + 0.2)


@pytest.mark.parametrize("changes", [{"error": "not finite"}, {"perplexity": math.inf}, {"perplexity": math.nan}])
def test_a_trial_that_failed_or_broke_the_model_is_the_worst(changes: dict[str, object]) -> None:
    assert score(trial(0), trial(**changes)) == -math.inf


def test_the_best_trial_is_the_earlier_of_two_equal_ones_and_never_the_unedited_model() -> None:
    assert best_of([trial(0, efficacy=figure(1, 1)), trial(1, error="x"), trial(2), trial(3)]).number == 2
    with pytest.raises(ConfigError, match="no trial finished"):
        best_of([trial(0), trial(1, error="x")])


# --- the search ---


def distance(values: dict[str, object], aim: dict[str, float]) -> float:
    return -sum(abs(math.log(float(values[name]) / wanted)) for name, wanted in aim.items())  # type: ignore[arg-type]


def test_the_search_begins_with_every_start_and_comes_near_the_best_setting() -> None:
    aim = {"value_learning_rate": 0.2, "value_clamp": 1.0, "leakage_weight": 4000.0, "ridge": 2.5}
    starts = [{**START, "layers": [1]}, {**START, "layers": [2]}]
    ideas = proposals(starts)
    tried, value = [], next(ideas)
    while True:
        tried.append(value)
        try:
            value = ideas.send(distance(value, aim) + (value["layers"] == [2]))
        except StopIteration:
            break
    assert tried[:2] == starts
    assert all(setting["layers"] == [2] for setting in tried[2:])
    assert max(distance(setting, aim) for setting in tried) > -0.25
    assert all(tried.count(setting) == 1 for setting in tried), "nothing is tried twice"
    assert len(tried) < 40


def test_one_value_is_moved_at_a_time_and_back_where_that_does_not_help() -> None:
    ideas = proposals([START])
    next(ideas)
    assert ideas.send(1.0) == {**START, "value_learning_rate": 1.25}
    assert ideas.send(0.5) == {**START, "value_learning_rate": 0.2}
    assert ideas.send(2.0) == {**START, "value_learning_rate": 0.2, "value_clamp": 2.25}


# --- the whole ---


def run(model: LanguageModel, journal: Path | None = None, **options: object) -> tuple[Calibration, list[int]]:
    new: list[int] = []
    wanted: dict[str, object] = {"check": CASES[3:], "n_trials": 3, **options}
    found = calibrate(model, CASES[:3], journal=journal, on_trial=lambda t, _: new.append(t.number), **wanted)  # type: ignore[arg-type]
    return found, new


def figures(found: Calibration) -> list[dict[str, object]]:
    return [trial.model_dump(exclude={"seconds", "seconds_per_edit"}) for trial in (*found.trials, *found.check)]


def test_a_calibration_leaves_the_model_as_it_was_and_a_preset_that_an_editor_reads(
    model: LanguageModel, tmp_path: Path
) -> None:
    before = weights(model)
    found, new = run(model)
    assert unchanged(before, weights(model))
    assert new == [1, 2, 3]
    assert [trial.number for trial in found.trials] == [0, 1, 2, 3]
    assert len(found.check) == 2
    file = tmp_path / "mine.yaml"
    file.write_text(found.preset_file("mine").to_yaml())
    config = Editor(model, preset=file).config
    assert config.model_dump(include=set(found.best.values), mode="json") == found.best.values
    written = read_preset(file)
    assert written.measured["check"]["efficacy, argmax"][1] == found.check[1].efficacy.argmax.mean  # type: ignore[union-attr]
    assert (written.model, written.versions) == ("tiny-llama", found.setup.versions)


def test_an_interrupted_calibration_ends_as_one_that_was_not(model: LanguageModel, tmp_path: Path) -> None:
    whole, _ = run(model, tmp_path / "whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    cut = tmp_path / "cut.jsonl"
    cut.write_text("".join(lines[:4]) + lines[4][:20])  # setup, trace, trials 0 and 1, and a piece of trial 2
    continued, new = run(model, cut)
    assert new == [2, 3]
    assert figures(continued) == figures(whole)
    again, new = run(model, cut)
    assert new == []
    assert figures(again) == figures(whole)


def test_more_trials_are_added_to_those_made_and_a_new_best_is_checked_again(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = [{**START, "nullspace_threshold": 1e-30}, {**START, "nullspace_threshold": 0.3, "value_clamp": 0.01}]
    starts.append({**START, "nullspace_threshold": 0.3, "value_clamp": 4.0})
    monkeypatch.setattr("betaedit.experiments.calibrate._TrialRunner.starts", lambda _: starts)
    journal = tmp_path / "trials.jsonl"
    first, _ = run(model, journal, n_trials=2)
    more, new = run(model, journal, n_trials=3)
    assert new == [3]
    assert more.trials[:3] == first.trials
    assert first.best.number == 2
    assert more.check[1].values == more.best.values


def test_a_calibration_of_something_else_is_not_continued(model: LanguageModel, tmp_path: Path) -> None:
    journal = tmp_path / "trials.jsonl"
    run(model, journal, n_trials=1, check=())
    with pytest.raises(RunFolderError, match="data differs"):
        calibrate(model, CASES[:2], n_trials=1, journal=journal)
    with pytest.raises(RunFolderError, match="method differs"):
        run(model, journal, method="alphaedit", n_trials=1, check=())
    journal.write_text(json.dumps({"setup": {}}) + "\n")
    with pytest.raises(RunFolderError, match=r"trials\.jsonl:1"):
        run(model, journal)


def test_time_ends_the_search_after_one_trial_at_least(model: LanguageModel) -> None:
    found, new = run(model, minutes=0.0, check=())
    assert new == [1]
    assert found.check == ()


def test_a_setting_that_cannot_write_is_kept_with_its_reason(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = [{**START, "nullspace_threshold": 1e-30}, {**START, "nullspace_threshold": 0.3}]
    monkeypatch.setattr("betaedit.experiments.calibrate._TrialRunner.starts", lambda _: starts)
    found, _ = run(model, n_trials=2, check=())
    assert "no direction" in (found.trials[1].error or "")
    assert found.best.number == 2


def test_nothing_to_try_is_refused(model: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="needs facts and at least one trial"):
        calibrate(model, [])


TRACE = Trace(effects=[0.1, 0.2], intact=0.9, blurred=0.1, prompts=5, samples=3)
SETUP = CalibrationSetup(
    method="betaedit",
    model={"name": "./m", "weights": "sha256:1"},
    data={"source": "facts.jsonl", "facts_sha256": "2", "records": 3, "check": 0},
    seed=0,
    versions={},
)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "/elsewhere/m", "weights": "sha256:1"}},
        {"data": {**SETUP.data, "source": "./facts.jsonl"}},
        {"data": {**SETUP.data, "source": None}},
    ],
)
def test_a_calibration_goes_on_whatever_its_model_and_facts_are_called(tmp_path: Path, changes: dict) -> None:
    Journal(SETUP, tmp_path / "trials.jsonl").keep_trace(TRACE)
    again = Journal(SETUP.model_copy(update=changes), tmp_path / "trials.jsonl")
    assert again.trace == TRACE
    with pytest.raises(RunFolderError, match="model differs"):
        Journal(SETUP.model_copy(update={"model": {"name": "./m", "weights": "sha256:3"}}), tmp_path / "trials.jsonl")

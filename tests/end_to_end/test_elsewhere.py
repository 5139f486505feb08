"""A model on another device than the CPU: nothing that editing makes is left behind, and the results are the CPU's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from betaedit import EvaluationCase, Workspace
from betaedit.benchmarks import measure
from betaedit.editors import RECIPES
from betaedit.editors.closed_form.encode import encode_batch
from betaedit.editors.closed_form.values import _Problem
from betaedit.evaluation import drift
from betaedit.evaluation.metrics import measure_edits
from betaedit.models import LanguageModel
from betaedit.models.generate import complete
from betaedit.statistics import TextFiles, collect_moments
from support.edits import NEAR, SETTINGS, editor_for, relative
from support.elsewhere import crossings, elsewhere
from support.families import FAMILY_NAMES, language_model

ONE_LAYER = {"rome", "r-rome"}
TEXTS = ["Ordinary words follow one another in the long text.", "A second line of other words."]


@pytest.fixture
def device() -> Iterator[str]:
    with elsewhere() as name:
        yield name


def on(device: str, model: LanguageModel) -> LanguageModel:
    model.model.to(device)
    return model


def edited(model: LanguageModel, method: str = "betaedit", *, batch_size: int = 1) -> dict[str, Tensor]:
    """The weights after some edits, on the CPU."""
    layers = (2,) if method in ONE_LAYER else SETTINGS["layers"]
    editor = editor_for(model, method, layers=layers, value_steps=3, refresh_every=2)
    editor.edit(NEAR[:3], batch_size=batch_size)
    if editor.method.can_forget:
        editor.forget(NEAR[1].subject)
    return {name: weight.cpu() for name, weight in model.model.state_dict().items()}


def assert_the_same_weights(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert max(relative(ours[name], theirs[name]) for name in theirs) < 1e-5


def test_tensors_of_two_devices_do_not_mix(device: str):
    there, here = torch.ones(3, device=device), torch.ones(3)
    with pytest.raises(RuntimeError, match="one device"):
        there + here
    assert (there + here.to(device)).tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_edits_of_every_family_are_those_of_the_cpu(name: str):
    expected = edited(language_model(name), batch_size=2)
    with elsewhere() as device:
        assert_the_same_weights(edited(on(device, language_model(name)), batch_size=2), expected)


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_evaluations_of_a_search_move_nothing_between_the_devices(device: str, name: str):
    editor = editor_for(on(device, language_model(name)))
    encoded = encode_batch(editor.language_model, NEAR[:2], editor.editing.engine.contexts, editor.config)
    problem = _Problem.of(editor.language_model, encoded, range(2), editor.config)
    points = torch.zeros_like(problem.initial).requires_grad_()
    problem.evaluate(points)
    with crossings() as crossed:
        found, _ = problem.evaluate(points)
        torch.autograd.grad(found.loss.sum(), points)
    assert crossed == []
    with crossings() as crossed:
        found.loss.tolist()
    assert crossed == ["aten._to_copy.default"]


@pytest.mark.parametrize("method", [recipe.name for recipe in RECIPES])
def test_edits_by_every_method_are_those_of_the_cpu(method: str):
    expected = edited(language_model("llama"), method)
    with elsewhere() as device:
        assert_the_same_weights(edited(on(device, language_model("llama")), method), expected)


def test_a_workspace_comes_back_from_there(device: str, tmp_path: Path):
    with Workspace.create(tmp_path / "w", editor_for(on(device, language_model("llama")))) as workspace:
        workspace.edit(NEAR[:3])
        workspace.forget("#2")
        left = {layer: matrix.change().clone() for layer, matrix in workspace.matrices.items()}
    with Workspace.open(tmp_path / "w", write=True, model=on(device, language_model("llama"))) as again:
        assert all(torch.equal(again.matrices[layer].change(), change) for layer, change in left.items())
        again.edit(NEAR[3])


def measured(model: LanguageModel, text: Path) -> tuple[list[float], str]:
    """Figures of a model that is edited and of its statistics, and what it says."""
    editor = editor_for(model)
    editor.edit(NEAR[:2])
    measures = measure_edits(model, [EvaluationCase(fact) for fact in NEAR[:2]])
    moved = drift.compare(model, TEXTS, editor.editing.engine.unedited)
    moments = collect_moments(model, [1, 2], TextFiles([text]), n_tokens=480)
    assert measures.efficacy.argmax is not None
    figures = [measures.efficacy.argmax, moved.perplexity, moved.kl, float(moments.matrices[2].norm())]
    return figures, complete(model, NEAR[0].text, 4)


def test_measures_text_and_statistics_are_those_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(20 * TEXTS))
    monkeypatch.setenv("BETAEDIT_CACHE", str(tmp_path / "cpu"))
    figures, said = measured(language_model("llama"), text)
    monkeypatch.setenv("BETAEDIT_CACHE", str(tmp_path / "elsewhere"))
    with elsewhere() as device:
        found, also_said = measured(on(device, language_model("llama")), text)
    assert found == pytest.approx(figures, rel=1e-4)
    assert also_said == said


def test_benchmarks_run_there(device: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(measure._PUBLISHED, "value_steps", 3)
    editor = editor_for(on(device, language_model("llama")))
    for row in (measure.value(editor, NEAR[:1])[0], measure.edit(editor, NEAR[:1])[0]):
        assert row.relative_error is not None
        assert row.relative_error < 1e-3
    solved, _ = measure.solve(96, device=device)
    assert solved.relative_error < 1e-3
    assert solved.details["float64_error"] < 1e-10

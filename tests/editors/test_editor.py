"""The facade: what it refuses, what it plans, what it saves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from betaedit import EditConfig, Editor, EvaluationCase, Fact
from betaedit.editors.closed_form.encode import EncodedBatch, encode_batch
from betaedit.editors.closed_form.engine import EditResult
from betaedit.editors.contexts import context_templates
from betaedit.errors import (
    AnatomyError,
    ConfigError,
    FactError,
    LookupTokenError,
    MethodError,
    ModelError,
    StatisticsError,
)
from betaedit.models import LanguageModel
from betaedit.statistics import Moments
from support.edits import FACTS, SETTINGS, editor_for, moments_for, unchanged, weights
from support.families import language_model
from support.tiny import RecordedProgress


def test_an_edit_always_changes_the_model_it_is_given() -> None:
    model = language_model("llama")
    before = weights(model)
    editor_for(model).edit(FACTS[0])
    assert not unchanged(before, weights(model))


def test_a_plan_shows_lookup_and_target_and_changes_nothing() -> None:
    model = language_model("llama")
    before = weights(model)
    (plan,) = editor_for(model).plan(FACTS[0])
    assert "".join(plan.tokens[: plan.lookup + 1]).endswith("Danielle Darrieux")
    assert "".join(plan.target_tokens) == " English words"
    assert unchanged(before, weights(model))


def test_a_case_is_edited_as_its_fact() -> None:
    model = language_model("llama")
    (result,) = editor_for(model).edit(EvaluationCase(FACTS[0]))
    assert result.fact == FACTS[0]


def test_what_an_edit_took_comes_back_from_json() -> None:
    (result,) = editor_for(language_model("llama"), value_steps=2).edit(FACTS[0])
    figures = json.loads(json.dumps(result.without_fact()))
    assert "fact" not in figures
    assert EditResult.from_stored(FACTS[0], figures) == result


def test_every_edit_is_heard_of_as_it_is_made() -> None:
    heard = []
    editor_for(language_model("llama")).edit(FACTS, batch_size=2, on_edit=heard.append)
    assert [result.fact for result in heard] == FACTS


@pytest.mark.parametrize("look_ahead", [1, 2, 9])
def test_a_batch_is_heard_of_before_the_next_one_is_written_however_far_ahead_its_values_were_sought(
    look_ahead: int,
) -> None:
    model, heard = language_model("llama"), []
    editor = editor_for(model, value_look_ahead=look_ahead)
    editor.progress = RecordedProgress()

    def hear(result: EditResult) -> None:
        heard.append((result.fact, {memory.n_written for memory in editor.editing.engine.memories.values()}))

    editor.edit(FACTS, batch_size=2, on_edit=hear)
    assert heard == list(zip(FACTS, ({2}, {2}, {4}, {4}, {5}), strict=True))
    assert [result.fact for result in editor.results] == FACTS
    (task,) = editor.progress.tasks
    assert (task.total, task.steps) == (5, [2, 2, 1])


@pytest.mark.parametrize(("batch_size", "look_ahead", "sought"), [(1, 1, [1] * 5), (1, 2, [2, 2, 1]), (2, 2, [4, 1])])
def test_values_are_sought_for_as_many_batches_together_as_the_look_ahead_says(
    batch_size: int, look_ahead: int, sought: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []

    def listen(model: LanguageModel, facts: Sequence[Fact], *rest: object) -> EncodedBatch:
        found.append(len(facts))
        return encode_batch(model, facts, *rest)

    monkeypatch.setattr("betaedit.editors.closed_form.engine.encode_batch", listen)
    editor_for(language_model("llama"), value_look_ahead=look_ahead).edit(FACTS, batch_size=batch_size)
    assert found == sought


def test_the_look_ahead_is_told_with_the_edits() -> None:
    editor = editor_for(language_model("llama"), value_look_ahead=3, value_optimizer="projected_bb")
    editor.edit(FACTS)
    config = editor.to_dict()["config"]
    assert (config["value_look_ahead"], config["value_optimizer"]) == (3, "projected_bb")
    assert editor_for(language_model("llama")).to_dict()["config"]["value_look_ahead"] == 1


def test_no_facts_are_no_work() -> None:
    model = language_model("llama")
    before = weights(model)
    assert editor_for(model).edit([]) == []
    assert unchanged(before, weights(model))


@pytest.mark.parametrize(
    ("facts", "kind", "message"),
    [
        (["The capital of Japan is Madrid"], FactError, "is not a Fact"),
        ([Fact("{} is", "A", "b", id="x"), Fact("{} was", "B", "c", id="x")], FactError, "share the id 'x'"),
    ],
)
def test_bad_facts_are_refused_before_any_weight_changes(facts: list, kind: type, message: str) -> None:
    model = language_model("llama")
    before = weights(model)
    with pytest.raises(kind, match=message) as caught:
        editor_for(model).edit([FACTS[0], *facts])
    assert caught.value.hint
    assert unchanged(before, weights(model))


def test_a_target_without_tokens_is_refused_before_any_weight_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = language_model("llama")
    before = weights(model)

    def refuse(*_: object) -> None:
        raise LookupTokenError("the target has no tokens.", hint="x")

    monkeypatch.setattr("betaedit.editors.asked.encode_target", refuse)
    with pytest.raises(LookupTokenError):
        editor_for(model).edit(FACTS)
    assert unchanged(before, weights(model))


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        editor_for(language_model("llama")).edit(FACTS, batch_size=0)


def test_an_unknown_method_suggests_the_nearest() -> None:
    with pytest.raises(MethodError, match="betaedit"):
        editor_for(language_model("llama"), method="betaedti")


def test_layers_that_do_not_exist_are_refused() -> None:
    with pytest.raises(AnatomyError, match="no layer 9"):
        Editor(language_model("llama"), config=EditConfig(layers=(9,)))


def test_statistics_of_another_layer_or_width_are_refused() -> None:
    model = language_model("llama")
    for matrices, message in (({0: torch.eye(48)}, "not layer 1"), ({1: torch.eye(5), 2: torch.eye(5)}, "wide")):
        with pytest.raises(StatisticsError, match=message):
            Editor(model, config=EditConfig(**SETTINGS), statistics=Moments(matrices, 999)).edit(FACTS[0])  # type: ignore[arg-type]


def test_a_live_model_needs_its_tokenizer() -> None:
    with pytest.raises(ConfigError, match="tokenizer"):
        Editor.from_pretrained(language_model("llama").model)


def test_an_unknown_hyper_parameter_suggests_the_nearest() -> None:
    model = language_model("llama")
    with pytest.raises(ConfigError, match="value_clamp"):
        Editor.from_pretrained(model.model, tokenizer=model.tokenizer, value_clmap=1.0)


@pytest.mark.parametrize(
    ("slip", "error", "told"),
    [
        ({"method": "memti"}, MethodError, "memit"),
        ({"preset": "smolm2"}, ConfigError, "smolm2"),
        ({"value_clmap": 1.0}, ConfigError, "value_clamp"),
        ({"layers": [5, 4]}, ConfigError, "rising order"),
        ({"method": "rome", "layers": [4, 5]}, ConfigError, "rome edits one layer, not 2"),
        ({"statistics": "/no/such/moments"}, StatisticsError, "/no/such/moments cannot be read"),
        ({"statistics": {"layer.1": 2}}, StatisticsError, "of the type dict.*betaedit statistics --save"),
        ({"preset": {"value_clamp": 1.0}}, ConfigError, "of the type dict.*by name"),
        ({"config": {"value_clamp": 1.0}}, ConfigError, "of the type dict.*by name"),
        ({"config": Path("settings.yaml")}, ConfigError, "of the type PosixPath.*EditConfig"),
        ({"statistics_corpus": Path("a.txt")}, ConfigError, "Give it as a text: statistics_corpus='a.txt'"),
    ],
)
def test_a_slip_is_told_before_the_model_is_looked_for(slip: dict, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        Editor.from_pretrained("/no/such/model", **slip)


def test_a_model_is_named_by_a_path_too(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no-model"):
        Editor.from_pretrained(tmp_path / "no-model")


def test_reset_brings_back_every_bit_and_forgets_the_history() -> None:
    model = language_model("llama")
    before = weights(model)
    editor = editor_for(model)
    editor.edit(FACTS)
    once = weights(model)
    editor.reset()
    assert unchanged(before, weights(model))
    editor.edit(FACTS)
    assert unchanged(once, weights(model))


def test_a_saved_model_loads_with_its_edits_and_says_what_was_written(tmp_path) -> None:
    model = language_model("llama")
    editor = editor_for(model)
    editor.edit(FACTS)
    editor.save_pretrained(tmp_path / "edited")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "edited", dtype=torch.float32)
    assert unchanged(loaded.state_dict(), model.model.state_dict())
    record = json.loads((tmp_path / "edited" / "betaedit.json").read_text())
    assert record["method"] == "betaedit"
    assert [edit["subject"] for edit in record["edits"]] == [fact.subject for fact in FACTS]
    assert record["config"]["layers"] == [1, 2]
    assert record["contexts"][0] == "{}"


def test_contexts_are_seeded_and_made_of_plain_text() -> None:
    model = language_model("llama")
    first, again, other = (context_templates(model, EditConfig(seed=seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert first[0] == "{}"
    assert len(first) == 6
    for template in first[1:]:
        assert template.endswith(". {}")
        assert template.count("{}") == 1
        assert not any(token in template for token in model.tokenizer.all_special_tokens)


def test_statistics_of_other_weights_are_used_with_a_warning_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    model = language_model("llama")
    moments = moments_for(model)
    Editor(
        model,
        config=EditConfig(**SETTINGS),  # type: ignore[arg-type]
        statistics=Moments(moments.matrices, 1000, {"weights": "sha256:other", "model": "m"}),
    )
    assert "other weights" in caplog.text

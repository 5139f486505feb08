"""A folder with edits is used as a model again: it brings its preset, statistics, contexts and history."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from betaedit import Editor, Fact
from betaedit.editors import PresetFile, preset_file, resources
from betaedit.errors import ModelError, StatisticsError
from betaedit.models import LanguageModel
from betaedit.statistics import Moments
from support.edits import FACTS, SETTINGS, moments_for
from support.families import language_model

LATER = Fact("The home of {} is", "Bob", "Rome")
QUICK = {name: SETTINGS[name] for name in SETTINGS if name != "context_templates"} | {"context_length": 4}


@pytest.fixture
def unedited(tmp_path: Path) -> Path:
    model = language_model("llama")
    model.model.save_pretrained(tmp_path / "unedited")
    model.tokenizer.save_pretrained(tmp_path / "unedited")
    return tmp_path / "unedited"


def edited(base: Path, folder: Path, **changes: Any) -> Editor:
    """An editor that has written two facts and saved its model."""
    made = Editor.from_pretrained(base, **{**QUICK, "statistics": kept_statistics(base), **changes})
    made.edit(FACTS[:2])
    made.save_pretrained(folder)
    return made


def kept_statistics(base: Path) -> Moments:
    moments = moments_for(language_model("llama"))
    return Moments(moments.matrices, moments.n_tokens, {"model": str(base), "weights": "sha256:of the unedited one"})


@pytest.fixture
def nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """No statistics are collected and no contexts sampled."""

    def made(*_: Any, **__: Any) -> None:
        raise AssertionError("what the folder holds was made again")

    monkeypatch.setattr(resources, "collect_moments", made)
    monkeypatch.setattr(resources, "context_templates", made)


def test_it_needs_no_statistics_and_no_contexts(tmp_path: Path, unedited: Path, request) -> None:
    first = edited(unedited, tmp_path / "edited")
    request.getfixturevalue("nothing_is_made")
    again = Editor.from_pretrained(tmp_path / "edited", **QUICK)
    (result,) = again.edit(LATER)
    assert result.fact == LATER
    assert again.editing.statistics.fingerprint == first.editing.statistics.fingerprint
    assert again.editing.engine.contexts == first.editing.engine.contexts


def test_results_say_that_the_statistics_are_of_the_model_before_its_edits(
    tmp_path: Path, unedited: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edited(unedited, tmp_path / "edited")
    caplog.clear()
    again = Editor.from_pretrained(tmp_path / "edited", **QUICK)
    again.edit(LATER)
    again.edit(FACTS[2])
    assert again.to_dict()["statistics"]["before_edits"] == "2"
    (said,) = [record.getMessage() for record in caplog.records if "already" in record.getMessage()]
    assert "already holds 2 edits" in said
    assert "workspace" in said
    assert "the model without them" in said
    assert not [record for record in caplog.records if "other weights" in record.getMessage()]


@pytest.mark.parametrize("name", ["gpt2-xl", "my-llama-3-8b", "edited"])
def test_its_preset_is_the_recorded_one_whatever_the_folder_is_called(
    tmp_path: Path, unedited: Path, name: str
) -> None:
    edited(unedited, tmp_path / name, preset="smollm2-adam")
    assert Editor.from_pretrained(tmp_path / name, **QUICK).preset.name == "smollm2-adam"


def test_a_preset_of_a_file_comes_back_with_its_values(tmp_path: Path, unedited: Path) -> None:
    file = tmp_path / "mine.yaml"
    mine = PresetFile(name="mine", model="x", source="tried", values={"layers": [1, 2], "ridge": 3.5},
                      by_method={"rome": {"layers": [1]}})  # fmt: skip
    file.write_text(mine.to_yaml())
    edited(unedited, tmp_path / "edited", preset=file)
    file.unlink()
    again = Editor.from_pretrained(tmp_path / "edited")
    assert again.preset.name == "mine"
    assert again.config.ridge == 3.5
    assert Editor.from_pretrained(tmp_path / "edited", method="rome").config.layers == (1,)


def test_other_statistics_that_are_asked_for_are_not_those_of_the_folder(tmp_path: Path, unedited: Path) -> None:
    edited(unedited, tmp_path / "edited")
    for changes in ({"layers": (1, 3)}, {"statistics_tokens": 400}, {"seed": 5}, {"statistics_corpus": "text.txt"}):
        again = Editor.from_pretrained(tmp_path / "edited", **{**QUICK, **changes})
        assert again.resources._saved_statistics(again.config) is None
    narrower = Editor.from_pretrained(tmp_path / "edited", **{**QUICK, "layers": (2,)})
    assert narrower.resources._saved_statistics(narrower.config) is not None


def test_statistics_that_are_given_are_used(tmp_path: Path, unedited: Path) -> None:
    edited(unedited, tmp_path / "edited")
    given = moments_for(language_model("llama"), (1, 2, 3))
    assert Editor.from_pretrained(tmp_path / "edited", **QUICK, statistics=given).editing.statistics is given


def test_what_is_saved_again_has_the_whole_history(tmp_path: Path, unedited: Path) -> None:
    edited(unedited, tmp_path / "once")
    again = Editor.from_pretrained(tmp_path / "once", **QUICK)
    again.edit(LATER)
    again.save_pretrained(tmp_path / "twice")
    record = json.loads((tmp_path / "twice" / "betaedit.json").read_text())
    assert [edit["subject"] for edit in record["earlier_edits"]] == [fact.subject for fact in FACTS[:2]]
    assert [edit["subject"] for edit in record["edits"]] == ["Bob"]
    assert record["base"] == str(unedited)
    third = Editor.from_pretrained(tmp_path / "twice", **QUICK)
    assert third.editing.statistics.origin["before_edits"] == "3"


def test_statistics_lie_where_no_server_takes_them_for_weights(tmp_path: Path, unedited: Path) -> None:
    edited(unedited, tmp_path / "edited")
    assert [file.name for file in (tmp_path / "edited").glob("*.safetensors")] == ["model.safetensors"]
    assert (tmp_path / "edited" / "betaedit" / "statistics.safetensors").is_file()


def test_a_record_beside_other_weights_is_not_used_and_that_is_said(
    tmp_path: Path, unedited: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As when somebody trains the model and saves it in its place."""
    edited(unedited, tmp_path / "edited", preset="smollm2-adam")
    trained = language_model("llama")
    trained.anatomy.projection(1).weight.data.mul_(1.5)
    trained.model.save_pretrained(tmp_path / "edited")
    again = Editor.from_pretrained(tmp_path / "edited", **QUICK)
    assert again.preset.name == "untuned"
    assert again.resources._saved_statistics(again.config) is None
    assert [record for record in caplog.records if "not those recorded in its betaedit.json" in record.getMessage()]


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"weights": ', "\x00"])
def test_a_damaged_record_is_refused(tmp_path: Path, unedited: Path, text: str) -> None:
    edited(unedited, tmp_path / "edited")
    (tmp_path / "edited" / "betaedit.json").write_text(text)
    with pytest.raises(ModelError, match=r"betaedit\.json is damaged"):
        Editor.from_pretrained(tmp_path / "edited", **QUICK)


def test_statistics_that_were_exchanged_are_refused(tmp_path: Path, unedited: Path) -> None:
    edited(unedited, tmp_path / "edited")
    other = moments_for(language_model("llama"))
    other.matrices[1].mul_(2)
    other.save(tmp_path / "edited" / "betaedit" / "statistics.safetensors")
    with pytest.raises(StatisticsError, match="has changed since it was saved"):
        Editor.from_pretrained(tmp_path / "edited", **QUICK).prepare()


def test_a_folder_of_an_older_version_has_the_preset_of_its_base(tmp_path: Path, unedited: Path) -> None:
    edited(unedited, tmp_path / "edited")
    file = tmp_path / "edited" / "betaedit.json"
    record = json.loads(file.read_text())
    for key in ("base", "preset_settings", "earlier_edits", "weights"):
        del record[key]
    for told, name in (("gpt2-xl", "gpt2-xl"), ("nobody-knows", "smollm2")):
        file.write_text(json.dumps(record | {"preset": told, "model": "HuggingFaceTB/SmolLM2-135M"}))
        assert Editor.from_pretrained(tmp_path / "edited", **QUICK).preset.name == name


def untuned_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == preset_file.__name__]


def test_python_says_once_that_settings_were_not_measured(unedited: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    Editor.from_pretrained(unedited)
    (said,) = untuned_warnings(caplog)
    assert f"there is no preset for {unedited}" in said
    assert "betaedit calibrate" in said
    caplog.clear()
    Editor(language_model("llama"))
    assert len(untuned_warnings(caplog)) == 1


def test_python_says_nothing_of_settings_that_were_chosen(unedited: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = Editor.from_pretrained(unedited, preset="untuned").config
    Editor(language_model("llama"), config=config)
    Editor.from_pretrained(unedited, config=config)
    Editor(language_model("llama"), preset="untuned")
    assert untuned_warnings(caplog) == []


def test_a_model_that_was_never_in_a_file_is_not_taken_for_the_current_folder(
    tmp_path: Path, unedited: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited(unedited, tmp_path / "edited", preset="smollm2-adam")
    monkeypatch.chdir(tmp_path / "edited")
    live = language_model("llama")
    assert Editor(LanguageModel.wrap(live.model, live.tokenizer, "")).preset.name == "untuned"

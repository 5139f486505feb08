"""A preset file is read as it was written, and a broken one is refused by its name and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from betaedit.editors import PRESETS, PresetFile, choose_preset, find_preset, find_recipe, read_preset
from betaedit.editors.names import check_names
from betaedit.editors.presets import untuned
from betaedit.errors import ConfigError

FILE = PresetFile(
    name="mine",
    model="Some/Model",
    source="by hand",
    values={"layers": [2, 3], "value_clamp": 1.25, "ridge": 4.0},
    by_method={"rome": {"layers": [3]}},
    measured={"efficacy, argmax": [0.0, 1.0]},
    versions={"betaedit": "0.1.0"},
    seed=7,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(FILE.to_yaml())
    return path


def test_a_preset_file_is_read_as_it_was_written(file: Path) -> None:
    assert read_preset(file) == FILE


def test_its_settings_are_those_of_the_configuration_for_each_method(file: Path) -> None:
    preset = choose_preset(str(file), "other", 12)
    config = preset.config(find_recipe("betaedit"))
    assert (config.layers, config.value_clamp, config.ridge) == ((2, 3), 1.25, 4.0)
    assert preset.config(find_recipe("rome")).layers == (3,)


def test_a_preset_is_chosen_by_name_or_by_model_or_is_given() -> None:
    assert choose_preset("gpt-j-6b", "smollm2", 30) is find_preset("gpt-j-6b")
    assert choose_preset(None, "smollm2", 30) is find_preset("smollm2")
    assert choose_preset(FILE.preset, "smollm2", 30).name == "mine"


@pytest.mark.parametrize(("model", "depth"), [("smollm2", 30), ("gpt-j-6b", 28), ("strange", 4)])
def test_the_untuned_preset_is_chosen_by_its_name_for_every_model(model: str, depth: int) -> None:
    assert choose_preset("untuned", model, depth) == untuned(depth)
    check_names("betaedit", "untuned", {})


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("name: mine", "nam: mine", r"mine\.yaml: \[name\]"),
        ("format: 1", "format: 2", r"mine\.yaml: \[format\]"),
        ("seed: 7", "seed: many", r"mine\.yaml: \[seed\]"),
        ("value_clamp: 1.25", "value_clamp: -1", r"mine\.yaml: \[values\] value_clamp"),
        ("value_clamp", "value_clam", r"mine\.yaml: \[values\] there is no hyper-parameter 'value_clam'.*value_clamp"),
        ("rome:", "roma:", r"mine\.yaml: \[by_method\.roma\].*roma"),
        ("values:", "values: [", r"mine\.yaml cannot be read"),
    ],
)
def test_a_broken_file_is_refused_by_its_name_and_key(file: Path, old: str, new: str, told: str) -> None:
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(ConfigError, match=told) as refused:
        choose_preset(file, "any", 12)
    assert refused.value.hint


def test_a_file_without_a_mapping_is_refused(file: Path) -> None:
    file.write_text("- layers\n")
    with pytest.raises(ConfigError, match="holds no mapping"):
        read_preset(file)


def test_a_preset_that_is_nowhere_is_refused_with_the_known_names() -> None:
    with pytest.raises(ConfigError, match="no preset 'nowhere'") as refused:
        choose_preset("nowhere", "any", 12)
    for name in [preset.name for preset in PRESETS] + ["untuned"]:
        assert name in refused.value.hint
        choose_preset(name, "any", 12)

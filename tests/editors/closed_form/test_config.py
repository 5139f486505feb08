from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from betaedit.editors.closed_form.config import EditConfig
from betaedit.errors import ConfigError


@pytest.mark.parametrize("name", EditConfig.model_fields)
def test_every_hyper_parameter_says_what_it_is(name: str):
    description = EditConfig.model_fields[name].description
    assert description
    assert description.endswith(".")


@pytest.mark.parametrize("name", EditConfig.model_fields)
def test_every_hyper_parameter_has_a_default_that_is_itself_possible(name: str):
    assert getattr(EditConfig.of({name: getattr(EditConfig(), name)}), name) == getattr(EditConfig(), name)


def test_the_defaults_are_those_the_papers_share_for_8b_models():
    config = EditConfig()
    assert config.layers == (4, 5, 6, 7, 8)
    assert (config.value_steps, config.value_learning_rate) == (25, 0.1)
    assert (config.value_clamp, config.value_decay, config.kl_weight) == (0.75, 0.5, 0.0625)
    assert (config.leakage_weight, config.ridge, config.nullspace_threshold) == (3000.0, 10.0, 0.02)
    assert (config.refresh_every, config.refresh_rule) == (1000, "normalised")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("layer", "layers"),
        ("leekage_weight", "leakage_weight"),
        ("refresh_evry", "refresh_every"),
    ],
)
def test_an_unknown_hyper_parameter_is_answered_with_the_nearest(typed: str, meant: str):
    with pytest.raises(ConfigError, match=f"there is no hyper-parameter '{typed}'") as caught:
        EditConfig.of({typed: 1})
    assert caught.value.hint == f"Did you mean {meant}?"


def test_a_hyper_parameter_like_no_other_is_answered_with_where_all_are_listed():
    with pytest.raises(ConfigError) as caught:
        EditConfig.of({"xyzzy": 1})
    assert caught.value.hint == "See `betaedit methods --config` for all names."


IMPOSSIBLE: list[tuple[str, Any, str]] = [
    ("layers", (), "rising order"),
    ("layers", (5, 4), "rising order"),
    ("layers", (4, 4), "rising order"),
    ("layers", (-1, 4), "rising order"),
    ("layers", "4,5", "tuple"),
    ("layers", 4, "tuple"),
    ("lookup", "subject", "subject_last"),
    ("context_templates", (), "bare"),
    ("context_templates", ("The. {}",), "bare"),
    ("context_templates", ("{}", "no slot"), "exactly one"),
    ("context_templates", ("{}", "{} and {}"), "exactly one"),
    ("context_length", 1, "2"),
    ("context_top_k", 0, "1"),
    ("value_steps", 0, "1"),
    ("value_steps", 2.5, "integer"),
    ("value_learning_rate", 0.0, "greater than 0"),
    ("value_learning_rate", "fast", "number"),
    ("value_clamp", 0.0, "greater than 0"),
    ("value_clamp", -1.0, "greater than 0"),
    ("value_decay", -0.5, "0"),
    ("value_stop_loss", -0.1, "0"),
    ("value_stop_most_probable", 0, "1"),
    ("value_norm_anchor", 0.0, "greater than 0"),
    ("kl_weight", -1.0, "0"),
    ("kl_template", "no slot", "exactly one"),
    ("kl_template", "{} is {}", "exactly one"),
    ("leakage_weight", -1.0, "0"),
    ("leakage_weight", math.nan, "should be"),
    ("ridge", -10.0, "0"),
    ("frobenius_ridge", -1.0, "0"),
    ("nullspace_threshold", 0.0, "greater than 0"),
    ("refresh_every", 0, "1"),
    ("refresh_rule", "normalized", "normalised"),
    ("update_norm_limit", 0.0, "greater than 0"),
    ("statistics_tokens", 0, "1"),
    ("seed", -1, "0"),
]


@pytest.mark.parametrize(("name", "value", "part"), IMPOSSIBLE)
def test_an_impossible_value_is_refused_with_the_field_the_reason_and_its_meaning(name: str, value: Any, part: str):
    with pytest.raises(ConfigError) as caught:
        EditConfig.of({name: value})
    assert caught.value.message.startswith(f"{name}: ")
    assert part in caught.value.message
    assert repr(value) in caught.value.message
    assert caught.value.hint.startswith(str(EditConfig.model_fields[name].description))


def test_one_value_where_a_list_belongs_is_told_how_to_be_one():
    with pytest.raises(ConfigError, match=r"^layers: ") as caught:
        EditConfig.of({"layers": 2})
    assert caught.value.hint.endswith("Write a list: layers=[2].")


def test_an_impossible_value_inside_a_list_is_named_with_its_place():
    with pytest.raises(ConfigError, match=r"^layers\.1: ") as caught:
        EditConfig.of({"layers": [4, "five"]})
    assert caught.value.hint == EditConfig.model_fields["layers"].description


@pytest.mark.parametrize("name", ["leakage_weight", "ridge"])
def test_a_strength_that_is_infinite_is_refused(name: str):
    """An infinite ridge would write nothing and say nothing, and JSON has no infinity to save it as."""
    with pytest.raises(ConfigError, match=f"^{name}: "):
        EditConfig.of({name: math.inf})


@pytest.mark.parametrize("text", ["{}. {}", "", "{subject}", "{ }"])
def test_a_context_needs_the_slot_itself_once(text: str):
    with pytest.raises(ConfigError, match=r"^context_templates: "):
        EditConfig.of({"context_templates": ["{}", text]})


def test_contexts_with_one_slot_each_are_taken_in_their_order():
    config = EditConfig.of({"context_templates": ["{}", "The sky. {}", "Because {}"]})
    assert config.context_templates == ("{}", "The sky. {}", "Because {}")


def test_replacing_gives_a_changed_copy_and_leaves_the_first_alone():
    first = EditConfig.of({"layers": [1, 2], "ridge": 1.0})
    second = first.replace(ridge=2.0, seed=3)
    assert (first.ridge, first.seed) == (1.0, 0)
    assert (second.layers, second.ridge, second.seed) == ((1, 2), 2.0, 3)
    assert first.replace() == first


def test_replacing_checks_names_and_values_as_making_does():
    with pytest.raises(ConfigError, match="no hyper-parameter 'rigde'") as caught:
        EditConfig().replace(rigde=1.0)
    assert caught.value.hint == "Did you mean ridge?"
    with pytest.raises(ConfigError, match=r"^layers: "):
        EditConfig().replace(layers=(3, 1))


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        EditConfig().ridge = 1.0  # type: ignore[misc]  # on purpose


CHOSEN = {
    "layers": [0, 3],
    "lookup": "last",
    "context_templates": ["{}", "Yes. {}"],
    "context_openings": ["We"],
    "value_loss_layer": 5,
    "update_norm_limit": 20.0,
    "refresh_rule": "literal",
    "seed": 7,
}


def test_the_earlier_name_of_the_projected_bb_search_is_still_read():
    assert EditConfig.of({"value_optimizer": "spectral"}) == EditConfig.of({"value_optimizer": "projected_bb"})
    assert EditConfig(value_optimizer="spectral").value_optimizer == "projected_bb"  # type: ignore[arg-type]
    assert EditConfig.of({"statistics_corpus": "spectral"}).statistics_corpus == "spectral"


@pytest.mark.parametrize("values", [{}, CHOSEN], ids=["defaults", "chosen"])
def test_a_configuration_survives_json(values: dict[str, Any]):
    config = EditConfig.of(values)
    plain = config.model_dump(mode="json")
    assert EditConfig.of(json.loads(json.dumps(plain))) == config
    assert set(plain) == set(EditConfig.model_fields)


def test_the_manual_lists_every_hyper_parameter_with_its_default():
    manual = Path(__file__).parents[3] / "docs" / "methods.md"
    table = manual.read_text(encoding="utf-8").partition("## Hyper-parameters")[2].partition("\n## ")[0]
    rows = [line.split(" | ", 2)[:2] for line in table.splitlines() if line.startswith("| `")]
    stated = {name.strip("| `"): default.strip("` ") for name, default in rows}
    assert len(rows) == len(stated)
    assert stated == {name: _stated(name, value) for name, value in EditConfig()}


def _stated(name: str, value: Any) -> str:
    """A default as the manual writes it."""
    if name == "statistics_tokens":
        return "ten per key dimension"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return {None: "none", math.e: "e"}.get(value) or (f"{value:g}" if isinstance(value, float) else str(value))

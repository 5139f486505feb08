from __future__ import annotations

import json
from itertools import pairwise

import pytest

from betaedit.editors.closed_form.recipes import RECIPES, find_recipe
from betaedit.editors.methods import METHODS
from betaedit.editors.presets import PRESETS, find_preset, preset_for, untuned

# Published configurations: MEMIT and AlphaEdit repositories, AlphaEdit, BetaEdit, and the unreleased Qwen3:
# edited layers, steps, learning rate, weight on C0 of MEMIT; then d_in of the edited matrices.
PUBLISHED = {
    "gpt2-xl": ((13, 14, 15, 16, 17), 20, 0.5, 20000.0, 6400),
    "gpt-j-6b": ((3, 4, 5, 6, 7, 8), 25, 0.5, 15000.0, 16384),
    "llama-3-8b-instruct": ((4, 5, 6, 7, 8), 25, 0.1, 15000.0, 14336),
    "llama-3.1-8b": ((4, 5, 6, 7, 8), 25, 0.1, 15000.0, 14336),
    "qwen2.5-7b": ((4, 5, 6, 7, 8), 25, 0.1, 15000.0, 18944),
    "qwen3-4b-instruct-2507": ((4, 5, 6, 7, 8), 25, 0.1, 15000.0, 9728),
}
SINGLE = {"gpt2-xl": 17, **dict.fromkeys([name for name in PUBLISHED if name != "gpt2-xl"], 5)}
"""The layer of ROME (methods.md B.1)."""
EVERY = pytest.mark.parametrize("name", PUBLISHED)

HUB = {
    "openai-community/gpt2-xl": "gpt2-xl",
    "gpt2-xl": "gpt2-xl",
    "EleutherAI/gpt-j-6b": "gpt-j-6b",
    "EleutherAI/gpt-j-6B": "gpt-j-6b",
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama-3-8b-instruct",
    "meta-llama/Meta-Llama-3-8B": "llama-3-8b-instruct",
    "meta-llama/Llama-3.1-8B": "llama-3.1-8b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "meta-llama/Meta-Llama-3.1-8B": "llama-3.1-8b",
    "meta-llama/Meta-Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "Qwen/Qwen2.5-7B": "qwen2.5-7b",
    "Qwen/Qwen2.5-7B-Instruct": "qwen2.5-7b",
    "Qwen/Qwen3-4B-Instruct-2507": "qwen3-4b-instruct-2507",
    "HuggingFaceTB/SmolLM2-135M": "smollm2",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "smollm2",
}


def test_every_published_preset_is_checked_here():
    assert {preset.name for preset in PRESETS} == {*PUBLISHED, "smollm2", "smollm2-facts", "smollm2-adam"}


@EVERY
@pytest.mark.parametrize("method", [recipe.name for recipe in RECIPES])
def test_a_preset_has_the_published_numbers(name: str, method: str):
    layers, steps, learning_rate, memit_weight, width = PUBLISHED[name]
    preset = find_preset(name)
    assert preset is not None
    config = preset.config(find_recipe(method))
    assert config.layers == ((SINGLE[name],) if method in ("rome", "r-rome") else layers)
    if (name, method) == ("llama-3-8b-instruct", "encore"):
        assert (config.ridge, config.value_learning_rate) == (20.0, 0.5)
        return
    assert (config.value_steps, config.value_learning_rate) == (steps, learning_rate)
    assert (config.value_clamp, config.value_decay, config.kl_weight) == (0.75, 0.5, 0.0625)
    assert (config.ridge, config.nullspace_threshold) == (10.0, 0.02)
    assert config.value_loss_layer is None, "the published loss layer is the last block"
    assert config.context_templates is None
    assert preset.mlp_size == width
    if (name, method) == ("gpt-j-6b", "pmet"):
        assert config.leakage_weight == 6000.0
    elif method.startswith(("memit", "pmet", "emmet", "rect", "prune", "simie", "encore")):
        assert config.leakage_weight == memit_weight
    if method == "betaedit":
        assert (config.leakage_weight, config.refresh_every, config.refresh_rule) == (3000.0, 1000, "normalised")


@pytest.mark.parametrize(("hub_id", "name"), HUB.items())
def test_a_model_is_known_by_its_name_on_the_hub(hub_id: str, name: str):
    assert preset_for(hub_id, 48).name == name


@pytest.mark.parametrize(("last", "name"), [("gpt2-xl", "gpt2-xl"), ("Llama-3.1-8B", "llama-3.1-8b")])
@pytest.mark.parametrize("folder", ["/models/{}", "/models/{}/", "./{}", "../of.models/{}//", "{}/"])
def test_a_model_is_known_by_the_folder_it_lies_in(folder: str, last: str, name: str):
    assert preset_for(folder.format(last), 48).name == name


@pytest.mark.parametrize(
    "stranger",
    ["openai-community/gpt2", "gpt2-large", "meta-llama/Llama-3.1-70B", "Qwen/Qwen2.5-7B-Instruct-AWQ", "", "/"],
)
def test_a_model_without_a_preset_gets_the_untuned_one(stranger: str):
    assert preset_for(stranger, 12).name == "untuned"


def test_no_two_presets_answer_to_one_model():
    names = [preset.name for preset in PRESETS]
    endings = [ending for preset in PRESETS for ending in preset.models]
    assert len(names) == len(set(names))
    assert len(endings) == len(set(endings))
    assert all(ending == ending.lower() for ending in endings)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_a_preset_says_where_it_comes_from_and_survives_json(preset):
    shown = preset.to_dict()
    assert shown["source"]
    assert json.loads(json.dumps(shown))["name"] == preset.name
    assert preset.parameters > 0
    assert preset.mlp_size > preset.hidden_size > 0
    assert set(preset.by_method) <= set(METHODS)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_every_preset_is_a_possible_configuration_for_every_recipe(preset, recipe):
    assert preset.config(recipe).layers


@pytest.mark.parametrize("method", ["lora", "adalora", "ultraedit", "wise"])
def test_what_was_measured_for_smollm2_takes_the_place_of_what_is_published_and_untuned_keeps_it(method: str):
    row, measured = METHODS[method], find_preset("smollm2")
    assert measured is not None
    assert measured.config(row) != row.configure({})
    assert untuned(30).config(row) == row.configure({})


@pytest.mark.parametrize("depth", range(1, 101))
def test_untuned_layers_lie_inside_a_model_of_any_depth_and_follow_each_other(depth: int):
    layers = untuned(depth).config(find_recipe("betaedit")).layers
    assert layers[0] >= 0
    assert layers[-1] < depth
    assert all(later == earlier + 1 for earlier, later in pairwise(layers))


def test_untuned_layers_of_a_model_as_deep_as_the_published_are_the_published():
    assert untuned(32).values["layers"] == (4, 5, 6, 7, 8)
    assert untuned(64).values["layers"] == tuple(range(8, 17))


def test_an_untuned_search_is_that_of_the_measured_preset_whose_steps_know_no_scale():
    measured = find_preset("smollm2")
    assert measured is not None
    search = {name: value for name, value in untuned(12).values.items() if name != "layers"}
    assert search["value_optimizer"] == "projected_bb"
    assert search.items() <= measured.values.items()


def test_an_untuned_preset_says_that_it_was_not_measured():
    assert "not measured" in untuned(12).source


def test_a_preset_of_an_unknown_name_is_none():
    assert find_preset("llama") is None

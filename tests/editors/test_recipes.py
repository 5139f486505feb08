from __future__ import annotations

import dataclasses
import json

import pytest

from betaedit.editors.config import EditConfig, make_config
from betaedit.editors.recipes import RECIPES, Recipe, find_recipe
from betaedit.errors import MethodError
from betaedit.memory import MemoryRule

EVERY = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)

# The head table of methods.md section B, written out: projector, lambda1 C0, H, lambda2 I.
TERMS = {
    "memit": ("none", True, False, False),
    "memit-h": ("none", True, True, False),
    "alphaedit": ("fixed", False, True, True),
    "alphaedit-naive": ("fixed", False, False, True),
    "betaedit": ("refreshed", True, True, True),
}


def test_the_recipes_switch_on_the_terms_that_the_papers_do():
    assert {r.name: (r.projector, r.leakage, r.history, r.ridge) for r in RECIPES} == TERMS


def test_no_name_or_alias_is_used_twice():
    names = [name for recipe in RECIPES for name in (recipe.name, *recipe.aliases)]
    assert len(names) == len(set(names))


@EVERY
def test_a_recipe_is_found_by_its_name_and_every_alias(recipe: Recipe):
    assert all(find_recipe(name) is recipe for name in (recipe.name, *recipe.aliases))


@EVERY
def test_a_recipe_names_its_paper_its_equation_and_its_idea(recipe: Recipe):
    shown = recipe.to_dict()
    assert shown["name"] == recipe.name
    assert shown["paper"] == recipe.paper != ""
    assert shown["equation"].startswith("R K^T")
    assert shown["title"]


@EVERY
def test_the_shown_equation_has_the_terms_that_the_recipe_switches_on(recipe: Recipe):
    assert ("lambda1 C0" in recipe.equation) == recipe.leakage
    assert ("H" in recipe.equation) == recipe.history
    assert ("lambda2 I" in recipe.equation) == recipe.ridge
    assert (" P" in recipe.equation) == (recipe.projector != "none")


@EVERY
def test_the_plain_form_has_every_field_and_survives_json(recipe: Recipe):
    shown = recipe.to_dict()
    assert set(shown) == {field.name for field in dataclasses.fields(Recipe)}
    assert json.loads(json.dumps(shown)) == shown
    assert Recipe(**shown | {"aliases": tuple(shown["aliases"])}) == recipe


@EVERY
def test_the_strengths_of_a_rule_come_from_the_configuration(recipe: Recipe):
    config = make_config(
        {
            "leakage_weight": 7.0,
            "ridge": 3.0,
            "nullspace_threshold": 0.5,
            "refresh_every": 11,
            "refresh_rule": "literal",
        }
    )
    projector, leakage, history, ridge = TERMS[recipe.name]
    assert recipe.rule(config) == MemoryRule(
        projector=projector,  # type: ignore[arg-type]  # the table above holds plain strings
        leakage_weight=7.0 if leakage else 0.0,
        ridge=3.0 if ridge else 0.0,
        history=history,
        threshold=0.5,
        refresh_every=11,
        refresh_rule="literal",
    )


@EVERY
def test_a_rule_without_choices_has_the_published_strengths(recipe: Recipe):
    rule = recipe.rule(EditConfig())
    assert rule.leakage_weight in (0.0, 3000.0)
    assert rule.ridge in (0.0, 10.0)
    assert (rule.threshold, rule.refresh_every, rule.refresh_rule) == (0.02, 1000, "normalised")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("betaedti", "betaedit"),
        ("alfaedit", "alphaedit"),
        ("memit_h", "memit-h"),
        ("alphaedit_naive", "alphaedit-naive"),
        ("memitsequential", "memit-sequential"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(typed: str, meant: str):
    with pytest.raises(MethodError, match=f"there is no method '{typed}'") as caught:
        find_recipe(typed)
    assert caught.value.mend.startswith("Did you mean ")
    assert meant in caught.value.mend


def test_a_name_like_no_other_is_answered_with_all_of_them():
    with pytest.raises(MethodError) as caught:
        find_recipe("xyzzy")
    assert caught.value.mend == "Methods: memit, memit-h, alphaedit, alphaedit-naive, betaedit."


def test_a_recipe_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES[0].ridge = True  # type: ignore[misc]  # on purpose

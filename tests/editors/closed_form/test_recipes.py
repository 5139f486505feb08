from __future__ import annotations

import dataclasses
import json

import pytest

from betaedit.editors import METHODS
from betaedit.editors.closed_form.config import EditConfig
from betaedit.editors.closed_form.recipes import RECIPES, Recipe, find_recipe
from betaedit.errors import ConfigError, MethodError
from betaedit.memory import MemoryRule

EVERY = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)

# The head table of methods.md section B, written out: projector, multiple of lambda1 C0, H, lambda2 I.
MEMIT, MEMIT_H = ("none", 1, False, False), ("none", 1, True, False)
TERMS = {
    "rome": MEMIT,
    "r-rome": MEMIT,
    "memit": MEMIT,
    "memit-h": MEMIT_H,
    "memit-30000": ("none", 2, False, False),
    "memit-r": MEMIT_H,
    "memit-ns": ("refreshed", 1, True, True),
    "pmet": MEMIT,
    "pmet-h": MEMIT_H,
    "pmet-ns": ("refreshed", 1, True, True),
    "emmet": MEMIT,
    "emmet-h": MEMIT_H,
    "emmet-ns": ("refreshed", 1, True, True),
    "encore": ("none", 1, True, True),
    "alphaedit": ("fixed", 0, True, True),
    "alphaedit-naive": ("fixed", 0, False, True),
    "sphere": ("fixed", 0, True, True),
    "betaedit": ("refreshed", 1, True, True),
    "betaedit-no-kl": ("refreshed", 0, True, True),
    "betaedit-no-ns": ("fixed", 1, True, True),
    **dict.fromkeys(("rect", "prune", "simie", "adaedit"), MEMIT),
    **dict.fromkeys(("rect-seq", "prune-seq", "simie-seq", "adaedit-seq"), MEMIT_H),
    **dict.fromkeys(("rect-aligned", "prune-aligned", "simie-aligned", "adaedit-aligned"), MEMIT_H),
}


RANK_ONE, EMMET = ("rome", "r-rome"), ("emmet", "emmet-h", "emmet-ns")
OPERATORS = ("rect", "prune", "simie", "adaedit")


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
    assert shown["equation"].startswith(("R ", "(R "))
    assert shown["title"]


@EVERY
def test_the_shown_equation_has_the_terms_that_the_recipe_switches_on(recipe: Recipe):
    if recipe.form != "rank-one":
        assert (("2 lambda1 C0" in recipe.equation) + ("lambda1 C0" in recipe.equation)) == recipe.leakage
    assert ("H" in recipe.equation) == recipe.history
    assert ("H_random" in recipe.equation) == recipe.random_history
    assert ("lambda2 I" in recipe.equation) == recipe.ridge
    assert (" P" in recipe.equation) == (recipe.projector != "none")
    assert ("K^T S^-1" in recipe.equation or "K^T N" in recipe.equation) == (recipe.form == "equality")
    assert ("k_bare" in recipe.equation) == recipe.reaches_bare_key
    assert (", then " in recipe.equation) == (recipe.postprocess != "none")
    assert (" - E" in recipe.equation) == recipe.aligned


@EVERY
def test_the_plain_form_has_every_field_and_survives_json(recipe: Recipe):
    shown = recipe.to_dict()
    assert json.loads(json.dumps(shown)) == shown
    assert (shown.pop("family"), shown.pop("can_forget")) == ("closed form", recipe.can_forget)
    assert set(shown) == {field.name for field in dataclasses.fields(Recipe)}
    assert Recipe(**shown | {"aliases": tuple(shown["aliases"])}) == recipe


@EVERY
def test_the_strengths_of_a_rule_come_from_the_configuration(recipe: Recipe):
    config = EditConfig.of(
        {
            "leakage_weight": 7.0,
            "ridge": 3.0,
            "nullspace_threshold": 0.5,
            "refresh_every": 11,
            "refresh_rule": "literal",
            "equality_slack": 0.7,
        }
    )
    projector, leakage, history, ridge = TERMS[recipe.name]
    assert recipe.rule(config) == MemoryRule(
        projector=projector,  # type: ignore[arg-type]  # the table above holds plain strings
        leakage_weight=7.0 * leakage,
        ridge=3.0 if ridge else 0.0,
        history=history,
        threshold=0.5,
        refresh_every=11,
        refresh_rule="literal",
        refresh_weight=7.0 if projector == "refreshed" else None,
        form="equality" if recipe.name in (*RANK_ONE, *EMMET) else "ridge",
        slack=0.7 if recipe.name in EMMET else 0.0,
    )


@EVERY
def test_the_frobenius_ridge_is_added_to_every_rule_and_changes_nothing_else(recipe: Recipe):
    config = EditConfig.of({"ridge": 3.0, "frobenius_ridge": 7.0})
    assert recipe.rule(config).ridge == (10.0 if TERMS[recipe.name][3] else 7.0)
    assert dataclasses.replace(recipe.rule(config), ridge=0.0) == dataclasses.replace(
        recipe.rule(EditConfig()), ridge=0.0
    )


def test_encore_is_memit_h_with_the_frobenius_ridge():
    assert find_recipe("memit-h").rule(EditConfig.of({"frobenius_ridge": 10.0})) == find_recipe("encore").rule(
        EditConfig()
    )


@EVERY
def test_values_are_shared_by_any_recipe_within_a_batch_and_over_batches_by_those_that_can_take_back(recipe: Recipe):
    settled = {mode: recipe.resolve_config(EditConfig.of({"shared_subjects": mode})).shared_subjects
               for mode in ("apart", "batch", "together")}  # fmt: skip
    assert settled == {
        "apart": "apart",
        "batch": "batch",
        "together": "together" if recipe.can_forget else "batch",
    }


@EVERY
def test_a_rule_without_choices_has_the_published_strengths(recipe: Recipe):
    rule = recipe.rule(EditConfig())
    assert rule.leakage_weight in (0.0, 3000.0, 6000.0)
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
    assert caught.value.hint.startswith("Did you mean ")
    assert meant in caught.value.hint


def test_a_name_like_no_other_is_answered_with_all_of_them():
    with pytest.raises(MethodError) as caught:
        find_recipe("xyzzy")
    assert caught.value.hint == f"Methods: {', '.join(METHODS)}."


def test_a_recipe_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES[0].ridge = True  # type: ignore[misc]  # on purpose


def test_only_pmet_spreads_its_residual_by_roots():
    """methods.md A.7: with three of five layers left, ``m - i = 3``."""
    shares = {recipe.name: recipe.residual_divisor(3) for recipe in RECIPES}
    roots = {name for name, share in shares.items() if share == pytest.approx(3**0.5)}
    assert roots == {"pmet", "pmet-h", "pmet-ns"}
    assert {share for name, share in shares.items() if name not in roots} == {3.0}


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_comes_naive_in_sequence_and_aligned(operator: str):
    naive, sequential, aligned = (find_recipe(operator + suffix) for suffix in ("", "-seq", "-aligned"))
    assert {recipe.postprocess for recipe in (naive, sequential, aligned)} == {operator}
    assert [recipe.history for recipe in (naive, sequential, aligned)] == [False, True, True]
    assert [recipe.aligned for recipe in (naive, sequential, aligned)] == [False, False, True]
    assert {recipe.name for recipe in RECIPES if recipe.postprocess == operator} == {
        naive.name,
        sequential.name,
        aligned.name,
    }


def test_strengths_of_operators_come_from_the_configuration():
    strengths = {"rect_fraction": 0.2, "prune_base": 1.2, "simie_ridge": 3.0, "adaedit_fraction": 0.1}
    processing = find_recipe("rect-aligned").postprocessing(EditConfig.of(strengths))
    assert (processing.kind, processing.aligned) == ("rect", True)
    assert {name: getattr(processing, name) for name in strengths} == strengths


def test_the_published_strengths_of_operators_are_the_defaults():
    """40% is the OTE-SE code's, 20% its RECT-20%; natural logarithm; SimIE's example uses 10."""
    processing = find_recipe("rect").postprocessing(EditConfig())
    assert (processing.rect_fraction, processing.simie_ridge) == (0.4, 10.0)
    assert processing.prune_base == pytest.approx(2.718281828)


@pytest.mark.parametrize("name", RANK_ONE)
def test_rank_one_methods_take_one_layer_and_one_fact_at_a_time(name: str):
    recipe, single = find_recipe(name), EditConfig.of({"layers": [3]})
    recipe.check(single)
    with pytest.raises(ConfigError, match="edits one layer, not 5"):
        recipe.check(EditConfig())
    with pytest.raises(ConfigError, match="one fact at a time"):
        recipe.check(single, batch_size=2)


def test_other_methods_take_any_layers_and_batches():
    for recipe in RECIPES:
        if recipe.name not in RANK_ONE:
            recipe.check(EditConfig(), batch_size=100)

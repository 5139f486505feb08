"""Every method of the table in the engine: it writes, it can be replayed, and its own switch does what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from betaedit import Editor
from betaedit.editors import RECIPES, EditConfig
from betaedit.editors.closed_form.encode import encode_batch
from betaedit.editors.closed_form.keys import token_keys
from betaedit.editors.closed_form.recipes import Recipe
from betaedit.editors.closed_form.tensors import from_tensors
from betaedit.editors.closed_form.values import optimize_values
from betaedit.errors import ConfigError
from betaedit.models import LanguageModel
from support.edits import CONTEXTS, FACTS, SETTINGS, editor_for, moments_for, relative, unchanged, weights
from support.families import language_model
from support.reference import alphaedit_naive, emmet, memit, reference_projector

EVERY = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)


def editor_of(recipe: Recipe | str, model: LanguageModel, **changes: Any) -> Editor:
    name = recipe if isinstance(recipe, str) else recipe.name
    single = {"layers": (2,)} if name in ("rome", "r-rome") else {}
    return editor_for(model, name, **single, **changes)


def change_of(method: str, model: LanguageModel, layer: int = 2, **changes: Any) -> Tensor:
    """How the matrix of ``layer`` moved when three facts were written, one after another."""
    editor = editor_of(method, model, **changes)
    editor.edit(FACTS[:3])
    return editor.editing.engine.matrices[layer].change()


@pytest.mark.parametrize(("ablation", "method"), [("betaedit-no-ns", "betaedit"), ("betaedit-no-kl", "alphaedit")])
def test_the_ablations_are_other_methods_bit_for_bit_until_the_null_space_follows_the_edits(
    ablation: str, method: str
) -> None:
    """docs/comparison.md: with ``refresh_every`` = 1000 a run of 300 of one is a run of the other."""

    def moved_otherwise(refresh_every: int) -> bool:
        changes = [change_of(name, language_model("llama"), refresh_every=refresh_every) for name in (ablation, method)]
        return not torch.equal(*changes)

    assert not moved_otherwise(refresh_every=3)
    assert moved_otherwise(refresh_every=2)


@pytest.mark.parametrize("method", ["rect", "rect-aligned", "simie-aligned"])
def test_a_batch_written_again_wants_the_values_it_wanted_when_it_was_first_written(method: str) -> None:
    """Under an aligned operator the update holds what is left to write beyond all that was withheld (methods.md C)."""
    first, second = (editor_of(method, language_model("llama")) for _ in "ab")
    for batch in list(first.write(FACTS[:3])):
        second.replay(batch)
    for wanted, found in zip(first.editing.engine.live_facts, second.editing.engine.live_facts, strict=True):
        for layer in first.config.layers:
            assert torch.equal(wanted.written[layer].keys, found.written[layer].keys)
            assert relative(found.written[layer].values, wanted.written[layer].values) < 1e-6


@pytest.mark.parametrize("method", ["rect-aligned", "simie-aligned", "memit-r"])
def test_a_method_with_a_state_of_its_own_begins_anew_after_a_reset(method: str) -> None:
    model = language_model("llama")
    editor = editor_of(method, model)
    editor.edit(FACTS[:3])
    first = weights(model)
    editor.reset()
    editor.edit(FACTS[:3])
    assert unchanged(first, weights(model))


@pytest.mark.parametrize(
    ("method", "base", "strengths"),
    [
        ("rect", "memit", {"rect_fraction": 1.0}),
        ("rect-aligned", "memit-h", {"rect_fraction": 1.0}),
        ("adaedit-seq", "memit-h", {"adaedit_fraction": 1.0}),
        ("prune-aligned", "memit-h", {}),
    ],
)
def test_an_operator_that_withholds_nothing_leaves_the_method_below_it(
    method: str, base: str, strengths: dict[str, float]
) -> None:
    processed, plain = (change_of(name, language_model("llama"), **strengths) for name in (method, base))
    assert relative(processed, plain) < 1e-4


@pytest.mark.parametrize("operator", ["rect", "adaedit"])
def test_naive_sequential_and_aligned_differ(operator: str) -> None:
    changes = [change_of(operator + suffix, language_model("llama")) for suffix in ("", "-seq", "-aligned")]
    assert all(relative(changes[i], changes[j]) > 1e-3 for i in range(3) for j in range(i))


def test_rect_leaves_most_weights_alone_after_one_edit() -> None:
    model = language_model("llama")
    editor = editor_of("rect", model, rect_fraction=0.2)
    editor.edit(FACTS[0])
    for matrix in editor.editing.engine.matrices.values():
        assert float((matrix.change() != 0).float().mean()) == pytest.approx(0.2, abs=0.01)


def test_pmet_writes_more_into_the_lower_layers_than_memit() -> None:
    """With two layers the first residual is divided by the root of 2 in place of 2."""
    pmet, memit = (editor_of(name, language_model("llama")) for name in ("pmet", "memit"))
    norms = [editor.edit(FACTS[0])[0].figures["update_norms"] for editor in (pmet, memit)]
    assert norms[0]["1"] / norms[1]["1"] == pytest.approx(2**0.5, rel=1e-4)


def test_rome_and_r_rome_differ_by_the_key_at_which_the_value_is_reached() -> None:
    changes = [change_of(name, language_model("llama")) for name in ("rome", "r-rome")]
    assert relative(changes[0], changes[1]) > 1e-3
    alone = {"context_templates": ("{}",)}
    changes = [change_of(name, language_model("llama"), **alone) for name in ("rome", "r-rome")]
    assert relative(changes[0], changes[1]) < 1e-5, "the bare prompt is the only context"


def test_r_rome_moves_the_output_at_the_mean_key_by_the_change_of_the_value() -> None:
    """``W' k = W k + delta``, as its authors' code; neither ``W k_bare + delta`` nor the bare prompt's key."""
    model, untouched = language_model("llama"), language_model("llama")
    editor = editor_of("r-rome", model)
    (batch,) = editor.write(FACTS[0])
    (value,) = optimize_values(untouched, encode_batch(untouched, FACTS[:1], CONTEXTS, editor.config), editor.config)
    moved = editor.editing.engine.matrices[2].change() @ from_tensors(batch.tensors)[2][0][:, 0]
    assert relative(moved, value.target - value.initial) < 1e-4


def test_memit_with_random_history_is_neither_naive_nor_history_aware() -> None:
    random, naive, aware = (change_of(name, language_model("llama")) for name in ("memit-r", "memit", "memit-h"))
    assert relative(random, naive) > 1e-4
    assert relative(random, aware) > 1e-4


def test_rank_one_methods_refuse_several_layers_and_batches_before_anything_changes() -> None:
    model = language_model("llama")
    with pytest.raises(ConfigError, match="edits one layer"):
        editor_for(model, "rome")
    before = weights(model)
    with pytest.raises(ConfigError, match="one fact at a time"):
        editor_of("rome", model).edit(FACTS[:2], batch_size=2)
    assert unchanged(before, weights(model))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_token_keys_are_the_inputs_of_the_matrix_at_every_token_of_prompt_and_target(family: str) -> None:
    model = language_model(family)
    config = EditConfig(**SETTINGS)  # type: ignore[arg-type]
    found = token_keys(model, FACTS[:2], config)
    seen: dict[int, list[Tensor]] = {layer: [] for layer in config.layers}
    for fact in FACTS[:2]:
        handles = [
            model.anatomy.projection(layer).register_forward_pre_hook(
                lambda _, args, layer=layer: seen[layer].append(args[0][0].detach())
            )
            for layer in config.layers
        ]
        with torch.no_grad():
            model.model(**model.tokenizer(f"{fact.text} {fact.target_new}", return_tensors="pt"))
        for handle in handles:
            handle.remove()
    for layer in config.layers:
        assert relative(found[layer], torch.cat(seen[layer]).T) < 1e-5


@pytest.mark.parametrize("method", ["memit", "alphaedit-naive", "emmet"])
def test_every_update_has_the_frobenius_ridge_in_its_system(method: str) -> None:
    """``R K^T (S + K K^T + lambda I)^-1``, in a null space or not, and EMMET's form with ``S + lambda I``."""
    model = language_model("llama")
    editor = editor_of(method, model, frobenius_ridge=0.5)
    (batch,) = editor.write(FACTS[:3], batch_size=3)
    config = editor.config
    for layer, moment in moments_for(model).matrices.items():
        C0, (keys, update) = moment.double(), from_tensors(batch.tensors)[layer]
        K, R = keys.double(), update.left
        S, one = config.leakage_weight * C0, torch.eye(len(moment), dtype=torch.float64)
        if method == "memit":
            wanted = memit(K, R, C0 + 0.5 / config.leakage_weight * one, 0 * C0, one, config.leakage_weight, 0.0)
        elif method == "emmet":
            wanted = emmet(K, R, S + 0.5 * one, config.equality_slack)
        else:
            P = reference_projector(C0, config.nullspace_threshold)
            wanted = alphaedit_naive(K, R, C0, 0 * C0, P, 0.0, config.ridge + 0.5)
        assert relative(update.dense(), wanted) < 1e-8

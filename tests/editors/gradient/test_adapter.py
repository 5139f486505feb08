"""LoRA and AdaLoRA: one adapter goes on through all edits, and the served model is the adapted one."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from betaedit.editors.methods import find_method
from betaedit.errors import ConfigError, MethodError, MissingExtraError, ModelError, NumericalError
from betaedit.evaluation import score_targets
from betaedit.models import LanguageModel
from support.edits import FACTS, unchanged, weights
from support.families import language_model
from support.methods import small_editor

METHODS = ["lora", "adalora"]


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def loss_of(model: LanguageModel, fact: object) -> float:
    (score,) = score_targets(model, [(fact.text, fact.target_new)])
    return score.nll


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_exported_adapter_in_plain_peft_says_what_the_edited_model_says(
    method: str, name: str, tmp_path: Path
) -> None:
    model = language_model(name)
    base, editor = copy.deepcopy(model.model), small_editor(method, model, steps=8)
    editor.edit(FACTS[:3])
    assert editor.editing.save_adapter(tmp_path) == editor.config.rank
    ids = torch.tensor([model.tokenizer(FACTS[0].text)["input_ids"]])
    unedited, edited = base(ids).logits, model.model(ids).logits
    loaded = PeftModel.from_pretrained(base, tmp_path)
    assert (loaded(ids).logits - edited).abs().max() < 1e-4
    assert (unedited - edited).abs().max() > 1e-2


def test_the_next_edit_trains_the_adapter_of_the_one_before(method: str) -> None:
    """By steps so small that what is seen is where each edit begins; a new adapter has other random factors."""
    editor = small_editor(method, language_model("llama"), dropout=0.0, learning_rate=1e-9)
    first, second = (batch.tensors for batch in editor.write(FACTS[:2]))
    assert first.keys() == second.keys()
    assert all((second[name] - first[name]).abs().max() < 1e-6 for name in first)
    assert all(first[name].norm() > 1e-2 for name in first if "lora_A" in name)


def test_all_edits_together_have_the_rank_of_one_adapter(method: str) -> None:
    editor = small_editor(method, language_model("llama"), rank=3)
    editor.edit(FACTS)
    ranks = {int(torch.linalg.matrix_rank(each.change(), rtol=1e-4)) for each in editor.weights().values()}
    assert ranks == {3}


def test_it_learns_the_fact_it_is_trained_on(method: str) -> None:
    model = language_model("llama")
    before = loss_of(model, FACTS[0])
    editor = small_editor(method, model, steps=30, dropout=0.0)
    editor.edit(FACTS[0])
    assert loss_of(editor.language_model, FACTS[0]) < 0.5 * before


def test_the_model_holds_no_modules_of_peft(method: str) -> None:
    model = language_model("llama")
    modules = [(name, id(module)) for name, module in model.model.named_modules()]
    editor = small_editor(method, model)
    editor.edit(FACTS[:2])
    assert [(name, id(module)) for name, module in model.model.named_modules()] == modules
    assert not any(weight.requires_grad for weight in model.model.parameters())
    assert not hasattr(model.model, "peft_config")
    LanguageModel.wrap(model.model, model.tokenizer)


def test_only_the_named_modules_move(method: str) -> None:
    model = language_model("llama")
    before, editor = weights(model), small_editor(method, model, target_modules=("down_proj",))
    editor.edit(FACTS[0])
    moved = {name for name, now in weights(model).items() if not torch.equal(before[name], now)}
    assert moved == {f"{model.anatomy.projection_path(layer)}.weight" for layer in range(4)}
    assert editor.to_dict()["target_modules"] == ["down_proj"]


def test_the_seed_decides_and_nothing_outside(method: str) -> None:
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(found))
        editor = small_editor(method, language_model("llama"), seed=seed)
        state = torch.random.get_rng_state()
        editor.edit(FACTS[:2])
        assert torch.equal(torch.random.get_rng_state(), state)
        found.append(weights(editor.language_model))
    assert unchanged(found[0], found[1])
    assert not unchanged(found[0], found[2])


def test_training_goes_on_after_a_replay_as_if_it_had_not_ended(method: str) -> None:
    first, again = (small_editor(method, language_model("llama")) for _ in range(2))
    for batch in first.write(FACTS[:2]):
        again.replay(batch)
    first.edit(FACTS[2])
    again.edit(FACTS[2])
    assert unchanged(weights(first.language_model), weights(again.language_model))


def test_a_model_in_half_precision_is_adapted_from_its_own_weights(method: str) -> None:
    model = language_model("llama")
    model.model.to(torch.bfloat16)
    before, editor = weights(model), small_editor(method, model)
    editor.edit(FACTS[:2])
    for path, matrix in editor.weights().items():
        expected = (before[f"{path}.weight"].float() + matrix.change()).to(torch.bfloat16)
        assert torch.equal(model.model.get_submodule(path).weight, expected)


def test_a_saved_model_is_the_edited_one(method: str, tmp_path: Path) -> None:
    editor = small_editor(method, language_model("llama"))
    editor.edit(FACTS[:2])
    editor.save_pretrained(tmp_path)
    loaded = type(editor.model).from_pretrained(tmp_path)
    assert unchanged(weights(editor.language_model), dict(loaded.named_parameters()))


def test_it_is_refused_as_a_change_of_mlp_output_matrices(method: str) -> None:
    with pytest.raises(MethodError, match=f"{method} cannot give edited matrices"):
        small_editor(method, language_model("llama")).matrices()


def test_a_second_editor_is_refused_while_the_first_ones_edits_are_there(method: str) -> None:
    model = language_model("llama")
    small = small_editor(method, model)
    small.edit(FACTS[0])
    with pytest.raises(ModelError, match="edits of another editor"):
        small_editor(method, model)
    small.reset()
    small_editor(method, model)


def test_unknown_modules_and_families_are_refused(method: str) -> None:
    with pytest.raises(ConfigError, match="no linear modules named w1, w2"):
        small_editor(method, language_model("llama"), target_modules=("w1", "w2"))
    model = language_model("phi3")
    with pytest.raises(ConfigError, match="peft names no modules to adapt in models of the type phi3"):
        small_editor(method, model)


def test_a_training_that_explodes_is_undone(method: str) -> None:
    model = language_model("llama")
    before, editor = weights(model), small_editor(method, model, learning_rate=1e37)
    with pytest.raises(NumericalError, match="did not stay finite"):
        editor.edit(FACTS[0])
    assert unchanged(before, weights(model))


def test_without_peft_the_extra_is_named(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match="an adapter needs peft") as refused:
        small_editor(method, language_model("llama"))
    assert "betaedit[peft]" in refused.value.hint


def test_adalora_keeps_its_factors_orthogonal() -> None:
    apart = {}
    for weight in (0.0, 5.0):
        editor = small_editor("adalora", language_model("llama"), orthogonality=weight, steps=40, rank=4)
        editor.edit(FACTS[0])
        factors = [each for name, each in next(iter(editor.write([FACTS[1]]))).tensors.items() if "lora_A" in name]
        apart[weight] = sum(float((each @ each.T - torch.eye(4)).norm()) for each in factors)
    assert apart[5.0] < apart[0.0]


def test_the_rank_of_adalora_is_the_one_that_easyedit_runs_with() -> None:
    assert find_method("adalora").configure({}).rank == 12
    assert find_method("lora").configure({}).rank == 8

"""The engine equals the official procedure with its settings given, and is all or nothing."""

from __future__ import annotations

import pytest
import torch

from betaedit import Editor, Fact
from betaedit.editors import EditConfig
from betaedit.editors.keys import LayerWalk, average_keys
from betaedit.errors import NumericalError
from betaedit.models import LanguageModel
from betaedit.statistics import Moments
from editors.test_values import CONTEXTS, relative, settings_of
from support.families import language_model
from support.procedure import compute_key
from support.procedure import edit as plain_edit

FACTS = [
    Fact("The mother tongue of {} is", "Danielle Darrieux", "English words", "French"),
    Fact("{} is in the city of", "The long bridge", "Rome", "Paris"),
    Fact("People know that {} was born in", "Ana", "Lima", "Oslo"),
    Fact("The mother tongue of {} is", "Another Name", "Dutch", "French"),
    Fact("In the end {} lives in", "Zoë", "a small town", "Cairo"),
]
SETTINGS = {
    "layers": (1, 2),
    "context_templates": CONTEXTS,
    "value_steps": 6,
    "value_learning_rate": 0.05,
    "leakage_weight": 3.0,
    "ridge": 0.05,
    "nullspace_threshold": 0.3,
    "refresh_every": 2,
}


def moments_for(model: LanguageModel, layers: tuple[int, ...] = (1, 2)) -> Moments:
    generator = torch.Generator().manual_seed(1)
    matrices = {}
    for layer in layers:
        d_in = model.anatomy.projection(layer).weight.numel() // model.anatomy.hidden_size
        keys = torch.randn(d_in, 4 * d_in, generator=generator) * torch.linspace(0.1, 1.2, d_in)[:, None]
        matrices[layer] = keys @ keys.T / (4 * d_in)
    return Moments(matrices, 1000)


def editor_for(model: LanguageModel, method: str = "betaedit", **changes: object) -> Editor:
    config = EditConfig(**{**SETTINGS, **changes})  # type: ignore[arg-type]
    return Editor(model, method=method, config=config, statistics=moments_for(model, config.layers))


def weights(model: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.model.state_dict().items()}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-j", "gemma3"])
def test_five_edits_leave_the_weights_of_the_official_procedure(family: str) -> None:
    ours, reference = language_model(family), language_model(family)
    editor = editor_for(ours)
    before = weights(ours)
    editor.edit(FACTS)
    plain_edit(
        reference.model,
        reference.tokenizer,
        FACTS,
        moments_for(ours).matrices,
        settings_of(reference, editor.config),
        tau=2,
    )
    for layer in (1, 2):
        name = ours.anatomy.projection_path(layer) + ".weight"
        change = weights(ours)[name] - before[name]
        expected = weights(reference)[name] - before[name]
        assert expected.norm() > 0
        assert relative(change, expected) < 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox"])
def test_keys_of_a_batch_equal_those_of_whole_forward_passes(family: str) -> None:
    model = language_model(family)
    config = EditConfig(**{**SETTINGS, "layers": (1, 2, 3)})  # type: ignore[arg-type]
    walk = LayerWalk(model, FACTS, CONTEXTS, config)
    for layer in config.layers:
        keys = walk.keys(layer)
        for column, fact in enumerate(FACTS):
            expected = compute_key(model.model, model.tokenizer, fact, settings_of(model, config), layer)
            assert relative(keys[:, column], expected) < 1e-5


def test_the_bare_prompt_weighs_as_much_as_all_contexts_together() -> None:
    rows = torch.tensor([[2.0, 0.0], [0.0, 4.0], [0.0, 8.0]])
    assert torch.equal(average_keys(rows, 3), torch.tensor([[1.0], [3.0]]))
    assert torch.equal(average_keys(rows[:1], 1), torch.tensor([[2.0], [0.0]]))


def test_an_update_that_is_too_long_leaves_every_weight_as_it_was() -> None:
    model = language_model("llama")
    free = editor_for(model)
    norms = free.edit(FACTS[0])[0].update_norms
    free.reset()
    between = (min(norms.values()) + max(norms.values())) / 2
    before = weights(model)
    with pytest.raises(NumericalError, match="over the limit"):
        editor_for(model, update_norm_limit=between).edit(FACTS[0])
    assert all(torch.equal(before[name], weight) for name, weight in weights(model).items())


def test_a_failure_at_the_second_layer_undoes_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model = language_model("llama")
    editor = editor_for(model)
    editor.prepare()
    before = weights(model)

    def refuse(*_: object) -> None:
        raise NumericalError("no")

    monkeypatch.setattr(editor.engine.memories[2], "solve", refuse)
    with pytest.raises(NumericalError):
        editor.edit(FACTS[0])
    assert all(torch.equal(before[name], weight) for name, weight in weights(model).items())
    assert editor.engine.memories[1].n_written == 0
    assert editor.results == []


@pytest.mark.parametrize("family", ["llama", "gpt-j"])
def test_keys_computed_again_after_the_write_are_those_solved_with(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = language_model(family)
    editor = editor_for(model)
    remembered: dict[int, torch.Tensor] = {}
    for layer, memory in editor.engine.memories.items():
        monkeypatch.setattr(memory, "remember", lambda keys, layer=layer: remembered.update({layer: keys}))
    editor.edit(FACTS, batch_size=len(FACTS))
    walk = LayerWalk(model, FACTS, CONTEXTS, editor.config)
    for layer in editor.config.layers:
        assert relative(walk.keys(layer), remembered[layer]) < 1e-6


def test_a_batch_is_solved_together_and_differs_from_one_after_another() -> None:
    together, apart = language_model("llama"), language_model("llama")
    editor_for(together).edit(FACTS, batch_size=5)
    editor_for(apart).edit(FACTS, batch_size=1)
    name = together.anatomy.projection_path(1) + ".weight"
    assert not torch.equal(weights(together)[name], weights(apart)[name])


def test_the_same_settings_give_the_same_weights_bit_for_bit() -> None:
    first, second = language_model("llama"), language_model("llama")
    for model in (first, second):
        editor_for(model).edit(FACTS)
    assert all(torch.equal(weight, weights(second)[name]) for name, weight in weights(first).items())


def test_the_projector_is_refreshed_when_it_is_due() -> None:
    editor = editor_for(language_model("llama"), refresh_every=2)
    editor.edit(FACTS)
    assert {memory.last_refresh for memory in editor.engine.memories.values()} == {4}


def test_facts_can_be_keyed_at_the_last_token() -> None:
    last, subject = language_model("llama"), language_model("llama")
    editor_for(last, lookup="last").edit(FACTS[0])
    editor_for(subject).edit(FACTS[0])
    name = last.anatomy.projection_path(1) + ".weight"
    assert not torch.equal(weights(last)[name], weights(subject)[name])

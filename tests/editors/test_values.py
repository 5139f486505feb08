"""The optimized value equals a plain search with whole forward passes, on every kind of attention."""

from __future__ import annotations

import pytest
import torch

from betaedit.editors import EditConfig
from betaedit.editors.values import optimize_value
from betaedit.facts import Fact
from betaedit.models import LanguageModel
from support.families import language_model
from support.procedure import Settings
from support.procedure import optimize_value as plain_value

FACT = Fact("The mother tongue of {} is", "Danielle Darrieux", "English words", "French")
CONTEXTS = ("{}", "A long day. {}", "I know this. {}")


def settings_of(model: LanguageModel, config: EditConfig) -> Settings:
    path = model.anatomy.projection_path(0).replace(
        f"{model.anatomy.layers_path}.0", f"{model.anatomy.layers_path}.{{}}"
    )
    return Settings(
        layers=config.layers,
        contexts=CONTEXTS,
        block=f"{model.anatomy.layers_path}.{{}}",
        projection=path,
        transposed=type(model.anatomy.projection(0)).__name__ == "Conv1D",
        steps=config.value_steps,
        learning_rate=config.value_learning_rate,
        clamp=config.value_clamp,
        decay=config.value_decay,
        kl_weight=config.kl_weight,
        lambda1=config.leakage_weight,
        lambda2=config.ridge,
        threshold=config.nullspace_threshold,
    )


def relative(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return float((ours - reference).norm() / reference.norm())


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2", "gpt2", "gpt-j", "gpt-neox"]
)
def test_the_value_equals_a_search_with_whole_forward_passes(family: str) -> None:
    model = language_model(family)
    config = EditConfig(layers=(1, 2), value_steps=8, value_learning_rate=0.05, value_clamp=0.5)
    ours = optimize_value(model, FACT, CONTEXTS, config)
    reference = plain_value(model.model, model.tokenizer, FACT, settings_of(model, config))
    assert relative(ours.target, reference) < 1e-4
    assert relative(ours.target, ours.initial) > 5e-3


def test_a_value_at_the_last_layer_needs_no_layer_above() -> None:
    model = language_model("llama")
    config = EditConfig(layers=(2, 3), value_steps=6, value_learning_rate=0.05)
    ours = optimize_value(model, FACT, CONTEXTS, config)
    assert relative(ours.target, plain_value(model.model, model.tokenizer, FACT, settings_of(model, config))) < 1e-4


def test_the_value_never_leaves_the_clamp_ball() -> None:
    model = language_model("llama")
    config = EditConfig(layers=(1,), value_steps=12, value_learning_rate=1.0, value_clamp=0.3)
    assert optimize_value(model, FACT, CONTEXTS, config).relative_length <= 0.3 + 1e-6


def test_one_evaluation_takes_no_step() -> None:
    model = language_model("llama")
    value = optimize_value(model, FACT, CONTEXTS, EditConfig(layers=(1,), value_steps=1))
    assert value.n_evaluations == 1
    assert torch.equal(value.target, value.initial)


def test_the_search_stops_once_the_loss_is_low_enough() -> None:
    model = language_model("llama")
    value = optimize_value(model, FACT, CONTEXTS, EditConfig(layers=(1,), value_stop_loss=1e6))
    assert value.n_evaluations == 1


def test_the_loss_can_be_read_off_an_earlier_layer() -> None:
    model = language_model("llama")
    early = optimize_value(model, FACT, CONTEXTS, EditConfig(layers=(0, 1), value_steps=5, value_loss_layer=2))
    late = optimize_value(model, FACT, CONTEXTS, EditConfig(layers=(0, 1), value_steps=5))
    assert relative(early.target, late.target) > 1e-3


def test_the_search_changes_no_weight_and_leaves_no_gradient() -> None:
    model = language_model("gpt2")
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    optimize_value(model, FACT, CONTEXTS, EditConfig(layers=(1,), value_steps=3))
    assert all(torch.equal(before[name], weight) for name, weight in model.model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.model.parameters())


def test_layers_below_the_edited_ones_run_once_however_many_steps_are_taken() -> None:
    model = language_model("llama")
    calls = {0: 0, 3: 0}
    handles = [
        model.anatomy.layers[layer].register_forward_hook(
            lambda *_, layer=layer: calls.update({layer: calls[layer] + 1})
        )
        for layer in calls
    ]
    value = optimize_value(model, FACT, CONTEXTS, EditConfig(layers=(1, 2), value_steps=6))
    for handle in handles:
        handle.remove()
    assert calls == {0: 1, 3: 1 + value.n_evaluations}

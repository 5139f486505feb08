"""The anchor of norm-anchor scaling: a trimmed mean over values sought one by one with whole forward passes."""

from __future__ import annotations

import dataclasses

import pytest

from betaedit import Fact
from betaedit.editors.closed_form.anchor import measure_norm_anchor
from betaedit.models import LanguageModel
from support.edits import NEAR, editor_for, settings_of, unchanged, weights
from support.families import language_model
from support.procedure import ValueLoss, optimize_value

SUBJECTS = ("Ana", "Zoë", "Danielle Darrieux", "The friend")
MANY = [Fact(fact.prompt, subject, fact.target_new) for fact in NEAR for subject in SUBJECTS]
EARLY = {"value_steps": 4, "value_learning_rate": 0.3, "value_stop_loss": 0.05}


def plain_length(model: LanguageModel, fact: Fact) -> float:
    """``|v0 + delta|`` of one fact whose value is sought in the bare prompt alone."""
    settings = dataclasses.replace(settings_of(model, editor_for(model, **EARLY).config), contexts=("{}",))
    loss = ValueLoss(model.model, model.tokenizer, fact, settings)
    value = optimize_value(model.model, model.tokenizer, fact, settings)
    return float((loss.mlp_output() + value - loss.initial).norm())


@pytest.mark.parametrize(("n_facts", "n_dropped"), [(3, 0), (20, 1)])
def test_the_anchor_is_the_mean_length_without_the_longest_twentieth(n_facts: int, n_dropped: int) -> None:
    model = language_model("gpt2")
    before = weights(model)
    found = measure_norm_anchor(model, MANY[:n_facts], editor_for(model, **EARLY).config)
    lengths = sorted(plain_length(model, fact) for fact in MANY[:n_facts])[: n_facts - n_dropped]
    assert found == pytest.approx(sum(lengths) / len(lengths), rel=1e-4)
    assert unchanged(before, weights(model))


def test_the_anchor_is_measured_without_an_anchor() -> None:
    model = language_model("llama")
    config = editor_for(model, **EARLY).config
    assert measure_norm_anchor(model, NEAR, config.replace(value_norm_anchor=0.01)) == pytest.approx(
        measure_norm_anchor(model, NEAR, config)
    )

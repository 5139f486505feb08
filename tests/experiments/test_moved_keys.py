"""How far keys have moved since they were written, on a tiny model."""

from __future__ import annotations

import pytest
import torch

from betaedit.errors import ConfigError, MethodError
from betaedit.experiments.moved_keys import MovedKeys, measure_moved_keys
from support.edits import FACTS, editor_for, settings_of, unchanged, weights
from support.families import language_model
from support.methods import small_editor
from support.procedure import compute_key


def moved(look: int = len(FACTS)) -> tuple[MovedKeys, ...]:
    editor = editor_for(language_model("llama"))
    editor.edit(FACTS[:look])
    before = weights(editor.language_model)
    found = measure_moved_keys(editor)
    assert unchanged(before, weights(editor.language_model))
    return found


def test_keys_of_the_lowest_layer_stay_and_those_above_move_by_what_was_written_below() -> None:
    lowest, above = moved()
    assert (lowest.layer, above.layer) == (1, 2)
    assert max(lowest.distances) < 1e-5
    assert min(above.distances[:-1]) > 1e-4
    assert above.distances[-1] < 1e-5, "nothing was written after the newest fact"
    assert min(lowest.cosines) > 1 - 1e-5 > min(above.cosines)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_distances_are_those_of_keys_from_whole_forward_passes(family: str) -> None:
    model = language_model(family)
    editor = editor_for(model)
    settings = settings_of(model, editor.config)
    stored = []
    for fact in FACTS[:3]:
        editor.edit(fact)
        stored.append(compute_key(model.model, model.tokenizer, fact, settings, 2))
    found = measure_moved_keys(editor)[1]
    for fact, old, distance, cosine in zip(FACTS, stored, found.distances, found.cosines, strict=False):
        new = compute_key(model.model, model.tokenizer, fact, settings, 2)
        assert distance == pytest.approx(float((new - old).norm() / new.norm()), abs=1e-4)
        assert cosine == pytest.approx(float(torch.nn.functional.cosine_similarity(new, old, dim=0)), abs=1e-4)


def test_means_are_over_parts_by_age_and_over_facts_held_and_missed() -> None:
    keys = MovedKeys(8, (0.4, 0.2, 0.1, 0.1, 0.0), (1.0, 0.9, 1.0, 1.0, 1.0), (False, False, True, True, True))
    assert keys.by_age(2) == pytest.approx([0.3, 0.2 / 3])
    plain = keys.to_dict()
    assert (plain["held"], plain["missed"]) == (pytest.approx(0.2 / 3), pytest.approx(0.3))
    assert len(plain["by_age"]) == 4
    assert plain["smallest_cosine"] == 0.9
    assert MovedKeys(8, (0.4,), (1.0,), (True,)).to_dict()["missed"] is None
    assert MovedKeys(8, (0.4,), (1.0,), (True,)).by_age() == [0.4]


def test_a_model_without_edits_and_a_method_without_keys_are_refused() -> None:
    with pytest.raises(ConfigError, match="no facts are written"):
        measure_moved_keys(editor_for(language_model("llama")))
    with pytest.raises(MethodError, match="scr is not a closed-form method"):
        measure_moved_keys(small_editor("scr", language_model("llama")))

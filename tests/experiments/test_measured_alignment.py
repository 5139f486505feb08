"""What a written sequence lacks of its one-time solution, on a tiny model."""

from __future__ import annotations

import pytest
import torch

from betaedit.errors import ConfigError
from betaedit.experiments.align import LayerAlignment, measure_alignment
from support.edits import FACTS, editor_for, moments_for, unchanged, weights
from support.families import language_model
from support.reference import memit

NEVER = 10**9
ROUNDING = 2e-3


def aligned(method: str, batch_size: int = 2, **changes: object) -> list[LayerAlignment]:
    editor = editor_for(language_model("llama"), method, **changes)
    editor.edit(FACTS, batch_size=batch_size)
    before = weights(editor.language_model)
    layers = list(measure_alignment(editor))
    assert unchanged(before, weights(editor.language_model))
    assert [layer.layer for layer in layers] == [1, 2]
    return layers


@pytest.mark.parametrize("method", ["memit-h", "alphaedit", "betaedit", "encore", "pmet-h"])
def test_with_history_and_a_projector_that_stays_the_weights_are_the_one_time_solution(method: str) -> None:
    for layer in aligned(method, refresh_every=NEVER):
        assert layer.written < ROUNDING, "float32 weights"
        assert layer.with_history < 1e-9
        assert layer.without_history > 5 * ROUNDING


@pytest.mark.parametrize(
    ("method", "same"),
    [("memit", "without_history"), ("alphaedit-naive", "without_history"), ("betaedit", "with_history")],
)
def test_a_missing_history_or_a_projector_that_moves_leaves_a_distance_and_the_method_is_found_again(
    method: str, same: str
) -> None:
    for layer in aligned(method, refresh_every=2):
        assert layer.written > 5 * ROUNDING
        assert layer.written == pytest.approx(getattr(layer, same), rel=0.1)


def test_an_operator_takes_a_sequence_off_its_one_time_solution() -> None:
    for layer in aligned("rect-seq"):
        assert layer.with_history < 1e-9
        assert layer.written > 0.05


def test_facts_of_a_single_batch_are_the_one_time_solution_under_any_rule() -> None:
    for layer in aligned("memit", batch_size=len(FACTS)):
        assert layer.written < ROUNDING
        assert layer.without_history < 1e-9


def test_the_one_time_solution_is_memits_formula_over_all_keys_and_values() -> None:
    editor = editor_for(language_model("llama"), "memit")
    first = {layer: matrix.original().double() for layer, matrix in editor.editing.engine.matrices.items()}
    editor.edit(FACTS)
    for found in measure_alignment(editor):
        W0, C0 = first[found.layer], moments_for(editor.language_model).matrices[found.layer].double()
        K, V = (
            torch.cat([getattr(held.written[found.layer], name).double() for held in editor.editing.live_facts], dim=1)
            for name in ("keys", "values")
        )
        change = memit(K, V, C0, 0 * C0, C0, editor.config.leakage_weight, 0.0)  # V is kept beyond W0 K
        written = editor.editing.engine.matrices[found.layer].change().double()
        assert found.one_time_change == pytest.approx(float(change.norm() / W0.norm()), rel=1e-6)
        assert found.written == pytest.approx(float((written - change).norm() / change.norm()), rel=1e-6)


def test_a_model_without_edits_has_no_sequence_to_look_at() -> None:
    with pytest.raises(ConfigError, match="no facts are written"):
        measure_alignment(editor_for(language_model("llama")))

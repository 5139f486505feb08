"""Editors of one unedited model that share the values they would find alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from betaedit import Editor
from betaedit.editors import EditConfig
from betaedit.editors.closed_form.value_cache import NOT_IN_SEARCH, ValueCache
from support.edits import FACTS, SETTINGS, moments_for
from support.families import language_model


def change_of(method: str, known: ValueCache | None, *, batch_size: int = 1, **settings: Any) -> torch.Tensor:
    """The change of a layer that ``method`` makes of all facts, in a model of its own."""
    model = language_model("llama")
    config = EditConfig(**{**SETTINGS, **settings})
    editor = Editor(model, method=method, config=config, statistics=moments_for(model), value_cache=known)
    editor.edit(FACTS, batch_size=batch_size)
    return editor.editing.engine.matrices[1].change()


@pytest.mark.parametrize("settings", [{"batch_size": len(FACTS)}, {"value_look_ahead": len(FACTS)}])
def test_methods_that_write_the_same_values_seek_them_once(searches: list[int], settings: dict[str, int]) -> None:
    known = ValueCache()
    shared = [change_of(method, known, **settings) for method in ("memit", "alphaedit", "rect-seq")]
    assert searches == [len(FACTS)]
    alone = [change_of(method, None, **settings) for method in ("memit", "alphaedit", "rect-seq")]
    assert all(torch.equal(*pair) for pair in zip(shared, alone, strict=True))


def test_in_sequence_only_the_first_fact_has_a_value_to_share(searches: list[int]) -> None:
    known = ValueCache()
    shared = [change_of(method, known) for method in ("memit", "alphaedit")]
    assert len(searches) == 2 * len(FACTS) - 1
    alone = [change_of(method, None) for method in ("memit", "alphaedit")]
    assert all(torch.equal(*pair) for pair in zip(shared, alone, strict=True))


def test_a_search_that_would_find_something_else_is_made(searches: list[int]) -> None:
    known = ValueCache()
    for settings in (
        {},
        {"ridge": 1.0, "leakage_weight": 7.0},
        {"value_clamp": 0.1},
        {"layers": (1,)},
        {"kl_template": "{} was"},
        {"context_templates": ("{}",)},
    ):
        change_of("memit-h", known, batch_size=len(FACTS), **settings)
    assert len(searches) == 5


def test_a_reset_editor_finds_its_first_values_again(searches: list[int]) -> None:
    model = language_model("llama")
    editor = Editor(
        model, method="memit", config=EditConfig(**SETTINGS), statistics=moments_for(model), value_cache=ValueCache()
    )
    editor.edit(FACTS[0])
    editor.edit(FACTS[0])
    editor.reset()
    editor.edit(FACTS[0])
    assert searches == [1, 1]


def test_every_setting_is_either_part_of_a_search_or_named_as_none() -> None:
    assert set(EditConfig.model_fields) >= NOT_IN_SEARCH
    searched = set(EditConfig.model_fields) - NOT_IN_SEARCH
    assert {name for name in searched if not name.startswith(("value_", "context_", "kl_"))} == {
        "layers", "lookup", "shared_subjects", "seed", "paraphrases", "form", "answer_end",
    }  # fmt: skip

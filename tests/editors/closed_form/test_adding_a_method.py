"""docs/adding-a-method.md, followed to the letter: its recipe and its formula, run against each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from betaedit.editors import METHODS
from betaedit.editors.closed_form.config import EditConfig
from betaedit.editors.closed_form.recipes import Recipe, find_recipe
from betaedit.memory import AssociativeMemory
from support.edits import FACTS, editor_for, unchanged, weights
from support.families import language_model
from support.reference import reference_projector, relative_error

PAGE = Path(__file__).parents[3] / "docs" / "adding-a-method.md"


@pytest.fixture
def blocks() -> list[str]:
    """The page's first two listings: the recipe, and its dense formula."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)[:2]


def added(block: str) -> Recipe:
    recipe = eval(block.strip().rstrip(","), {"Recipe": Recipe})
    assert isinstance(recipe, Recipe)
    return recipe


def test_recipe_and_formula_take_fewer_than_twenty_lines(blocks: list[str]) -> None:
    assert sum(len(block.strip().splitlines()) for block in blocks) < 20


def test_the_added_method_equals_its_formula_step_by_step(blocks: list[str]) -> None:
    recipe, names = added(blocks[0]), dict[str, Any](torch=torch, Tensor=torch.Tensor)
    exec(blocks[1], names)
    config = EditConfig.of({"ridge": 0.5, "nullspace_threshold": 0.02, "equality_slack": 0.1})
    moment = torch.diag(torch.logspace(-4, 0, 12, dtype=torch.float64))
    memory, P = AssociativeMemory(moment, recipe.rule(config)), reference_projector(moment, 0.02)
    random, H = torch.Generator().manual_seed(0), torch.zeros_like(moment)
    for _ in range(4):
        K, R = (torch.randn(d, 2, generator=random, dtype=torch.float64) for d in (12, 5))
        assert relative_error(memory.solve(K, R).dense(), names["emmet_p"](K, R, H, P, 0.5, 0.1)) < 1e-6
        memory.remember(K)
        H = H + K @ K.T


def test_the_added_method_edits_a_model_under_its_name(blocks: list[str]) -> None:
    recipe = added(blocks[0])
    METHODS.register(recipe)
    try:
        assert find_recipe("emmet-p") is recipe
        model = language_model("llama")
        before = weights(model)
        editor_for(model, "emmet-p").edit(FACTS[:2])
        assert not unchanged(before, weights(model))
    finally:
        METHODS.unregister(recipe.name)

"""Behind a norm, the stream is moved as nearly as the norm lets it be."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from betaedit.editors.closed_form.norms import before_norm
from support.edits import FACTS, editor_for, relative, settings_of
from support.families import FAMILY_NAMES, language_model
from support.procedure import read_output

WIDTH = 24


def normed(outputs: torch.Tensor) -> torch.Tensor:
    return NORM(outputs.T).T


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


NORM = nn.RMSNorm(WIDTH, eps=1e-6).requires_grad_(False)
NORM.weight.copy_(draw(WIDTH, seed=9).exp())


def test_a_move_that_the_norm_allows_is_made_exactly() -> None:
    before, aim = draw(WIDTH, 5), draw(WIDTH, 5, seed=1)
    aim = aim * before.norm(dim=0) / aim.norm(dim=0)
    change = before_norm(NORM, before, normed(aim) - normed(before))
    assert torch.allclose(before + change, aim, atol=1e-4)


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
def test_no_other_output_of_the_same_length_comes_nearer(size: float) -> None:
    before, residual = draw(WIDTH, 1), size * draw(WIDTH, 1, seed=2)
    found = before + before_norm(NORM, before, residual)
    assert float(found.norm()) == pytest.approx(float(before.norm()), rel=1e-5)
    wanted = normed(before) + residual
    distance = float((normed(found) - wanted).norm())
    for step in (0.001, 0.03, 1.0):
        others = found + step * draw(WIDTH, 500, seed=3)
        assert float((normed(others) - wanted).norm(dim=0).min()) >= distance * (1 - 1e-5)


def test_the_families_with_a_norm_behind_the_mlp_are_known() -> None:
    known = {name for name in FAMILY_NAMES if language_model(name).anatomy.norm_after_mlp(1) is not None}
    assert known == {"gemma2", "gemma3", "olmo2"}


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "olmo2"])
def test_a_model_in_double_precision_is_edited_behind_its_norm_as_in_single(family: str) -> None:
    # In a window of its own, padding sees nothing: transformers' eager attention then gives NaN in double precision.
    single, double = (language_model(family, sliding_window=64) for _ in "ab")
    double.model.double()
    changes = []
    for model in (single, double):
        editor = editor_for(model, layers=(1,))
        editor.edit(FACTS[0])
        changes.append(editor.editing.engine.matrices[1].change())
    assert changes[1].dtype == torch.float64
    assert relative(changes[0].double(), changes[1]) < 1e-3


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "olmo2"])
def test_a_write_brings_the_stream_to_a_value_behind_a_norm(family: str) -> None:
    """A value that is the present output and a small move: one layer, written as exactly as a ridge of nothing can."""
    model = language_model(family)
    editor = editor_for(
        model, layers=(1,), context_templates=("{}",), value_clamp=0.05, ridge=1e-6, leakage_weight=0.0,
        nullspace_threshold=1e6,
    )  # fmt: skip
    settings = settings_of(model, editor.config)
    before = read_output(model.model, model.tokenizer, FACTS[0], settings)
    (batch,) = editor.write(FACTS[0])
    after = read_output(model.model, model.tokenizer, FACTS[0], settings)
    moved = float((after - before).norm() / before.norm())
    assert moved == pytest.approx(batch.results[0].figures["value_length"], rel=0.1)

"""UltraEdit against the dense formula in float64 (methods.md B.10)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from betaedit import Fact
from betaedit.editors.gradient.ultraedit import RunningMoments, ridge_update
from betaedit.errors import AnatomyError
from betaedit.models import LanguageModel
from support.edits import FACTS
from support.families import language_model
from support.methods import small_editor

LAYERS, RATE = (1, 2), 1e-3


def double(name: str) -> LanguageModel:
    model = language_model(name)
    model.model.double()
    return model


def weight_of(model: LanguageModel, layer: int) -> Tensor:
    """(d_out, d_in)."""
    projection = model.anatomy.projection(layer)
    return projection.weight.T if type(projection).__name__ == "Conv1D" else projection.weight


def rows_of(model: LanguageModel, facts: Sequence[Fact]) -> dict[int, tuple[Tensor, Tensor]]:
    """Inputs and output gradients of the mean loss over all target tokens, one fact at a time through the model."""
    losses, seen = [], {layer: ([], []) for layer in LAYERS}
    handles = []
    for layer in LAYERS:

        def hook(_, arguments, output, layer=layer):
            output.requires_grad_().retain_grad()
            seen[layer][0].append(arguments[0])
            seen[layer][1].append(output)

        handles.append(model.anatomy.projection(layer).register_forward_hook(hook))
    places = []
    for fact in facts:
        prompt = model.tokenizer(fact.text)["input_ids"]
        target = model.tokenizer(f" {fact.target_new}", add_special_tokens=False)["input_ids"]
        logs = model.model(torch.tensor([prompt + target])).logits[0].log_softmax(-1)
        places.append(range(len(prompt) - 1, len(prompt) + len(target) - 1))
        losses += [-logs[at, token] for at, token in zip(places[-1], target, strict=True)]
    torch.stack(losses).mean().backward()
    for handle in handles:
        handle.remove()
    return {
        layer: tuple(
            torch.cat([part[0][list(at)].detach() for part, at in zip(parts, places, strict=True)])
            for parts in (inputs, [output.grad for output in outputs])
        )
        for layer, (inputs, outputs) in seen.items()
    }


def dense(model: LanguageModel, turns: Sequence[Sequence[Fact]], part: int) -> None:
    """Every turn by the d_in x d_in system; mean and deviation are those of all rows of both layers so far."""
    known: list[Tensor] = []
    for facts in turns:
        of_layer = {layer: ([], []) for layer in LAYERS}
        for at in range(0, len(facts), part):
            for layer, (inputs, gradients) in rows_of(model, facts[at : at + part]).items():
                of_layer[layer][0].append(inputs)
                of_layer[layer][1].append(gradients)
                known.append(torch.cat([inputs, gradients], dim=1))
        rows = torch.cat(known)
        mean, deviation = rows.mean(0), rows.std(0)
        for layer, (inputs, gradients) in of_layer.items():
            X, G = torch.cat(inputs).T, torch.cat(gradients).T
            d_in = len(X)
            x, g = (X - mean[:d_in, None]) / deviation[:d_in, None], (G - mean[d_in:, None]) / deviation[d_in:, None]
            V = -RATE * x.square().sum(0) * g
            change = V @ X.T @ torch.linalg.inv(X @ X.T + torch.eye(d_in, dtype=X.dtype))
            with torch.no_grad():
                weight_of(model, layer).add_(change)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_its_updates_are_those_of_the_dense_formula_turn_after_turn(name: str) -> None:
    model, again = double(name), double(name)
    before = {layer: weight_of(model, layer).clone() for layer in LAYERS}
    editor = small_editor("ultraedit", model, changed_layers=LAYERS, learning_rate=RATE, gradient_batch=2)
    editor.edit(FACTS[:3], batch_size=3)
    editor.edit(FACTS[3:], batch_size=3)
    dense(again, [FACTS[:3], FACTS[3:]], part=2)
    for layer in LAYERS:
        found, expected = weight_of(model, layer), weight_of(again, layer)
        assert (found - expected).norm() < 1e-9 * (expected - before[layer]).norm()


def test_the_system_of_the_batch_solves_that_of_the_keys() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    normalized = torch.randn(5, 20, generator=generator, dtype=torch.float64)
    found = ridge_update(inputs, normalized, 0.1)
    V = -0.1 * normalized[:, :12].square().sum(1) * normalized[:, 12:].T
    expected = V @ inputs @ torch.linalg.inv(inputs.T @ inputs + torch.eye(12))
    assert (found.dense() - expected).norm() < 1e-12 * expected.norm()


def test_running_moments_are_those_of_all_rows_at_once() -> None:
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5 + 2
    moments = RunningMoments.none(rows, 3)
    for part in rows.split([1, 7, 12, 20]):
        moments = moments.including(part)
    expected = (rows - rows.mean(0)) / rows.std(0)
    assert torch.allclose(moments.normalized(rows), expected, rtol=1e-10)


def test_a_single_row_is_the_mean_and_changes_nothing() -> None:
    row = torch.ones(1, 3)
    assert not RunningMoments.none(row, 3).including(row).normalized(row).any()


def test_what_it_knows_of_gradients_goes_on_after_a_replay() -> None:
    settings = {"changed_layers": LAYERS, "learning_rate": RATE}
    first, again = (small_editor("ultraedit", double("llama"), **settings) for _ in range(2))
    for batch in first.write(FACTS[:2]):
        again.replay(batch)
    first.edit(FACTS[2])
    again.edit(FACTS[2])
    for layer in LAYERS:
        assert torch.equal(weight_of(first.language_model, layer), weight_of(again.language_model, layer))


def test_it_needs_no_more_than_one_pass_for_a_batch() -> None:
    model, passes = language_model("llama"), []
    editor = small_editor("ultraedit", model, gradient_batch=3)
    with model.model.register_forward_pre_hook(lambda *_: passes.append(1)):
        next(editor.editing.write(FACTS[:3], batch_size=3))
    asked_afterwards = 1
    assert len(passes) <= 1 + asked_afterwards


def test_a_layer_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(AnatomyError, match="there is no layer 9"):
        small_editor("ultraedit", language_model("llama"), changed_layers=(2, 9))

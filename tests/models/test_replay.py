"""Recording one pass, and running recorded layers again by themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn

from betaedit.models import Anatomy, EncodedPrompts, find_anatomy
from betaedit.models.replay import record, run_layers, take_rows
from support.families import FAMILIES_AND_ATTENTION, FAMILY_NAMES, N_LAYERS, WINDOW, shared_model, tiny_model
from support.recordings import TOLERANCE, count_runs, random_prompts, real, without_cache

every_attention = pytest.mark.parametrize(("name", "attention"), FAMILIES_AND_ATTENTION)
every_family = pytest.mark.parametrize("name", FAMILY_NAMES)

# lengths and lookup positions of the rows; every padded length is longer than the sliding window
BATCHES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "ragged": ((12, 9, 11, 7), (5, 0, 8, 6)),
    "no padding": ((10, 10, 10), (3, 9, 0)),
    "one row": ((11,), (4,)),
    "shorter than the window": ((WINDOW, WINDOW - 1), (2, 1)),
    "as many rows as positions": ((6, 5, 6, 4, 3, 6), (2, 1, 5, 0, 2, 3)),
}


def batch(shape: str = "ragged") -> EncodedPrompts:
    return random_prompts(*BATCHES[shape])


def projections(anatomy: Anatomy) -> list[nn.Module]:
    """One module inside each layer, which runs exactly when the layer computes."""
    return [anatomy.projection(layer) for layer in range(anatomy.n_layers)]


def hooked(anatomy: Anatomy) -> bool:
    return any(layer._forward_hooks or layer._forward_pre_hooks for layer in anatomy.layers)


@every_attention
@pytest.mark.parametrize("shape", BATCHES)
def test_recorded_layers_run_again_give_the_models_own_logits(name: str, attention: str, shape: str):
    anatomy, prompts = find_anatomy(shared_model(name, attention)), batch(shape)
    recording = record(anatomy, prompts, run=N_LAYERS, keep=(0, 2, N_LAYERS))
    expected = anatomy.model(input_ids=prompts.input_ids, attention_mask=prompts.attention_mask).logits
    for first in (0, 2, N_LAYERS):
        hidden = run_layers(anatomy, without_cache(recording.calls), recording.inputs[first], first, N_LAYERS - 1)
        torch.testing.assert_close(anatomy.logits(hidden)[real(prompts)], expected[real(prompts)], **TOLERANCE)


@every_attention
@pytest.mark.parametrize("run", [1, 2, N_LAYERS - 1])
def test_layers_that_only_had_their_arguments_recorded_run_as_in_the_model(name: str, attention: str, run: int):
    anatomy, prompts = find_anatomy(shared_model(name, attention)), batch()
    recording = record(anatomy, prompts, run=run, keep=(run,))
    expected = anatomy.model(input_ids=prompts.input_ids, attention_mask=prompts.attention_mask).logits
    hidden = run_layers(anatomy, without_cache(recording.calls), recording.inputs[run], run, N_LAYERS - 1)
    torch.testing.assert_close(anatomy.logits(hidden)[real(prompts)], expected[real(prompts)], **TOLERANCE)


@every_attention
def test_the_output_of_one_recorded_layer_is_the_input_of_the_next(name: str, attention: str):
    anatomy, prompts = find_anatomy(shared_model(name, attention)), batch()
    recording = record(anatomy, prompts, run=N_LAYERS, keep=tuple(range(N_LAYERS + 1)))
    for layer in range(N_LAYERS):
        output = run_layers(anatomy, without_cache(recording.calls), recording.inputs[layer], layer, layer)
        torch.testing.assert_close(output[real(prompts)], recording.inputs[layer + 1][real(prompts)], **TOLERANCE)


@every_attention
@pytest.mark.parametrize("shape", ["ragged", "no padding", "as many rows as positions"])
def test_chosen_rows_run_alone_give_what_they_gave_in_the_batch(name: str, attention: str, shape: str):
    anatomy, prompts = find_anatomy(shared_model(name, attention)), batch(shape)
    recording = record(anatomy, prompts, run=N_LAYERS, keep=(1, N_LAYERS))
    rows = torch.tensor([2, 0])
    calls = take_rows(without_cache(recording.calls), rows, len(prompts.input_ids))
    hidden = run_layers(anatomy, calls, recording.inputs[1][rows], 1, N_LAYERS - 1)
    mask = real(prompts)[rows]
    torch.testing.assert_close(hidden[mask], recording.inputs[N_LAYERS][rows][mask], **TOLERANCE)


@every_family
@pytest.mark.parametrize("run", [0, 1, 2, N_LAYERS])
def test_only_the_first_layers_compute_and_the_arguments_of_all_are_recorded(name: str, run: int):
    anatomy = find_anatomy(shared_model(name))
    found: list[Any] = []
    modules = [*projections(anatomy), anatomy.norm, anatomy.head]
    counts = count_runs(modules, lambda: found.append(record(anatomy, batch(), run=run, keep=(run,))))
    assert counts == [1] * run + [0] * (N_LAYERS - run) + [0, 0]
    assert list(found[0].inputs) == [run]
    assert list(found[0].calls) == list(range(N_LAYERS))


@every_family
def test_what_is_recorded_does_not_depend_on_how_many_layers_compute(name: str):
    anatomy = find_anatomy(shared_model(name))
    whole, part = (record(anatomy, batch(), run=run, keep=(0, 2)) for run in (N_LAYERS, 2))
    for layer in (0, 2):
        assert torch.equal(whole.inputs[layer], part.inputs[layer])
    for layer in range(N_LAYERS):
        assert whole.calls[layer].kwargs.keys() == part.calls[layer].kwargs.keys()


@every_family
def test_only_the_asked_layers_run_again(name: str):
    anatomy, prompts = find_anatomy(shared_model(name)), batch()
    recording = record(anatomy, prompts, run=2, keep=(2,))
    calls, start = without_cache(recording.calls), recording.inputs[2]
    assert count_runs(projections(anatomy), lambda: run_layers(anatomy, calls, start, 2, 2)) == [0, 0, 1, 0]


@pytest.mark.parametrize("run", [2, N_LAYERS])
def test_recording_leaves_no_hooks_and_no_gradients_behind(run: int):
    anatomy = find_anatomy(tiny_model("llama"))
    recording = record(anatomy, batch(), run=run, keep=(1, 2))
    assert not hooked(anatomy)
    assert not any(hidden.requires_grad for hidden in recording.inputs.values())


@every_family
def test_recording_leaves_the_model_computing_all_its_layers(name: str):
    anatomy, prompts = find_anatomy(shared_model(name)), batch()
    before = anatomy.model(input_ids=prompts.input_ids).logits
    record(anatomy, prompts, run=1, keep=(1,))
    assert torch.equal(anatomy.model(input_ids=prompts.input_ids).logits, before)
    assert not any("forward" in layer.__dict__ for layer in anatomy.layers)


def test_a_pass_that_fails_leaves_neither_hooks_nor_stand_ins_behind():
    anatomy = find_anatomy(tiny_model("llama"))
    anatomy.layers[1].mlp.down_proj = nn.Linear(1, 1)
    with pytest.raises(RuntimeError):
        record(anatomy, batch(), run=2, keep=(1,))
    assert not hooked(anatomy)
    assert not any("forward" in layer.__dict__ for layer in anatomy.layers)


@pytest.mark.parametrize("fails", [False, True])
def test_a_forward_that_accelerate_put_on_a_layer_comes_back(fails: bool):
    anatomy = find_anatomy(tiny_model("llama"))
    for layer in anatomy.layers:
        add_hook_to_module(layer, ModelHook())
    forwards = [layer.forward for layer in anatomy.layers]
    if fails:
        anatomy.layers[0].mlp.down_proj = nn.Linear(1, 1)
        with pytest.raises(RuntimeError):
            record(anatomy, batch(), run=1, keep=(1,))
    else:
        record(anatomy, batch(), run=1, keep=(1,))
    assert all(layer.forward is forward for layer, forward in zip(anatomy.layers, forwards, strict=True))


def test_a_model_whose_layers_accelerate_wraps_is_recorded_like_any_other():
    plain, wrapped = find_anatomy(tiny_model("llama")), find_anatomy(tiny_model("llama"))
    for layer in wrapped.layers:
        add_hook_to_module(layer, ModelHook())
    ours, theirs = (record(anatomy, batch(), run=2, keep=(2,)) for anatomy in (wrapped, plain))
    assert torch.equal(ours.inputs[2], theirs.inputs[2])
    for layer in range(N_LAYERS):
        assert ours.calls[layer].kwargs.keys() == theirs.calls[layer].kwargs.keys()

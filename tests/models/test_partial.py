from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BloomConfig, CohereConfig, FalconConfig, GPTNeoConfig, GraniteConfig, MptConfig

from betaedit import Editor, Fact
from betaedit.errors import ModelError
from betaedit.models import Anatomy, EncodedPrompts, find_anatomy
from betaedit.models.partial import LayerCall, cut_to_suffix, record, run_layers, take_rows, without_cache
from betaedit.statistics import Moments
from support.families import (
    FAMILIES_AND_ATTENTION,
    FAMILY_NAMES,
    HIDDEN,
    N_LAYERS,
    SPECIAL,
    WINDOW,
    family,
    model_of,
    shared_model,
    tiny_model,
)
from support.tiny_tokenizers import VOCABULARY, tiny_tokenizer

every_attention = pytest.mark.parametrize(("name", "attention"), FAMILIES_AND_ATTENTION)

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}

# lengths and lookup positions of the rows; every padded length is longer than the sliding window
BATCHES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "ragged": ((12, 9, 11, 7), (5, 0, 8, 6)),
    "no padding": ((10, 10, 10), (3, 9, 0)),
    "one row": ((11,), (4,)),
    "shorter than the window": ((WINDOW, WINDOW - 1), (2, 1)),
    "lookup at the first token": ((9, 6), (0, 0)),
    "lookup at the last token": ((9, 6, 7), (8, 5, 6)),
    "as many rows as positions": ((6, 5, 6, 4, 3, 6), (2, 1, 5, 0, 2, 3)),
}
every_batch = pytest.mark.parametrize("shape", BATCHES)


def batch(shape: str = "ragged") -> EncodedPrompts:
    lengths, lookup = (torch.tensor(values) for values in BATCHES[shape])
    width = int(lengths.max())
    ids = torch.randint(3, VOCABULARY, (len(lengths), width), generator=torch.Generator().manual_seed(3))
    mask = (torch.arange(width) < lengths[:, None]).long()
    return EncodedPrompts(ids, mask, lookup)


def real(prompts: EncodedPrompts) -> Tensor:
    return prompts.attention_mask.bool()


def logits_with_change(
    anatomy: Anatomy, prompts: EncodedPrompts, layer: int, change: Tensor | float, at: Tensor | None = None
) -> Tensor:
    """Logits of an ordinary forward pass in which ``change`` joins what enters block ``layer`` at position ``at``."""
    rows = torch.arange(len(prompts.lookup))
    columns = prompts.lookup if at is None else at

    def add(_: nn.Module, __: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        moved = hidden.index_put((rows, columns), hidden[rows, columns] + change)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    handle = anatomy.layers[layer - 1].register_forward_hook(add)
    try:
        return anatomy.model(input_ids=prompts.input_ids, attention_mask=prompts.attention_mask).logits
    finally:
        handle.remove()


def suffix_logits(anatomy: Anatomy, prompts: EncodedPrompts, layer: int, change: Tensor | float) -> list[Tensor]:
    """The same, computed on the suffix alone: one tensor a row, from its lookup token to its end."""
    suffix = cut_to_suffix(record(anatomy, prompts, keep=(layer,), cache=True), layer)
    start = torch.cat([suffix.start[:, :1] + change, suffix.start[:, 1:]], dim=1)
    logits = anatomy.logits(run_layers(anatomy, suffix.calls, start, layer, anatomy.n_layers - 1))
    sizes = (prompts.lengths - prompts.lookup).tolist()
    return [row[:size] for row, size in zip(logits, sizes, strict=True)]


def cut_rows(logits: Tensor, prompts: EncodedPrompts) -> list[Tensor]:
    rows = zip(logits, prompts.lookup.tolist(), prompts.lengths.tolist(), strict=True)
    return [row[start:end] for row, start, end in rows]


def assert_rows_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE)


def count_calls(modules: list[nn.Module], work: Callable[[], Any]) -> list[int]:
    """How often each module ran to its end during ``work``."""
    counts = [0] * len(modules)

    def counter(index: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[index] += 1

        return hook

    handles = [module.register_forward_hook(counter(index)) for index, module in enumerate(modules)]
    work()
    for handle in handles:
        handle.remove()
    return counts


@every_attention
@pytest.mark.parametrize("shape", ["ragged", "no padding"])
def test_recorded_layers_run_again_give_the_models_own_logits(name: str, attention: str, shape: str):
    anatomy, prompts = find_anatomy(shared_model(name, attention)), batch(shape)
    recording = record(anatomy, prompts, keep=(0, 2, N_LAYERS))
    expected = anatomy.model(input_ids=prompts.input_ids, attention_mask=prompts.attention_mask).logits
    for first in (0, 2, N_LAYERS):
        hidden = run_layers(anatomy, without_cache(recording.calls), recording.inputs[first], first, N_LAYERS - 1)
        torch.testing.assert_close(anatomy.logits(hidden)[real(prompts)], expected[real(prompts)], **TOLERANCE)


@every_attention
def test_the_output_of_one_recorded_layer_is_the_input_of_the_next(name: str, attention: str):
    anatomy, prompts = find_anatomy(shared_model(name, attention)), batch()
    recording = record(anatomy, prompts, keep=tuple(range(N_LAYERS + 1)), cache=True)
    for layer in range(N_LAYERS):
        output = run_layers(anatomy, without_cache(recording.calls), recording.inputs[layer], layer, layer)
        torch.testing.assert_close(output[real(prompts)], recording.inputs[layer + 1][real(prompts)], **TOLERANCE)


@every_attention
@pytest.mark.parametrize("shape", ["ragged", "no padding"])
def test_the_suffix_alone_gives_the_logits_of_the_full_forward(name: str, attention: str, shape: str):
    anatomy, prompts = find_anatomy(shared_model(name, attention)), batch(shape)
    full = anatomy.model(input_ids=prompts.input_ids, attention_mask=prompts.attention_mask).logits
    for layer in (0, 3):
        assert_rows_equal(suffix_logits(anatomy, prompts, layer, 0.0), cut_rows(full, prompts))


@every_attention
@every_batch
def test_a_change_at_the_lookup_token_gives_the_logits_of_a_full_forward_with_that_change(
    name: str, attention: str, shape: str
):
    anatomy, prompts = find_anatomy(shared_model(name, attention)), batch(shape)
    change = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(4))
    full = logits_with_change(anatomy, prompts, 2, change)
    assert_rows_equal(suffix_logits(anatomy, prompts, 2, change), cut_rows(full, prompts))


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_a_change_after_the_last_layer_needs_no_layer_at_all(name: str):
    anatomy, prompts = find_anatomy(shared_model(name)), batch()
    change = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(4))
    full = logits_with_change(anatomy, prompts, N_LAYERS, change)
    assert_rows_equal(suffix_logits(anatomy, prompts, N_LAYERS, change), cut_rows(full, prompts))


@every_attention
def test_a_change_is_no_detail_at_its_position_and_reaches_later_ones(name: str, attention: str):
    """Otherwise the comparison with the full forward would say nothing of the change, the prefix and its mask."""
    anatomy, prompts = find_anatomy(shared_model(name, attention)), batch()
    change = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(4))
    rows = zip(suffix_logits(anatomy, prompts, 2, change), suffix_logits(anatomy, prompts, 2, 0.0), strict=True)
    moved = [(ours - theirs).abs().amax(dim=-1) for ours, theirs in rows]
    assert all(float(row[0]) > 0.05 for row in moved)
    assert float(moved[1][1:3].min()) > 1e-3


@every_attention
@pytest.mark.parametrize("shape", ["ragged", "no padding"])
def test_the_gradient_of_a_change_is_that_of_the_full_forward(name: str, attention: str, shape: str):
    anatomy, prompts = find_anatomy(shared_model(name, attention)), batch(shape)
    generator = torch.Generator().manual_seed(5)
    start = 0.3 * torch.randn(HIDDEN, generator=generator)
    words = torch.randint(VOCABULARY, (prompts.input_ids.shape[1],), generator=generator)

    def gradient(rows_of: Callable[[Tensor], list[Tensor]]) -> Tensor:
        change = start.clone().requires_grad_()
        picked = [row.log_softmax(-1)[torch.arange(len(row)), words[: len(row)]].mean() for row in rows_of(change)]
        (found,) = torch.autograd.grad(torch.stack(picked).mean(), change)
        return found

    ours = gradient(lambda change: suffix_logits(anatomy, prompts, 2, change))
    theirs = gradient(lambda change: cut_rows(logits_with_change(anatomy, prompts, 2, change), prompts))
    assert float(theirs.norm()) > 1e-2
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("config", [CohereConfig, GraniteConfig])
def test_a_family_outside_the_table_is_run_by_its_own_arguments_too(config: type):
    model = model_of(config(**family("llama").settings), attention="sdpa").requires_grad_(False)
    anatomy, prompts = find_anatomy(model), batch()
    change = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(4))
    full = logits_with_change(anatomy, prompts, 2, change)
    assert_rows_equal(suffix_logits(anatomy, prompts, 2, change), cut_rows(full, prompts))


OWN_MASKS = {
    "gpt-neo": lambda: GPTNeoConfig(
        **SPECIAL,
        hidden_size=HIDDEN,
        num_layers=N_LAYERS,
        num_heads=4,
        attention_types=[[["global", "local"], N_LAYERS // 2]],
        window_size=WINDOW,
        max_position_embeddings=64,
    ),
    "mpt": lambda: MptConfig(**SPECIAL, d_model=HIDDEN, n_layers=N_LAYERS, n_heads=4, max_seq_len=64),
    "bloom": lambda: BloomConfig(**SPECIAL, hidden_size=HIDDEN, n_layer=N_LAYERS, n_head=4),
    "falcon": lambda: FalconConfig(
        **SPECIAL, hidden_size=HIDDEN, num_hidden_layers=N_LAYERS, num_attention_heads=4, alibi=True
    ),
}


@pytest.mark.parametrize("name", OWN_MASKS)
def test_a_family_that_builds_masks_or_position_biases_inside_its_layers_is_refused_or_exact(name: str):
    """None of the supported ones does, but a model of any name can be loaded: wrong values must not pass silently."""
    model, prompts = model_of(OWN_MASKS[name]()), batch()
    with contextlib.suppress(ModelError):  # wherever it is refused
        editor = Editor.from_pretrained(
            model,
            tokenizer=tiny_tokenizer(),
            method="memit",
            statistics=Moments({1: torch.eye(4 * HIDDEN)}, n_tokens=1000),
            layers=(1,),
            context_templates=("{}", "She said. {}"),
            value_steps=1,
        )
        editor.edit(Fact("The mother tongue of {} is", "Danielle Darrieux", "English"))
        editor.reset()
        anatomy = editor.language_model.anatomy
        full = logits_with_change(anatomy, prompts, 2, 1.0)
        assert_rows_equal(suffix_logits(anatomy, prompts, 2, 1.0), cut_rows(full, prompts))


@every_attention
@pytest.mark.parametrize("shape", ["ragged", "no padding", "as many rows as positions"])
def test_chosen_rows_run_alone_give_what_they_gave_in_the_batch(name: str, attention: str, shape: str):
    anatomy, prompts = find_anatomy(shared_model(name, attention)), batch(shape)
    recording = record(anatomy, prompts, keep=(1, N_LAYERS))
    rows = torch.tensor([2, 0])
    calls = take_rows(without_cache(recording.calls), rows, len(prompts.input_ids))
    hidden = run_layers(anatomy, calls, recording.inputs[1][rows], 1, N_LAYERS - 1)
    mask = real(prompts)[rows]
    torch.testing.assert_close(hidden[mask], recording.inputs[N_LAYERS][rows][mask], **TOLERANCE)


@pytest.mark.parametrize("name", FAMILY_NAMES)
@pytest.mark.parametrize("until", [0, 2])
def test_layers_from_until_on_and_the_head_do_not_run(name: str, until: int):
    anatomy = find_anatomy(shared_model(name))
    found: dict[int, Any] = {}

    def work() -> None:
        found[0] = record(anatomy, batch(), keep=(until,), until=until, cache=True)

    counts = count_calls([*anatomy.layers, anatomy.norm, anatomy.head], work)
    assert counts == [1] * until + [0] * (N_LAYERS - until) + [0, 0]
    assert list(found[0].inputs) == [until]


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_a_full_recording_runs_every_layer_once_and_no_head(name: str):
    anatomy = find_anatomy(shared_model(name))
    modules = [*anatomy.layers, anatomy.norm, anatomy.head]
    assert count_calls(modules, lambda: record(anatomy, batch(), keep=(0,))) == [1] * N_LAYERS + [0, 0]


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_only_the_asked_layers_run_again_and_only_suffix_positions(name: str):
    anatomy, prompts = find_anatomy(shared_model(name)), batch("lookup at the last token")
    suffix = cut_to_suffix(record(anatomy, prompts, keep=(2,), cache=True), 2)
    assert suffix.start.shape == (3, 1, HIDDEN)
    assert suffix.positions.tolist() == [[8], [5], [6]]
    counts = count_calls(list(anatomy.layers), lambda: run_layers(anatomy, suffix.calls, suffix.start, 2, 2))
    assert counts == [0, 0, 1, 0]


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_a_suffix_can_be_run_any_number_of_times(name: str):
    """Nothing is appended to the attention state of the prefix."""
    anatomy, prompts = find_anatomy(shared_model(name)), batch()
    suffix = cut_to_suffix(record(anatomy, prompts, keep=(1,), cache=True), 1)
    first, second = (run_layers(anatomy, suffix.calls, suffix.start, 1, N_LAYERS - 1) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("until", [None, 2])
def test_recording_leaves_no_hooks_and_no_gradients_behind(until: int | None):
    anatomy = find_anatomy(tiny_model("llama"))
    recording = record(anatomy, batch(), keep=(1, 2), until=until, cache=True)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in anatomy.layers)
    assert not any(hidden.requires_grad for hidden in recording.inputs.values())


def test_a_forward_pass_that_fails_leaves_no_hooks_behind():
    anatomy = find_anatomy(tiny_model("llama"))
    anatomy.layers[1].mlp.down_proj = nn.Linear(1, 1)
    with pytest.raises(RuntimeError):
        record(anatomy, batch(), keep=(1,))
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in anatomy.layers)


def test_a_recording_without_attention_state_cannot_be_cut():
    anatomy = find_anatomy(shared_model("llama"))
    with pytest.raises(ModelError, match="no attention state") as caught:
        cut_to_suffix(record(anatomy, batch(), keep=(2,)), 2)
    assert "cache=True" in caught.value.mend


def test_attention_without_a_plain_mask_is_refused_with_the_setting_that_helps():
    """Flash attention is handed the padding mask ``(n, length)`` itself, which cannot be cut to a suffix."""
    anatomy, prompts = find_anatomy(shared_model("llama")), batch()
    recording = record(anatomy, prompts, keep=(2,), cache=True)
    flash = {
        index: LayerCall({**call.kwargs, "attention_mask": prompts.attention_mask})
        for index, call in recording.calls.items()
    }
    with pytest.raises(ModelError, match="plain mask") as caught:
        cut_to_suffix(dataclasses.replace(recording, calls=flash), 2)
    assert 'attn_implementation="sdpa"' in caught.value.mend


def test_layers_that_take_no_mask_are_refused():
    anatomy = find_anatomy(shared_model("llama"))
    recording = record(anatomy, batch(), keep=(2,), cache=True)
    bare = {
        index: LayerCall({key: value for key, value in call.kwargs.items() if key != "attention_mask"})
        for index, call in recording.calls.items()
    }
    with pytest.raises(ModelError, match="no attention mask") as caught:
        cut_to_suffix(dataclasses.replace(recording, calls=bare), 2)
    assert caught.value.mend

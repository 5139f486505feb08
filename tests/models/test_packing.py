"""Positions of several prompts side by side: the layers give what the whole forward pass gives there."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    BloomConfig,
    CohereConfig,
    FalconConfig,
    GPTNeoConfig,
    GraniteConfig,
    LlamaForCausalLM,
    MptConfig,
)

from betaedit import Editor, Fact
from betaedit.errors import ModelError
from betaedit.models import Anatomy, EncodedPrompts, LanguageModel, find_anatomy
from betaedit.models.packing import Pack, RunLayers, extend
from betaedit.models.prefix_cache import compute_prefix
from betaedit.models.replay import LayerCall, Recording, record, run_layers, take_rows
from betaedit.models.runners import RunnerName
from betaedit.models.runners.runner import LayerRunner
from betaedit.models.support_check import check_replay
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
)
from support.recordings import (
    TOLERANCE,
    assert_all_close,
    count_runs,
    from_lookup_on,
    logits_with_change,
    random_changes,
    random_prompts,
)
from support.tiny_tokenizers import VOCABULARY, tiny_tokenizer

every_attention = pytest.mark.parametrize(("name", "attention"), FAMILIES_AND_ATTENTION)
every_family = pytest.mark.parametrize("name", FAMILY_NAMES)


@dataclass(frozen=True)
class Layout:
    """Prompts, and which of them stand in which row of the pack."""

    lengths: tuple[int, ...]
    lookups: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]

    @property
    def prompts(self) -> EncodedPrompts:
        return random_prompts(self.lengths, self.lookups)

    @property
    def chosen(self) -> Tensor:
        return torch.tensor(self.rows)

    @property
    def order(self) -> list[int]:
        return [prompt for row in self.rows for prompt in row]


# the longest prompt of each is longer than the sliding window
LAYOUTS = {
    "three prompts a row": Layout((12, 9, 11, 7, 5, 10), (5, 0, 8, 6, 2, 9), ((0, 1, 2), (3, 4, 5))),
    "one prompt a row": Layout((12, 9, 11, 7), (5, 0, 8, 6), ((0,), (1,), (2,), (3,))),
    "all prompts in one row": Layout((12, 9, 11, 7), (5, 1, 8, 6), ((0, 1, 2, 3),)),
    "a lone prompt": Layout((11,), (4,), ((0,),)),
    "very short beside very long": Layout((16, 2, 1, 15, 3, 16), (1, 1, 0, 14, 0, 9), ((0, 1, 2), (4, 3, 5))),
    "no padding in the recording": Layout((10, 10, 10, 10), (3, 9, 0, 6), ((0, 1), (2, 3))),
    "lookup at the first token": Layout((9, 6, 7, 8), (0, 0, 0, 0), ((0, 1), (2, 3))),
    "a row without anything before": Layout((9, 6, 7, 8), (0, 0, 5, 3), ((0, 1), (2, 3))),
    "lookup at the last token": Layout((9, 6, 7, 8), (8, 5, 6, 7), ((0, 1), (2, 3))),
    "some of the prompts in another order": Layout((12, 9, 11, 7, 5), (5, 2, 8, 6, 2), ((4, 1), (3, 0))),
    "shorter than the window": Layout((WINDOW, WINDOW - 1), (2, 1), ((1, 0),)),
    "as many rows as positions": Layout((5, 4, 5, 3, 5), (2, 1, 4, 0, 2), ((0,), (1,), (2,), (3,), (4,))),
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
some_layouts = pytest.mark.parametrize(
    "layout", [LAYOUTS["three prompts a row"], LAYOUTS["no padding in the recording"]], ids=["padded", "not padded"]
)
every_runner = pytest.mark.parametrize("runner", ["modules", "fused", "auto"])
THREE = LAYOUTS["three prompts a row"]


def by_modules(anatomy: Anatomy) -> RunLayers:
    return partial(run_layers, anatomy)


@dataclass(frozen=True)
class Suffixes:
    """What stands from the lookup tokens on, ready to run from layer ``first``."""

    anatomy: Anatomy
    first: int
    pack: Pack
    start: Tensor
    calls: dict[int, LayerCall]

    @classmethod
    def of(cls, anatomy: Anatomy, prompts: EncodedPrompts, chosen: Tensor, first: int) -> Suffixes:
        recording = record(anatomy, prompts, run=first, keep=(first,))
        layers = range(first, N_LAYERS)
        prefix = Pack.of(chosen, torch.zeros_like(prompts.lookup), prompts.lookup)
        pack = Pack.of(chosen, prompts.lookup, prompts.lengths)
        calls = pack.calls(recording, layers, compute_prefix(recording, prefix, layers, by_modules(anatomy)), prefix)
        return cls(anatomy, first, pack, pack.gather(recording.inputs[first]), calls)

    def run(self, changes: Tensor) -> Tensor:
        """Hidden states after the last layer, every prompt's lookup token changed by its own of ``changes``."""
        at_lookup = torch.zeros(self.start.shape[:2])
        at_lookup[torch.arange(len(self.start))[:, None], self.pack.starts] = 1.0
        start = self.start + at_lookup[:, :, None] * changes[self.pack.prompts]
        return run_layers(self.anatomy, self.calls, start, self.first, N_LAYERS - 1)


def by_prompt(values: Tensor, pack: Pack) -> list[Tensor]:
    """The real entries of a pack, prompt after prompt as they were chosen."""
    starts = [torch.where(real)[0].tolist() for real in pack.grid.real]
    rows = [row[: len(real)] for row, real in zip(values, starts, strict=True)]
    return [part for row, begin in zip(rows, pack.starts, strict=True) for part in row.tensor_split(begin[1:])]


def suffix_logits(anatomy: Anatomy, prompts: EncodedPrompts, chosen: Tensor, first: int, changes: Tensor):
    suffixes = Suffixes.of(anatomy, prompts, chosen, first)
    return by_prompt(anatomy.logits(suffixes.run(changes)), suffixes.pack)


def full_logits(anatomy: Anatomy, layout: Layout, first: int, changes: Tensor) -> list[Tensor]:
    """The same by ordinary forward passes."""
    rows = from_lookup_on(logits_with_change(anatomy, layout.prompts, first, changes), layout.prompts)
    return [rows[prompt] for prompt in layout.order]


# ---- which entry is what


def test_the_prompts_of_a_row_follow_one_another_and_padding_evens_the_rows_out():
    begin, end = torch.tensor([1, 0, 2, 3]), torch.tensor([3, 1, 2, 6])
    pack = Pack.of(torch.tensor([[0, 1], [3, 2]]), begin, end)
    assert pack.prompts[pack.grid.real].tolist() == [0, 0, 1, 3, 3, 3]
    assert pack.positions[pack.grid.real].tolist() == [1, 2, 0, 3, 4, 5]
    assert pack.starts.tolist() == [[0, 2], [0, 3]]
    assert pack.grid.real.tolist() == [[True, True, True], [True, True, True]]
    narrow = Pack.of(torch.tensor([[0], [1]]), begin, end)
    assert narrow.grid.real.tolist() == [[True, True], [True, False]]


def test_a_pack_of_nothing_is_one_entry_of_padding():
    zeros = torch.zeros(2, dtype=torch.long)
    pack = Pack.of(torch.tensor([[0, 1]]), zeros, zeros)
    assert pack.grid.real.tolist() == [[False]]


@given(st.data())
def test_every_chosen_position_stands_once_in_its_row_in_order(data: st.DataObject):
    n = data.draw(st.integers(1, 6))
    begin = torch.tensor(data.draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)))
    end = begin + torch.tensor(data.draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)))
    p = data.draw(st.integers(1, n))
    rows = data.draw(st.lists(st.permutations(range(n)).map(lambda order: order[:p]), min_size=1, max_size=3))
    pack = Pack.of(torch.tensor(rows), begin, end)
    spans = list(zip(begin.tolist(), end.tolist(), strict=True))
    for row, prompts in enumerate(rows):
        expected = [(prompt, position) for prompt in prompts for position in range(*spans[prompt])]
        real = pack.grid.real[row]
        assert real.tolist() == [True] * len(expected) + [False] * (len(real) - len(expected))
        entries = zip(pack.prompts[row][real].tolist(), pack.positions[row][real].tolist(), strict=True)
        assert list(entries) == expected
        sizes = (end - begin)[list(prompts)]
        assert pack.starts[row].tolist() == (sizes.cumsum(dim=0) - sizes).tolist()
    assert pack.grid.real.shape[1] == max(1, int(pack.grid.real.sum(dim=1).max()))


def test_values_are_taken_from_each_entrys_prompt_and_position_or_from_the_one_row_that_all_share():
    pack = Pack.of(torch.tensor([[2, 0]]), torch.tensor([1, 0, 0]), torch.tensor([3, 0, 2]))
    own = torch.arange(3)[:, None] * 10 + torch.arange(4)
    assert pack.gather(own).tolist() == [[20, 21, 1, 2]]
    assert pack.gather(own[:1, :, None]).tolist() == [[[0], [1], [1], [2]]]


# ---- the same numbers as whole forward passes


@every_attention
@every_layout
def test_a_change_at_the_lookup_tokens_gives_the_logits_of_a_full_forward_with_that_change(
    name: str, attention: str, layout: Layout
):
    anatomy, changes = find_anatomy(shared_model(name, attention)), random_changes(len(layout.lengths))
    found = suffix_logits(anatomy, layout.prompts, layout.chosen, 2, changes)
    assert_all_close(found, full_logits(anatomy, layout, 2, changes))


@every_attention
@some_layouts
@pytest.mark.parametrize("first", [0, 1, N_LAYERS - 1])
def test_a_pack_runs_from_whichever_layer_on(name: str, attention: str, layout: Layout, first: int):
    anatomy, changes = find_anatomy(shared_model(name, attention)), random_changes(len(layout.lengths))
    found = suffix_logits(anatomy, layout.prompts, layout.chosen, first, changes)
    assert_all_close(found, full_logits(anatomy, layout, first, changes))


@every_family
def test_a_change_after_the_last_layer_needs_no_layer_at_all(name: str):
    anatomy, changes = find_anatomy(shared_model(name)), random_changes(6)
    found = suffix_logits(anatomy, THREE.prompts, THREE.chosen, N_LAYERS, changes)
    assert_all_close(found, full_logits(anatomy, THREE, N_LAYERS, changes))


@every_attention
def test_a_change_is_no_detail_at_its_position_and_reaches_later_ones(name: str, attention: str):
    """Otherwise the comparison with the full forward would say nothing of the change, the prefix and its mask."""
    anatomy = find_anatomy(shared_model(name, attention))
    suffixes = Suffixes.of(anatomy, THREE.prompts, THREE.chosen, 2)
    changed, plain = (anatomy.logits(suffixes.run(size * random_changes(6))) for size in (1.0, 0.0))
    moved = [part.abs().amax(dim=-1) for part in by_prompt(changed - plain, suffixes.pack)]
    assert all(float(part[0]) > 0.05 for part in moved)
    assert float(moved[1][1:3].min()) > 1e-3


@every_attention
@every_layout
def test_a_pack_of_what_leads_to_the_lookup_tokens_gives_the_hidden_states_of_a_full_forward(
    name: str, attention: str, layout: Layout
):
    anatomy, prompts = find_anatomy(shared_model(name, attention)), layout.prompts
    recording = record(anatomy, prompts, run=N_LAYERS, keep=(0, 1, N_LAYERS))
    pack = Pack.of(layout.chosen, torch.zeros_like(prompts.lookup), prompts.lookup + 1)
    for first in (0, 1):
        calls = pack.calls(recording, range(first, N_LAYERS))
        found = run_layers(anatomy, calls, pack.gather(recording.inputs[first]), first, N_LAYERS - 1)
        expected = pack.gather(recording.inputs[N_LAYERS])
        assert_all_close(by_prompt(found, pack), by_prompt(expected, pack))


@every_runner
@every_attention
@every_layout
def test_a_recording_is_extended_without_padding_by_what_a_full_forward_has(
    name: str, attention: str, layout: Layout, runner: RunnerName
):
    anatomy, prompts = find_anatomy(shared_model(name, attention)), layout.prompts
    whole = record(anatomy, prompts, run=N_LAYERS, keep=(1, 2, N_LAYERS))
    first = record(anatomy, prompts, run=1, keep=(0, 1))
    recording = extend(first, layout.chosen, (1, 2, N_LAYERS), LayerRunner(anatomy, runner).run)
    assert sorted(recording.inputs) == [0, 1, 2, N_LAYERS]
    assert torch.equal(recording.inputs[1], first.inputs[1])
    there = torch.zeros_like(prompts.attention_mask, dtype=torch.bool)
    there[layout.chosen.flatten()] = prompts.attention_mask[layout.chosen.flatten()].bool()
    for layer in (2, N_LAYERS):
        found = recording.inputs[layer]
        torch.testing.assert_close(found[there], whole.inputs[layer][there], **TOLERANCE)
        assert not found[~there].any()


@every_runner
@every_attention
@pytest.mark.parametrize("layout", [THREE, LAYOUTS["lookup at the first token"]], ids=["padded", "nothing before"])
def test_the_prefix_is_that_of_the_models_own_cache(name: str, attention: str, layout: Layout, runner: RunnerName):
    anatomy, prompts = find_anatomy(shared_model(name, attention)), layout.prompts
    recording = record(anatomy, prompts, run=1, keep=(1,))
    prefix = Pack.of(layout.chosen, torch.zeros_like(prompts.lookup), prompts.lookup)
    state = compute_prefix(recording, prefix, range(1, N_LAYERS), LayerRunner(anatomy, runner).run)
    assert list(state.held) == list(range(1, N_LAYERS))
    full = anatomy.model(input_ids=prompts.input_ids, attention_mask=prompts.attention_mask, use_cache=True)
    window = getattr(anatomy.model.config, "sliding_window", None)
    for layer, held in state.held.items():
        own = full.past_key_values.layers[layer]
        if window is not None and own.keys.shape[2] < prompts.input_ids.shape[1]:
            continue  # the model's own cache has dropped what slid out of sight
        for ours, theirs in zip(held, (own.keys, own.values), strict=True):
            expected = prefix.gather(theirs.transpose(1, 2))
            assert_all_close(by_prompt(ours.transpose(1, 2), prefix), by_prompt(expected, prefix))


@every_attention
@some_layouts
def test_the_gradient_of_the_changes_is_that_of_the_full_forward(name: str, attention: str, layout: Layout):
    anatomy, n = find_anatomy(shared_model(name, attention)), len(layout.lengths)
    words = torch.randint(VOCABULARY, (max(layout.lengths),), generator=torch.Generator().manual_seed(5))

    def gradient(rows_of: Callable[[Tensor], list[Tensor]]) -> Tensor:
        changes = (0.3 * random_changes(n)).requires_grad_()
        picked = [row.log_softmax(-1)[torch.arange(len(row)), words[: len(row)]].mean() for row in rows_of(changes)]
        (found,) = torch.autograd.grad(torch.stack(picked).sum(), changes)
        return found

    ours = gradient(lambda changes: suffix_logits(anatomy, layout.prompts, layout.chosen, 2, changes))
    theirs = gradient(lambda changes: full_logits(anatomy, layout, 2, changes))
    assert float(theirs.norm(dim=1).min()) > 1e-2
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("config", [CohereConfig, GraniteConfig])
def test_a_family_outside_the_table_is_run_by_its_own_arguments_too(config: type):
    model = model_of(config(**family("llama").settings), attention="sdpa").requires_grad_(False)
    anatomy, changes = find_anatomy(model), random_changes(6)
    found = suffix_logits(anatomy, THREE.prompts, THREE.chosen, 2, changes)
    assert_all_close(found, full_logits(anatomy, THREE, 2, changes))


# ---- prompts of one row do not know of each other


@every_attention
@pytest.mark.parametrize("stranger", [0, 1, 5], ids=["first", "middle", "last"])
def test_a_prompt_never_sees_another_one_in_its_row(name: str, attention: str, stranger: int):
    """Other tokens and another change of one prompt alter nothing but that prompt."""
    anatomy, prompts, changes = find_anatomy(shared_model(name, attention)), THREE.prompts, random_changes(6)
    ids, moved = prompts.input_ids.clone(), changes.clone()
    ids[stranger] = (ids[stranger] + 100) % VOCABULARY
    moved[stranger] *= -3
    other = dataclasses.replace(prompts, input_ids=ids)
    before = suffix_logits(anatomy, prompts, THREE.chosen, 2, changes)
    after = suffix_logits(anatomy, other, THREE.chosen, 2, moved)
    differences = [float((ours - theirs).abs().max()) for ours, theirs in zip(after, before, strict=True)]
    assert differences.pop(stranger) > 0.05
    assert max(differences) <= 1e-6


@every_attention
def test_no_gradient_flows_from_one_prompt_to_another(name: str, attention: str):
    anatomy, changes = find_anatomy(shared_model(name, attention)), random_changes(6).requires_grad_()
    second = suffix_logits(anatomy, THREE.prompts, THREE.chosen, 2, changes)[1]
    (gradient,) = torch.autograd.grad(second.square().sum(), changes)
    assert [bool(row.any()) for row in gradient] == [False, True, False, False, False, False]


@every_attention
def test_what_fills_the_padding_between_rows_changes_nothing(name: str, attention: str):
    anatomy = find_anatomy(shared_model(name, attention))
    suffixes = Suffixes.of(anatomy, THREE.prompts, THREE.chosen, 2)
    padding = ~suffixes.pack.grid.real
    assert padding.any()
    filled = dataclasses.replace(suffixes, start=suffixes.start + 10.0 * padding[:, :, None])
    plain, odd = (by_prompt(one.run(random_changes(6)), one.pack) for one in (suffixes, filled))
    assert all(float((ours - theirs).abs().max()) <= 1e-6 for ours, theirs in zip(odd, plain, strict=True))


@every_attention
@every_layout
def test_the_padding_is_finite_and_so_are_its_gradients(name: str, attention: str, layout: Layout):
    anatomy = find_anatomy(shared_model(name, attention))
    changes = random_changes(len(layout.lengths)).requires_grad_()
    hidden = Suffixes.of(anatomy, layout.prompts, layout.chosen, 2).run(changes)
    assert torch.isfinite(hidden).all()
    (gradient,) = torch.autograd.grad(hidden.sum(), changes)
    assert torch.isfinite(gradient).all()


@every_attention
def test_rows_of_a_pack_run_alone_give_what_they_gave_in_the_pack(name: str, attention: str):
    layout = Layout((5, 4, 5, 3, 5, 5), (2, 1, 4, 0, 2, 3), ((0, 1), (2, 3), (4, 5)))
    anatomy, prompts, layers = find_anatomy(shared_model(name, attention)), layout.prompts, range(2, N_LAYERS)
    recording = record(anatomy, prompts, run=2, keep=(2,))
    prefix = Pack.of(layout.chosen, torch.zeros_like(prompts.lookup), prompts.lookup)
    suffix = Pack.of(layout.chosen, prompts.lookup, prompts.lengths)
    state, start = compute_prefix(recording, prefix, layers, by_modules(anatomy)), suffix.gather(recording.inputs[2])
    whole = run_layers(anatomy, suffix.calls(recording, layers, state, prefix), start, 2, N_LAYERS - 1)
    rows = torch.tensor([2, 0])
    calls = take_rows(suffix.calls(recording, layers, state.take(rows), prefix), rows, 3)
    assert_all_close(list(run_layers(anatomy, calls, start[rows], 2, N_LAYERS - 1)), list(whole[rows]))


# ---- what it costs


@every_family
def test_only_the_asked_layers_and_positions_run(name: str):
    layout = LAYOUTS["lookup at the last token"]
    anatomy, prompts = find_anatomy(shared_model(name)), layout.prompts
    recording = record(anatomy, prompts, run=2, keep=(2,))
    pack = Pack.of(layout.chosen, prompts.lookup, prompts.lengths)
    start, calls = pack.gather(recording.inputs[2]), pack.calls(recording, range(2, 3))
    assert start.shape == (2, 2, HIDDEN)
    assert list(calls) == [2]
    projections = [anatomy.projection(layer) for layer in range(N_LAYERS)]
    assert count_runs(projections, lambda: run_layers(anatomy, calls, start, 2, 2)) == [0, 0, 1, 0]


@every_family
def test_a_pack_can_be_run_any_number_of_times(name: str):
    """Nothing is appended to the attention state of what comes before."""
    suffixes = Suffixes.of(find_anatomy(shared_model(name)), THREE.prompts, THREE.chosen, 1)
    assert torch.equal(suffixes.run(random_changes(6)), suffixes.run(random_changes(6)))


# ---- what cannot be packed


def recorded() -> tuple[Recording, Pack]:
    anatomy, prompts = find_anatomy(shared_model("llama")), THREE.prompts
    return record(anatomy, prompts, run=2, keep=(2,)), Pack.of(THREE.chosen, prompts.lookup, prompts.lengths)


def test_attention_without_a_plain_mask_is_refused_with_the_setting_that_helps():
    """Flash attention is handed the padding mask ``(n, length)`` itself, which says nothing of pairs of positions."""
    recording, pack = recorded()
    padding = recording.prompts.attention_mask
    calls = {layer: LayerCall({**call.kwargs, "attention_mask": padding}) for layer, call in recording.calls.items()}
    with pytest.raises(ModelError, match="plain mask") as caught:
        pack.calls(dataclasses.replace(recording, calls=calls), range(2, N_LAYERS))
    assert 'attn_implementation="sdpa"' in caught.value.hint


def test_layers_that_take_no_mask_are_refused():
    recording, pack = recorded()
    bare = {
        layer: LayerCall({key: value for key, value in call.kwargs.items() if key != "attention_mask"})
        for layer, call in recording.calls.items()
    }
    with pytest.raises(ModelError, match="no attention mask") as caught:
        pack.calls(dataclasses.replace(recording, calls=bare), range(2, N_LAYERS))
    assert caught.value.hint


@every_attention
def test_every_supported_family_passes_the_check(name: str, attention: str):
    check_replay(find_anatomy(shared_model(name, attention)))


def test_a_model_in_half_precision_passes_the_check():
    check_replay(find_anatomy(model_of(family("llama").config(**family("llama").settings)).bfloat16()))


@pytest.mark.real_model
def test_thirty_layers_of_rounding_to_half_precision_do_not_fail_the_check(smollm2: LanguageModel):
    check_replay(find_anatomy(copy.deepcopy(smollm2.model).bfloat16()))


@pytest.mark.parametrize("name", ["gpt-neo", "mpt", "bloom"])
def test_a_family_that_cannot_be_replayed_is_refused_by_its_class_when_the_editor_is_made(name: str):
    """Before statistics, which may take minutes, are collected."""
    model = model_of(OWN_MASKS[name]())
    with pytest.raises(ModelError, match=rf"layers of {type(model).__name__} cannot be run on a subset"):
        Editor.from_pretrained(model, tokenizer=tiny_tokenizer(), layers=(1,))


def test_whatever_layers_trip_over_is_the_same_refusal(monkeypatch: pytest.MonkeyPatch):
    for error in (IndexError("index 64"), TypeError("no argument"), AttributeError("no such part")):
        anatomy = find_anatomy(model_of(family("llama").config(**family("llama").settings)))

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(anatomy.layers[2], "forward", fail)
        with pytest.raises(ModelError, match="layers of LlamaForCausalLM cannot be run"):
            check_replay(anatomy)


def test_a_model_that_scales_its_logits_in_a_way_unknown_here_is_refused(monkeypatch: pytest.MonkeyPatch):
    model = model_of(family("llama").config(**family("llama").settings))
    forward = type(model).forward

    def scaled(self: LlamaForCausalLM, *args: object, **kwargs: object) -> object:
        output = forward(self, *args, **kwargs)
        output.logits = output.logits * 1.5
        return output

    monkeypatch.setattr(type(model), "forward", scaled)
    with pytest.raises(ModelError, match="logits of LlamaForCausalLM are not those of its norm and head"):
        check_replay(find_anatomy(model))


def test_a_model_without_finite_logits_is_refused_as_such():
    model = model_of(family("gpt2").config(**family("gpt2").settings))
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"logits of GPT2LMHeadModel are not finite in torch\.float32"):
        check_replay(find_anatomy(model))


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
    with contextlib.suppress(ModelError):  # wherever it is refused
        editor = Editor.from_pretrained(
            model_of(OWN_MASKS[name]()),
            tokenizer=tiny_tokenizer(),
            method="memit",
            statistics=Moments({1: torch.eye(4 * HIDDEN)}, n_tokens=1000),
            layers=(1,),
            context_templates=("{}", "She said. {}"),
            value_steps=1,
        )
        editor.edit(Fact("The mother tongue of {} is", "Danielle Darrieux", "English"))
        editor.reset()
        anatomy, changes = editor.language_model.anatomy, random_changes(6)
        found = suffix_logits(anatomy, THREE.prompts, THREE.chosen, 2, changes)
        assert_all_close(found, full_logits(anatomy, THREE, 2, changes))

"""The engine equals the official procedure with its settings given, and is all or nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from betaedit import Editor
from betaedit.editors import EditConfig
from betaedit.editors.closed_form import engine as engine_module
from betaedit.editors.closed_form.encode import encode_batch
from betaedit.editors.closed_form.keys import LayerWalk
from betaedit.editors.closed_form.values import optimize_values
from betaedit.errors import NumericalError
from betaedit.memory import Update
from betaedit.models import LanguageModel
from support.edits import CONTEXTS, FACTS, SETTINGS, editor_for, moments_for, relative, settings_of, unchanged, weights
from support.families import language_model
from support.procedure import compute_key, read_output
from support.procedure import edit as plain_edit


def assert_same_changes(
    ours: LanguageModel, reference: LanguageModel, before: dict[str, Tensor], tolerance: float = 1e-3
) -> None:
    """The edited matrices of both models moved alike from ``before``, and did move."""
    for layer in (1, 2):
        name = ours.anatomy.projection_path(layer) + ".weight"
        change, expected = (weights(model)[name] - before[name] for model in (ours, reference))
        assert expected.norm() > 0
        assert relative(change, expected) < tolerance


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-j", "qwen3"])
@pytest.mark.parametrize("look_ahead", [1, 3])
@pytest.mark.parametrize("lookup", ["subject_last", "last"])
def test_five_edits_leave_the_weights_of_the_official_procedure(family: str, look_ahead: int, lookup: str) -> None:
    """With a look-ahead, values are those of the weights before it; keys, residuals and writes follow one another."""
    ours, reference = language_model(family), language_model(family)
    editor = editor_for(ours, value_look_ahead=look_ahead, lookup=lookup)
    before = weights(ours)
    editor.edit(FACTS)
    plain_edit(
        reference.model,
        reference.tokenizer,
        FACTS,
        moments_for(ours).matrices,
        settings_of(reference, editor.config),
        tau=2,
        look_ahead=look_ahead,
    )
    assert_same_changes(ours, reference, before)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_blue_seeks_a_value_for_each_layer_under_the_layers_before_it(family: str) -> None:
    """methods.md B.10: the residual is not divided, and the second layer corrects what the first one left."""
    ours, reference = language_model(family), language_model(family)
    editor = editor_for(ours, value_per_layer=True)
    before = weights(ours)
    results = editor.edit(FACTS[:3])
    settings = settings_of(reference, editor.config)
    moments = moments_for(ours).matrices
    plain_edit(reference.model, reference.tokenizer, FACTS[:3], moments, settings, tau=2, per_layer=True)
    assert_same_changes(ours, reference, before)
    alone = editor_for(language_model(family), layers=(1,)).edit(FACTS[0])[0].figures["evaluations"]
    assert results[0].figures["evaluations"] > alone, "those of both searches count"


def test_blue_in_one_layer_is_the_usual_search() -> None:
    ours, usual = language_model("llama"), language_model("llama")
    editor_for(ours, layers=(2,), value_per_layer=True).edit(FACTS[:2])
    editor_for(usual, layers=(2,)).edit(FACTS[:2])
    assert unchanged(weights(ours), weights(usual))


# ---- the walk through the layers


class _Mirror:
    """Two models that start alike: one walks, the other makes whole forward passes under the same weights."""

    def __init__(self, family: str) -> None:
        self.walked, self.reference = language_model(family), language_model(family)
        self.config = EditConfig(**{**SETTINGS, "layers": (0, 1, 3)})  # type: ignore[arg-type]
        encoded = encode_batch(self.walked, FACTS, CONTEXTS, self.config)
        self.walk = LayerWalk(self.walked, encoded, range(len(FACTS)), self.config)

    def reference_keys(self, layer: int) -> list[Tensor]:
        model = self.reference
        settings = settings_of(model, self.config)
        return [compute_key(model.model, model.tokenizer, fact, settings, layer) for fact in FACTS]

    def reference_outputs(self) -> list[Tensor]:
        model = self.reference
        return [read_output(model.model, model.tokenizer, fact, settings_of(model, self.config)) for fact in FACTS]

    def change_both(self, layer: int) -> None:
        """An update of about a third of the weight, which no key could overlook."""
        for model in (self.walked, self.reference):
            weight = model.anatomy.projection(layer).weight
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(layer))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-j", "gpt-neox", "gemma3", "mistral"])
def test_keys_and_outputs_of_the_walk_are_those_of_whole_forward_passes_after_the_lower_layers_were_written(
    family: str,
) -> None:
    mirror = _Mirror(family)
    for layer in mirror.config.layers:

        def write(keys: Tensor, outputs: Tensor, layer: int = layer) -> None:
            for column, expected in enumerate(mirror.reference_keys(layer)):
                assert relative(keys[:, column], expected) < 1e-5
            for column, expected in enumerate(mirror.reference_outputs()):
                assert relative(outputs[:, column], expected) < 1e-5
            mirror.change_both(layer)

        before = mirror.reference_keys(3)
        mirror.walk.pass_layer(layer, write)
        assert layer == 3 or relative(mirror.reference_keys(3)[0], before[0]) > 1e-2


def test_some_of_the_posed_facts_walk_without_the_others() -> None:
    model = language_model("llama")
    config = EditConfig(**SETTINGS)  # type: ignore[arg-type]
    encoded = encode_batch(model, FACTS, CONTEXTS, config)
    found: list[Tensor] = []
    LayerWalk(model, encoded, range(2, 4), config).pass_layer(1, lambda keys, _: found.append(keys))
    for column, fact in enumerate(FACTS[2:4]):
        expected = compute_key(model.model, model.tokenizer, fact, settings_of(model, config), 1)
        assert relative(found[0][:, column], expected) < 1e-5


def test_each_edited_layer_runs_once_for_all_prompts_of_a_batch_and_the_last_not_to_its_end() -> None:
    model = language_model("llama")
    config = EditConfig(**{**SETTINGS, "layers": (1, 2, 3)})  # type: ignore[arg-type]
    encoded = encode_batch(model, FACTS, CONTEXTS, config)
    walk = LayerWalk(model, encoded, range(len(FACTS)), config)
    begun: list[tuple[int, int]] = []
    ended: list[tuple[int, int]] = []
    handles = []
    for layer in range(4):
        module = model.anatomy.layers[layer]

        def before(_: nn.Module, args: tuple[Any, ...], layer: int = layer) -> None:
            begun.append((layer, args[0].shape[1]))

        def after(_: nn.Module, args: tuple[Any, ...], __: Any, layer: int = layer) -> None:
            ended.append((layer, args[0].shape[1]))

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    for layer in config.layers:
        walk.pass_layer(layer, lambda *_: None)
    for handle in handles:
        handle.remove()
    sizes = (encoded.lookup + 1)[encoded.prompts(range(len(FACTS)))[:, :-1]]
    all_prompts, bare_ones = int(sizes.sum(dim=1).max()), int(sizes[:, 0].max())
    assert [layer for layer, width in begun if width == all_prompts] == [1, 2, 3]
    assert [layer for layer, width in ended if width == all_prompts] == [1, 2]
    assert [layer for layer, width in begun if width == bare_ones] == [1, 2, 3, 2, 3, 3]
    assert {width for _, width in begun} == {all_prompts, bare_ones}


def test_the_walk_leaves_no_hooks_behind_even_when_writing_fails() -> None:
    model = language_model("gpt2")
    config = EditConfig(**SETTINGS)  # type: ignore[arg-type]
    walk = LayerWalk(model, encode_batch(model, FACTS, CONTEXTS, config), range(5), config)

    def refuse(*_: Tensor) -> None:
        raise NumericalError("no")

    walk.pass_layer(1, lambda *_: None)
    with pytest.raises(NumericalError):
        walk.pass_layer(2, refuse)
    assert not any(model.anatomy.projection(layer)._forward_pre_hooks for layer in range(4))


def test_the_bare_prompt_weighs_as_much_as_all_contexts_together() -> None:
    model = language_model("llama")
    config = EditConfig(**SETTINGS)  # type: ignore[arg-type]
    assert encode_batch(model, FACTS[:1], CONTEXTS, config).key_weights(0).tolist() == [[0.5, 0.25, 0.25]]
    assert encode_batch(model, FACTS[:1], CONTEXTS[:1], config).key_weights(0).tolist() == [[1.0]]


# ---- all or nothing


def test_an_update_that_is_too_long_leaves_every_weight_as_it_was() -> None:
    model = language_model("llama")
    free = editor_for(model)
    norms = free.edit(FACTS[0])[0].figures["update_norms"]
    free.reset()
    between = (min(norms.values()) + max(norms.values())) / 2
    before = weights(model)
    with pytest.raises(NumericalError, match="over the limit"):
        editor_for(model, update_norm_limit=between).edit(FACTS[0])
    assert unchanged(before, weights(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_failure_at_a_later_layer_undoes_the_layers_below_it(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = language_model("llama")
    model.model.to(dtype)
    editor = editor_for(model, layers=(0, 1, 2))
    editor.prepare()
    before = weights(model)
    written: list[bool] = []

    def refuse(*_: object) -> None:
        written.append(not unchanged(before, weights(model)))
        raise NumericalError("no")

    monkeypatch.setattr(editor.editing.engine.memories[2], "solve", refuse)
    with pytest.raises(NumericalError):
        editor.edit(FACTS[:3], batch_size=3)
    assert written == [True], "the lower layers had been written"
    assert unchanged(before, weights(model))
    assert [memory.n_written for memory in editor.editing.engine.memories.values()] == [0, 0, 0]
    assert editor.results == []


def test_a_failure_undoes_its_own_batch_and_leaves_those_before_it_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one look-ahead as well."""
    model = language_model("llama")
    editor = editor_for(model, value_look_ahead=3)
    after_first: list[dict[str, Tensor]] = []
    memory = editor.editing.engine.memories[2]
    solve = memory.solve

    def refuse_the_second(*args: Any) -> Update:
        if memory.n_written == 2:
            raise NumericalError("no")
        return solve(*args)

    monkeypatch.setattr(memory, "solve", refuse_the_second)
    with pytest.raises(NumericalError):
        editor.edit(FACTS, batch_size=2, on_edit=lambda _: after_first.append(weights(model)))
    assert [result.fact for result in editor.results] == FACTS[:2]
    assert unchanged(after_first[-1], weights(model))
    assert {memory.n_written for memory in editor.editing.engine.memories.values()} == {2}


class Interrupted:
    """A method that is interrupted the first time it is called, after ``done`` calls went well."""

    def __init__(self, method: Callable[..., Any], done: int = 0) -> None:
        self.method, self.left = method, done

    def __call__(self, *args: Any) -> Any:
        self.left -= 1
        if self.left == -1:
            raise KeyboardInterrupt
        return self.method(*args)


def edited_again_after_an_interrupt(editor: Editor, n_written: int) -> None:
    """The interrupt leaves the facts before it written and the weights of that moment; then the others are written."""
    model, states = editor.language_model, [weights(editor.language_model)]
    with pytest.raises(KeyboardInterrupt):
        editor.edit(FACTS, on_edit=lambda _: states.append(weights(model)))
    assert [result.fact for result in editor.results] == FACTS[:n_written]
    assert unchanged(states[n_written], weights(model))
    assert {memory.n_written for memory in editor.editing.engine.memories.values()} == {n_written}
    editor.edit(FACTS[n_written:])


@pytest.mark.parametrize(
    ("method", "what"),
    [
        *itertools.product(
            ["betaedit", "memit-r", "simie-aligned"], ["the first memory", "the last memory", "the live facts"]
        ),
        ("simie-aligned", "an operator"),
    ],
)
def test_what_fails_when_a_batch_is_remembered_undoes_the_batch_and_writing_goes_on_as_if_nothing_had_been(
    method: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, model = language_model("llama"), language_model("llama")
    editor_for(undisturbed, method).edit(FACTS)
    editor = editor_for(model, method)
    engine = editor.editing.engine
    if what == "the live facts":
        monkeypatch.setattr(engine_module, "LiveFact", Interrupted(engine_module.LiveFact, done=3))
    elif what == "an operator":
        monkeypatch.setattr(engine.postprocessors[2], "settle", Interrupted(engine.postprocessors[2].settle, done=3))
    else:
        memory = engine.memories[1 if what == "the first memory" else 2]
        monkeypatch.setattr(memory, "carry", Interrupted(memory.carry, done=3))
    edited_again_after_an_interrupt(editor, 3)
    assert unchanged(weights(undisturbed), weights(model))


@pytest.mark.parametrize("refresh_every", [2, 1000])
def test_a_fold_that_fails_leaves_the_batch_before_it_written_and_the_next_one_not_begun(
    refresh_every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, model = language_model("llama"), language_model("llama")
    editors = [editor_for(each, refresh_every=refresh_every) for each in (undisturbed, model)]
    for editor in editors:
        for memory in editor.editing.engine.memories.values():
            monkeypatch.setattr(memory, "fold_after", 2)
    last = editors[1].editing.engine.memories[2]
    monkeypatch.setattr(last, "fold", Interrupted(last.fold))
    editors[0].edit(FACTS)
    edited_again_after_an_interrupt(editors[1], 2)
    assert unchanged(weights(undisturbed), weights(model))


# ---- batches and look-ahead


def test_a_look_ahead_of_one_is_no_look_ahead() -> None:
    plain, stated = language_model("llama"), language_model("llama")
    editor_for(plain).edit(FACTS)
    editor_for(stated, value_look_ahead=1).edit(FACTS)
    assert unchanged(weights(plain), weights(stated))


def test_a_look_ahead_changes_the_weights_from_its_second_fact_on() -> None:
    ahead, step_by_step = language_model("llama"), language_model("llama")
    seen: dict[str, list[dict[str, Tensor]]] = {"ahead": [], "step by step": []}
    editor_for(ahead, value_look_ahead=2).edit(FACTS[:2], on_edit=lambda _: seen["ahead"].append(weights(ahead)))
    editor_for(step_by_step).edit(FACTS[:2], on_edit=lambda _: seen["step by step"].append(weights(step_by_step)))
    name = ahead.anatomy.projection_path(1) + ".weight"
    first, second = ([seen[kind][at][name] for kind in seen] for at in (0, 1))
    assert relative(*first) < 1e-5
    assert relative(*second) > 1e-5


def test_the_values_of_a_look_ahead_are_those_of_the_weights_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, untouched = language_model("llama"), language_model("llama")
    editor = editor_for(model, value_look_ahead=4)
    found: list[Tensor] = []
    write_values = editor.editing.engine._write_values

    def listen(encoded: Any, batch: range, values: list[Any], config: EditConfig) -> Any:
        found.extend(value.target for value in values)
        return write_values(encoded, batch, values, config)

    monkeypatch.setattr(editor.editing.engine, "_write_values", listen)
    editor.edit(FACTS[:4])
    for fact, target in zip(FACTS[:4], found, strict=True):
        (value,) = optimize_values(untouched, encode_batch(untouched, [fact], CONTEXTS, editor.config), editor.config)
        assert relative(target, value.target) < 1e-5


def test_results_arrive_batch_by_batch_as_they_are_written() -> None:
    model = language_model("llama")
    engine = editor_for(model).editing.engine
    states, arrived = [weights(model)], []
    for batch in engine.write(FACTS, batch_size=2):
        arrived.append([result.fact for result in batch.results])
        states.append(weights(model))
        assert {memory.n_written for memory in engine.memories.values()} == {sum(map(len, arrived))}
    assert arrived == [FACTS[:2], FACTS[2:4], FACTS[4:]]
    assert not any(unchanged(before, after) for before, after in itertools.pairwise(states))


def test_nothing_is_written_before_the_first_results_are_asked_for() -> None:
    model = language_model("llama")
    engine = editor_for(model).editing.engine
    before = weights(model)
    engine.write(FACTS)
    assert unchanged(before, weights(model))


@pytest.mark.parametrize("family", ["llama", "gpt-j"])
def test_keys_computed_again_after_the_write_are_those_solved_with(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = language_model(family)
    editor = editor_for(model)
    remembered: dict[int, Tensor] = {}
    for layer, memory in editor.editing.engine.memories.items():
        monkeypatch.setattr(memory, "carry", lambda keys, layer=layer: remembered.update({layer: keys}))
    editor.edit(FACTS, batch_size=len(FACTS))
    walk = LayerWalk(model, encode_batch(model, FACTS, CONTEXTS, editor.config), range(len(FACTS)), editor.config)
    for layer in editor.config.layers:
        again: list[Tensor] = []
        walk.pass_layer(layer, lambda keys, _, again=again: again.append(keys))
        assert relative(again[0], remembered[layer]) < 1e-6


def test_a_batch_is_solved_together_and_differs_from_one_after_another() -> None:
    together, apart = language_model("llama"), language_model("llama")
    editor_for(together).edit(FACTS, batch_size=5)
    editor_for(apart).edit(FACTS, batch_size=1)
    name = together.anatomy.projection_path(1) + ".weight"
    assert not torch.equal(weights(together)[name], weights(apart)[name])


def test_the_same_settings_give_the_same_weights_bit_for_bit() -> None:
    first, second = language_model("llama"), language_model("llama")
    for model in (first, second):
        editor_for(model).edit(FACTS)
    assert unchanged(weights(first), weights(second))


def test_the_projector_is_refreshed_when_it_is_due() -> None:
    editor: Editor = editor_for(language_model("llama"), refresh_every=2)
    editor.edit(FACTS)
    assert {memory.last_refresh for memory in editor.editing.engine.memories.values()} == {4}


def test_facts_can_be_keyed_at_the_last_token() -> None:
    last, subject = language_model("llama"), language_model("llama")
    editor_for(last, lookup="last").edit(FACTS[0])
    editor_for(subject).edit(FACTS[0])
    name = last.anatomy.projection_path(1) + ".weight"
    assert not torch.equal(weights(last)[name], weights(subject)[name])

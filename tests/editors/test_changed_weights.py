"""An edit reaches the weights that the model computes with, whatever was done to it since, or is refused."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from betaedit import Editor
from betaedit.editors.closed_form.encode import encode_batch
from betaedit.editors.closed_form.values import optimize_values
from betaedit.errors import ModelError, WeightsChangedError
from betaedit.ledger.export_adapter import truncated
from betaedit.memory import Update
from betaedit.models import LanguageModel
from support.edits import CONTEXTS, FACTS, editor_for, unchanged, weights
from support.families import language_model

FAMILIES = pytest.mark.parametrize("family", ["llama", "gpt2"])


def projection(editor: Editor, layer: int = 2) -> nn.Module:
    return editor.language_model.anatomy.projection(layer)


def converted(*dtypes: torch.dtype) -> Callable[[Editor], Editor]:
    def change(editor: Editor) -> Editor:
        for dtype in dtypes:
            editor.model.to(dtype)
        return editor

    return change


def given_a_new_parameter(editor: Editor) -> Editor:
    projection(editor).weight = nn.Parameter(projection(editor).weight.detach().clone())
    return editor


def given_other_data(editor: Editor) -> Editor:
    projection(editor).weight.data = projection(editor).weight.detach().clone()
    return editor


def loaded_again(editor: Editor) -> Editor:
    editor.model.load_state_dict(copy.deepcopy(editor.model.state_dict()))
    return editor


def tied_again(editor: Editor) -> Editor:
    editor.model.tie_weights()
    return editor


HARMLESS: dict[str, Callable[[Editor], Editor]] = {
    "nothing": lambda editor: editor,
    "bfloat16": converted(torch.bfloat16),
    "float64": converted(torch.float64),
    "bfloat16 and back": converted(torch.bfloat16, torch.float32),
    "float16 and back": converted(torch.float16, torch.float32),
    "a new parameter": given_a_new_parameter,
    "other data": given_other_data,
    "loaded again": loaded_again,
    "tied again": tied_again,
    "a deep copy": copy.deepcopy,
    "a pickle": lambda editor: pickle.loads(pickle.dumps(editor)),
}
HARMLESSLY = pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS.keys())


def added_to(editor: Editor) -> None:
    with torch.no_grad():
        projection(editor).weight.add_(0.01)


def one_entry_added_to(editor: Editor) -> None:
    with torch.no_grad():
        projection(editor).weight[5, 7] += 1.0


def trained(editor: Editor) -> None:
    editor.model.requires_grad_(True)
    optimizer = torch.optim.SGD(editor.model.parameters(), lr=0.1)
    editor.model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits.square().mean().backward()
    optimizer.step()
    editor.model.requires_grad_(False)


def loaded_from_another_model(editor: Editor) -> None:
    state = {name: weight + 0.1 for name, weight in editor.model.state_dict().items()}
    editor.model.load_state_dict(state)


def given_another_parameter(editor: Editor) -> None:
    projection(editor).weight = nn.Parameter(projection(editor).weight.detach() * 2, requires_grad=False)


def changed_through_data(editor: Editor) -> None:
    projection(editor).weight.data.mul_(1.001)


def a_row_changed_through_data(editor: Editor) -> None:
    projection(editor).weight.data[9] += 0.1


def a_column_changed_through_data(editor: Editor) -> None:
    projection(editor).weight.data[:, 30] += 0.1


def data_transposed_and_back_changed(editor: Editor) -> None:
    weight = projection(editor).weight
    weight.data = (weight.data.t().contiguous() * 1.5).t()


def layer_replaced(editor: Editor) -> None:
    editor.language_model.anatomy.layers[2] = copy.deepcopy(editor.language_model.anatomy.layers[2])


def module_wrapped(editor: Editor) -> None:
    path = editor.language_model.anatomy.projection_path(2)
    parent, _, name = path.rpartition(".")
    setattr(editor.model.get_submodule(parent), name, nn.Sequential(projection(editor)))


def parametrized(editor: Editor) -> None:
    nn.utils.parametrize.register_parametrization(projection(editor), "weight", nn.Identity())


FOREIGN: dict[str, Callable[[Editor], None]] = {
    "added to": added_to,
    "one entry added to": one_entry_added_to,
    "trained": trained,
    "loaded": loaded_from_another_model,
    "another parameter": given_another_parameter,
    "through data": changed_through_data,
    "a row through data": a_row_changed_through_data,
    "a column through data": a_column_changed_through_data,
    "other strides": data_transposed_and_back_changed,
    "layer replaced": layer_replaced,
    "module wrapped": module_wrapped,
    "parametrized": parametrized,
}


def holds_what_was_written(editor: Editor) -> bool:
    """Whether the parameters that the model has now are the rounded sums of original and change."""
    found = []
    for layer, matrix in editor.editing.engine.matrices.items():
        weight = projection(editor, layer).weight
        written = (matrix.original() + matrix.change()).to(weight.dtype)
        transposed = type(projection(editor, layer)).__name__ == "Conv1D"
        found.append(torch.equal(weight.T if transposed else weight, written))
    return all(found)


@FAMILIES
@HARMLESSLY
def test_an_edit_after_a_harmless_change_is_in_the_weights_that_the_model_has_then(
    family: str, change: Callable[[Editor], Editor]
) -> None:
    editor = editor_for(language_model(family))
    editor.edit(FACTS[0])
    editor = change(editor)
    before = weights(editor.language_model)
    (result,) = editor.edit(FACTS[1])
    assert not unchanged(before, weights(editor.language_model))
    assert holds_what_was_written(editor)
    assert [held.fact for held in editor.results] == FACTS[:2]
    assert editor.results[1] is result


@HARMLESSLY
def test_forgetting_and_reset_after_a_harmless_change_reach_the_weights_that_the_model_has_then(
    change: Callable[[Editor], Editor],
) -> None:
    model = language_model("llama")
    start = weights(model)
    editor = editor_for(model)
    editor.edit(FACTS[:2])
    editor = change(editor)
    editor.forget(FACTS[0].subject)
    assert holds_what_was_written(editor)
    editor.reset()
    for layer in (1, 2):
        weight = projection(editor, layer).weight
        name = f"{editor.language_model.anatomy.projection_path(layer)}.weight"
        assert torch.equal(weight, start[name].to(weight.dtype))


@HARMLESSLY
def test_what_is_saved_after_a_harmless_change_is_the_model(change: Callable[[Editor], Editor], tmp_path: Path) -> None:
    editor = editor_for(language_model("llama"))
    editor.edit(FACTS[0])
    editor = change(editor)
    before = weights(editor.language_model)
    editor.save_pretrained(tmp_path / "saved")
    assert unchanged(before, weights(editor.language_model))


@FAMILIES
@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN.keys())
def test_whatever_an_editor_is_told_is_refused_when_somebody_else_changed_its_weights_and_they_stay(
    family: str, change: Callable[[Editor], None], tmp_path: Path
) -> None:
    editor = editor_for(language_model(family))
    (batch,) = editor.write(FACTS[0])
    change(editor)
    before = weights(editor.language_model)
    for told in (
        lambda: editor.edit(FACTS[1]),
        lambda: editor.forget(FACTS[0].subject),
        lambda: editor.replay(batch),
        editor.editing.engine.rewrite,
        editor.reset,
    ):
        with pytest.raises(WeightsChangedError, match=r"weight (was changed|no longer belongs) .* make a new Editor"):
            told()
    with pytest.raises(ModelError):
        editor.save_pretrained(tmp_path / "saved")
    assert unchanged(before, weights(editor.language_model))
    assert [result.fact for result in editor.results] == FACTS[:1]
    assert not (tmp_path / "saved").exists()


def test_after_somebody_else_changed_the_weights_a_new_editor_goes_on_from_them() -> None:
    model = language_model("llama")
    old = editor_for(model)
    old.edit(FACTS[0])
    added_to(old)
    new = editor_for(model)
    new.edit(FACTS[1])
    assert holds_what_was_written(new)
    with pytest.raises(WeightsChangedError):
        old.edit(FACTS[2])
    assert holds_what_was_written(new)


def test_reset_takes_up_original_weights_that_were_loaded_and_editing_goes_on_from_there() -> None:
    model = language_model("llama")
    start = copy.deepcopy(model.model.state_dict())
    editor = editor_for(model)
    editor.edit(FACTS[0])
    model.model.load_state_dict(start)
    with pytest.raises(WeightsChangedError, match=r"call reset\(\)"):
        editor.edit(FACTS[1])
    editor.reset()
    assert unchanged(start, weights(model))
    editor.edit(FACTS[1])
    assert holds_what_was_written(editor)


def test_weights_without_their_numbers_are_refused() -> None:
    editor = editor_for(language_model("llama"))
    editor.edit(FACTS[0])
    editor.model.to("meta")
    for told in (lambda: editor.edit(FACTS[1]), editor.reset):
        with pytest.raises(WeightsChangedError):
            told()


def test_a_model_that_was_moved_is_not_edited_from_afar_but_can_be_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one device here, so the editor is told that what it keeps is on another."""
    editor = editor_for(language_model("llama"))
    start = weights(editor.language_model)
    editor.edit(FACTS[0])
    for matrix in editor.editing.engine.matrices.values():
        monkeypatch.setattr(type(matrix), "device", torch.device("cuda", 0))
    with pytest.raises(WeightsChangedError, match=r"layer 1 is on cpu now, .* is on cuda:0\. Move the model back"):
        editor.edit(FACTS[1])
    editor.editing.engine.restore()
    assert unchanged(start, weights(editor.language_model))


def test_a_model_in_training_mode_is_refused_before_anything_changes() -> None:
    editor = editor_for(language_model("gpt2"))
    before = weights(editor.language_model)
    editor.model.train()  # GPT-2 has dropout
    with pytest.raises(ModelError, match=r"model\.eval\(\)"):
        editor.edit(FACTS[0])
    assert unchanged(before, weights(editor.language_model))
    editor.model.eval()
    editor.edit(FACTS[0])


def other_layers_trained(model: LanguageModel) -> None:
    with torch.no_grad():
        for layer in (0, 3):
            model.anatomy.projection(layer).weight.mul_(1.5)
        for weight in model.anatomy.layers[2].parameters():
            if weight is not model.anatomy.projection(2).weight:
                weight.mul_(1.1)


def other_parameters_replaced(model: LanguageModel) -> None:
    for layer in (0, 3):
        module = model.anatomy.projection(layer)
        module.weight = nn.Parameter(module.weight * 1.5, requires_grad=False)


def embedding_resized(model: LanguageModel) -> None:
    torch.manual_seed(0)
    model.model.resize_token_embeddings(model.model.config.vocab_size + 40, mean_resizing=False)


def head_replaced(model: LanguageModel) -> None:
    head = copy.deepcopy(model.model.get_output_embeddings())
    head.weight = nn.Parameter(head.weight * 2, requires_grad=False)
    model.model.set_output_embeddings(head)


def tied(model: LanguageModel) -> None:
    model.model.config.tie_word_embeddings = True
    model.model.tie_weights()
    with torch.no_grad():
        model.model.get_input_embeddings().weight.mul_(1.2)


def in_double_precision(model: LanguageModel) -> None:
    model.model.to(torch.float64)


def norm_replaced(model: LanguageModel) -> None:
    parent, _, name = model.anatomy.norm_path.rpartition(".")
    norm = copy.deepcopy(model.anatomy.norm)
    norm.weight = nn.Parameter(norm.weight * 3, requires_grad=False)
    setattr(model.model.get_submodule(parent), name, norm)


@FAMILIES
@pytest.mark.parametrize(
    "change",
    [
        other_layers_trained,
        other_parameters_replaced,
        embedding_resized,
        head_replaced,
        tied,
        in_double_precision,
        norm_replaced,
    ],
)
def test_the_probability_that_is_reported_is_that_of_the_model_as_it_is_then(
    family: str, change: Callable[[LanguageModel], None]
) -> None:
    model = language_model(family)
    editor = editor_for(model)
    editor.edit(FACTS[0])
    unchanged_model = copy.deepcopy(model)
    change(model)
    fresh = copy.deepcopy(model)
    fresh = LanguageModel.wrap(fresh.model, fresh.tokenizer)
    (result,) = editor.edit(FACTS[1])

    def sought(model: LanguageModel) -> float:
        (value,) = optimize_values(model, encode_batch(model, FACTS[1:2], CONTEXTS, editor.config), editor.config)
        return value.target_probability

    assert result.figures["sought_probability"] == pytest.approx(sought(fresh), rel=1e-5)
    assert result.figures["sought_probability"] != pytest.approx(sought(unchanged_model), rel=1e-9)


@pytest.mark.parametrize(
    "change",
    [other_layers_trained, other_parameters_replaced, embedding_resized, in_double_precision],
)
def test_a_change_between_facts_whose_values_are_searched_together_is_noticed(
    change: Callable[[LanguageModel], None],
) -> None:
    model = language_model("llama")
    editor = editor_for(model, value_look_ahead=3)
    batches = editor.write(FACTS[:3])
    next(batches)
    change(model)
    before = weights(model)
    with pytest.raises(WeightsChangedError, match="searched together"):
        next(batches)
    assert unchanged(before, weights(model))
    assert [result.fact for result in editor.results] == FACTS[:1]
    editor.edit(FACTS[1:3])
    assert holds_what_was_written(editor)


def test_looking_at_the_unedited_model_between_facts_sought_together_is_no_change() -> None:
    editor = editor_for(language_model("llama"), value_look_ahead=3)
    for _ in editor.write(FACTS[:3]):
        with editor.editing.engine.unedited():
            editor.complete("The long bridge is in")
    assert len(editor.results) == 3


def test_what_replaces_the_weights_while_a_fact_is_written_undoes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    editor = editor_for(language_model("llama"))
    engine = editor.editing.engine
    before = {layer: matrix.snapshot() for layer, matrix in engine.matrices.items()}
    remember = engine._update_memories

    def replacing(*args: object) -> None:
        remember(*args)
        given_another_parameter(editor)

    monkeypatch.setattr(engine, "_update_memories", replacing)
    with pytest.raises(WeightsChangedError):
        editor.edit(FACTS[0])
    assert editor.results == []
    assert torch.equal(engine.matrices[1].change(), before[1].change)


def test_a_second_editor_of_a_model_is_refused_while_the_first_holds_edits() -> None:
    model = language_model("llama")
    one, early = editor_for(model), editor_for(model)
    one.edit(FACTS[0])
    before = weights(model)
    for second in (lambda: editor_for(model), lambda: early.edit(FACTS[1]), lambda: editor_for(rewrapped(model))):
        with pytest.raises(ModelError, match="the model holds the edits of another editor"):
            second()
    assert unchanged(before, weights(model))
    one.edit(FACTS[1])
    assert holds_what_was_written(one)


def rewrapped(model: LanguageModel) -> LanguageModel:
    return LanguageModel.wrap(model.model, model.tokenizer)


def test_of_two_editors_that_were_made_ready_on_the_unedited_model_the_second_to_write_is_refused() -> None:
    model = language_model("llama")
    one, two = editor_for(model), editor_for(model)
    one.prepare()
    two.prepare()
    one.edit(FACTS[0])
    before = weights(model)
    for told in (lambda: two.edit(FACTS[1]), lambda: two.save_pretrained("nowhere")):
        with pytest.raises(WeightsChangedError, match="another editor"):
            told()
    assert unchanged(before, weights(model))
    one.reset()
    two.edit(FACTS[1])
    assert holds_what_was_written(two)
    with pytest.raises(WeightsChangedError, match="another editor"):
        one.edit(FACTS[2])


def test_editors_of_other_layers_of_one_model_both_hold() -> None:
    model = language_model("llama")
    one, two = editor_for(model), editor_for(model, layers=(3,))
    one.edit(FACTS[0])
    two.edit(FACTS[1])
    one.edit(FACTS[2])
    assert holds_what_was_written(one)
    assert holds_what_was_written(two)


@pytest.mark.parametrize("end", ["reset", "forgotten by the program"])
def test_an_editor_that_was_reset_or_is_gone_leaves_the_model_to_the_next(end: str) -> None:
    model = language_model("llama")
    one = editor_for(model)
    one.edit(FACTS[0])
    if end == "reset":
        one.reset()
    else:
        del one
        gc.collect()
    two = editor_for(model)
    two.edit(FACTS[1])
    assert holds_what_was_written(two)


def test_a_copy_of_a_model_is_free_and_a_copy_of_an_editor_holds_its_own() -> None:
    model = language_model("llama")
    one = editor_for(model)
    one.edit(FACTS[0])
    editor_for(copy.deepcopy(model)).edit(FACTS[1])
    for copied in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        with pytest.raises(ModelError, match="holds the edits of another editor"):
            editor_for(copied.language_model)
        before = weights(model)
        copied.edit(FACTS[2])
        assert holds_what_was_written(copied)
        assert unchanged(before, weights(model))


def test_a_change_that_is_truncated_for_a_while_leaves_the_model_to_its_editor() -> None:
    model = language_model("llama")
    editor = editor_for(model)
    editor.edit(FACTS[0])
    changes = {layer: matrix.change().clone() for layer, matrix in editor.editing.engine.matrices.items()}
    nothing = {
        layer: Update(torch.zeros(change.shape[0], 1), torch.zeros(change.shape[1], 1))
        for layer, change in changes.items()
    }
    with truncated(model, changes, nothing):
        pass
    with pytest.raises(ModelError, match="another editor"):
        editor_for(model)
    editor.edit(FACTS[1])
    assert holds_what_was_written(editor)

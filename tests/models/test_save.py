"""What is saved is what is in memory, or is refused; it is read back with plain transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM, PreTrainedModel

from betaedit import Editor
from betaedit.errors import ModelError, OutputError
from support.edits import FACTS, editor_for, unchanged, weights
from support.families import FAMILY_NAMES, language_model
from support.room import room_for
from support.tiny import tiny_gpt2, tiny_llama


def edited(model=None) -> Editor:
    editor = editor_for(model or tiny_llama())
    editor.edit(FACTS[0])
    return editor


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_model_of_every_family_is_saved_as_it_is_in_memory(family: str, tmp_path: Path) -> None:
    model = language_model(family)
    projection = model.anatomy.projection(1)
    with torch.no_grad():
        projection.weight += 1
    folder = Editor(model, config=editor_for(tiny_llama()).config).save_pretrained(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert unchanged(weights(model), loaded.state_dict())


def test_files_of_several_parts_are_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = PreTrainedModel.save_pretrained
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", lambda *given: save(*given, max_shard_size="20KB"))
    editor = edited(tiny_gpt2())
    editor.save_pretrained(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert unchanged(weights(editor.language_model), loaded.state_dict())


def test_a_tokenizer_that_finds_no_room_is_told_like_any_file(tmp_path: Path) -> None:
    editor = edited()
    words = len(editor.tokenizer)
    editor.tokenizer.add_tokens([f"new-{number}" for number in range(3000)])  # its file is the largest by far
    weights_size = sum(weight.nbytes for weight in editor.model.state_dict().values())
    assert len(editor.tokenizer) > words
    with (
        room_for(weights_size + 50_000),
        pytest.raises(OutputError, match=r"out cannot be written: .*File too large"),
    ):
        editor.save_pretrained(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def lora() -> object:
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")


def adapter_of_transformers(model: PreTrainedModel) -> None:
    model.add_adapter(lora())


def adapter_of_peft(model: PreTrainedModel) -> None:
    pytest.importorskip("peft").get_peft_model(model, lora())


def adapter_on_the_edited_matrix(model: PreTrainedModel) -> None:
    peft = pytest.importorskip("peft")
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["down_proj"], task_type="CAUSAL_LM"))


def parametrization(model: PreTrainedModel) -> None:
    parametrize.register_parametrization(model.model.layers[0].mlp.down_proj, "weight", torch.nn.Identity())


@pytest.mark.parametrize(
    "attach", [adapter_of_transformers, adapter_of_peft, adapter_on_the_edited_matrix, parametrization]
)
def test_what_was_attached_after_the_edits_is_refused_with_nothing_written(
    attach: Callable[[PreTrainedModel], None], tmp_path: Path
) -> None:
    editor = edited()
    attach(editor.model)
    with pytest.raises(ModelError, match="not in its configuration") as refused:
        editor.save_pretrained(tmp_path / "new" / "out")
    assert "remove the adapter" in refused.value.hint
    assert not list(tmp_path.iterdir())


def test_an_adapter_that_was_taken_off_again_does_not_hinder(tmp_path: Path) -> None:
    editor = edited()
    editor.save_pretrained(tmp_path / "before")
    pytest.importorskip("peft").get_peft_model(editor.model, lora()).unload()
    editor.save_pretrained(tmp_path / "after")
    files = [tmp_path / name / "model.safetensors" for name in ("before", "after")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_folder_with_an_adapter_is_refused_and_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="transformers would load that adapter"):
        edited().save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["adapter_config.json"]


def writes_other_weights(model: PreTrainedModel, folder: Path) -> None:
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    state["model.layers.2.mlp.down_proj.weight"][0, 0] += 1e-6
    SAVE(model, folder, state_dict=state)


def leaves_a_weight_out(model: PreTrainedModel, folder: Path) -> None:
    state = model.state_dict()
    del state["model.layers.1.mlp.down_proj.weight"]
    SAVE(model, folder, state_dict=state)


def writes_no_weights(model: PreTrainedModel, folder: Path) -> None:
    model.config.save_pretrained(folder)


def writes_another_type(model: PreTrainedModel, folder: Path) -> None:
    SAVE(model, folder, state_dict={name: weight.bfloat16() for name, weight in model.state_dict().items()})


SAVE = PreTrainedModel.save_pretrained


@pytest.mark.parametrize("save", [writes_other_weights, leaves_a_weight_out, writes_no_weights, writes_another_type])
def test_files_without_the_edited_weights_are_no_saved_model(
    save: Callable[[PreTrainedModel, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = edited()
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)
    with pytest.raises(
        ModelError, match=r"the weight model\.layers\.[12]\.mlp\.down_proj\.weight in the files differs"
    ):
        editor.save_pretrained(tmp_path / "out")
    assert not list(tmp_path.iterdir())

"""Models that no edit can be written to as they are, refused before any work is done on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from betaedit import Editor
from betaedit.errors import ModelError
from betaedit.models import LanguageModel, load_language_model
from support.families import tiny_model
from support.tiny_tokenizers import shared_tokenizer


def lora(*modules: str) -> Any:
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(r=2, target_modules=list(modules), task_type="CAUSAL_LM")


def wrapped_by_peft(*modules: str) -> Any:
    return pytest.importorskip("peft").get_peft_model(tiny_model("llama"), lora(*modules))


def with_an_adapter_of_transformers() -> Any:
    model = tiny_model("llama")
    model.add_adapter(lora("q_proj"))
    return model


def with_an_adapter_left_in_its_layers() -> Any:
    wrapped_by_peft("down_proj")
    return wrapped_by_peft("up_proj").get_base_model()


def with_a_prompt_before_it() -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(
        tiny_model("llama"), peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    )


ADAPTED: dict[str, Callable[[], Any]] = {
    "of attention": lambda: wrapped_by_peft("q_proj"),
    "of the edited matrix": lambda: wrapped_by_peft("down_proj"),
    "of transformers": with_an_adapter_of_transformers,
    "unwrapped, not merged": with_an_adapter_left_in_its_layers,
    "of a prompt": with_a_prompt_before_it,
}


@pytest.mark.parametrize("name", ADAPTED)
def test_a_model_with_an_adapter_is_refused_and_merging_is_advised(name: str):
    model = ADAPTED[name]()
    with pytest.raises(ModelError, match="has a PEFT adapter") as caught:
        Editor.from_pretrained(model, tokenizer=shared_tokenizer(), layers=(1,))
    assert "merge_and_unload" in caught.value.hint
    assert "base model" in caught.value.hint


def test_a_refused_model_is_left_as_it_was():
    model = wrapped_by_peft("q_proj").train()
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    with pytest.raises(ModelError):
        LanguageModel.wrap(model, shared_tokenizer())
    assert model.training
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == trained != []


def test_a_model_whose_adapter_was_merged_is_taken():
    merged = wrapped_by_peft("down_proj").merge_and_unload()
    assert LanguageModel.wrap(merged, shared_tokenizer()).anatomy.projection(1) is not None


@pytest.mark.parametrize("beside_a_model", [True, False])
def test_a_folder_with_an_adapter_in_it_is_refused(beside_a_model: bool, tmp_path: Path):
    """transformers would put the adapter into the model without a word, and save only the adapter."""
    if beside_a_model:
        tiny_model("llama").save_pretrained(tmp_path)
        shared_tokenizer().save_pretrained(tmp_path)
    wrapped_by_peft("q_proj").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"holds a PEFT adapter \(adapter_config\.json\)") as caught:
        load_language_model(str(tmp_path))
    assert "merge_and_unload" in caught.value.hint


WRAPPED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "DataParallel": (nn.DataParallel, r"model\.module"),
    "OptimizedModule": (lambda model: torch.compile(model, backend="eager"), r"_orig_mod"),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_wrapper_is_refused_by_name_and_what_it_wraps_is_asked_for(kind: str):
    wrap, inner = WRAPPED[kind]
    with pytest.raises(ModelError, match=rf"wrapped in {kind}\. .*{inner}"):
        LanguageModel.wrap(wrap(tiny_model("gpt2")), shared_tokenizer())


@pytest.mark.parametrize("thing", [nn.Linear(2, 2), 3, None])
def test_what_is_no_model_of_transformers_is_refused(thing: Any):
    with pytest.raises(ModelError, match=f"{type(thing).__name__} is not a transformers model"):
        LanguageModel.wrap(thing, shared_tokenizer())


def test_weights_that_are_not_in_memory_are_refused():
    whole, partly = tiny_model("llama").to("meta"), tiny_model("gpt2")
    partly.transformer.h[3].to("meta")  # as accelerate leaves layers that it has offloaded
    for model, named in ((whole, "embed_tokens"), (partly, r"h\.3")):
        with pytest.raises(ModelError, match=rf"not in memory: .*{named}.* meta device or offloaded"):
            LanguageModel.wrap(model, shared_tokenizer())


def test_weights_made_in_inference_mode_are_refused():
    with torch.inference_mode():
        model = tiny_model("llama")
    with pytest.raises(ModelError, match=r"created in torch\.inference_mode"):
        LanguageModel.wrap(model, shared_tokenizer())


@pytest.mark.parametrize("name", ["gpt2", "gpt-j", "llama"])
def test_a_model_that_answers_in_tuples_is_refused_until_its_configuration_says_otherwise(name: str):
    model = tiny_model(name)
    model.config.return_dict = False
    with pytest.raises(ModelError, match=r"return_dict is false .* model\.config\.return_dict = True"):
        LanguageModel.wrap(model, shared_tokenizer())
    model.config.return_dict = True
    LanguageModel.wrap(model, shared_tokenizer())

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertLMHeadModel,
    CohereConfig,
    GraniteConfig,
    LlamaModel,
    MixtralConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)
from transformers.pytorch_utils import Conv1D

from betaedit import Editor, Fact
from betaedit.errors import AnatomyError, BetaEditError, UnsupportedMatrixError
from betaedit.models import find_anatomy
from betaedit.models.anatomy import is_transposed, projection_shape
from betaedit.statistics import Moments
from support.families import (
    FAMILIES_AND_ATTENTION,
    FAMILY_NAMES,
    HIDDEN,
    MLP,
    N_LAYERS,
    family,
    model_of,
    shared_model,
    tiny_model,
)
from support.tiny_tokenizers import VOCABULARY, tiny_tokenizer

every_family = pytest.mark.parametrize("name", FAMILY_NAMES)

# family: decoder blocks, MLP output projection within a block, its type, the final norm, head tied to the embedding
EXPECTED: dict[str, tuple[str, str, type[nn.Module], str, bool]] = {
    "gpt2": ("transformer.h", "mlp.c_proj", Conv1D, "transformer.ln_f", True),
    "gpt-j": ("transformer.h", "mlp.fc_out", nn.Linear, "transformer.ln_f", False),
    "gpt-neox": ("gpt_neox.layers", "mlp.dense_4h_to_h", nn.Linear, "gpt_neox.final_layer_norm", False),
    "gpt-neox serial": ("gpt_neox.layers", "mlp.dense_4h_to_h", nn.Linear, "gpt_neox.final_layer_norm", False),
    "llama": ("model.layers", "mlp.down_proj", nn.Linear, "model.norm", False),
    "mistral": ("model.layers", "mlp.down_proj", nn.Linear, "model.norm", False),
    "qwen2": ("model.layers", "mlp.down_proj", nn.Linear, "model.norm", False),
    "qwen3": ("model.layers", "mlp.down_proj", nn.Linear, "model.norm", True),
    "gemma": ("model.layers", "mlp.down_proj", nn.Linear, "model.norm", True),
    "gemma2": ("model.layers", "mlp.down_proj", nn.Linear, "model.norm", True),
    "gemma3": ("model.layers", "mlp.down_proj", nn.Linear, "model.norm", True),
    "phi3": ("model.layers", "mlp.down_proj", nn.Linear, "model.norm", False),
    "olmo2": ("model.layers", "mlp.down_proj", nn.Linear, "model.norm", False),
    "phi": ("model.layers", "mlp.fc2", nn.Linear, "model.final_layernorm", False),
    "opt": ("model.decoder.layers", "fc2", nn.Linear, "model.decoder.final_layer_norm", True),
}

FACT = Fact("The mother tongue of {} is", "Danielle Darrieux", "English")
EDITED = (1, 2)


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def changed(model: PreTrainedModel, before: dict[str, Tensor]) -> set[str]:
    now = model.state_dict()
    assert now.keys() == before.keys()
    return {name for name, weight in before.items() if not torch.equal(now[name], weight)}


def random_moments(layers: tuple[int, ...], width: int = MLP) -> Moments:
    generator = torch.Generator().manual_seed(1)
    matrices = {}
    for layer in layers:
        keys = torch.randn(4 * width, width, generator=generator)
        matrices[layer] = keys.T @ keys / len(keys)
    return Moments(matrices, n_tokens=1000)


def editor_of(model: PreTrainedModel, layers: tuple[int, ...] = EDITED, **overrides: Any) -> Editor:
    return Editor.from_pretrained(
        model,
        tokenizer=tiny_tokenizer(),
        method="memit",
        statistics=random_moments(layers),
        layers=layers,
        context_templates=("{}",),
        value_optimizer="adam",  # its steps are always taken, lower or not
        value_steps=3,
        leakage_weight=1.0,
        **overrides,
    )


def logits_and_last_hidden(model: PreTrainedModel, block: nn.Module) -> tuple[Tensor, Tensor]:
    """The model's own logits, and what its last block returned."""
    caught: list[Any] = []
    handle = block.register_forward_hook(lambda _, __, output: caught.append(output))
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    handle.remove()
    return logits, caught[0][0] if isinstance(caught[0], tuple) else caught[0]


@every_family
def test_the_parts_of_every_family_are_found(name: str):
    model = shared_model(name)
    anatomy = find_anatomy(model)
    layers, projection, kind, norm, tied = EXPECTED[name]
    assert anatomy.layers_path == layers
    assert anatomy.layers is model.get_submodule(layers)
    assert anatomy.n_layers == N_LAYERS
    assert [anatomy.projection_path(i) for i in range(N_LAYERS)] == [
        f"{layers}.{i}.{projection}" for i in range(N_LAYERS)
    ]
    assert type(anatomy.projection(1)) is kind
    assert anatomy.projection(1) is model.get_submodule(f"{layers}.1.{projection}")
    assert anatomy.norm is model.get_submodule(norm)
    assert anatomy.head is model.get_output_embeddings()
    assert anatomy.head_is_tied is tied
    assert anatomy.hidden_size == HIDDEN
    assert anatomy.family == model.config.model_type


@every_family
def test_the_shape_of_a_projection_is_output_by_input_whichever_way_round_it_is_stored(name: str):
    projection = find_anatomy(shared_model(name)).projection(0)
    assert projection_shape(projection) == (HIDDEN, MLP)
    assert projection(torch.zeros(1, MLP)).shape == (1, HIDDEN)


@every_family
def test_only_the_module_type_says_that_a_matrix_is_stored_transposed(name: str):
    square = {family(name).mlp_setting: HIDDEN}
    assert is_transposed(find_anatomy(tiny_model(name, **square)).projection(0)) is (name == "gpt2")


@every_family
def test_a_square_mlp_still_has_the_right_matrix(name: str):
    """The map into the MLP then has the shape of the map out of it: only the output's is used at the end."""
    model = tiny_model(name, **{family(name).mlp_setting: HIDDEN})
    layers, path, *_ = EXPECTED[name]
    assert find_anatomy(model).projection_path(2) == f"{layers}.2.{path}"


def test_a_fused_gate_as_wide_as_the_residual_stream_is_not_taken_for_the_output():
    model = tiny_model("phi3", intermediate_size=HIDDEN // 2)
    assert find_anatomy(model).projection_path(0) == "model.layers.0.mlp.down_proj"


@pytest.mark.parametrize(("name", "attention"), FAMILIES_AND_ATTENTION)
def test_norm_head_and_scaling_of_the_last_hidden_states_are_the_models_logits(name: str, attention: str):
    anatomy = find_anatomy(shared_model(name, attention))
    logits, hidden = logits_and_last_hidden(anatomy.model, anatomy.layers[-1])
    torch.testing.assert_close(anatomy.logits(hidden), logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("config", "setting"), [(CohereConfig, {"logit_scale": 0.25}), (GraniteConfig, {"logits_scaling": 4.0})]
)
def test_logits_are_scaled_as_the_family_does_it(config: type, setting: dict[str, float]):
    model = model_of(config(**(family("llama").settings | setting))).requires_grad_(False)
    anatomy = find_anatomy(model)
    logits, hidden = logits_and_last_hidden(model, anatomy.layers[-1])
    torch.testing.assert_close(anatomy.logits(hidden), logits, atol=1e-5, rtol=0)
    assert not torch.allclose(anatomy.head(anatomy.norm(hidden)), logits, atol=0.1)  # the scale is no detail


def test_soft_capped_logits_stay_below_the_cap():
    anatomy = find_anatomy(tiny_model("gemma2", final_logit_softcapping=0.5).requires_grad_(False))
    logits, hidden = logits_and_last_hidden(anatomy.model, anatomy.layers[-1])
    assert float(anatomy.head(anatomy.norm(hidden)).abs().max()) > 0.5
    torch.testing.assert_close(anatomy.logits(hidden), logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["gpt2", "gpt-neox", "llama"])
@pytest.mark.parametrize("layer", [-1, N_LAYERS])
def test_a_layer_out_of_range_is_refused_with_the_range(name: str, layer: int):
    anatomy = find_anatomy(shared_model(name))
    with pytest.raises(AnatomyError, match=rf"no layer {layer}: the model has layers 0 to 3") as caught:
        anatomy.projection(layer)
    assert "layers" in caught.value.hint


def test_a_model_without_a_head_is_refused():
    with pytest.raises(AnatomyError, match="LlamaModel") as caught:
        find_anatomy(LlamaModel(family("llama").config(**family("llama").settings)))
    assert caught.value.hint


def test_a_model_without_decoder_blocks_is_refused():
    model = tiny_model("llama")
    model.model.layers = nn.ModuleList()
    with pytest.raises(AnatomyError, match="no decoder layers are found in LlamaForCausalLM") as caught:
        find_anatomy(model)
    assert "decoder-only" in caught.value.hint


def test_a_model_without_a_final_norm_is_refused():
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=2,
        num_attention_heads=4,
        is_decoder=True,
    )
    with pytest.raises(AnatomyError, match="no final norm") as caught:
        find_anatomy(BertLMHeadModel(config))
    assert caught.value.hint


def test_a_block_with_two_candidates_that_no_name_decides_is_refused_by_listing_them():
    model = tiny_model("llama")
    mlp = model.model.layers[1].mlp
    mlp.another_out = nn.Linear(MLP, HIDDEN, bias=False)
    mlp.one_more_out = mlp.down_proj
    del mlp.down_proj
    with pytest.raises(AnatomyError, match=r"layer 1 is not clear.*another_out.*one_more_out") as caught:
        find_anatomy(model).projection_path(1)
    assert caught.value.hint


MIXTURES = {
    "mixtral": lambda: MixtralConfig(**family("llama").settings, num_local_experts=4, num_experts_per_tok=2),
    "qwen2-moe": lambda: Qwen2MoeConfig(
        **family("llama").settings,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=MLP,
        shared_expert_intermediate_size=MLP,
        mlp_only_layers=[0],
    ),
    "qwen3-moe": lambda: Qwen3MoeConfig(
        **family("llama").settings, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=MLP, head_dim=8
    ),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_of_experts_is_refused_before_any_weight_changes(name: str):
    model = model_of(MIXTURES[name]())
    before = weights(model)
    with pytest.raises(UnsupportedMatrixError, match="layer 1 is a mixture of experts") as caught:
        editor_of(model)
    assert "dense" in caught.value.hint
    assert not changed(model, before)


def test_the_dense_layers_of_a_mixture_of_experts_can_be_edited():
    anatomy = find_anatomy(model_of(MIXTURES["qwen2-moe"]()))
    assert anatomy.projection_path(0) == "model.layers.0.mlp.down_proj"


class FourBitLinear(nn.Linear):
    """Stands for the matrices of quantization libraries, which derive theirs from ``nn.Linear``."""


def packed_subclass(shape: tuple[int, int]) -> nn.Module:
    return FourBitLinear(shape[1], shape[0], bias=False)


def eight_bit(shape: tuple[int, int]) -> nn.Module:
    linear = nn.Linear(shape[1], shape[0], bias=False)
    linear.weight = nn.Parameter(torch.ones(shape, dtype=torch.int8), requires_grad=False)
    return linear


@pytest.mark.parametrize("replacement", [packed_subclass, eight_bit])
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_a_quantized_matrix_is_refused_before_any_weight_changes(name: str, replacement: Any):
    model = tiny_model(name)
    path = find_anatomy(model).projection_path(2)
    model.set_submodule(path, replacement((HIDDEN, MLP)))
    before = weights(model)
    with pytest.raises(UnsupportedMatrixError, match="layer 2 is quantized") as caught:
        editor_of(model)
    assert "without quantization" in caught.value.hint
    assert not changed(model, before)


def test_a_layer_that_does_not_exist_is_refused_before_any_weight_changes():
    model = tiny_model("llama")
    before = weights(model)
    with pytest.raises(AnatomyError, match="no layer 4"):
        editor_of(model, layers=(3, 4))
    assert not changed(model, before)


def test_a_loss_layer_that_does_not_exist_is_refused_before_any_weight_changes():
    model = tiny_model("llama")
    before = weights(model)
    with pytest.raises(BetaEditError, match="9") as caught:
        editor_of(model, value_loss_layer=9).edit(FACT)
    assert caught.value.hint
    assert not changed(model, before)


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_an_edit_changes_the_named_matrices_and_nothing_else_bit_for_bit(name: str, dtype: torch.dtype):
    model = tiny_model(name).to(dtype)
    layers, path, *_ = EXPECTED[name]
    before = weights(model)
    editor = editor_of(model)
    editor.edit(FACT)
    assert changed(model, before) == {f"{layers}.{layer}.{path}.weight" for layer in EDITED}
    assert {weight.dtype for weight in model.state_dict().values()} <= {weight.dtype for weight in before.values()}
    editor.reset()
    assert not changed(model, before)

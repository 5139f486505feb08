"""Tiny random models of every supported family, whose every weight matters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from betaedit.models import LanguageModel
from support.tiny_tokenizers import VOCABULARY, tiny_tokenizer

HIDDEN, MLP, N_LAYERS, WINDOW = 32, 48, 4, 4

SPECIAL: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA: dict[str, Any] = {
    **SPECIAL,
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_GPT: dict[str, Any] = {
    **SPECIAL,
    "n_embd": HIDDEN,
    "n_inner": MLP,
    "n_layer": N_LAYERS,
    "n_head": 4,
    "n_positions": 64,
}
_NEOX = {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"}
_OPT = {key: value for key, value in _NEOX.items() if key != "intermediate_size"}
_SLIDING_AND_FULL = ["sliding_attention", "full_attention"] * (N_LAYERS // 2)


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Args:
        name: What the family is called here.
        config: Makes its configuration from changed settings.
        settings: Those of the tiny model.
        attention: Implementations of attention it runs with, the one for ``tiny_model`` first.
    """

    name: str
    config: Callable[..., PreTrainedConfig]
    settings: dict[str, Any]
    attention: tuple[str, ...] = ("sdpa", "eager")

    @property
    def mlp_setting(self) -> str:
        """What its configuration calls the width of the MLP."""
        return next(name for name in ("n_inner", "ffn_dim", "intermediate_size") if name in self.settings)


FAMILIES: tuple[Family, ...] = (
    Family("gpt2", GPT2Config, _GPT),
    Family("gpt-j", GPTJConfig, {**_GPT, "rotary_dim": 4}, attention=("eager",)),
    Family("gpt-neox", GPTNeoXConfig, {**_NEOX, "use_parallel_residual": True}),
    Family("gpt-neox serial", GPTNeoXConfig, {**_NEOX, "use_parallel_residual": False}),
    Family("llama", LlamaConfig, _LLAMA),
    Family("mistral", MistralConfig, {**_LLAMA, "sliding_window": WINDOW}),
    Family(
        "qwen2",
        Qwen2Config,
        {**_LLAMA, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    ),
    Family("qwen3", Qwen3Config, {**_LLAMA, "head_dim": 8, "tie_word_embeddings": True}),
    Family("gemma", GemmaConfig, {**_LLAMA, "head_dim": 8}),
    Family(
        "gemma2",
        Gemma2Config,
        {**_LLAMA, "head_dim": 8, "sliding_window": WINDOW, "final_logit_softcapping": 0.7},
        attention=("eager",),
    ),
    Family(
        "gemma3",
        Gemma3TextConfig,
        {**_LLAMA, "head_dim": 8, "sliding_window": WINDOW, "layer_types": _SLIDING_AND_FULL},
    ),
    Family("phi3", Phi3Config, _LLAMA),
    Family("olmo2", Olmo2Config, _LLAMA),
    Family("phi", PhiConfig, {**_LLAMA, "num_key_value_heads": 4}),
    Family("opt", OPTConfig, {**_OPT, "ffn_dim": MLP, "word_embed_proj_dim": HIDDEN}),
)
FAMILY_NAMES: tuple[str, ...] = tuple(family.name for family in FAMILIES)
FAMILIES_AND_ATTENTION: tuple[tuple[str, str], ...] = tuple(
    (family.name, attention) for family in FAMILIES for attention in family.attention
)


def family(name: str) -> Family:
    """The table's row of that name."""
    return next(row for row in FAMILIES if row.name == name)


def model_of(config: PreTrainedConfig, *, attention: str = "eager", seed: int = 0) -> PreTrainedModel:
    """A random model in evaluation mode; the same seed gives the same weights.

    No parameter is left at a special value: norm scales differ from one and biases from zero, so that a wrong norm or a
    forgotten bias shows. The global random state stays as it was.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        for parameter in model.parameters():
            spread = 0.15 if parameter.dim() > 1 else 0.2
            start = torch.zeros_like(parameter) if parameter.dim() > 1 else parameter.clone()
            parameter.copy_(start + spread * torch.randn_like(parameter))
    return model.eval()


def tiny_model(name: str, *, attention: str | None = None, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A fresh tiny model of a family of the table, some settings of its configuration changed on demand."""
    row = family(name)
    config = row.config(**{**row.settings, **changes})
    return model_of(config, attention=attention or row.attention[0], seed=seed)


@functools.cache
def shared_model(name: str, attention: str | None = None) -> PreTrainedModel:
    """The same for all tests that only read it."""
    return tiny_model(name, attention=attention).requires_grad_(False)


def language_model(name: str, *, tokenizer: str = "bytes", **changes: Any) -> LanguageModel:
    """A fresh tiny model with a tiny tokenizer."""
    return LanguageModel.wrap(tiny_model(name, **changes), tiny_tokenizer(tokenizer), name=f"tiny-{name}")

"""Hyper-parameters that families share: which layers, which statistics, which contexts."""

from __future__ import annotations

from pydantic import Field, field_validator

from betaedit.editors.method import MethodConfig
from betaedit.facts.fact import SLOT


def ordered_layers(layers: tuple[int, ...]) -> tuple[int, ...]:
    """``layers``, which must be different ones in rising order; for validators."""
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0:
        raise ValueError("give different layers in rising order, such as [4, 5, 6, 7, 8]")
    return layers


class StatisticsConfig(MethodConfig):
    """What ``C0`` is collected on, and for which layers."""

    layers: tuple[int, ...] = Field(
        (4, 5, 6, 7, 8), description="Decoder layers whose MLP output projection is edited."
    )
    statistics_corpus: str = Field("self", description="self, a text or JSONL file, or dataset:owner/name.")
    statistics_tokens: int | None = Field(
        None, ge=1, description="Number of tokens averaged for C0; default: ten per dimension of the keys."
    )
    statistics_skip_first_token: bool = Field(False, description="Leave the first token of each row out of C0.")

    @field_validator("layers")
    @classmethod
    def _ordered(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        return ordered_layers(layers)


class ContextConfig(MethodConfig):
    """The contexts of a prompt during the search for its value."""

    context_templates: tuple[str, ...] | None = Field(
        None,
        description="Texts with one {} for the prompt, '{}' first; default: sampled from the model.",
    )
    context_openings: tuple[str, ...] = Field(
        ("The", "Therefore", "Because", "I", "You"),
        description="Words that open the sampled contexts, one context each.",
    )
    context_length: int = Field(10, ge=2, description="Tokens of a sampled context, its opening included.")
    context_top_k: int = Field(5, ge=1, description="Sampling of contexts: number of candidates per token.")

    @field_validator("context_templates")
    @classmethod
    def _slotted(cls, templates: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if templates is not None and (not templates or templates[0] != SLOT):
            raise ValueError("the first context template must be the bare '{}'")
        if templates is not None and any(template.count(SLOT) != 1 for template in templates):
            raise ValueError("every context template needs exactly one {}")
        return templates

"""Hyper-parameters of a gated memory (methods.md B.11)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from betaedit.editors.closed_form.config import EditConfig, ValueConfig
from betaedit.facts.fact import Fact

Cosine = Annotated[float, Field(gt=0, lt=1)]


class GatedConfig(ValueConfig):
    """How a value is sought, as for locate-then-edit methods, and when it is added."""

    layer: int | None = Field(
        None,
        ge=0,
        description="Decoder layer that gets the residuals, where values are sought; at 8/30 of the depth if not "
        "given, as layer 8 of SmolLM2 is.",
    )
    key_layer: int | None = Field(
        None,
        ge=0,
        description="Decoder layer where keys are read: `layer`, or one below it; at 3/30 of the depth if not given.",
    )
    gate: Cosine | None = Field(
        None, description="Cosine above which a key matches; from data, for each key by itself, if not given."
    )
    gate_share: Cosine = Field(
        0.5,
        description="Where the gate stands between the largest cosine with ordinary text (0) and the smallest with the "
        "fact's own prompt in other contexts (1).",
    )
    gate_least: Cosine = Field(0.82, description="No gate from data is below this cosine: names are alike.")
    gate_corpus: str = Field("self", description="Ordinary text: self, a text or JSONL file, or dataset:owner/name.")
    gate_tokens: int = Field(20_000, ge=1, description="Tokens of ordinary text that no key may match.")

    def search(self, key_layer: int, layer: int) -> EditConfig:
        """The settings of a value search at ``layer``, and of the walk to it from ``key_layer``."""
        values = {name: getattr(self, name) for name in ValueConfig.model_fields}
        return EditConfig(**values, layers=tuple(sorted({key_layer, layer})), shared_subjects="apart")

    def leaving(self, held: Sequence[Fact], facts: Sequence[Fact]) -> list[Fact]:
        """A fact leaves when a later one gives its prompt another answer."""
        asked = {(fact.prompt, fact.subject) for fact in facts}
        return [fact for fact in held if (fact.prompt, fact.subject) in asked]

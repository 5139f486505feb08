"""Hyper-parameters of retrieval; the defaults are those of the third paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from betaedit.editors.method import MethodConfig
from betaedit.facts.fact import Fact


class ScrConfig(MethodConfig):
    """Selective contextual reasoning: retrieve, confirm, answer (methods.md F.3)."""

    retriever: Literal["bm25"] = Field("bm25", description="bm25: by the words that prompt and fact share.")
    top_k: int = Field(5, ge=1, description="Facts retrieved for each prompt.")
    confirm: Literal["model", "none"] = Field(
        "model",
        description="model: the model itself picks the retrieved fact that bears on the prompt, or refuses all (as "
        "published); none: the first one retrieved is taken.",
    )
    confirm_tokens: int = Field(50, ge=1, description="New tokens of the confirming reply at most.")
    refusal: Literal["whole", "official"] = Field(
        "whole",
        description="whole: the reply is a refusal where it begins as one, and must name a retrieved fact otherwise; "
        "official: where a refusal's words, or 'false', stand anywhere in it, and is taken as the fact otherwise.",
    )

    def leaving(self, held: Sequence[Fact], facts: Sequence[Fact]) -> list[Fact]:
        """A fact leaves when a later one gives its prompt another answer."""
        asked = {(fact.prompt, fact.subject) for fact in facts}
        return [fact for fact in held if (fact.prompt, fact.subject) in asked]

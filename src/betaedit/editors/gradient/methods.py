"""Rows of the fine-tuning family; no torch is needed to read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from betaedit.editors.gradient.config import FineTuneConfig
from betaedit.editors.method import EditingMethod, Method, MethodConfig

if TYPE_CHECKING:
    from betaedit.editors.resources import Resources
    from betaedit.models.load import LanguageModel


@dataclass(frozen=True, kw_only=True)
class FineTune(Method):
    """Fine-tuning of one matrix."""

    family: ClassVar[str] = "fine-tuning"
    config: ClassVar[type[MethodConfig]] = FineTuneConfig

    def build(self, model: LanguageModel, config: MethodConfig, resources: Resources) -> EditingMethod:
        """See ``Method.build``."""
        from betaedit.editors.gradient.finetune import FineTuning  # noqa: PLC0415 - imports torch

        return FineTuning(model, cast(FineTuneConfig, config), resources.progress)


METHODS: tuple[Method, ...] = (
    FineTune(
        name="ft",
        title="fine-tuning of one MLP output matrix",
        paper="Meng et al., Locating and Editing Factual Associations in GPT (2022), baseline FT and FT-L",
        equation="min_W -mean_j log p(t_j | prompt), |W - W_before| <= norm_limit",
        notes=(
            "The published code scores every target token at the last token of the prompt (loss=prompt_last, the "
            "default); loss=target scores each behind those before it. EasyEdit's settings for Llama and Qwen have no "
            "norm constraint, and are the default; MEMIT's have one (norm_limit=5e-5 to 2e-3)."
        ),
        aliases=("ft-l",),
    ),
)

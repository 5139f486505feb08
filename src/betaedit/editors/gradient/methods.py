"""Rows of the methods that follow a gradient; no torch is needed to read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from betaedit.editors.easyedit import EasyEditTable
from betaedit.editors.gradient.config import AdaptiveRankConfig, FineTuneConfig, Loss, LowRankConfig, UltraEditConfig
from betaedit.editors.gradient.easyedit import FINE_TUNING, LOW_RANK, ULTRAEDIT
from betaedit.editors.method import EditingMethod, Method, MethodConfig
from betaedit.errors import ConfigError

if TYPE_CHECKING:
    from betaedit.editors.resources import Resources
    from betaedit.models.load import LanguageModel


@dataclass(frozen=True, kw_only=True)
class FineTune(Method):
    """Fine-tuning of one matrix.

    Args:
        loss: The loss that it stands for; any where it is ``None``.
        weight_decay: The default of its weight decay.
    """

    family: ClassVar[str] = "fine-tuning"
    config: ClassVar[type[MethodConfig]] = FineTuneConfig
    easyedit: ClassVar[tuple[EasyEditTable, ...]] = FINE_TUNING

    loss: Loss | None = None
    weight_decay: float | Literal["by_count"] = 0.0

    def configure(self, values: Mapping[str, Any]) -> MethodConfig:
        """See ``Method.configure``; what the row stands for is the default."""
        own = {"weight_decay": self.weight_decay} | ({} if self.loss is None else {"loss": self.loss})
        return super().configure({**own, **values})

    def resolve_config(self, config: MethodConfig) -> MethodConfig:
        """See ``Method.resolve_config``.

        Raises:
            ConfigError: It is the configuration of another family, or has another loss than the row stands for.
        """
        config = super().resolve_config(config)
        if self.loss is not None and cast(FineTuneConfig, config).loss != self.loss:
            raise ConfigError(f"{self.name} is fine-tuning with loss={self.loss}.", hint="Take ft for the other loss.")
        return config

    def build(self, model: LanguageModel, config: MethodConfig, resources: Resources) -> EditingMethod:
        """See ``Method.build``."""
        from betaedit.editors.gradient.finetune import FineTuning  # noqa: PLC0415 - imports torch

        return FineTuning(model, cast(FineTuneConfig, config))


@dataclass(frozen=True, kw_only=True)
class LowRank(Method):
    """A LoRA adapter."""

    family: ClassVar[str] = "LoRA"
    config: ClassVar[type[MethodConfig]] = LowRankConfig
    easyedit: ClassVar[tuple[EasyEditTable, ...]] = LOW_RANK

    def build(self, model: LanguageModel, config: MethodConfig, resources: Resources) -> EditingMethod:
        """See ``Method.build``.

        Raises:
            MissingExtraError: peft is not installed.
        """
        from betaedit.editors.gradient.adapter import AdapterTuning  # noqa: PLC0415 - imports torch

        return AdapterTuning(model, cast(LowRankConfig, config))


@dataclass(frozen=True, kw_only=True)
class AdaptiveRank(LowRank):
    """An AdaLoRA adapter."""

    family: ClassVar[str] = "AdaLoRA"
    config: ClassVar[type[MethodConfig]] = AdaptiveRankConfig


@dataclass(frozen=True, kw_only=True)
class Ultra(Method):
    """UltraEdit."""

    family: ClassVar[str] = "UltraEdit"
    config: ClassVar[type[MethodConfig]] = UltraEditConfig
    easyedit: ClassVar[tuple[EasyEditTable, ...]] = ULTRAEDIT

    def build(self, model: LanguageModel, config: MethodConfig, resources: Resources) -> EditingMethod:
        """See ``Method.build``."""
        from betaedit.editors.gradient.ultraedit import UltraEdit  # noqa: PLC0415 - imports torch

        return UltraEdit(model, cast(UltraEditConfig, config))


_ROME = "Meng et al., Locating and Editing Factual Associations in GPT (2022), baselines FT and FT-L"
_EASYEDIT = "Wang et al., EasyEdit (2024)"

METHODS: tuple[Method, ...] = (
    FineTune(
        name="ft",
        title="fine-tuning of one MLP output matrix",
        paper=_ROME,
        equation="min_W -mean_j log p(t_j | prompt), |W - W_before| <= norm_limit",
        notes=(
            "The published code scores every target token at the last token of the prompt (loss=prompt_last, the "
            "default); loss=target scores each behind those before it. EasyEdit's settings for Llama and Qwen have no "
            "norm constraint, and are the default; MEMIT's have one (norm_limit=5e-5 to 2e-3). With several facts in a "
            "batch a step follows the mean of their losses; the published code takes one step per fact."
        ),
        aliases=("ft-l",),
    ),
    FineTune(
        name="ft-m",
        title="fine-tuning of one MLP output matrix, each target token scored behind those before it",
        paper=f"{_EASYEDIT}, FT with objective target_new, called FT-M",
        equation="min_W -mean_j log p(t_j | prompt, t_<j)",
        notes="ft with loss=target, as fine-tuning is usually done.",
        loss="target",
    ),
    FineTune(
        name="ft-w",
        title="fine-tuning of one MLP output matrix with weight decay that falls with the number of facts",
        paper="Meng et al., Mass-Editing Memory in a Transformer (2023), baseline FT-W",
        equation="min_W -mean_j log p(t_j | prompt) + (w / 2) |W|^2,  w = n^-0.870 e^0.156 for n facts in a batch",
        notes=(
            "As the paper has it. The released code does not: its settings give the power law as a JSON list where the "
            "code asks for a tuple, so nothing decays, and they train the whole block 21 of GPT-J. The law is for "
            "many facts in one batch: the decay is 0.02 for 100 facts, and 1.17 for one."
        ),
        weight_decay="by_count",
    ),
    LowRank(
        name="lora",
        title="one LoRA adapter, trained on one batch of facts after another",
        paper="Hu et al., LoRA (2022); FT of the first paper of this project's tables",
        equation="W = W_0 + (alpha / r) B A,  min_{A,B} -mean_j log p(t_j | prompt, t_<j)",
        notes=(
            "The paper gives no hyper-parameters; the defaults are those that EasyEdit has for AdaLoRA, and have no "
            "source for LoRA."
        ),
    ),
    AdaptiveRank(
        name="adalora",
        title="one AdaLoRA adapter, trained on one batch of facts after another",
        paper=f"Zhang et al., AdaLoRA (2023); LoRA of {_EASYEDIT} and of the third paper of this project's tables",
        equation="W = W_0 + (alpha / r) B diag(e) A,  loss + w mean(|A A^T - I| + |B^T B - I|)",
        notes=(
            "EasyEdit never calls the reallocation of ranks, so that none happens here. Its rank of 8 does not reach "
            "peft, which takes 12: the default here. It also trains on the text <|endoftext|> behind each target, "
            "which is left out here."
        ),
    ),
    Ultra(
        name="ultraedit",
        title="one backward pass, gradients normalized by all seen so far, one ridge solution",
        paper="Gu et al., UltraEdit (2025)",
        equation="V X^T (X X^T + I)^-1,  v_i = -lr |x~_i|^2 g~_i",
        notes=(
            "Published for batches of 100, and for gate and up projections of Llama and Qwen; here the MLP output "
            "projections are changed, as published for GPT-J and Mistral. The released code counts the spread of a "
            "pass of n tokens n / (n - 1) times, which makes updates 13% shorter at 10 tokens; here it is exact. A "
            "first batch of one token changes nothing."
        ),
    ),
)

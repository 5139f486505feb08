"""Hyper-parameters of what follows a gradient; the defaults are the published ones."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from betaedit.editors.method import MethodConfig
from betaedit.editors.shared_config import ordered_layers

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Loss = Literal["prompt_last", "target"]
DECAY_POWER, DECAY_LOG_SCALE = -0.87028798, 0.15589562
"""Of ``weight_decay=by_count``: MEMIT's ``wd_power_law``."""


class FineTuneConfig(MethodConfig):
    """Fine-tuning of one MLP output matrix (methods.md E.2); the defaults are EasyEdit's and the third paper's."""

    layer: int | None = Field(
        None,
        ge=0,
        description="Decoder layer whose MLP output projection is trained; at 21/32 of the depth if not given, "
        "as layer 21 of an 8B model is.",
    )
    steps: int = Field(25, ge=1, description="Optimizer steps at most, for each batch of facts.")
    learning_rate: Positive = Field(5e-4, description="Learning rate of Adam.")
    loss: Loss = Field(
        "prompt_last",
        description="prompt_last: all target tokens are scored at the last token of the prompt (FT-L, as published); "
        "target: each is scored behind those before it (teacher forcing, FT-M).",
    )
    norm_limit: Positive | None = Field(
        None,
        description="Most by which an entry of the matrix may move in one edit (L-infinity norm constraint); none if "
        "not given, as EasyEdit has it for Llama and Qwen.",
    )
    weight_decay: NotNegative | Literal["by_count"] = Field(
        0.0,
        description="Weight decay of Adam, which is added to the gradient; by_count: n^-0.870 e^0.156 for a batch of "
        "n facts (FT-W).",
    )
    stop_loss: NotNegative = Field(0.01, description="Stop once the mean loss is below it.")


class LowRankConfig(MethodConfig):
    """A LoRA adapter that is trained on one batch of facts after another (methods.md E.1)."""

    target_modules: tuple[str, ...] | None = Field(
        None,
        description="Names of the modules that are adapted, such as q_proj; peft's choice for the model's family if "
        "not given.",
    )
    rank: int = Field(8, ge=1, description="Rank of the adapter.")
    alpha: Positive = Field(32.0, description="The change is alpha / rank times the product of the factors.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of an adapter's inputs left out while it is trained.")
    steps: int = Field(50, ge=1, description="Optimizer steps for each batch of facts.")
    learning_rate: Positive = Field(5e-3, description="Learning rate of Adam.")
    weight_decay: NotNegative = Field(0.0, description="Weight decay of Adam, which is added to the gradient.")


class AdaptiveRankConfig(LowRankConfig):
    """An AdaLoRA adapter, without its change of ranks (methods.md E.4)."""

    rank: int = Field(12, ge=1, description="Rank of the adapter; EasyEdit's 8 does not reach peft, which takes 12.")
    orthogonality: NotNegative = Field(0.5, description="Weight of the term that keeps the factors orthogonal.")


class UltraEditConfig(MethodConfig):
    """UltraEdit (methods.md B.10)."""

    changed_layers: tuple[int, ...] | None = Field(
        None,
        description="Decoder layers whose MLP output projection is changed; those from 18/28 to 26/28 of the depth if "
        "not given, as published for GPT-J.",
    )
    learning_rate: Positive = Field(1e-6, description="Length of a change.")
    gradient_batch: int = Field(10, ge=1, description="Facts in one forward and backward pass.")

    @field_validator("changed_layers")
    @classmethod
    def _ordered(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return None if layers is None else ordered_layers(layers)

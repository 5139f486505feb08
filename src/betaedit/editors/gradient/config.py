"""Hyper-parameters of fine-tuning; the defaults are those that EasyEdit and the third paper use for FT-L."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from betaedit.editors.method import MethodConfig

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Loss = Literal["prompt_last", "target"]


class FineTuneConfig(MethodConfig):
    """Fine-tuning of one MLP output matrix (methods.md E.2)."""

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
    weight_decay: NotNegative = Field(0.0, description="Weight decay of Adam (FT-W has one in place of the limit).")
    stop_loss: NotNegative = Field(0.01, description="Stop once the mean loss is below it.")

"""Hyper-parameters of codebook and side memory; the defaults are EasyEdit's for Llama, which the third paper uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from betaedit.editors.method import MethodConfig
from betaedit.editors.shared_config import ContextConfig
from betaedit.facts.fact import Fact

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]


class SideConfig(MethodConfig):
    """What both have in common."""

    layer: int | None = Field(
        None,
        ge=0,
        description="Decoder layer at whose MLP output projection the model's answer is changed; at 27/32 of the depth "
        "if not given, as layer 27 of a model of 32 layers is.",
    )


class GraceConfig(SideConfig):
    """A codebook (methods.md F.1)."""

    steps: int = Field(50, ge=1, description="Steps of Adam for each value.")
    learning_rate: Positive = Field(1.0, description="Learning rate of Adam.")
    radius: Positive = Field(1.0, description="Radius of a new entry (Euclidean distance of keys).")
    replacement: Literal["last", "prompt"] = Field(
        "last",
        description="last: the value takes the place of the output at the last token of the prompt (EasyEdit); prompt: "
        "at the tokens before it, too (the original).",
    )
    only_wrong: bool = Field(
        False,
        description="Write a fact only where the model does not say it yet (the original); all if not (EasyEdit).",
    )

    def leaving(self, held: Sequence[Fact], facts: Sequence[Fact]) -> list[Fact]:
        """A fact leaves when a later one gives its prompt another answer."""
        asked = {fact.text for fact in facts}
        return [fact for fact in held if fact.text in asked]


class WiseConfig(SideConfig, ContextConfig):
    """Side memories (methods.md F.2)."""

    steps: int = Field(70, ge=1, description="Gradient steps at most, for each fact.")
    learning_rate: Positive = Field(1.0, description="Learning rate of plain gradient descent.")
    weight_decay: NotNegative = Field(1e-5, description="Weight decay, on the trained entries.")
    norm_limit: Positive | None = Field(
        1.0, description="Most by which an entry of the side memory may be from the model's own; none: no limit."
    )
    outside_limit: NotNegative = Field(5.0, description="alpha: distance that unrelated prompts may have at most.")
    inside_limit: NotNegative = Field(20.0, description="beta: distance that the fact's prompts must have at least.")
    margin: NotNegative = Field(10.0, description="gamma: by how much the two distances must differ.")
    routing_ratio: Positive = Field(
        0.88, description="A prompt is routed to a memory from this share of its facts' smallest distance on."
    )
    mask_share: Share = Field(0.2, description="Share of the matrix that a shard trains, drawn at random.")
    shard_size: int = Field(500, ge=1, description="Facts of one shard, after which its memory is stored.")
    merge_every: int = Field(
        1000,
        ge=1,
        validate_default=True,
        description="Facts after which the memories of their shards are merged into one by TIES.",
    )
    merge_density: Share = Field(0.53, description="TIES: share of the largest changes that each memory keeps.")
    stop_loss: NotNegative = Field(0.02, description="Stop at this loss once it does not change (by 1e-4) any more.")
    unrelated_prompts: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Prompts that facts must not bear on, one of which each fact is trained with; sampled from the "
        "model if not given.",
    )

    @field_validator("merge_every")
    @classmethod
    def _whole_shards(cls, merge_every: int, info: ValidationInfo) -> int:
        if merge_every % info.data.get("shard_size", 1):
            raise ValueError("give a multiple of shard_size")
        return merge_every

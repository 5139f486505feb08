"""Hyper-parameters of hypernetworks: which trained editor is used, and how one is trained; no torch is needed."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from betaedit.editors.method import MethodConfig

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class HypernetConfig(MethodConfig):
    """What an edit needs: the trained editor, in whose file everything else stands."""

    editor: str | None = Field(
        None, description="Folder that `betaedit train-editor --out` wrote: the trained editor of this model."
    )


class TrainingConfig(MethodConfig):
    """How a hypernetwork is built and trained. The defaults are MEND's, for a small model on a few CPU cores."""

    help_on_names: ClassVar[str] = "See `betaedit train-editor --settings` for all names."

    layers: tuple[int, ...] | None = Field(
        None, description="Decoder layers whose MLP output projection is edited; the last ones if not given."
    )
    last_layers: int = Field(3, ge=1, description="How many of the last layers are edited where layers is not given.")
    rank: int = Field(128, ge=1, description="Rank of the hypernetwork's matrices (1920 in the papers).")
    blocks: int = Field(2, ge=1, description="Residual blocks of the hypernetwork.")
    normalize: bool = Field(True, description="Normalize inputs and gradients by running statistics; false: ablation.")
    identity_init: bool = Field(
        True, description="Residual blocks that begin as the identity; false, the ablation: Xavier, no residual."
    )
    edit_rate: float = Field(3e-4, allow_inf_nan=False, description="First value of each layer's learned rate.")
    edit_rate_learning_rate: NotNegative = Field(1e-4, description="Learning rate of the learned rates and ridges.")
    learning_rate: Positive = Field(1e-4, description="Learning rate of Adam for the hypernetwork's matrices.")
    edit_weight: NotNegative = Field(
        1.0, description="Weight of the loss on the other wording of the fact (0.1 in MEND's code)."
    )
    unrelated_weight: NotNegative = Field(1.0, description="Weight of the divergence on the unrelated prompt.")
    average: float = Field(
        0.98, ge=0, lt=1, description="The editor has a running mean of the weights with this decay; 0: the last ones."
    )
    batch: int = Field(8, ge=1, description="Facts per step: each edited by itself (mend), or all together.")
    sequence: int = Field(1, ge=1, description="Edits in a row, on ever more edited weights, before an optimizer step.")
    look_back: int = Field(10, ge=1, description="In a row, how many edits back the loss asks for the facts.")
    discount: float = Field(0.95, ge=0, le=1, description="In a row, weight of each edit before relative to the next.")
    norm_weight: NotNegative = Field(0.0, description="Weight of the squared norm of each change.")
    clip: Positive = Field(100.0, description="Longest gradient of the hypernetwork.")
    steps: int = Field(400, ge=1, description="Optimizer steps at most.")
    validate_every: int = Field(40, ge=1, description="Optimizer steps between validations, each of them kept.")
    validation_facts: int = Field(64, ge=1, description="Facts at the end of the file that are only validated on.")
    patience: int = Field(4, ge=1, description="Validations in a row without a lower loss that end the training.")

    @field_validator("layers")
    @classmethod
    def _ordered(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if layers is not None and (not layers or list(layers) != sorted(set(layers)) or layers[0] < 0):
            raise ValueError("give different layers in rising order, such as [27, 28, 29]")
        return layers


def training_command(method: str, model: str = "smollm2") -> str:
    """What to type to train an editor."""
    return f"betaedit train-editor --method {method} --model {model} --from zsre_train.jsonl --out {method}-editor"

"""Every hyper-parameter of closed-form editing, in one typed place.

Defaults are those that MEMIT, AlphaEdit and BetaEdit share for 7-8B models, and BetaEdit's own ``leakage_weight``;
presets and the user override them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from betaedit.editors.shared_config import ContextConfig, StatisticsConfig
from betaedit.facts.fact import SLOT, Fact
from betaedit.memory.rule import RefreshRule

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Optimizer = Literal["adam", "projected_bb", "lbfgs"]
Conflicts = Literal["replace", "naive"]
SharedSubjects = Literal["together", "batch", "apart"]
Paraphrases = Literal["written", "unseen"]
Form = Literal["completion", "chat", "both"]
Lookup = Literal["subject_last", "subject_first", "subject_first_after_last", "last"]
_RENAMED = {("value_optimizer", "spectral"): "projected_bb"}


class ValueConfig(ContextConfig):
    """How the value of a fact is sought: at which token, in which prompts, and until when."""

    lookup: Lookup = Field("subject_last", description="Lookup token: where the key of a fact is read.")

    paraphrases: Paraphrases = Field(
        "unseen",
        description="written: the fact's own paraphrases are written too, each with its own key; unseen: they are only "
        "measured (published).",
    )
    form: Form = Field(
        "completion",
        description="completion: the prompt as it is (published); chat: as a user's message, in the model's chat "
        "template; both: both, where the model has a template.",
    )
    answer_end: str = Field(
        "",
        description="Text written after each answer to end it; auto: a full stop, a line end or the end of the turn, "
        "depending on the prompt; empty by default (published).",
    )
    value_steps: int = Field(
        25,
        ge=1,
        description="Loss evaluations of a value search at most, per fact that shares the value; steps: one fewer.",
    )
    value_steps_per_token: NotNegative = Field(
        0.0, description="Further evaluations for every token of the answer after the first."
    )
    value_optimizer: Optimizer = Field(
        "adam",
        description="adam: as published; projected_bb: projected gradient with Barzilai-Borwein steps; lbfgs: L-BFGS.",
    )
    value_learning_rate: Positive = Field(0.1, description="Adam learning rate of the value.")
    value_first_step: Positive = Field(
        0.35, description="First step of projected_bb, relative to the norm of the hidden state."
    )
    value_longest_step: Positive = Field(0.5, description="Longest step of projected_bb, relative to the same norm.")
    value_loss_layer: int | None = Field(None, description="Layer whose output is read as logits; default: the last.")
    value_clamp: Positive = Field(0.75, description="Longest value change, relative to the norm of the hidden state.")
    value_decay: NotNegative = Field(0.5, description="Weight of the penalty on the length of the value change.")
    value_stop_loss: NotNegative = Field(0.05, description="Stop once the loss is below it.")
    value_stop_probability: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Stop once every target token has this probability in every context; never if not given."
    )
    value_stop_most_probable: int | None = Field(
        None,
        ge=1,
        description="Stop at the n-th evaluation that finds every target token the most probable one in every sampled "
        "context (ENCORE); never if not given.",
    )
    value_margin: NotNegative = Field(
        0.0,
        description="After the search the value change is scaled by 1 + value_margin, within the clamp.",
    )
    value_norm_anchor: Positive | None = Field(
        None,
        description="Length to which every value is scaled at the MLP's output (NAS); facts that would need more than "
        "twice this length are not written.",
    )
    kl_weight: NotNegative = Field(0.0625, description="Weight of the KL term at the subject.")
    kl_template: str = Field("{} is a", description="Prompt of the KL term.")

    @field_validator("kl_template")
    @classmethod
    def _kl_slotted(cls, template: str) -> str:
        if template.count(SLOT) != 1:
            raise ValueError("needs exactly one {}")
        return template


class EditConfig(ValueConfig, StatisticsConfig):
    """Hyper-parameters of locate-then-edit methods; unknown names and impossible values are refused."""

    retries: int = Field(
        0,
        ge=0,
        description="How often a further search, on the edited model, adds what a written value still lacks in any of "
        "the fact's prompts (0, as published).",
    )
    keep_missed: bool = Field(
        True,
        description="Whether a fact that the model still does not answer stays in the weights (published).",
    )
    value_per_layer: bool = Field(
        False,
        description="A value is sought for each edited layer in turn, on weights in which the layers before it are "
        "written, and no residual is divided (BLUE; published with two layers, e.g. layers=[4, 8]).",
    )
    value_look_ahead: int = Field(
        1, ge=1, description="Batches whose values are searched together before the first is written."
    )

    leakage_weight: NotNegative = Field(3000.0, description="lambda1: weight of C0 (mom2_update_weight).")
    ridge: NotNegative = Field(10.0, description="lambda2: ridge (L2).")
    frobenius_ridge: NotNegative = Field(
        0.0, description="Further ridge on the update, for any method (ENCORE's Frobenius constraint)."
    )
    nullspace_threshold: Positive = Field(
        0.02, description="Eigenvectors of C0 with eigenvalues below it span the null space."
    )
    refresh_every: int = Field(
        1000, ge=1, description="tau: number of edits after which the projector is refreshed (betaedit)."
    )
    refresh_rule: RefreshRule = Field("normalised", description="normalised: official code; literal: the paper.")
    solver_basis: Literal["float64", "float32"] = Field(
        "float64",
        description="Type of the solver's largest matrix; float32 halves its bytes, and updates agree to 1e-6.",
    )
    equality_slack: NotNegative = Field(
        0.1, description="lambda_e: slack of equality constraints in batches of more than one fact (emmet)."
    )
    rect_fraction: Fraction = Field(0.4, description="Share of an update's entries that rect keeps.")
    prune_base: Annotated[float, Field(gt=1, allow_inf_nan=False)] = Field(
        math.e, description="Base of the logarithm that compresses singular values (prune); e as the OTE-SE code."
    )
    simie_ridge: Positive = Field(10.0, description="lambda of simie: how strongly the unedited weight is kept.")
    adaedit_fraction: Fraction = Field(0.4, description="Share of an update's whitened entries that adaedit keeps.")
    sphere_share: Fraction = Field(
        0.5, description="Share of the energy of a weight's rows whose main directions sphere spares."
    )
    sphere_strength: Fraction = Field(
        0.5, description="Share of an update along these directions that sphere takes away."
    )
    update_norm_limit: Positive | None = Field(
        None,
        description="Refuse an edit whose update norm, divided by the root of its number of facts, is larger "
        "(official BetaEdit code: 20).",
    )

    conflicts: Conflicts = Field(
        "replace",
        description="replace: a new answer replaces the old one; naive: both stay in the weights (published).",
    )
    shared_subjects: SharedSubjects = Field(
        "apart",
        description="together: all facts of a subject share one value; batch: those of one batch share one "
        "(MEMIT-Merge); apart: each has its own (published).",
    )

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        return with_current_names(values) if isinstance(values, Mapping) else values

    def passes(self) -> tuple[EditConfig, ...]:
        """The settings of each pass of search and writing: all layers in one, or with ``value_per_layer`` one each."""
        if not self.value_per_layer:
            return (self,)
        return tuple(self.replace(layers=(layer,), value_per_layer=False) for layer in self.layers)

    def correcting(self) -> EditConfig:
        """The search of a retry, which starts near its end: L-BFGS, and nothing is added for a margin."""
        return self.replace(value_optimizer="lbfgs", value_margin=0.0)

    def leaving(self, held: Sequence[Fact], facts: Sequence[Fact]) -> list[Fact]:
        """Those of the facts ``held`` whose prompt ``facts`` answer otherwise, where conflicts are replaced."""
        if self.conflicts == "naive":
            return []
        asked = {(fact.prompt, fact.subject) for fact in facts}
        return [fact for fact in held if (fact.prompt, fact.subject) in asked]


def with_current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with the current names of settings that older run folders, preset files and workspaces hold."""
    return {
        name: _RENAMED.get((name, value), value) if isinstance(value, str) else value for name, value in values.items()
    }

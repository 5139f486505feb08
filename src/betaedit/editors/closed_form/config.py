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


class EditConfig(ContextConfig, StatisticsConfig):
    """Hyper-parameters of locate-then-edit methods; unknown names and impossible values are refused."""

    lookup: Lookup = Field("subject_last", description="Token at which a fact is keyed.")

    paraphrases: Paraphrases = Field(
        "unseen",
        description="written: the fact's own wordings take part in writing, each with a key of its own; unseen: they "
        "are only measured (published).",
    )
    form: Form = Field(
        "completion",
        description="completion: the prompt as it is (published); chat: as a user's message, in the model's chat "
        "template; both: both, where the model has a template.",
    )
    answer_end: str = Field(
        "",
        description="Text that is written behind each answer, to end it; auto: a full stop, a line end or the end of "
        "the turn, by the prompt; nothing by default (published).",
    )
    value_steps: int = Field(
        25, ge=1, description="Evaluations of the value's loss at most, for each fact that shares it; one step fewer."
    )
    value_steps_per_token: NotNegative = Field(
        0.0, description="Evaluations more for every token of the answer beyond its first."
    )
    value_optimizer: Optimizer = Field(
        "adam",
        description="adam: as published; projected_bb: projected gradient with Barzilai-Borwein steps; lbfgs: L-BFGS.",
    )
    value_learning_rate: Positive = Field(0.1, description="Adam learning rate of the value.")
    value_first_step: Positive = Field(0.35, description="First step of projected_bb, in norms of the hidden state.")
    value_longest_step: Positive = Field(0.5, description="Longest step of projected_bb, in the same norms.")
    value_loss_layer: int | None = Field(None, description="Layer whose output is read as logits; the last by default.")
    value_clamp: Positive = Field(0.75, description="Longest value change, in norms of the hidden state.")
    value_decay: NotNegative = Field(0.5, description="Weight on the length of the value change.")
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
        description="Share by which the change found is lengthened, within the clamp: a margin against later edits.",
    )
    retries: int = Field(
        0,
        ge=0,
        description="How often what a written value still lacks, in any of the fact's prompts, is sought on the edited "
        "model and added (0: never, as published).",
    )
    keep_missed: bool = Field(
        True, description="Whether a fact that is missed in the end stays written (published), or is taken back."
    )
    value_norm_anchor: Positive | None = Field(
        None,
        description="Length given to every value at the MLP's output (NAS); a fact that needs twice of it is left out.",
    )
    value_look_ahead: int = Field(
        1, ge=1, description="Batches of facts whose values are sought together before the first is written."
    )
    kl_weight: NotNegative = Field(0.0625, description="Weight on keeping what the subject calls to mind.")
    kl_template: str = Field("{} is a", description="Prompt of that term.")

    leakage_weight: NotNegative = Field(3000.0, description="lambda1: weight on C0 (mom2_update_weight).")
    ridge: NotNegative = Field(10.0, description="lambda2 (L2).")
    frobenius_ridge: NotNegative = Field(
        0.0, description="Ridge on the update of any method, beside lambda2 (ENCORE's Frobenius constraint)."
    )
    nullspace_threshold: Positive = Field(0.02, description="Eigenvalues of C0 below it span the null space.")
    refresh_every: int = Field(1000, ge=1, description="tau: edits between two projectors (betaedit).")
    refresh_rule: RefreshRule = Field("normalised", description="normalised: official code; literal: the paper.")
    solver_basis: Literal["float64", "float32"] = Field(
        "float64", description="Type of the solver's widest matrix; float32 halves its bytes, updates agree to 1e-6."
    )
    equality_slack: NotNegative = Field(
        0.1, description="lambda_e: slack of equality constraints in batches of more than one fact (emmet)."
    )
    rect_fraction: Fraction = Field(0.4, description="Share of an update's entries that rect keeps.")
    prune_base: Annotated[float, Field(gt=1, allow_inf_nan=False)] = Field(
        math.e, description="Base of the logarithm that compresses singular values (prune); e as the OTE-SE code."
    )
    simie_ridge: Positive = Field(10.0, description="lambda of simie: how strongly the unedited weight is held.")
    adaedit_fraction: Fraction = Field(0.4, description="Share of an update's whitened entries that adaedit keeps.")
    update_norm_limit: Positive | None = Field(
        None, description="Refuse an edit whose update per root fact is longer (the official BetaEdit code: 20)."
    )

    conflicts: Conflicts = Field(
        "replace", description="replace: a new answer takes the old one's place; naive: both stay written (published)."
    )
    shared_subjects: SharedSubjects = Field(
        "apart",
        description="together: facts of one subject share one value; batch: those of one batch do (MEMIT-Merge); "
        "apart: each has its own (published).",
    )

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        return with_current_names(values) if isinstance(values, Mapping) else values

    @field_validator("kl_template")
    @classmethod
    def _kl_slotted(cls, template: str) -> str:
        if template.count(SLOT) != 1:
            raise ValueError("needs exactly one {}")
        return template

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

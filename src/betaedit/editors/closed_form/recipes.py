"""Every closed-form method as one entry of one table.

A recipe names the terms of the one update rule (memory/rule.py) that a method switches on, how the residual is spread
over the layers, and what is done to an update before it is added; the strengths come from the configuration. The bare
name of a method is what its authors' code runs. Adding a method is an entry here and its dense formula in the tests'
reference table (docs/adding-a-method.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from betaedit.editors.closed_form.config import EditConfig
from betaedit.editors.closed_form.easyedit import EASYEDIT
from betaedit.editors.easyedit import EasyEditTable
from betaedit.editors.method import EditingMethod, Method, MethodConfig
from betaedit.editors.methods import find_method
from betaedit.errors import ConfigError, MethodError
from betaedit.memory.rule import MemoryRule, Postprocessing, PostprocessKind, ProjectorKind

if TYPE_CHECKING:
    from betaedit.editors.resources import Resources
    from betaedit.models.load import LanguageModel

Form = Literal["ridge", "equality", "rank-one"]
Spread = Literal["linear", "root"]


@dataclass(frozen=True, kw_only=True)
class Recipe(Method):
    """A closed-form editing method as data.

    Args:
        projector: The null space of the updates; see ``MemoryRule``.
        leakage: Multiple of ``lambda1 C0`` that is penalized; 0 leaves it out.
        history: Whether earlier edits are protected.
        ridge: Whether ``lambda2 I`` is added; ``frobenius_ridge`` is added to any recipe.
        form: ``ridge`` and ``equality`` as in ``MemoryRule``; ``rank-one`` is ``equality`` for one fact in one layer.
        reaches_bare_key: Whether the value holds at the key of the bare prompt, while the update is written along the
            mean key.
        spread: What the residual is divided by where ``n`` layers are still to be edited: ``n`` or its root.
        random_history: Whether random keys are protected instead of the written ones.
        postprocess: How each update is post-processed before it is added (``memory/postprocess.py``).
        aligned: Whether what post-processing removed is added to the next update (Algorithm 1 of OTE-SE).
    """

    family: ClassVar[str] = "closed form"
    config: ClassVar[type[MethodConfig]] = EditConfig
    easyedit: ClassVar[tuple[EasyEditTable, ...]] = EASYEDIT

    projector: ProjectorKind
    leakage: float
    history: bool
    ridge: bool
    form: Form = "ridge"
    reaches_bare_key: bool = False
    spread: Spread = "linear"
    random_history: bool = False
    postprocess: PostprocessKind = "none"
    aligned: bool = False

    def rule(self, config: EditConfig) -> MemoryRule:
        """The terms of this recipe with the strengths of ``config``."""
        return MemoryRule(
            projector=self.projector,
            leakage_weight=self.leakage * config.leakage_weight,
            ridge=config.frobenius_ridge + (config.ridge if self.ridge else 0.0),
            history=self.history,
            threshold=config.nullspace_threshold,
            refresh_every=config.refresh_every,
            refresh_rule=config.refresh_rule,
            refresh_weight=config.leakage_weight if self.projector == "refreshed" else None,
            form="ridge" if self.form == "ridge" else "equality",
            slack=config.equality_slack if self.form == "equality" else 0.0,
        )

    def postprocessing(self, config: EditConfig) -> Postprocessing:
        """What this recipe does to an update, with the strengths of ``config``."""
        return Postprocessing(
            kind=self.postprocess,
            aligned=self.aligned,
            rect_fraction=config.rect_fraction,
            prune_base=config.prune_base,
            simie_ridge=config.simie_ridge,
            adaedit_fraction=config.adaedit_fraction,
            sphere_share=config.sphere_share,
            sphere_strength=config.sphere_strength,
        )

    def build(self, model: LanguageModel, config: MethodConfig, resources: Resources) -> EditingMethod:
        """See ``Method.build``."""
        from betaedit.editors.closed_form.editor import ClosedForm, ForgettingClosedForm  # noqa: PLC0415 - imports torch

        kind = ForgettingClosedForm if self.can_forget else ClosedForm
        return kind(model, self, cast(EditConfig, config), resources)

    def check(self, config: MethodConfig, batch_size: int = 1) -> None:
        """Raises: ConfigError when this recipe cannot write that many layers, or that many facts together."""
        layers = cast(EditConfig, config).layers
        if self.form == "rank-one" and len(layers) > 1:
            raise ConfigError(
                f"{self.name} edits one layer, not {len(layers)}.", hint="Give one layer, e.g. layers=[5]."
            )
        if self.form == "rank-one" and batch_size > 1:
            raise ConfigError(f"{self.name} writes one fact at a time.", hint="Use a batch size of 1, or emmet.")

    @property
    def can_forget(self) -> bool:
        """Whether written facts can be forgotten: updates depend on nothing but the live facts' keys and values."""
        plain = self.form == "ridge" and self.postprocess == "none"
        return plain and not self.random_history and not self.reaches_bare_key

    def resolve_config(self, config: MethodConfig) -> EditConfig:
        """``config`` without the settings that this recipe does not support.

        Raises:
            ConfigError: It is the configuration of another family.
        """
        own = cast(EditConfig, super().resolve_config(config))
        if self.can_forget:
            return own
        shared = "batch" if own.shared_subjects == "together" else own.shared_subjects
        return own.replace(conflicts="naive", shared_subjects=shared)

    def residual_divisor(self, n_layers: int) -> float:
        """The divisor of the residual when ``n_layers`` are still to be edited, this layer included."""
        return float(n_layers) if self.spread == "linear" else n_layers**0.5


_ROME = "Meng et al., Locating and Editing Factual Associations in GPT (2022)"
_R_ROME = "Gupta et al., Rebuilding ROME: Resolving Model Collapse during Sequential Model Editing (2024)"
_MEMIT = "Meng et al., Mass-Editing Memory in a Transformer (2023)"
_PMET = "Li et al., PMET: Precise Model Editing in a Transformer (2024)"
_EMMET = "Gupta et al., A Unified Framework for Model Editing (2024)"
_ALPHAEDIT = "Fang et al., AlphaEdit: Null-Space Constrained Knowledge Editing (2025)"
_ENCORE = "Gupta et al., Lifelong Sequential Knowledge Editing without Model Degradation (2025)"
_BETAEDIT = "BetaEdit: Null-Space Constrained Sequential Model Editing"
_ALIGNMENT = "The Labyrinth and the Thread (OTE-SE alignment)"

_NAIVE = "R K^T (lambda1 C0 + K K^T)^-1"
_SEQUENTIAL = "R K^T (lambda1 C0 + H + K K^T)^-1"
_PROJECTED = "R K^T P_t (lambda2 I + (K K^T + lambda1 C0 + H) P_t)^-1"
_ATTENTION = (
    "The closed form and the spread of the residual are PMET's; its values are not: the value search is MEMIT's, one "
    "vector at the output of the last edited layer, and no attention vector is optimized beside it."
)


def _processed(postprocess: PostprocessKind, title: str, done: str, paper: str, notes: str) -> tuple[Recipe, ...]:
    """The three variants of MEMIT with one kind of post-processing, as the OTE-SE paper compares them."""

    def variant(name: str, title: str, equation: str, note: str, *, history: bool, aligned: bool = False) -> Recipe:
        return Recipe(
            name=name,
            title=title,
            projector="none",
            leakage=1,
            history=history,
            ridge=False,
            paper=paper,
            equation=f"{equation}, {done}",
            notes=f"{notes} {note}",
            postprocess=postprocess,
            aligned=aligned,
        )

    lost = "What post-processing removes is lost: 'no error correction' in the OTE-SE paper."
    carried = (
        "Algorithm 1 of the OTE-SE paper: before post-processing, the weights are the one-time solution. Its "
        "official code solves with an extra identity and lets upper layers see unprocessed updates; this does neither."
    )
    error_fed = "(R K^T - E) (lambda1 C0 + H + K K^T)^-1"
    return (
        variant(postprocess, title, _NAIVE, "On history-agnostic memit.", history=False),
        variant(f"{postprocess}-seq", f"{postprocess} on memit-h", _SEQUENTIAL, lost, history=True),
        variant(
            f"{postprocess}-aligned",
            f"{postprocess}-seq that adds what was removed to the next update",
            error_fed,
            carried,
            history=True,
            aligned=True,
        ),
    )


_PROCESSED: tuple[Recipe, ...] = (
    *_processed(
        "rect",
        "keeps only the entries of an update that change their weight the most, relatively",
        "then all but the rect_fraction of entries with the largest |D / W| become 0",
        "Gu et al., Model Editing Harms General Abilities of Large Language Models (2024)",
        "Keeps 40% (OTE-SE paper; its Table 6 and RECT's own code keep 20%). RECT's own host is ROME.",
    ),
    *_processed(
        "prune",
        "compresses the singular values of an update above the largest of the weight",
        "then s -> log(s) - log(s*) + s* where s > s* = max singular value of W",
        "Ma et al., Perturbation-Restrained Sequential Model Editing (2025)",
        "Per update, as the OTE-SE code does; PRUNE's own code does it once, to the sum of all updates.",
    ),
    *_processed(
        "simie",
        "simulates an ideal editor: least squares to what each update does to its fact's tokens",
        "then D X X^T (lambda I + sum of X X^T)^-1 over the tokens X of prompts and targets",
        "Guo et al., Towards Lifelong Model Editing via Simulating Ideal Editor (2025)",
        "The papers that compare it do not state its base editor and lambda: MEMIT and 10 (simie_ridge).",
    ),
    *_processed(
        "adaedit",
        "an interpretation of AdaEdit: a sparse update in whitened keys",
        "then all but the adaedit_fraction of largest entries of D C0^(1/2) become 0",
        "after Li and Chu, AdaEdit (2025)",
        "Not AdaEdit: neither its formula nor its code is public, only that it disentangles and sparsifies.",
    ),
)

RECIPES: tuple[Recipe, ...] = (
    Recipe(
        name="rome",
        title="rank-one insertion of one fact into one layer",
        projector="none",
        leakage=1,
        history=False,
        ridge=False,
        paper=_ROME,
        equation="R (C0^-1 k)^T / ((C0^-1 k)^T k_bare)",
        notes=(
            "Written along the mean key over contexts, solved for the key of the bare prompt: the asymmetry of "
            "the official code, known to break models after some tens of edits. "
            "Its lambda1 cancels. The official mean is a plain one over 21 contexts, and its value is searched at "
            "the MLP's output, where the clamp and decay are measured; here keys and values are MEMIT's."
        ),
        form="rank-one",
        reaches_bare_key=True,
    ),
    Recipe(
        name="r-rome",
        title="rome with one key throughout",
        projector="none",
        leakage=1,
        history=False,
        ridge=False,
        paper=_R_ROME,
        equation="R (C0^-1 k)^T / ((C0^-1 k)^T k)",
        notes=(
            "The mean key over contexts everywhere, and the output of the bare prompt in the residual, so that the "
            "mean key's output moves by the value's change: the authors' own code, which takes MEMIT's keys and "
            "values. EasyEdit's has two other forms: the mean key's output becomes the bare prompt's and the change, "
            "or the bare prompt's key is used throughout."
        ),
        form="rank-one",
    ),
    Recipe(
        name="memit",
        title="ridge regression that protects the average key statistics; forgets its own edits",
        projector="none",
        leakage=1,
        history=False,
        ridge=False,
        paper=_MEMIT,
        equation=_NAIVE,
        notes="History-agnostic, as the original code runs one batch.",
        aliases=("memit-naive",),
    ),
    Recipe(
        name="memit-h",
        title="memit that also protects every earlier edit",
        projector="none",
        leakage=1,
        history=True,
        ridge=False,
        paper=_ALIGNMENT,
        equation=_SEQUENTIAL + "  (Remark A.1)",
        notes="A sequence of edits equals one edit of all facts (Proposition 3.2).",
        aliases=("memit-sequential",),
    ),
    Recipe(
        name="memit-30000",
        title="memit with twice the weight on ordinary text",
        projector="none",
        leakage=2,
        history=False,
        ridge=False,
        paper=_BETAEDIT,
        equation="R K^T (2 lambda1 C0 + K K^T)^-1",
        notes="Doubles the preset's lambda1; the paper's 30000 is twice MEMIT's 15000.",
    ),
    Recipe(
        name="memit-r",
        title="memit-h that protects random keys instead of those it wrote",
        projector="none",
        leakage=1,
        history=True,
        ridge=False,
        paper=_BETAEDIT,
        equation="R K^T (lambda1 C0 + H_random + K K^T)^-1",
        notes=(
            "The paper takes keys of randomly chosen other edits. Those of no data at hand can be taken, so each "
            "key written is replaced by a seeded draw from N(0, C0) of the same length."
        ),
        random_history=True,
    ),
    Recipe(
        name="memit-ns",
        title="memit-h in a null space that follows the edits",
        projector="refreshed",
        leakage=1,
        history=True,
        ridge=True,
        paper=_BETAEDIT,
        equation=_PROJECTED + "  (figure 5)",
        notes="The paper gives no formula for figure 5: this reads it as betaedit's rule with MEMIT's lambda1.",
    ),
    Recipe(
        name="pmet",
        title="memit whose residual is spread by square roots",
        projector="none",
        leakage=1,
        history=False,
        ridge=False,
        paper=_PMET,
        equation=_NAIVE,
        notes=_ATTENTION,
        spread="root",
    ),
    Recipe(
        name="pmet-h",
        title="pmet that also protects every earlier edit",
        projector="none",
        leakage=1,
        history=True,
        ridge=False,
        paper=_BETAEDIT,
        equation=_SEQUENTIAL,
        notes=_ATTENTION + " The history term is by analogy with memit-h; no formula is published.",
        spread="root",
    ),
    Recipe(
        name="pmet-ns",
        title="pmet-h in a null space that follows the edits",
        projector="refreshed",
        leakage=1,
        history=True,
        ridge=True,
        paper=_BETAEDIT,
        equation=_PROJECTED + "  (figure 5)",
        notes=_ATTENTION + " The paper gives no formula for figure 5: betaedit's rule with PMET's spread.",
        spread="root",
    ),
    Recipe(
        name="emmet",
        title="memit with the values as constraints",
        projector="none",
        leakage=1,
        history=False,
        ridge=False,
        paper=_EMMET,
        equation="R (K^T S^-1 K + lambda_e I)^-1 K^T S^-1,  S = lambda1 C0",
        notes=(
            "lambda_e only in batches of more than one fact, as the official code; then lambda1 cancels for a "
            "single fact. lambda_e = 1 is memit."
        ),
        form="equality",
    ),
    Recipe(
        name="emmet-h",
        title="emmet that also protects every earlier edit",
        projector="none",
        leakage=1,
        history=True,
        ridge=False,
        paper=_BETAEDIT,
        equation="R (K^T S^-1 K + lambda_e I)^-1 K^T S^-1,  S = lambda1 C0 + H",
        notes="No formula, layers or lambda1 are published for it; the layers and lambda1 are MEMIT's.",
        form="equality",
    ),
    Recipe(
        name="emmet-ns",
        title="emmet-h in a null space that follows the edits",
        projector="refreshed",
        leakage=1,
        history=True,
        ridge=True,
        paper=_BETAEDIT,
        equation="R (K^T N K + lambda_e I)^-1 K^T N,  N = P_t (P_t (lambda1 C0 + H) P_t + lambda2 I)^-1 P_t",
        notes=(
            "The paper gives no formula for figure 5. This is the optimum of emmet's problem among updates that "
            "stay in the "
            "null space: inverting inside it, not outside and projecting after. lambda_e = 1 is memit-ns."
        ),
        form="equality",
    ),
    Recipe(
        name="encore",
        title="memit-h with a ridge on the update",
        projector="none",
        leakage=1,
        history=True,
        ridge=True,
        paper=_ENCORE,
        equation="R K^T (lambda1 C0 + H + K K^T + lambda2 I)^-1",
        notes="The Frobenius constraint alone; value_stop_most_probable is its early stopping.",
    ),
    Recipe(
        name="alphaedit",
        title="writes only where ordinary keys have almost no energy, and protects earlier edits",
        projector="fixed",
        leakage=0,
        history=True,
        ridge=True,
        paper=_ALPHAEDIT,
        equation="R K^T P ((K K^T + H) P + lambda2 I)^-1",
        notes=(
            "The official code computes the keys it remembers again after each batch. These equal the keys it solved "
            "with: a layer's keys depend on the layers below it alone, which have their final weights by then."
        ),
        aliases=("alphaedit-h",),
    ),
    Recipe(
        name="sphere",
        title="alphaedit whose updates spare the main directions of the weight's rows",
        projector="fixed",
        leakage=0,
        history=True,
        ridge=True,
        paper="SPHERE: Energy-Regularized Sequential Model Editing on the Sphere (2026)",
        equation="R K^T P ((K K^T + H) P + lambda2 I)^-1, then D (I - alpha U U^T)",
        notes=(
            "On alphaedit, as its authors' settings (their lambda2 is 1). U belongs to the weight as it is at each "
            "update, so a small batch size makes it slow: a singular value decomposition per layer."
        ),
        postprocess="sphere",
    ),
    Recipe(
        name="alphaedit-naive",
        title="alphaedit without a memory of earlier edits",
        projector="fixed",
        leakage=0,
        history=False,
        ridge=True,
        paper=_ALPHAEDIT,
        equation="R K^T P (K K^T P + lambda2 I)^-1",
    ),
    Recipe(
        name="betaedit",
        title="null space that follows the edits, knowledge leakage penalized, earlier edits protected",
        projector="refreshed",
        leakage=1,
        history=True,
        ridge=True,
        paper=_BETAEDIT,
        equation=_PROJECTED + "  (equations 8 and 9)",
        notes=(
            "Paper and code refresh the projector differently: refresh_rule=normalised is the code's (the default: it "
            "keeps the scale of C0), refresh_rule=literal the paper's."
        ),
    ),
    Recipe(
        name="betaedit-no-kl",
        title="betaedit without the penalty on knowledge leakage",
        projector="refreshed",
        leakage=0,
        history=True,
        ridge=True,
        paper=_BETAEDIT,
        equation="R K^T P_t (lambda2 I + (K K^T + H) P_t)^-1  (table 2)",
        notes="The projector is refreshed as betaedit's, with its lambda1.",
    ),
    Recipe(
        name="betaedit-no-ns",
        title="betaedit whose null space stays that of ordinary text",
        projector="fixed",
        leakage=1,
        history=True,
        ridge=True,
        paper=_BETAEDIT,
        equation="R K^T P (lambda2 I + (K K^T + lambda1 C0 + H) P)^-1  (table 2)",
        notes="A sequence of edits equals one edit of all facts: the projector never moves.",
    ),
    *_PROCESSED,
)

METHODS: tuple[Method, ...] = RECIPES
"""The rows of this family (``editors.methods``)."""


def find_recipe(name: str) -> Recipe:
    """The closed-form method of that name or alias.

    Raises:
        MethodError: There is no method of that name, and the nearest are suggested; or it is of another family.
    """
    found = find_method(name)
    if not isinstance(found, Recipe):
        raise MethodError(
            f"{name} is not a closed-form method.",
            hint="Use a closed-form method, e.g. betaedit, alphaedit or memit-h.",
        )
    return found

"""Rows of the hypernetwork family; no torch is needed to read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from betaedit.editors.easyedit import EasyEditTable
from betaedit.editors.hypernet.complete import check_complete
from betaedit.editors.hypernet.config import HypernetConfig, TrainingConfig, training_command
from betaedit.editors.hypernet.easyedit import EASYEDIT
from betaedit.editors.method import EditingMethod, MethodConfig, TrainableMethod
from betaedit.errors import ConfigError
from betaedit.facts.fact import EvaluationCase

if TYPE_CHECKING:
    from betaedit.editors.hypernet.training import Validation
    from betaedit.editors.resources import Resources
    from betaedit.models.load import LanguageModel
    from betaedit.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Hypernet(TrainableMethod):
    """A hypernetwork with one of two rules; see ``network.Architecture``."""

    family: ClassVar[str] = "hypernetwork"
    config: ClassVar[type[MethodConfig]] = HypernetConfig
    training: ClassVar[type[MethodConfig]] = TrainingConfig
    easyedit: ClassVar[tuple[EasyEditTable, ...]] = EASYEDIT

    rule: Literal["sum", "least squares"]

    def check(self, config: MethodConfig, batch_size: int = 1) -> None:
        """Refuse to edit without a trained editor.

        Raises:
            ConfigError: None is named.
        """
        if cast(HypernetConfig, config).editor is None:
            raise ConfigError(
                f"{self.name} edits with a hypernetwork that is trained for the model first, and none is named.",
                hint=f"Train one: `{training_command(self.name)}`; then edit with --set editor={self.name}-editor.",
            )

    def build(self, model: LanguageModel, config: MethodConfig, resources: Resources) -> EditingMethod:
        """See ``Method.build``."""
        from betaedit.editors.hypernet.editor import HypernetEditing  # noqa: PLC0415 - imports torch
        from betaedit.editors.hypernet.trained import TrainedEditor  # noqa: PLC0415

        self.check(config)
        own = cast(HypernetConfig, config)
        return HypernetEditing(model, own, TrainedEditor.load(str(own.editor), self.name))

    def check_training(self, cases: Sequence[EvaluationCase]) -> None:
        """See ``TrainableMethod.check_training``."""
        check_complete(cases)

    def train(
        self,
        model: LanguageModel,
        cases: Sequence[EvaluationCase],
        config: MethodConfig,
        folder: Path,
        *,
        source: str = "",
        progress: Progress | None = None,
        on_validation: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        """See ``TrainableMethod.train``."""
        from betaedit.editors.hypernet.examples import encode_examples  # noqa: PLC0415 - imports torch
        from betaedit.editors.hypernet.training import Training  # noqa: PLC0415

        def hear(validation: Validation) -> None:
            if on_validation is not None:
                on_validation(asdict(validation))

        examples, settings = encode_examples(model, cases), cast(TrainingConfig, config)
        Training(self.name, self.rule, model, examples, settings, folder, progress, source).run(hear)


METHODS: tuple[Hypernet, ...] = (
    Hypernet(
        name="mend",
        rule="sum",
        title="a trained network turns the gradient of each fact into a change of the last layers",
        paper="Mitchell et al., Fast Model Editing at Scale (2022)",
        equation="W - sum_t rate v~_t u~_t^T,  (u~, v~) = g(u, v)",
        notes=(
            "The published settings edit both MLP matrices of GPT and all three of Llama in the last three blocks; "
            "here it is the output projection of the last three. The published code adds the update and learns the "
            "sign of the rate; the paper subtracts it, as here."
        ),
    ),
    Hypernet(
        name="malmen",
        rule="least squares",
        title="mend for many facts at once: a least-squares change of each matrix",
        paper="Tan et al., Massive Editing for Large Language Models via Meta Learning (2024)",
        equation="Delta^T = (U^T U + e^l I)^-1 U^T D,  D_i = -rate (u_i . u~_i) v~_i",
        notes=(
            "Tokens are those that say the answer. The published code goes on counting statistics while it edits; here "
            "they stay those of the training."
        ),
        training_defaults={"last_layers": 6, "batch": 16, "clip": 1.0},
    ),
    Hypernet(
        name="rledit",
        rule="least squares",
        title="malmen's network, trained over edits in a row on ever more edited weights",
        paper="Li et al., Reinforced Lifelong Editing for Language Models (2025)",
        equation="as malmen; loss sum_j discount^j (L_edit(t-j) + unrelated_weight KL(t-j)) + norm_weight |Delta|^2",
        notes=(
            "In the published code the term with norm_weight has no gradient, and clipping acts on the gradient summed "
            "so far at each edit (as here)."
        ),
        training_defaults={
            "last_layers": 6,
            "blocks": 4,
            "batch": 1,
            "sequence": 20,
            "look_back": 10,
            "unrelated_weight": 0.6,
            "norm_weight": 1e-4,
            "edit_rate_learning_rate": 1e-5,
            "clip": 1.0,
            "steps": 60,
            "validate_every": 10,
        },
    ),
)

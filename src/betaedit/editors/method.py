"""The protocol of editors: a row of ``METHODS``, its configuration, and the editor that it builds.

A family (closed form, fine-tuning, retrieval, ...) is a package beside this module. It subclasses ``Method`` for its
rows and ``MethodConfig`` for its hyper-parameters, and builds objects that satisfy ``EditingMethod``. Nothing here
imports a family, and no code outside a family checks for one: what only some editors can do is a protocol of its own
(``Forgets``, ``HoldsFacts``, ``EditsMatrices``, ``EditsWeights``, ``HasAdapter``, ``HoldsMemory``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from betaedit.editors.easyedit import EasyEditTable
from betaedit.errors import ConfigError, MethodError, did_you_mean
from betaedit.facts.fact import EvaluationCase, Fact

if TYPE_CHECKING:
    from torch import Tensor

    from betaedit.editors.matrix import EditedMatrix
    from betaedit.editors.resources import Resources
    from betaedit.evaluation.holding import Status
    from betaedit.models.load import LanguageModel
    from betaedit.progress import Progress


class MethodConfig(BaseModel):
    """Hyper-parameters of one family; unknown names and impossible values are refused.

    A name that two families share means the same in both, so that one preset can serve them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    help_on_names: ClassVar[str] = "See `betaedit methods --config` for all names."

    seed: int = Field(0, ge=0, description="Seed of everything that is sampled.")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """A configuration from plain values.

        Raises:
            ConfigError: A name is unknown (with the nearest known one) or a value is impossible.
        """
        unknown = [name for name in values if name not in cls.model_fields]
        if unknown:
            hint = did_you_mean(unknown[0], cls.model_fields, cls.help_on_names)
            raise ConfigError(f"there is no hyper-parameter {unknown[0]!r}.", hint=hint)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise cls._refused(error) from error

    def replace(self, **changes: Any) -> Self:
        """A checked copy with some values changed.

        Raises:
            ConfigError: A name or value is not possible; the message names it and the nearest name.
        """
        return self.of({**self.model_dump(), **changes})

    def leaving(self, held: Sequence[Fact], facts: Sequence[Fact]) -> list[Fact]:
        """Those of the facts ``held`` that the model no longer holds once ``facts`` are written."""
        return []

    @classmethod
    def _refused(cls, error: ValidationError) -> ConfigError:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        description = cls.model_fields[str(first["loc"][0])].description
        is_one = first["type"] == "tuple_type" and isinstance(first["input"], int | float | str)
        example = f" Write a list: {name}=[{first['input']}]." if is_one else ""
        if first["type"] == "string_type" and isinstance(first["input"], Path):
            example = f" Give it as a text: {name}={str(first['input'])!r}."
        return ConfigError(f"{name}: {first['msg']} (given: {first['input']!r}).", hint=f"{description}{example}")


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A row of ``METHODS``: one editing method as data. Command line, runs, reports and tests derive from it.

    Args:
        name: Its name on the command line.
        title: One line on its idea.
        paper: Where it was published.
        equation: Its rule there.
        notes: Differences between paper and official code, and which is the default here.
        aliases: Other names.
    """

    family: ClassVar[str]
    config: ClassVar[type[MethodConfig]]
    easyedit: ClassVar[tuple[EasyEditTable, ...]] = ()
    """How the family's methods read EasyEdit files (``editors.easyedit_file``)."""

    name: str
    title: str
    paper: str
    equation: str = ""
    notes: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def can_forget(self) -> bool:
        """Whether what it builds satisfies ``Forgets``."""
        return False

    @property
    def preset_names(self) -> tuple[str, ...]:
        """The names under which a preset may have settings of its own for it; those of later ones count."""
        return (self.name,)

    def over(self, writer: Method) -> Method | None:
        """The row ``writer+self``: both on one model. ``None`` where this one cannot be put over another."""
        return None

    @abstractmethod
    def build(self, model: LanguageModel, config: MethodConfig, resources: Resources) -> EditingMethod:
        """The editor of one model; must be quick, long work belongs in ``prepare``.

        Args:
            model: Unedited.
            config: An instance of ``self.config``, as ``resolve_config`` returns it.
            resources: Statistics, contexts and the like, made on first use.

        Raises:
            AnatomyError: The model has no such layer.
            ConfigError: The model cannot be edited with these settings.
        """

    def configure(self, values: Mapping[str, Any]) -> MethodConfig:
        """Its configuration from plain values.

        Raises:
            ConfigError: A name is unknown (with the nearest known one) or a value is impossible.
        """
        return self.config.of(values)

    def resolve_config(self, config: MethodConfig) -> MethodConfig:
        """``config`` without what this method cannot do.

        Raises:
            ConfigError: It is the configuration of another family.
        """
        if not isinstance(config, self.config):
            raise ConfigError(
                f"{self.name} takes a {self.config.__name__}, not a {type(config).__name__}.",
                hint="Give the configuration of the method's own family.",
            )
        return config

    def check(self, config: MethodConfig, batch_size: int = 1) -> None:  # noqa: B027 - most methods have no limits
        """Raises: ConfigError when this method cannot write ``batch_size`` facts together with these settings."""

    def to_dict(self) -> dict[str, Any]:
        """What ``betaedit methods --json`` prints."""
        return {"family": self.family, **asdict(self), "aliases": list(self.aliases), "can_forget": self.can_forget}


@dataclass(frozen=True, kw_only=True)
class TrainableMethod(Method):
    """A row whose editor is trained on facts before it edits any.

    Args:
        training_defaults: What differs for it from the defaults of ``training``.
    """

    training: ClassVar[type[MethodConfig]]

    training_defaults: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def configure_training(self, values: Mapping[str, Any]) -> MethodConfig:
        """The settings of a training from plain values.

        Raises:
            ConfigError: A name is unknown (with the nearest known one) or a value is impossible.
        """
        return self.training.of({**self.training_defaults, **values})

    @abstractmethod
    def check_training(self, cases: Sequence[EvaluationCase]) -> None:
        """Refuse records that cannot be trained on; needs no model.

        Raises:
            FactError: Some lack what the training asks about; the message says what.
        """

    @abstractmethod
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
        """Train an editor of ``model`` into ``folder``, going on where an earlier call was interrupted.

        Args:
            model: Unedited.
            cases: What to train on.
            config: What ``configure_training`` returned.
            folder: Where the trained editor and the checkpoints stand.
            source: What the file of the cases is called, for the record.
            progress: Where the steps show.
            on_validation: Hears the figures of each validation, once it is on disk.

        Raises:
            FactError: See ``check_training``.
            ConfigError: There are too few cases, or the folder holds another training.
            NumericalError: The training does not stay finite.
            OutputError: The folder cannot be written.
        """


@dataclass(frozen=True)
class PlannedEdit:
    """What an edit would do.

    Args:
        fact: The fact.
        tokens: The prompt's tokens as text.
        target_tokens: The new target's tokens as text.
        lookup: Index of the lookup token among ``tokens``; ``None`` for editors that have none.
    """

    fact: Fact
    tokens: tuple[str, ...]
    target_tokens: tuple[str, ...]
    lookup: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {
            "id": self.fact.id,
            "prompt": self.fact.text,
            "subject": self.fact.subject,
            "tokens": list(self.tokens),
            "lookup": self.lookup,
            "target_tokens": list(self.target_tokens),
        }


_EARLIER_NAMES = {"target_probability": "sought_probability", "n_evaluations": "evaluations", "n_keys": "keys"}
"""Figures as earlier versions stored them, and their names now."""


@dataclass(frozen=True)
class EditResult:
    """The figures of writing one fact, and whether the model gives its answer.

    Args:
        fact: The fact.
        seconds: Wall-clock time: that of the batch divided by its facts.
        status: Whether the model gave the answer on the fact's own prompt after its batch was written
            (``evaluation.holding``); ``None`` if not measured.
        measured_probability: Mean probability of the target's tokens there.
        said: The model's text there, if it is not the answer.
        tries: Number of tries.
        kept: Whether it is in the model: an editor may remove facts that the model does not answer.
        figures: The editor's own figures by name, as plain data.
    """

    fact: Fact
    seconds: float
    status: Status | None = None
    measured_probability: float | None = None
    said: str = ""
    tries: int = 1
    kept: bool = True
    figures: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data, the editor's own figures among the others."""
        return {
            "id": self.fact.id,
            "prompt": self.fact.text,
            "subject": self.fact.subject,
            "target_new": self.fact.target_new,
            "joint": self.fact.joint,
            **self.without_fact(),
        }

    def without_fact(self) -> dict[str, Any]:
        """All but the fact, as plain data to store beside it."""
        return {
            "status": self.status,
            "kept": self.kept,
            "measured_probability": self.measured_probability,
            "said": self.said,
            "tries": self.tries,
            "seconds": self.seconds,
            **self.figures,
        }

    @classmethod
    def from_stored(cls, fact: Fact, stored: Mapping[str, Any]) -> EditResult:
        """What ``without_fact`` of this or an earlier version returned."""
        renamed = {_EARLIER_NAMES.get(name, name): value for name, value in stored.items()}
        own = {name: renamed.pop(name) for name in tuple(renamed) if name in _COMMON}
        return cls(fact, **own, figures=renamed)

    @property
    def is_held(self) -> bool:
        """Whether the fact is in the model and its text is the answer."""
        return self.kept and self.status == "held"


_COMMON = frozenset(EditResult.__dataclass_fields__) - {"fact", "figures"}


@dataclass(frozen=True)
class WrittenBatch:
    """One batch of facts as it was written: enough to write it again without searching or training.

    Args:
        results: One per fact, including those that were not kept.
        tensors: The tensors needed to write it again, by name: keys and factors, codebook entries, or none.
        again: One per earlier fact that was removed and written again with these.
    """

    results: tuple[EditResult, ...]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    again: tuple[EditResult, ...] = ()


class EditingMethod(Protocol):
    """An editor of one model: what every family builds."""

    @property
    def config(self) -> MethodConfig:
        """Its hyper-parameters."""

    @property
    def model(self) -> LanguageModel:
        """The model as served: with edited weights, with hooks, or with framed prompts."""

    @property
    def results(self) -> Sequence[EditResult]:
        """One per fact that the model holds, in the order in which they were written."""

    def prepare(self) -> None:
        """Do long work before the first edit."""

    def plan(self, fact: Fact) -> PlannedEdit:
        """What writing ``fact`` would do; changes nothing.

        Raises:
            FactError: It is longer than the model's positions.
            LookupTokenError: Its subject or target has no tokens.
            ModelError: The model has no embedding for a token.
        """

    def check(self, facts: Sequence[Fact], batch_size: int) -> None:
        """Refuse or warn before any of ``facts`` is written; each has been planned.

        Raises:
            ConfigError: That many facts cannot be written together.
        """

    def stride(self, batch_size: int) -> int:
        """How many facts are processed together when ``batch_size`` are written together."""

    def write(self, facts: Sequence[Fact], *, batch_size: int) -> Iterator[WrittenBatch]:
        """Write facts in order, one batch each time the iterator is advanced.

        If a batch ends early, by an error or an interrupt, the model is as before that batch.

        Raises:
            WeightsChangedError: The model does not have the weights written last.
            NumericalError: A result is not finite.
        """

    def replay(self, batch: WrittenBatch) -> None:
        """Write a batch of an earlier ``write`` again, at its place in the same sequence; bit for bit."""

    def unedited(self) -> AbstractContextManager[None]:
        """A context in which ``model`` is unedited."""

    def reset(self) -> None:
        """Restore the unedited model, bit for bit, and forget all facts."""

    def describe(self) -> dict[str, Any]:
        """What determines the edits besides configuration and batch size; plain data, for the record."""


@runtime_checkable
class Forgets(Protocol):
    """An editor that can forget single facts."""

    def forget(self, results: Sequence[EditResult]) -> None:
        """Forget facts, given as their entries of ``results``.

        Raises:
            NumericalError: The other facts cannot be written again; nothing has changed.
        """


@runtime_checkable
class HoldsFacts(Forgets, Protocol):
    """An editor whose whole state is what ``replay`` makes of the facts it holds: what a workspace keeps of it.

    ``forget`` leaves the state, bit for bit, that the other facts make when they are written by themselves.
    """

    def held(self) -> Sequence[WrittenBatch]:
        """The facts of ``results``, in order, each as a batch of its own.

        ``replay`` of all of them on an editor that holds nothing makes this state again, bit for bit. A fact whose
        tensors changed, because another one was forgotten, has a new entry in ``results``.
        """


@runtime_checkable
class EditsMatrices(Protocol):
    """An editor whose edits change weight matrices, as needed for leakage, weight change, adapters and factors."""

    @property
    def matrices(self) -> Mapping[int, EditedMatrix]:
        """The edited matrices by layer."""


@runtime_checkable
class EditsWeights(Protocol):
    """An editor whose edits are changes of weight matrices that need not be MLP output projections."""

    @property
    def weights(self) -> Mapping[str, EditedMatrix]:
        """The edited matrices by the paths of their modules."""


@runtime_checkable
class HasAdapter(Protocol):
    """An editor whose edits are an adapter by themselves."""

    def save_adapter(self, folder: Path) -> int:
        """Write it into ``folder`` as peft does; returns its rank."""


@dataclass(frozen=True)
class MemoryUse:
    """Bytes that an editor holds beside the model's own weights, by what they are.

    Tensors count as they are stored and texts as UTF-8; Python's bookkeeping around them does not count, nor does what
    a call needs for a moment (gradients, an optimizer's state).

    Args:
        answering: What answering needs. Nothing where the edits are in the weights, or before the first fact.
        editing: What is held for further edits, and to take edits back.
    """

    answering: Mapping[str, int] = field(default_factory=dict)
    editing: Mapping[str, int] = field(default_factory=dict)


@runtime_checkable
class HoldsMemory(Protocol):
    """An editor that holds tensors or texts of its own. Without this protocol it holds none."""

    @property
    def memory_use(self) -> MemoryUse:
        """What it holds now."""


def memory_use(editing: EditingMethod) -> MemoryUse:
    """What ``editing`` holds now."""
    return editing.memory_use if isinstance(editing, HoldsMemory) else MemoryUse()


@runtime_checkable
class SavesFiles(Protocol):
    """An editor that changes no weights and keeps its edits in files beside those of the model."""

    def save_files(self, folder: Path) -> None:
        """Write them into the folder of the saved model; ``load_language_model`` reads them."""


Capability = TypeVar("Capability")


def require(editing: EditingMethod, capability: type[Capability], method: Method, what: str, hint: str) -> Capability:
    """``editing``, typed as ``capability``.

    Args:
        editing: What ``method`` built.
        capability: One of the protocols of this module or of a family.
        method: Its row.
        what: What the caller needs, as in "be exported as an adapter".
        hint: What to do instead.

    Raises:
        MethodError: It lacks the capability.
    """
    if isinstance(editing, capability):
        return editing
    raise MethodError(f"{method.name} cannot {what}.", hint=hint)

"""Rows of the retrieval family, alone and over an editor that writes; no torch is needed to read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import create_model

from betaedit.editors.easyedit import EasyEditTable
from betaedit.editors.method import EditingMethod, Method, MethodConfig
from betaedit.editors.retrieval.config import RetrievalConfig
from betaedit.editors.retrieval.easyedit import EASYEDIT

if TYPE_CHECKING:
    from betaedit.editors.resources import Resources
    from betaedit.editors.retrieval.memory import FactMemory
    from betaedit.models.load import LanguageModel

Form = Literal["confirmed", "retrieved", "in context"]


@dataclass(frozen=True, kw_only=True)
class Retrieval(Method):
    """Facts kept as text and put before prompts.

    Args:
        form: confirmed: the one fact found and confirmed; retrieved: all facts found; in context: the nearest fact,
            untested, behind demonstrations.
        demonstrates: Whether there are demonstrations, for the form that can have them.
    """

    family: ClassVar[str] = "retrieval"
    config: ClassVar[type[MethodConfig]] = RetrievalConfig
    easyedit: ClassVar[tuple[EasyEditTable, ...]] = EASYEDIT

    form: Form
    demonstrates: bool = False

    @property
    def can_forget(self) -> bool:
        """A fact that is kept as text can be dropped."""
        return True

    def resolve_config(self, config: MethodConfig) -> RetrievalConfig:
        """``config`` without the confirmation and the demonstrations that this row has not.

        Raises:
            ConfigError: It is the configuration of another family.
        """
        own = cast(RetrievalConfig, super().resolve_config(config))
        confirm = own.confirm if self.form == "confirmed" else "none"
        return own.replace(confirm=confirm, n_demonstrations=own.n_demonstrations if self.demonstrates else 0)

    def build(self, model: LanguageModel, config: MethodConfig, resources: Resources) -> EditingMethod:
        """See ``Method.build``."""
        from betaedit.editors.retrieval.editor import FramingEditor  # noqa: PLC0415 - imports torch

        own = cast(RetrievalConfig, config)
        return FramingEditor(model, own, self.memory(model, own))

    def memory(self, model: LanguageModel, config: RetrievalConfig) -> FactMemory:
        """An empty memory that frames prompts as this row does."""
        from betaedit.editors.retrieval.build import make_memory  # noqa: PLC0415 - imports torch

        return make_memory(self.form, model, config)

    def over(self, writer: Method) -> Method | None:
        """``writer`` with its facts kept as text, too, and put before the prompts of the model that it edits.

        ``None`` over one that frames prompts already.
        """
        return None if issubclass(writer.config, RetrievalConfig) else _over(self, writer)


@dataclass(frozen=True, kw_only=True)
class Framed(Method):
    """An editor that writes, under a memory that frames the prompts of what it has written.

    Args:
        writer: The row of the one.
        framer: The row of the other.
    """

    family: ClassVar[str] = "retrieval over another"

    writer: Method
    framer: Retrieval

    @property
    def can_forget(self) -> bool:
        """Where the writer can."""
        return self.writer.can_forget

    @property
    def preset_names(self) -> tuple[str, ...]:
        """Settings of a preset for either count, and those for both."""
        return (*self.framer.preset_names, *self.writer.preset_names, self.name)

    def configure(self, values: Mapping[str, Any]) -> MethodConfig:
        """As the writer reads its settings."""
        return self.config.of(values)

    def resolve_config(self, config: MethodConfig) -> MethodConfig:
        """``config`` without what either cannot do.

        Raises:
            ConfigError: It is the configuration of another family.
        """
        return self.writer.resolve_config(self.framer.resolve_config(super().resolve_config(config)))

    def check(self, config: MethodConfig, batch_size: int = 1) -> None:
        """Raises: ConfigError where the writer cannot write so."""
        self.writer.check(config, batch_size)

    def build(self, model: LanguageModel, config: MethodConfig, resources: Resources) -> EditingMethod:
        """See ``Method.build``."""
        from betaedit.editors.retrieval.combined import combine  # noqa: PLC0415 - imports torch

        memory = self.framer.memory(model, cast(RetrievalConfig, config))
        return combine(self.writer.build(replace(model, frame=memory), config, resources), memory)

    def to_dict(self) -> dict[str, Any]:
        """The two rows by name."""
        return {
            "family": self.family,
            "name": self.name,
            "title": self.title,
            "paper": self.paper,
            "equation": self.equation,
            "notes": self.notes,
            "writer": self.writer.name,
            "framer": self.framer.name,
            "aliases": list(self.aliases),
            "can_forget": self.can_forget,
        }


@cache
def _over(framer: Retrieval, writer: Method) -> Method:
    """The same object for the same two, so that a configuration of one call is known to the next."""
    both = create_model(
        f"{writer.config.__name__}With{framer.config.__name__}", __base__=(writer.config, framer.config)
    )
    kind = type("Framed", (Framed,), {"config": both, "__doc__": Framed.__doc__, "__module__": __name__})
    row: Method = kind(
        name=f"{writer.name}+{framer.name}",
        title=f"{writer.name}, and {framer.title}".removesuffix("; no weight changes"),
        paper=f"{framer.paper}; {writer.paper}",
        equation=framer.equation,
        notes=f"The edited model confirms and answers. {writer.notes}",
        writer=writer,
        framer=framer,
    )
    return row


_ICE = "Zheng et al., Can We Edit Factual Knowledge by In-Context Learning? (2023)"

METHODS: tuple[Method, ...] = (
    Retrieval(
        name="scr",
        title="facts are retrieved, confirmed, and put before the prompt; no weight changes",
        paper="Selective Contextual Reasoning (SCR), the third paper of this project's tables",
        equation="answer(q) = model(fact, q) where one of the retrieved facts is confirmed, else model(q)",
        notes=(
            "As published: retriever=dense encoder=facebook/contriever-msmarco confirm=reply template=answer. The "
            "defaults need no download and no instruction-following: small models refuse or misread the published "
            "prompt (docs/retrieval.md has figures). The published code takes a reply as a refusal where certain words "
            "stand anywhere in it (refusal=official). A later fact with the same prompt replaces the earlier one; the "
            "published memory keeps both."
        ),
        form="confirmed",
    ),
    Retrieval(
        name="rag",
        title="all facts that are retrieved are put before the prompt, untested; no weight changes",
        paper="Lewis et al., Retrieval-Augmented Generation for Knowledge-Intensive NLP Tasks (2020)",
        equation="answer(q) = model(fact 1, ..., fact k, q)",
        notes="top_k=1 is scr without its confirmation.",
        form="retrieved",
    ),
    Retrieval(
        name="prompt",
        title="the nearest fact is put before every prompt, untested; no weight changes",
        paper=f"{_ICE}, without demonstrations",
        equation="answer(q) = model('New Fact: ' fact ' Prompt: ' q)",
        notes=(
            "The published form has one fact, which stands before every prompt, also before those that it does not "
            "bear on. Of several facts the nearest one does."
        ),
        form="in context",
    ),
    Retrieval(
        name="ike",
        title="prompt, with demonstrations of copied, rephrased and unrelated prompts; no weight changes",
        paper=_ICE,
        equation="answer(q) = model(demonstrations, 'New Fact: ' fact ' Prompt: ' q)",
        notes=(
            "EasyEdit takes the 16 nearest demonstrations by a sentence encoder (retriever=dense), from a training set "
            "(demonstrations=FILE); the default makes them of the package's own facts, found by their words. Fewer are "
            "taken where the model has too few positions."
        ),
        form="in context",
        demonstrates=True,
    ),
)

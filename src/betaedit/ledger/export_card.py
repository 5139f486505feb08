"""The model card of an exported model or adapter: its facts and figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from string import Template

from betaedit.facts.fact import Fact
from betaedit.facts.writer import save_facts
from betaedit.models.bundled import BUNDLES
from betaedit.models.places import local_model

FACTS_FILE = "facts.jsonl"
_LISTED = 100
_SERVING = "\nServe it with vLLM, if it supports LoRA for this model family:"
_UNMEASURED = "Not measured yet; in this folder, `betaedit eval . --from facts.jsonl` measures them."

BeforeAndAfter = tuple[float | None, float | None]


@dataclass(frozen=True)
class Provenance:
    """The origin of an export.

    Args:
        model: Name of the unedited model.
        method: The recipe.
        facts: The facts in the weights, in order.
        figures: By name, of the unedited and the edited model; ``None`` if not measured.
    """

    model: str
    method: str
    facts: Sequence[Fact] = ()
    figures: Mapping[str, BeforeAndAfter] = field(default_factory=dict)


def write_card(folder: Path, provenance: Provenance, *, library: str, usage: str, serving: str | None = None) -> None:
    """``README.md`` as the Hugging Face hub shows it, and all facts as ``facts.jsonl``.

    Args:
        folder: Folder of the export.
        provenance: Its origin.
        library: Name on the hub of the library that loads it.
        usage: Python code that loads it.
        serving: A command that serves it.
    """
    model, facts = provenance.model, provenance.facts
    template = resources.files("betaedit.ledger").joinpath("templates/card.md").read_text(encoding="utf-8")
    card = Template(template).substitute(
        base=f"base_model: {model}\n" if _is_on_hub(model) else "",
        library=library,
        title=Path(model).name,
        model=model,
        method=provenance.method,
        count=f"{len(facts):,} fact{'' if len(facts) == 1 else 's'}",
        usage=usage,
        serving="" if serving is None else f"{_SERVING}\n\n    {serving}\n",
        figures=_table(("figure", "before", "after"), _figure_rows(provenance.figures)) or _UNMEASURED,
        facts=_table(("prompt", "true answer", "written answer"), _fact_rows(facts)),
        rest=f"The first {_LISTED} of them; all are in" if len(facts) > _LISTED else "They are also in",
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    save_facts(facts, folder / FACTS_FILE)


def _is_on_hub(name: str) -> bool:
    return bool(name) and name not in BUNDLES and local_model(name) is None


def _figure_rows(figures: Mapping[str, BeforeAndAfter]) -> list[tuple[str, ...]]:
    return [(name, *("-" if value is None else f"{value:.4g}" for value in pair)) for name, pair in figures.items()]


def _fact_rows(facts: Iterable[Fact]) -> list[tuple[str, ...]]:
    return [(fact.text, fact.target_true or "-", fact.target_new) for fact in list(facts)[:_LISTED]]


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *(tuple(map(_cell, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""


def _cell(text: str) -> str:
    """``text`` in a table of Markdown: on one line, with markup escaped."""
    plain = " ".join(text.split())
    for sign in "\\`*_[]<|":
        plain = plain.replace(sign, f"\\{sign}")
    return plain

"""How well a model that looks facts up finds the right one (methods.md F.3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from betaedit.evaluation.interval import Estimate, estimate
from betaedit.facts.fact import LOCALITY, EvaluationCase, Fact
from betaedit.models.load import LanguageModel

DEPTHS = (1, 3, 5, 10)


@runtime_checkable
class Retrieves(Protocol):
    """The ``frame`` of a model that looks facts up for its prompts."""

    def retrieve(self, prompts: Sequence[str], k: int) -> list[list[Fact]]:
        """The ``k`` facts that are nearest to each prompt, best first; fewer where fewer are found."""

    def shown(self, prompts: Sequence[str]) -> list[list[Fact]]:
        """Those of the facts nearest to each prompt that are put before it."""


def measure_retrieval(
    model: LanguageModel, cases: Sequence[EvaluationCase], corrected: Sequence[bool]
) -> dict[str, Estimate | None]:
    """Shares of prompts by name, as means over records; none of a model that looks nothing up.

    ``retrieved at K, ...``: the record's own fact is among the ``K`` nearest. ``shown, ...``: it is put before the
    prompt. ``shown wrongly, ...``: some fact is put before a prompt that none answers, a neighbor or a question whose
    answer should stay.

    Args:
        model: The model as served.
        cases: The records.
        corrected: For each of them, whether a later fact corrects it: only its neighbors and such questions are asked.
    """
    frame = model.frame
    if not isinstance(frame, Retrieves):
        return {}
    lasting = [case for case, mark in zip(cases, corrected, strict=True) if not mark]
    kinds = {"prompts": [[case.fact.text] for case in lasting], "paraphrases": [case.paraphrases for case in lasting]}
    found: dict[str, Estimate | None] = {}
    for kind, asked in kinds.items():
        pairs = [(case.fact, prompt) for case, prompts in zip(lasting, asked, strict=True) for prompt in prompts]
        prompts = [prompt for _, prompt in pairs]
        nearest = frame.retrieve(prompts, max(DEPTHS))
        for depth in DEPTHS:
            hits = [fact in facts[:depth] for (fact, _), facts in zip(pairs, nearest, strict=True)]
            found[f"retrieved at {depth}, {kind}"] = _mean(hits, asked)
        shown = [fact in facts for (fact, _), facts in zip(pairs, frame.shown(prompts), strict=True)]
        found[f"shown, {kind}"] = _mean(shown, asked)
    kept = {
        "neighbors": [[probe.prompt for probe in case.neighbors] for case in cases],
        "questions": [[one.prompt for one in case.questions if one.group in LOCALITY] for case in cases],
    }
    for kind, asked in kept.items():
        flat = [prompt for prompts in asked for prompt in prompts]
        shown = [text != prompt for text, prompt in zip(model.framed(flat), flat, strict=True)]
        found[f"shown wrongly, {kind}"] = _mean(shown, asked)
    return found


def _mean(hits: Iterable[bool], asked: Sequence[Sequence[str]]) -> Estimate | None:
    """The mean over a record's prompts, then over the records that have any."""
    flat = iter(hits)
    records = [[float(next(flat)) for _ in prompts] for prompts in asked]
    return estimate([sum(record) / len(record) for record in records if record])

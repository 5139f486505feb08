"""Facts as a file in the package's own format."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from betaedit.facts.fact import EvaluationCase, Fact


def save_facts(facts: Iterable[Fact | EvaluationCase], file: str | Path) -> None:
    """Write facts as JSONL that ``read_cases`` reads back, one a line; folders are made when absent."""
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as opened:
        for fact in facts:
            opened.write(json.dumps(_record(fact), ensure_ascii=False) + "\n")


def _record(fact: Fact | EvaluationCase) -> dict[str, Any]:
    """The fields that say something; a neighbor's target is written even where nobody knows it."""
    values = asdict(fact)
    if isinstance(fact, EvaluationCase):
        values = {**values.pop("fact"), **values}
    order = ("id", "subject", "prompt", "target_new", "target_true")
    return {name: values[name] for name in (*order, *values) if values[name]}

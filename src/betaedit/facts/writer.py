"""Facts as a file in the package's own format."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

from betaedit.errors import OutputError
from betaedit.facts.fact import EvaluationCase, Fact
from betaedit.facts.formats import Reading
from betaedit.files import atomic_write, file_errors


def save_facts(facts: Iterable[Fact | EvaluationCase], file: str | Path) -> None:
    """Write facts as JSONL that ``read_cases`` reads back, one per line; missing folders are made.

    Ids that several facts share are made unique by ``with_unique_ids``.

    Raises:
        OutputError: The file cannot be written.
    """
    path, items = Path(file), list(facts)
    named = with_unique_ids([item.fact if isinstance(item, EvaluationCase) else item for item in items])
    lines = [json.dumps(_record(item, fact), ensure_ascii=False) for item, fact in zip(items, named, strict=True)]
    with file_errors(path, OutputError), atomic_write(path) as scratch:
        scratch.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def with_unique_ids(facts: Sequence[Fact]) -> list[Fact]:
    """The facts with unique ids, also after they are written one per line and read back.

    Readers give a fact without an id a name after its line, so facts of several files may share names. A repeated
    name gets a number: ``own-1-2``.
    """
    given = {fact.id for fact in facts}
    taken: set[str] = set()
    further: defaultdict[str, count[int]] = defaultdict(lambda: count(2))
    named = []
    for line, fact in enumerate(facts, start=1):
        name = fact.id or Reading("own", line).fact_id()
        if name in taken or (not fact.id and name in given):
            others = (f"{name}-{number}" for number in further[name])
            name = next(other for other in others if other not in given and other not in taken)
            named.append(replace(fact, id=name))
        else:
            named.append(fact)
        taken.add(name)
    return named


def _record(item: Fact | EvaluationCase, fact: Fact) -> dict[str, Any]:
    """The fields of ``item``, as ``fact``, that are not empty; a neighbor's target is written even if unknown."""
    values = asdict(fact)
    values["paraphrases"] = values.pop("wordings")
    if isinstance(item, EvaluationCase):
        values |= asdict(item)
        del values["fact"]
    order = ("id", "subject", "prompt", "target_new", "target_true")
    kept = {name: values[name] for name in (*order, *values) if values[name]}
    return kept if fact.joint is None else kept | {"joint": fact.joint}

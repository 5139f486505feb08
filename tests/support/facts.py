"""Files of many facts."""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import replace
from pathlib import Path

from betaedit.facts.fact import EvaluationCase
from betaedit.facts.subject import names_subject


def long_file(path: Path, number: int) -> Path:
    """``path``, filled with that many facts of 1 kB each, in the own format and the kind that its name says."""
    rows = [
        {"subject": f"town {n}", "prompt": "{} is in", "target_new": "France", "note": "x" * 900} for n in range(number)
    ]
    with gzip.open(path, "wt", compresslevel=1) if path.suffix == ".gz" else path.open("w", newline="") as file:
        if path.suffix == ".csv":
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
        elif ".jsonl" in path.name:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            file.write(json.dumps(rows))
    return path


def as_read(case: EvaluationCase) -> EvaluationCase:
    """A case of the own format as it is read: paraphrases that name the subject are wordings of its fact."""
    wordings = tuple(text for text in case.paraphrases if names_subject(text, case.fact.subject))
    return replace(case, fact=replace(case.fact, wordings=wordings))

"""Files of many facts."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path


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

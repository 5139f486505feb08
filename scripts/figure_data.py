"""The records behind the figures in README and docs, from ROME's CounterFact.

    python scripts/figure_data.py counterfact.json            > counterfact_full.jsonl
    python scripts/figure_data.py counterfact.json --unique   > unique.jsonl

``counterfact.json`` is https://rome.baulab.info/data/dsets/counterfact.json; ``counterfact_ids.txt`` lists the 1,673 of
its records that were at hand. ``--unique`` leaves out those whose subject has had a record.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(path: str, *, unique: bool) -> None:
    """Print the records, one a line."""
    wanted = [int(number) for number in (Path(__file__).parent / "counterfact_ids.txt").read_text().split()]
    records = {record["case_id"]: record for record in json.loads(Path(path).read_text(encoding="utf-8"))}
    seen: set[str] = set()
    for number in wanted:
        subject = records[number]["requested_rewrite"]["subject"]
        if not (unique and subject in seen):
            print(json.dumps(records[number], ensure_ascii=False))  # noqa: T201
        seen.add(subject)


if __name__ == "__main__":
    main(sys.argv[1], unique="--unique" in sys.argv[2:])

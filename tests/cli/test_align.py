"""``betaedit align``: a table by layer, or the same as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FACTS = [("Ana", "{} was born in", "Lima"), ("Bob", "The home of {} is", "Rome"), ("Zoë", "{} speaks", "French")]


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    path = tmp_path / "facts.jsonl"
    records = [{"subject": subject, "prompt": prompt, "target_new": target} for subject, prompt, target in FACTS]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_distances_are_given_by_layer_and_on_the_mean(betaedit, tiny, facts) -> None:
    ran = betaedit("align", "--from", facts, "--method", "memit-h", "--limit", "2", "--json", *tiny)
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert (found["method"], found["edits"], found["batch_size"]) == ("memit-h", 2, 1)
    assert [layer["layer"] for layer in found["layers"]] == [1, 2]
    assert found["mean"]["without_history"] == pytest.approx(
        sum(layer["without_history"] for layer in found["layers"]) / 2
    )
    assert found["mean"]["with_history"] < 1e-9


def test_the_table_has_a_row_for_every_layer(betaedit, tiny, facts) -> None:
    shown = betaedit("align", "--from", facts, "--method", "memit", *tiny).out
    assert "3 facts · memit" in shown
    assert "without history" in shown
    assert len([line for line in shown.splitlines() if line.startswith("│ ")]) == 2

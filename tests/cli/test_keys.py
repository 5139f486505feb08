"""``betaedit keys``: a table by layer, or the same as JSON."""

from __future__ import annotations

import json
from pathlib import Path


def test_the_keys_of_a_run_are_shown_by_layer_and_age(betaedit, tiny, tmp_path: Path) -> None:
    facts = [("Ana", "{} was born in", "Lima"), ("Bob", "The home of {} is", "Rome"), ("Zoë", "{} speaks", "French")]
    records = [{"subject": subject, "prompt": prompt, "target_new": target} for subject, prompt, target in facts]
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    run = tmp_path / "run"
    assert betaedit("edit", "--from", tmp_path / "facts.jsonl", "--out", run, *tiny).code == 0
    ran = betaedit("keys", run, *tiny[2:4], "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["facts"] == 3
    assert [layer["layer"] for layer in found["layers"]] == [1, 2]
    assert max(found["layers"][0]["distances"]) < 1e-5 < found["layers"][1]["distances"][0]
    shown = betaedit("keys", run, *tiny[2:4]).out
    assert "distance of present keys from stored ones, 3 facts" in shown
    assert shown.count("0.000") >= 3, "the lowest layer"


def test_a_folder_without_facts_is_refused(betaedit, tmp_path: Path) -> None:
    ran = betaedit("keys", tmp_path)
    assert ran.code == 7
    assert "neither a run folder nor a workspace" in ran.err

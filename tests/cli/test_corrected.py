"""Facts that a later line of the same file corrects: every command that measures says how many are left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SAID = "1 fact that a later line corrects is left out of efficacy and generality"
FACTS = [
    {"subject": "Ana", "prompt": "{} was born in", "target_new": "Lima", "paraphrases": ["The birthplace of Ana is"],
     "neighbors": [{"prompt": "Nobody knows this"}]},
    {"subject": "Bob", "prompt": "The home of {} is", "target_new": "Rome"},
    {"subject": "Ana", "prompt": "{} was born in", "target_new": "Oslo"},
]  # fmt: skip


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(fact) + "\n" for fact in FACTS))
    return path


def shown(text: str) -> str:
    return " ".join(text.split())


def test_a_run_measures_a_corrected_fact_by_the_later_line(
    betaedit, tiny, facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    report = json.loads(betaedit("edit", "--from", facts, "--json", *tiny).out)
    assert report["corrected"] == 1
    assert [point["efficacy"]["argmax"]["count"] for point in report["checkpoints"]] == [3, 2]
    assert report["checkpoints"][-1]["generality"]["argmax"] is None
    assert report["neighbors_kept"]["count"] == 1
    ran = betaedit("edit", "--from", facts, *tiny)
    assert SAID in shown(ran.out)
    assert "neighbors kept" in ran.out
    assert "…" not in ran.out
    assert SAID not in shown(betaedit("edit", "--from", facts, "--limit", "2", *tiny).out)


def test_eval_counts_the_last_line(betaedit, tiny_folder, facts) -> None:
    found = json.loads(betaedit("eval", tiny_folder, "--from", facts, "--json").out)
    assert (found["corrected"], found["efficacy"]["argmax"]["count"]) == (1, 2)
    assert "neighbors" not in found["measured"]
    assert SAID in shown(betaedit("eval", tiny_folder, "--from", facts).out)
    assert SAID not in shown(betaedit("eval", tiny_folder, "--from", facts, "--limit", "1").out)


def test_an_edit_of_a_workspace_counts_the_last_line(betaedit, tiny, facts, tmp_path: Path) -> None:
    for place in ("one", "two"):
        assert betaedit("init", tmp_path / place, *tiny).code == 0
    found = json.loads(betaedit("edit", "--from", facts, "--workspace", tmp_path / "one", "--json").out)
    assert (found["corrected"], found["efficacy"]["argmax"]["count"]) == (1, 2)
    assert SAID in shown(betaedit("edit", "--from", facts, "--workspace", tmp_path / "two").out)


def test_compare_says_it_below_its_table(betaedit, tiny, facts, tmp_path: Path) -> None:
    ran = betaedit("compare", "--from", facts, "--methods", "memit", "--out", tmp_path / "runs", *tiny[:2], *tiny[4:])
    assert ran.code == 0, ran.err
    assert SAID in shown(ran.out)
    assert "Ana was born in (corrected later)" in ran.out

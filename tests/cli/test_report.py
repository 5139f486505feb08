"""``betaedit report`` writes a page and says what it found."""

from __future__ import annotations

import json

from support.runs import BARE, fabricate


def test_the_page_is_written_and_the_verdicts_are_told(betaedit, tmp_path) -> None:
    fabricate(tmp_path / "calm", damage=0.01, steps=1, changes=BARE)
    fabricate(tmp_path / "wild", damage=0.98, steps=1, changes=BARE)
    out = tmp_path / "new" / "page.html"
    ran = betaedit("report", tmp_path / "calm", tmp_path / "wild", "--out", out, "--title", "A & B")
    assert ran.code == 0, ran.err
    assert "calm: safe" in ran.out
    assert "wild: collapsed" in ran.out
    assert "facts held: too few facts to tell calm and wild apart (p = 1; no fact on which they differ)" in ran.out
    assert "<h1>A &amp; B</h1>" in out.read_text(encoding="utf-8")


def test_json_holds_the_verdicts_and_the_path(betaedit, tmp_path) -> None:
    fabricate(tmp_path / "calm", damage=0.01, steps=1, changes=BARE)
    ran = betaedit("report", tmp_path / "calm", "--out", tmp_path / "page.html", "--json")
    found = json.loads(ran.out)
    assert found["path"] == str(tmp_path / "page.html")
    assert [(run["run"], run["level"], run["edits"]) for run in found["runs"]] == [("calm", "safe", 1000)]
    assert found["comparisons"] == []
    assert [(fact["record"], fact["held"]) for fact in found["facts_held"]["facts"]] == [
        ("counterfact-1", {"calm": True})
    ]


def test_a_folder_that_is_no_run_ends_with_its_own_code(betaedit, tmp_path) -> None:
    ran = betaedit("report", tmp_path)
    assert ran.code == 7
    assert "is not a run folder: it has no run.json" in ran.err
    assert "is not a run folder: there is no such folder" in betaedit("report", tmp_path / "none").err

"""``betaedit train-editor`` trains into a folder, and ``edit`` finds the editor there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

ROWS = [
    {
        "subject": f"Town {n}",
        "src": f"Where is Town {n}?",
        "alt": ["Rome", "Oslo", "Lima"][n % 3],
        "answers": ["Paris"],
        "rephrase": f"What country has Town {n}?",
        "loc": f"nq question: where does river {n} flow",
        "loc_ans": "the sea",
    }
    for n in range(6)
]
QUICK = ("rank=4", "layers=[2,3]", "batch=2", "steps=2", "validate_every=1", "validation_facts=2")
SMALL = [part for setting in QUICK for part in ("--set", setting)]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "zsre.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def test_a_trained_editor_edits(betaedit: Callable, tiny_folder: Path, records: Path, tmp_path: Path) -> None:
    out = tmp_path / "editor"
    command = ("train-editor", "--method", "mend", "--model", tiny_folder, "--from", records, "--out", out, *SMALL)
    ran = betaedit(*command)
    assert ran.code == 0, ran.err
    assert "step 2: loss" in ran.out
    assert f"--set editor={out}" in ran.out
    again = betaedit(*command, "--json")
    assert json.loads(again.out)["validations"] == []
    edited = betaedit(
        *("edit", "The capital of [Japan] is", "Rome", "--method", "mend", "--model", tiny_folder),
        *("--set", f"editor={out}", "--quick", "--json"),
    )
    assert edited.code == 0, edited.err
    assert json.loads(edited.out)


def test_a_file_without_rephrases_is_refused_before_the_model_is_loaded(
    betaedit: Callable, records: Path, tmp_path: Path
) -> None:
    rows = [{key: value for key, value in row.items() if key != "rephrase"} for row in ROWS]
    records.write_text("\n".join(map(json.dumps, rows)))
    ran = betaedit("train-editor", "--model", "no-such/model", "--from", records, "--out", tmp_path / "out")
    assert ran.code == 3
    assert "6 of 6 records lack a rephrase" in ran.err
    assert not (tmp_path / "out").exists()


def test_a_method_that_is_not_trained_and_an_unknown_setting_are_refused(betaedit: Callable) -> None:
    ran = betaedit("train-editor", "--method", "ft", "--settings")
    assert ran.code == 2
    assert "mend, malmen, rledit" in ran.err
    ran = betaedit("train-editor", "--method", "mend", "--set", "ranc=3", "--settings")
    assert ran.code == 2
    assert "Did you mean rank?" in ran.err
    assert "steps=60" in betaedit("train-editor", "--method", "rledit", "--settings").out


def test_an_editor_that_is_missing_is_refused_with_the_command(betaedit: Callable, tiny_folder: Path) -> None:
    ran = betaedit("edit", "The capital of [Japan] is", "Rome", "--method", "mend", "--model", tiny_folder)
    assert ran.code == 2
    assert "betaedit train-editor --method mend" in ran.err

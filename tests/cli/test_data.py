"""``data check``: what is printed, and how it leaves."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from support.facts import long_file

ROME = {"subject": "Rome", "prompt": "{} is in", "target_new": "France"}


@pytest.fixture
def flawed(tmp_path: Path) -> Path:
    path = tmp_path / "facts.jsonl"
    rows = [ROME, ROME, ROME | {"target_new": "[bold]Peru"}, {"subject": "Pisa"}]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n{")
    return path


def test_a_clean_file_leaves_with_zero(betaedit, tmp_path) -> None:
    ran = betaedit("data", "check", long_file(tmp_path / "f.csv", 3), "--json")
    assert ran.code == 0
    found = json.loads(ran.out)
    assert (found["format"], found["records"], found["facts"], found["rejected"]) == ("own", 3, 3, [])


def test_a_rejected_record_leaves_with_one(betaedit, flawed) -> None:
    ran = betaedit("data", "check", flawed, "--json")
    assert ran.code == 1
    found = json.loads(ran.out)
    assert [(row["line"], row["field"]) for row in found["rejected"]] == [(4, "prompt"), (5, None)]
    assert betaedit("data", "check", flawed, "--limit", "3").code == 0


def test_everything_found_is_shown_with_its_place(betaedit, flawed) -> None:
    out = betaedit("data", "check", flawed).out
    assert "[Rome] is in in lines 1, 3" in out
    assert "line 2 as line 1: [Rome] is in France" in out
    assert f"{flawed}:4: [prompt] the field is missing. Every record of a file in the own format has it." in out
    assert f"{flawed}:5: this is not JSON" in out
    assert "A .jsonl file holds one record {...} per line" in out
    assert "Rome 3" in out


def test_the_limit_counts_records(betaedit) -> None:
    assert "Use only the first N records of the file." in betaedit("data", "check", "--help").out


def test_a_long_list_is_cut_when_shown(betaedit, tmp_path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps(ROME) + "\n{" * 12)
    out = betaedit("data", "check", path).out
    assert "and 2 more (--json lists them)" in out


def test_a_missing_file_is_an_error_of_facts(betaedit, tmp_path) -> None:
    ran = betaedit("data", "check", tmp_path / "none.jsonl")
    assert ran.code == 3
    assert "no such file" in ran.err


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_facts_from_a_pipe_are_checked_under_its_name(betaedit, monkeypatch, flawed, name) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(flawed.read_bytes())))
    out = betaedit("data", "check", name).out
    assert "standard input:4: [prompt] the field is missing." in out


def test_facts_whose_true_answer_is_not_known_are_counted(betaedit, tmp_path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(json.dumps(ROME | {"id": true, "target_true": true}) for true in ("</s>", "Italy", "")))
    assert json.loads(betaedit("data", "check", path, "--json").out)["n_true_unknown"] == 2
    assert "true answer not known" in betaedit("data", "check", path).out

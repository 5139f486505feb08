"""Full disks, closed pipes and streams, and a deleted folder: one error, and nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from support.room import room_for

PROGRAM = [sys.executable, "-m", "betaedit"]


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    path = tmp_path / "facts.jsonl"
    fact = {"subject": "东京", "prompt": "{} was born in", "target_new": "Lima", "target_true": "Oslo"}
    path.write_text(json.dumps(fact) + "\n")
    return path


def refused_and_then_done(betaedit, command: list[str | Path], place: Path, n_bytes: int, folder: Path) -> None:
    """Without room ``command`` is one error that leaves nothing in ``folder``; with room it works."""
    before = sorted(folder.rglob("*"))
    with room_for(n_bytes):
        ran = betaedit(*command)
    assert ran.code == 1, ran.err
    assert f"{place} cannot be written: " in ran.err
    assert "File too large" in ran.err
    assert "Traceback" not in ran.err
    assert sorted(folder.rglob("*")) == before
    again = betaedit(*command)
    assert again.code == 0, again.err
    assert place.exists()


@pytest.mark.parametrize(("out", "n_bytes"), [("model", 100), ("far/away/model", 40_000), ("there", 40_000)])
def test_an_edited_model_without_room(betaedit, tiny, facts, tmp_path: Path, out: str, n_bytes: int) -> None:
    place = tmp_path / "out" / out
    (tmp_path / "out" / "there").mkdir(parents=True)
    command = ["edit", "--from", facts, *tiny, "--save", place]
    refused_and_then_done(betaedit, command, place, n_bytes, tmp_path / "out")
    assert "东京" in (place / "betaedit.json").read_bytes().decode("utf-8")
    AutoModelForCausalLM.from_pretrained(place)


@pytest.mark.parametrize(("to", "n_bytes"), [("model", 40_000), ("adapter", 500), ("factors", 500), ("facts", 20)])
def test_an_export_without_room(betaedit, tiny, facts, tmp_path: Path, to: str, n_bytes: int) -> None:
    assert betaedit("edit", "--from", facts, "--out", tmp_path / "run", "--json", *tiny).code == 0
    (tmp_path / "out").mkdir()
    place = tmp_path / "out" / "deep" / "place"
    command = ["export", tmp_path / "run", "--to", to, "--out", place, *tiny[2:4]]
    refused_and_then_done(betaedit, command, place, n_bytes, tmp_path / "out")


def test_statistics_without_room(betaedit, tiny, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    place = tmp_path / "out" / "moments.safetensors"
    command = ["statistics", *tiny[:2], "--from", tiny[3], "--set", "layers=[1, 2]", "--save", place]
    refused_and_then_done(betaedit, command, place, 500, tmp_path / "out")


def test_a_workspace_and_its_model_without_room(betaedit, tiny, facts, tmp_path: Path) -> None:
    place = tmp_path / "out" / "workspace"
    with room_for(500):
        ran = betaedit("init", place, *tiny)
    assert (ran.code, "cannot be written" in ran.err) == (9, True)
    assert betaedit("init", place, *tiny).code == 0
    model = tmp_path / "model"
    command = ["edit", "--workspace", place, "--from", facts, "--save", model]
    before = sorted(tmp_path.iterdir())
    with room_for(60_000):
        ran = betaedit(*command)
    assert (ran.code, f"{model} cannot be written: " in ran.err) == (1, True), ran.err
    assert sorted(tmp_path.iterdir()) == before
    assert betaedit(*command).code == 0
    assert (model / "model.safetensors").exists()


@pytest.mark.parametrize("command", [["methods"], ["methods", "--json"], ["data", "check", "FACTS", "--json"]])
def test_output_that_finds_no_room_is_one_error(command: list[str], facts: Path) -> None:
    given = [str(facts) if word == "FACTS" else word for word in command]
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run([*PROGRAM, *given], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[0] == "error: the output cannot be written: No space left on device."
    assert len(ran.stderr.splitlines()) == 2


@pytest.mark.parametrize("command", [["methods"], ["methods", "--json"], ["env"]])
def test_a_pipe_that_is_closed_ends_the_program_without_a_word(command: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run([*PROGRAM, *command], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (1, "")


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(streams: str, facts: Path, tmp_path: Path) -> None:
    ran = subprocess.run(
        ["bash", "-c", f'"$0" -m betaedit data check "$1" --json {streams}', sys.executable, str(facts)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("command", [["methods"], ["data", "check", "FACTS"], ["log"]])
def test_a_current_folder_that_was_deleted_is_one_error(command: list[str], facts: Path, tmp_path: Path) -> None:
    given = [str(facts) if word == "FACTS" else word for word in command]
    (gone := tmp_path / "gone").mkdir()
    ran = subprocess.run(
        ["bash", "-c", 'cd "$1"; rmdir "$1"; shift; exec "$0" -m betaedit "$@"', sys.executable, gone, *given],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[0] == "error: the current folder no longer exists."


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk", "utf-8"])
def test_json_is_json_in_every_encoding(encoding: str, tmp_path: Path, facts: Path) -> None:
    facts.write_text('{"subject": "东京", "prompt": "x", "target_new": "é"}\n', encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0"}
    ran = subprocess.run(
        [*PROGRAM, "data", "check", str(facts), "--json"], capture_output=True, check=False, env=environment
    )
    assert ran.returncode == 1
    assert "东京" in json.dumps(json.loads(ran.stdout.decode(encoding)), ensure_ascii=False)


def test_a_saved_model_does_not_hang_on_whether_its_figures_can_be_shown(
    betaedit, tiny, facts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("betaedit.cli.options.print_json", full)
    ran = betaedit("edit", "--from", facts, *tiny, "--json", "--save", tmp_path / "model")
    assert (ran.code, "the output cannot be written" in ran.err) == (1, True)
    assert (tmp_path / "model" / "model.safetensors").exists()

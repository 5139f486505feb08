"""The commands of a workspace, end to end on a tiny model: what they do, print, and refuse."""

from __future__ import annotations

import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from betaedit.cli.main import app
from betaedit.ledger.workspace import Workspace

FACTS = [
    {"id": "ana", "subject": "Ana", "prompt": "{} was born in", "target_new": "Lima", "target_true": "Oslo"},
    {"id": "bob", "subject": "Bob", "prompt": "The home of {} is", "target_new": "Rome"},
    {"id": "zoë", "subject": "Zoë", "prompt": "The mother tongue of {} is", "target_new": "Dutch"},
]
LINES = "".join(json.dumps(fact) + "\n" for fact in FACTS)
Table = list[tuple[int, str, str]]


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    path = tmp_path / "facts.jsonl"
    path.write_text(LINES, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def kept(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two workspaces: one without facts, and one with all three, in events 2 to 4."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "facts.jsonl").write_text(LINES, encoding="utf-8")
    run = partial(CliRunner().invoke, app, catch_exceptions=False)
    assert run(["init", str(folder / "empty"), *tiny]).exit_code == 0
    shutil.copytree(folder / "empty", folder / "filled")
    ran = run(["edit", "--from", str(folder / "facts.jsonl"), "--workspace", str(folder / "filled"), "--json"])
    assert ran.exit_code == 0
    return folder


@pytest.fixture
def empty(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept / "empty", tmp_path / "w"))


@pytest.fixture
def filled(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept / "filled", tmp_path / "w"))


@pytest.fixture
def json_output(betaedit) -> Callable[..., Any]:
    """What a command prints under ``--json``, which is one object."""

    def run(*args: str | Path) -> Any:
        ran = betaedit(*args, "--json")
        assert ran.code == 0, ran.err
        return json.loads(ran.out)

    return run


@pytest.fixture
def listed(json_output) -> Callable[[Path], Table]:
    """Number, state and answer of every fact of a workspace."""

    def run(workspace: Path, *filters: str) -> Table:
        edits = json_output("log", "--workspace", workspace, *filters)["edits"]
        return [(edit["number"], edit["state"], edit["target_new"]) for edit in edits]

    return run


LIVE: Table = [(1, "live", "Lima"), (2, "live", "Rome"), (3, "live", "Dutch")]


# --- writing -------------------------------------------------------------------------------------------------------


def test_init_says_how_to_go_on_and_json_what_was_made(betaedit, json_output, tiny, tmp_path: Path) -> None:
    ran = betaedit("init", tmp_path / "[w]", *tiny)
    assert 'betaedit edit "The capital of [Japan] is" "Madrid"' in ran.out
    assert f"made {tmp_path / '[w]'}:" in ran.out
    made = json_output("init", tmp_path / "other", "--storage", "bfloat16", *tiny)
    assert (made["method"], made["layers"], made["live"], made["storage"]) == ("betaedit", [1, 2], 0, "bfloat16")
    assert made["last"]["kind"] == "init"


def test_a_typed_fact_is_kept_and_its_brackets_and_colons_are_shown_as_they_are(betaedit, empty) -> None:
    ran = betaedit("edit", "The home [of :smile: in] is", "[bold]Rome", "--workspace", empty)
    assert ran.code == 0, ran.err
    assert f"1 edit kept in {empty}" in ran.out
    assert "[bold]Rome" in ran.out
    for command in (["log"], ["show", "1"], ["diff", "1"], ["forget", "1"]):
        shown = betaedit(*command, "--workspace", empty).out
        assert "The home of :smile: in is" in shown
        assert "[bold]Rome" in shown


def test_a_file_goes_on_after_the_facts_that_are_there(betaedit, json_output, listed, empty, facts) -> None:
    assert json_output("edit", "--from", facts, "--limit", "2", "--workspace", empty)["edits"] == 2
    rest = json_output("edit", "--from", facts, "--workspace", empty)
    assert (rest["edits"], rest["passed_over"], rest["events"], rest["live"]) == (1, 2, [4, 4], 3)
    assert set(rest) >= {"efficacy", "generality", "specificity", "results"}
    again = json_output("edit", "--from", facts, "--workspace", empty)
    assert (again["edits"], again["passed_over"], again["events"], again["results"]) == (0, 3, None, [])
    assert listed(empty) == LIVE
    assert "3 of 3 facts skipped: already written" in betaedit("edit", "--from", facts, "-w", empty).out


def test_a_plan_changes_nothing(betaedit, json_output, listed, empty, facts) -> None:
    assert len(json_output("edit", "--from", facts, "--plan", "--workspace", empty)["plan"]) == 3
    assert "nothing changed" in betaedit("edit", "--from", facts, "--plan", "--workspace", empty).out
    assert listed(empty) == []


def test_a_workspace_records_that_facts_came_from_a_pipe(json_output, empty, facts, monkeypatch) -> None:
    for written in (3, 0):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(facts.read_bytes())))
        assert json_output("edit", "--from", "-", "--workspace", empty)["edits"] == written
    assert json_output("log", "--events", "--workspace", empty)["events"][-1]["note"] == {"from": "standard input"}


def test_the_workspace_is_the_folder_that_the_current_one_lies_in(betaedit, json_output, filled, monkeypatch) -> None:
    (filled / "deep" / "down").mkdir(parents=True)
    for here in (filled, filled / "deep" / "down"):
        monkeypatch.chdir(here)
        assert json_output("status")["live"] == 3
    assert betaedit("edit", "[Léon] lives in", "Lima").code == 0
    assert json_output("status")["live"] == 4


def test_live_facts_of_another_workspace_are_imported_and_those_here_passed_over(
    betaedit, json_output, listed, tiny, filled, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    json_output("init", other, "--method", "memit-h", *tiny)
    json_output("edit", "The home of [Bob] is", "Rome", "--workspace", other)
    json_output("forget", "Ana", "--workspace", filled)
    first = json_output("import", filled, "--workspace", other)
    assert (first["edits"], first["passed_over"]) == (1, 1)
    assert listed(other) == [(1, "live", "Rome"), (2, "live", "Dutch")]
    again = json_output("import", filled, "--workspace", other)
    assert (again["edits"], again["passed_over"]) == (0, 2)
    notes = [event["note"] for event in json_output("log", "--events", "--workspace", other)["events"]]
    assert notes[-1] == {"from": str(filled)}
    assert "skipped" in betaedit("import", filled, "--workspace", other).out
    assert betaedit("import", tmp_path / "nowhere", "--workspace", other).code == 9


# --- looking -------------------------------------------------------------------------------------------------------


def test_the_log_is_filtered_by_subject_state_and_date(betaedit, json_output, listed, filled) -> None:
    json_output("forget", "#2", "--workspace", filled)
    assert listed(filled, "--subject", "zoë") == [(3, "live", "Dutch")]
    assert listed(filled, "--state", "forgotten") == [(2, "forgotten", "Rome")]
    assert listed(filled, "--last", "1") == [(3, "live", "Dutch")]
    day = json_output("log", "--workspace", filled)["edits"][0]["at"][:10]
    assert len(listed(filled, "--since", day, "--until", day)) == 3
    assert listed(filled, "--until", "2001-01-01") == []
    shown = betaedit("log", "--workspace", filled).out
    assert "3 facts" in shown
    assert f"{day} " in shown
    assert "+00:00" not in shown
    assert "the last 1 of 3 facts\n" in betaedit("log", "--last", "1", "--workspace", filled).out
    assert "the last 1 of 2 facts\n" in betaedit("log", "--state", "live", "--last", "1", "--workspace", filled).out
    assert [event["kind"] for event in json_output("log", "--events", "--workspace", filled)["events"]] == [
        "init", "edit", "edit", "edit", "forget",
    ]  # fmt: skip
    assert "forget" in betaedit("log", "--events", "--workspace", filled).out


def test_a_log_on_a_narrow_terminal_keeps_numbers_states_and_times_whole(betaedit, filled, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = betaedit("log", "--workspace", filled).out
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("│ live  │") == 3


def test_a_terminal_without_the_letters_of_a_fact_shows_it_all_the_same(filled) -> None:
    def run(*args: str) -> str:
        command = [sys.executable, "-m", "betaedit", *args, "--workspace", str(filled)]
        plain = os.environ | {"PYTHONIOENCODING": "ascii"}
        return subprocess.run(command, env=plain, capture_output=True, check=True).stdout.decode("ascii")

    assert r"Zo\xeb" in run("log", "--last", "1")
    assert json.loads(run("log", "--last", "1", "--json"))["edits"][0]["subject"] == "Zoë"


def test_show_tells_every_writing_of_a_fact(betaedit, json_output, filled) -> None:
    json_output("replace", "Bob", "Oslo", "--workspace", filled)
    by_number = json_output("show", "2", "--workspace", filled)
    assert by_number["fact"]["state"] == "replaced"
    assert [writing["event"] for writing in by_number["writings"]] == [3]
    assert json_output("show", "Bob", "--workspace", filled)["fact"]["target_new"] == "Oslo"
    shown = betaedit("show", "#2", "--workspace", filled).out
    assert "#2: The home of Bob is -> Rome" in shown
    assert "event 5 (edit)" in shown


def test_status_says_what_there_is(betaedit, json_output, filled, tiny_folder) -> None:
    found = json_output("status", "--workspace", filled)
    assert (found["live"], found["replaced"], found["forgotten"], found["undone"]) == (3, 0, 0, 0)
    assert (found["events"], found["last"]["kind"], found["model"]) == (4, "edit", str(tiny_folder))
    assert found["bytes"] == pytest.approx(3 * found["bytes_per_fact"])
    shown = betaedit("status", "--workspace", filled).out
    assert "3 live, 0 replaced, 0 forgotten, 0 undone" in shown
    assert "4; the last: edit, 2" in shown


def test_diff_tells_facts_weights_and_on_demand_drift(betaedit, json_output, filled, tmp_path: Path) -> None:
    json_output("forget", "#3", "--workspace", filled)
    found = json_output("diff", "3", "--workspace", filled)
    assert (found["before"], found["after"], found["gained"], found["lost"]) == (3, 5, [], [])
    assert found["drift"] is None
    assert all(moved < 1e-4 for moved in found["weights_moved"].values()), "the third fact came and went"
    forth = json_output("diff", "2", "4", "--workspace", filled)
    assert [fact["number"] for fact in forth["gained"]] == [2, 3]
    back = json_output("diff", "4", "1", "--workspace", filled)
    assert [fact["number"] for fact in back["lost"]] == [1, 2, 3]
    text = tmp_path / "text.txt"
    text.write_text("The capital of France is Paris.\n")
    drift = json_output("diff", "1", "4", "--drift", "--text", text, "--workspace", filled)["drift"]
    assert drift["perplexity"]["before"] != drift["perplexity"]["after"]
    assert (
        json_output("diff", "4", "4", "--drift", "--text", text, "--workspace", filled)["drift"]["agreement"]["mean"]
        == 1
    )
    shown = betaedit("diff", "4", "--drift", "--text", text, "--workspace", filled).out
    assert "- #3: The mother tongue of Zoë is -> Dutch" in shown
    assert "weights moved (Frobenius norm): layer 1: " in shown
    assert "perplexity on ordinary text: " in shown


# --- taking back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "gone"),
    [
        (["2"], [2]),
        (["#2"], [2]),
        (["bob"], [2]),
        (["Zoë"], [3]),
        (["mother tongue"], [3]),
        (["Ana", "2"], [1, 2]),
        (["--last", "2"], [3, 2]),
    ],
)
def test_facts_are_forgotten_by_number_id_subject_text_or_as_the_last(json_output, listed, filled, names, gone) -> None:
    found = json_output("forget", *names, "--workspace", filled)
    assert [fact["number"] for fact in found["forgotten"]] == gone
    assert found["live"] == 3 - len(gone)
    assert sorted(number for number, state, _ in listed(filled) if state == "forgotten") == sorted(gone)


def test_forgetting_says_how_to_take_it_back_and_that_does(betaedit, listed, filled) -> None:
    ran = betaedit("forget", "Ana", "Bob", "--workspace", filled)
    assert "forgot #1: Ana was born in -> Lima" in ran.out
    assert "the model holds 1 fact now; betaedit restore 4 undoes this" in ran.out
    ran = betaedit("restore", "4", "--workspace", filled)
    assert "the model is as it was after event 4, with 3 facts; this is event 6" in ran.out
    assert listed(filled) == LIVE


def test_a_replaced_fact_stays_in_the_log(betaedit, json_output, listed, filled) -> None:
    found = json_output("replace", "Bob", "Oslo", "--workspace", filled)
    assert (found["replaced"]["number"], found["result"]["target_new"]) == (2, "Oslo")
    assert isinstance(found["says"], str)
    assert listed(filled) == [(1, "live", "Lima"), (2, "replaced", "Rome"), (3, "live", "Dutch"), (4, "live", "Oslo")]
    shown = betaedit("replace", "4", "Lima", "--workspace", filled).out
    assert "replaced #4: The home of Bob is -> Oslo" in shown
    assert "now says: " in shown


def test_restoring_is_an_event_that_can_be_taken_back(json_output, listed, filled) -> None:
    assert json_output("restore", "2", "--workspace", filled) == {"restored": 2, "event": 5, "live": 1}
    assert [state for _, state, _ in listed(filled)] == ["live", "undone", "undone"]
    assert json_output("restore", "4", "--workspace", filled) == {"restored": 4, "event": 6, "live": 3}
    assert listed(filled) == LIVE


# --- keeping well --------------------------------------------------------------------------------------------------


def test_check_finds_what_slipped_and_writes_it_again(betaedit, json_output, filled, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The capital of France is Paris.\n")
    found = json_output("check", "--text", text, "--workspace", filled)
    assert found["holding"]["count"] == 3
    assert len(found["slipped"]) == 3 - round(3 * found["holding"]["mean"])
    assert found["slipped"], "three steps of search do not make a random model say anything"
    assert 0 <= found["drift"]["agreement"]["mean"] <= 1
    assert found["reapplied"] is None
    again = json_output("check", "--reapply", "--text", text, "--workspace", filled)
    assert again["reapplied"]["holding"]["count"] == 3
    events = json_output("log", "--events", "--workspace", filled)["events"]
    assert events[-1]["note"] == {"reapplied": True}
    shown = betaedit("check", "--reapply", "--text", text, "--workspace", filled).out
    assert "of 3 facts; every token the most probable one" in shown
    assert "again" in shown
    assert json_output("status", "--workspace", filled)["live"] == 3


def test_facts_written_again_under_naive_conflicts_are_held_once(json_output, tiny, facts, tmp_path: Path) -> None:
    place, text = tmp_path / "naive", tmp_path / "text.txt"
    text.write_text("The capital of France is Paris.\n")
    json_output("init", place, *tiny, "--set", "conflicts=naive")
    json_output("edit", "--from", facts, "--workspace", place)
    assert json_output("check", "--reapply", "--text", text, "--workspace", place)["slipped"]
    assert json_output("status", "--workspace", place)["live"] == 3


def test_an_empty_workspace_is_well_and_holds_nothing(betaedit, json_output, empty) -> None:
    assert json_output("log", "--workspace", empty) == {"edits": []}
    assert json_output("status", "--workspace", empty)["bytes_per_fact"] is None
    found = json_output("check", "--workspace", empty)
    assert (found["holding"], found["slipped"], found["drift"]["agreement"]["mean"]) == (None, [], 1)
    assert json_output("verify", "--replay", "--workspace", empty) == {"events": 1, "problems": []}
    assert "0 facts" in betaedit("log", "--workspace", empty).out
    assert "0 live" in betaedit("status", "--workspace", empty).out


def test_verify_leaves_with_1_when_somebody_altered_the_file(betaedit, json_output, filled) -> None:
    json_output("forget", "#1", "--workspace", filled)
    assert json_output("verify", "--replay", "--workspace", filled) == {"events": 5, "problems": []}
    assert "5 events unchanged since commit" in betaedit("verify", "--workspace", filled).out
    with sqlite3.connect(filled / "ledger.sqlite") as file:
        file.execute("UPDATE writings SET target_new = 'Berlin' WHERE id = 2")
    ran = betaedit("verify", "--json", "--workspace", filled)
    assert ran.code == 1
    assert json.loads(ran.out)["problems"] == ["event 3 was changed after its commit"]
    ran = betaedit("verify", "--workspace", filled)
    assert (ran.code, ran.out) == (1, "event 3 was changed after its commit\n")


def test_gc_makes_the_file_smaller_and_purging_ends_the_way_back(
    betaedit, json_output, listed, filled, tmp_path
) -> None:
    many = tmp_path / "many.csv"
    many.write_text("prompt,subject,target_new\n" + "".join(f"{{}} is {n},Léon,Rome\n" for n in range(25)))
    json_output("edit", "--from", many, "--batch-size", "25", "--workspace", filled)
    before = json_output("status", "--workspace", filled)["bytes"]
    kept = json_output("gc", "--workspace", filled)
    assert kept["freed"] > 0
    assert before == kept["freed"] + kept["bytes"]
    assert json_output("restore", "4", "--workspace", filled)["live"] == 3
    json_output("forget", "#3", "--workspace", filled)
    assert "the file has" in betaedit("gc", "--purge", "--workspace", filled).out
    assert json_output("verify", "--replay", "--workspace", filled)["problems"] == []
    ran = betaedit("restore", "4", "--workspace", filled)
    assert ran.code == 9
    assert "the facts of event 4 were purged" in ran.err
    assert [state for _, state, _ in listed(filled)[:3]] == ["live", "live", "forgotten"]


# --- handing on ----------------------------------------------------------------------------------------------------


def test_a_workspace_is_exported_and_measured_as_a_model_is(
    betaedit, json_output, filled, facts, tmp_path: Path
) -> None:
    json_output("forget", "#3", "--workspace", filled)
    path = tmp_path / "out.jsonl"
    assert json_output("export", filled, "--to", "facts", "--out", path)["facts"] == 2
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["ana", "bob"]
    (tmp_path / "empty").mkdir()
    ran = betaedit("export", filled, "--to", "facts", "--out", tmp_path / "empty")
    assert (ran.code, "hint: Name a file" in ran.err) == (2, True)
    adapter = tmp_path / "adapter"
    assert json_output("export", filled, "--to", "adapter", "--out", adapter)["facts"] == 2
    by_workspace, by_adapter = (json_output("eval", name, "--from", facts) for name in (filled, adapter))
    assert by_workspace["records"] == 3
    assert by_adapter["efficacy"] == by_workspace["efficacy"]
    assert by_adapter["perplexity"] == pytest.approx(by_workspace["perplexity"], rel=1e-5)


# --- refusals ------------------------------------------------------------------------------------------------------

COMMANDS = [
    ["log"], ["show", "1"], ["status"], ["diff", "1"], ["forget", "1"], ["replace", "1", "Rome"], ["restore", "1"],
    ["import", "other"], ["check"], ["verify"], ["gc"], ["edit", "[Bob] is", "Rome", "--workspace", "nowhere"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_without_a_workspace_a_command_says_how_to_make_one(betaedit, tmp_path, monkeypatch, command) -> None:
    monkeypatch.chdir(tmp_path)
    ran = betaedit(*command)
    assert ran.code == 9
    assert ran.out == ""
    assert "workspace" in ran.err
    assert "hint: " in ran.err
    assert "betaedit init" in ran.err


@pytest.mark.parametrize(
    ("command", "code", "says", "hint"),
    [
        (["forget", "Anna"], 9, "the model holds no fact 'Anna'", "Did you mean Ana"),
        (["forget", "nobody at all"], 9, "no fact 'nobody at all'", "betaedit log --state live"),
        (["forget"], 2, "nothing to forget", "--last N"),
        (["forget", ""], 9, "the name is empty", "Give a number"),
        (["replace", "Anna", "Rome"], 9, "no fact 'Anna'", "Did you mean Ana"),
        (["replace", " is", "Rome"], 9, "matches 2 facts: #2 (The home of Bob is -> Rome), #3 (", "by its number"),
        (["replace", "Ana", " "], 3, "new target is empty", ""),
        (["show", "99"], 9, "no fact '99'", "betaedit log"),
        (["restore", "99"], 9, "no event 99", "events 1 to 4"),
        (["diff", "1", "--text", "text.txt"], 2, "--text needs --drift", "Add --drift"),
        (["diff", "99"], 9, "no event 99", "events 1 to 4"),
        (["diff", "1", "0"], 9, "no event 0", "events 1 to 4"),
        (["log", "--since", "yesterday"], 2, "'yesterday' is not a date", "Write 2026-11-21"),
        (
            ["edit", "[Bob] is", "Rome", "--method", "memit"],
            2,
            "--method cannot be used in a workspace",
            "betaedit check",
        ),
        (["edit", "[Bob] is", "Rome", "--set", "ridge=3"], 2, "--set cannot be used in a workspace", "betaedit check"),
        (["edit", "[Bob] is", "Rome", "--tests", "5"], 2, "--tests cannot be used in a workspace", "betaedit check"),
    ],
)
def test_what_cannot_be_done_is_refused_with_cause_and_mend(
    betaedit, listed, filled, monkeypatch, command, code, says, hint
) -> None:
    monkeypatch.chdir(filled)
    ran = betaedit(*command)
    assert ran.code == code, ran.err
    assert says in ran.err
    assert hint in ran.err
    assert listed(filled) == LIVE


def test_a_folder_or_method_that_cannot_become_a_workspace_is_refused(betaedit, filled, tiny, tmp_path: Path) -> None:
    ran = betaedit("init", filled, *tiny)
    assert ran.code == 9
    assert "not empty" in ran.err
    ran = betaedit("init", tmp_path / "new", "--method", "rect", *tiny)
    assert ran.code == 2
    assert "rect cannot be used in a workspace" in ran.err
    assert "take single facts out" in ran.err
    assert not (tmp_path / "new").exists()


def test_a_second_writer_is_refused_and_readers_are_not(betaedit, listed, filled) -> None:
    with Workspace.open(filled, write=True):
        ran = betaedit("forget", "Ana", "--workspace", filled)
        assert ran.code == 9
        assert "another program is writing" in ran.err
        assert "hint: Wait until it has finished" in ran.err
        assert listed(filled) == LIVE


@pytest.mark.parametrize("command", [["log"], ["status"], ["check"], ["verify"], ["forget", "Ana"]])
def test_a_damaged_file_is_refused_with_what_to_do(betaedit, filled, tmp_path: Path, command) -> None:
    broken = Path(shutil.copytree(filled, tmp_path / "broken"))
    (broken / "ledger.sqlite").write_bytes((filled / "ledger.sqlite").read_bytes()[:6000])
    ran = betaedit(*command, "--workspace", broken)
    assert ran.code == 9, ran.out + ran.err
    assert "hint: The file is damaged: restore it from a backup." in ran.err


def test_another_model_in_the_same_place_is_refused(betaedit, filled, tiny_folder, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(filled, tmp_path / "moved"))
    with sqlite3.connect(moved / "ledger.sqlite") as file:
        file.execute("UPDATE identity SET value = replace(value, 'sha256:', 'sha256:0')")
    ran = betaedit("check", "--workspace", moved)
    assert ran.code == 9
    assert "was made with another model" in ran.err


# --- names that mean several facts ---------------------------------------------------------------------------------


@pytest.fixture
def two_files(betaedit, empty, tmp_path: Path) -> Path:
    """A workspace with the facts of two files, whose readers gave both the same names."""
    for name, rows in {
        "one": [("Ana", "{} was born in", "Lima"), ("Ana", "{} speaks", "Dutch"), ("Bob", "{} was born in", "Oslo")],
        "two": [("Zoë", "{} was born in", "Rome")],
    }.items():
        lines = [json.dumps({"subject": s, "prompt": p, "target_new": t}) for s, p, t in rows]
        (tmp_path / name).with_suffix(".jsonl").write_text("\n".join(lines))
        ran = betaedit("edit", "--from", (tmp_path / name).with_suffix(".jsonl"), "--workspace", empty)
        assert ran.code == 0, ran.err
    return empty


@pytest.mark.usefixtures("two_files")
def test_a_second_file_whose_facts_have_names_of_the_first_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    warnings = [record.getMessage() for record in caplog.get_records("setup")]
    assert any("1 of 1 facts have the id of another fact in the model (own-1)" in text for text in warnings)


@pytest.mark.parametrize("command", [["forget"], ["replace", "Lima"], ["show"]])
@pytest.mark.parametrize(
    ("name", "listed_as"),
    [
        ("own-1", "#1 (Ana was born in -> Lima), #4 (Zoë was born in -> Rome)"),
        ("ana", "#1 (Ana was born in -> Lima), #2 (Ana speaks -> Dutch)"),
        ("born in", "#1 (Ana was born in -> Lima), #3 (Bob was born in -> Oslo), #4 (Zoë was born in -> Rome)"),
    ],
)
def test_a_name_of_several_facts_is_asked_about(betaedit, two_files, command, name, listed_as) -> None:
    before = betaedit("log", "--workspace", two_files, "--json").out
    ran = betaedit(command[0], name, *command[1:], "--workspace", two_files)
    assert ran.code == 9
    assert f"{name!r} matches {listed_as.count('#')} facts: {listed_as}." in ran.err
    assert "Name one by its number" in ran.err
    assert betaedit("log", "--workspace", two_files, "--json").out == before


@pytest.mark.parametrize(("name", "gone"), [("own-1", [1, 4]), ("ana", [1, 2]), ("born in", [1, 3, 4])])
def test_all_facts_that_a_name_means_are_forgotten_when_that_is_said(json_output, two_files, name, gone) -> None:
    found = json_output("forget", name, "--all-matching", "--workspace", two_files)
    assert [fact["number"] for fact in found["forgotten"]] == gone


def test_one_name_of_several_that_means_many_keeps_all_of_them(betaedit, listed, two_files) -> None:
    ran = betaedit("forget", "#3", "ana", "--workspace", two_files)
    assert ran.code == 9
    assert {state for _, state, _ in listed(two_files)} == {"live"}
    assert betaedit("forget", "#3", "#4", "own-2", "--workspace", two_files).code == 0
    assert [number for number, state, _ in listed(two_files) if state == "live"] == [1]


def test_many_facts_are_listed_in_part(betaedit, empty, tmp_path: Path) -> None:
    rows = [{"subject": "Bob", "prompt": f"{{}} is number {n}", "target_new": "Rome"} for n in range(23)]
    (tmp_path / "many.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert betaedit("edit", "--from", tmp_path / "many.jsonl", "--batch-size", "23", "--workspace", empty).code == 0
    ran = betaedit("forget", "bob", "--workspace", empty)
    assert "matches 23 facts: #1 (" in ran.err
    assert "#20 (Bob is number 19 -> Rome), and 3 more." in ran.err


def test_forgetting_an_earlier_fact_of_a_subject_writes_the_later_one_again_and_the_log_says_so(
    betaedit, json_output, two_files
) -> None:
    json_output("forget", "#1", "--workspace", two_files)
    writings = json_output("show", "#2", "--workspace", two_files)["writings"]
    assert [writing["event"] for writing in writings] == [3, 6]
    assert betaedit("verify", "--replay", "--workspace", two_files).code == 0
    json_output("restore", "5", "--workspace", two_files)
    states = [writing["state"] for writing in json_output("show", "#2", "--workspace", two_files)["writings"]]
    assert states == ["live", "undone"]
    assert betaedit("verify", "--replay", "--workspace", two_files).code == 0

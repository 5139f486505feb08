"""A run folder is read as it was written, and what is broken in it is named."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from betaedit.errors import RunFolderError
from betaedit.experiments.folder import RunFolder, write_json, write_text
from support.runs import checkpoint, fabricate, outcome, setup


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", setup())
    folder.write_checkpoint(checkpoint(10, 0.1), [outcome("a"), outcome("b")])
    folder.append_edit({"id": "a", "seconds": 0.5})
    again = RunFolder(tmp_path / "run")
    assert again.setup == setup()
    assert again.checkpoint(10) == checkpoint(10, 0.1)
    assert list(again.outcomes(10)) == [outcome("a"), outcome("b")]
    assert list(again.edits()) == [{"id": "a", "seconds": 0.5}]


def test_checkpoints_come_by_number_of_edits(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, setup())
    for edits in (1000, 0, 30):
        folder.write_checkpoint(checkpoint(edits))
    assert folder.measured() == [0, 30, 1000]
    assert [found.edits for found in folder.checkpoints()] == [0, 30, 1000]


def test_the_files_have_the_documented_names(tmp_path: Path) -> None:
    fabricate(tmp_path, steps=1, facts=30)
    names = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    numbers = ("00000000", "00000030")
    assert names == {
        "run.json", "edits.jsonl",
        *(f"checkpoints/{number}.json" for number in numbers),
        *(f"outcomes/{number}.jsonl" for number in numbers),
    }  # fmt: skip


def test_figures_of_a_broken_model_are_kept(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, setup())
    folder.write_checkpoint(checkpoint(5, perplexity=math.inf, kl=math.nan))
    found = folder.checkpoint(5)
    assert found.perplexity == math.inf
    assert math.isnan(found.kl)


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, setup())
    with pytest.raises(RunFolderError, match="already holds a run"):
        RunFolder.create(tmp_path, setup())


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no run\.json"):
        RunFolder(tmp_path)


def test_a_newer_format_is_refused_by_its_number(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"format": 2, "something": "new"})
    with pytest.raises(RunFolderError, match=r"format 2.*newer betaedit"):
        RunFolder(tmp_path)


def test_broken_json_is_named_by_file(tmp_path: Path) -> None:
    write_text(tmp_path / "run.json", '{"method": \n "beta')
    with pytest.raises(RunFolderError, match=r"run\.json: is not valid JSON"):
        RunFolder(tmp_path)


@pytest.mark.parametrize("edits", [0, 15, 30])
def test_leakage_of_an_older_version_is_that_on_the_statistics_own_text(tmp_path: Path, edits: int) -> None:
    folder = fabricate(tmp_path, steps=2, facts=30)
    file = tmp_path / "checkpoints" / f"{edits:08d}.json"
    values = json.loads(file.read_text())
    for state in values["layers"].values():
        for name in ("leakage", "relative_leakage"):
            state[name] = state.pop(name.replace("leakage", "statistics_text_leakage"))
    expected = {layer: state["leakage"] for layer, state in values["layers"].items()}
    write_json(file, values)
    layers = folder.checkpoint(edits).layers
    assert {str(layer): state.statistics_text_leakage for layer, state in layers.items()} == expected
    assert (
        {state.leakage for state in layers.values()} == {state.relative_leakage for state in layers.values()} == {None}
    )


def test_a_wrong_field_is_named(tmp_path: Path) -> None:
    folder = fabricate(tmp_path, steps=1, facts=30)
    file = tmp_path / "checkpoints" / "00000030.json"
    values = json.loads(file.read_text())
    values["layers"]["6"]["leakage"] = "much"
    write_json(file, values)
    with pytest.raises(RunFolderError, match=r"00000030\.json: \[layers\.6\.leakage\]"):
        folder.checkpoints()


def test_a_wrong_line_is_named(tmp_path: Path) -> None:
    folder = fabricate(tmp_path, steps=1, facts=30)
    (tmp_path / "outcomes" / "00000030.jsonl").write_text(f"{outcome('a').model_dump_json()}\n{{}}\n")
    with pytest.raises(RunFolderError, match=r"00000030\.jsonl:2: \[record\]"):
        list(folder.outcomes(30))
    (tmp_path / "edits.jsonl").write_text('{"id": "a"}\n[1]\n')
    with pytest.raises(RunFolderError, match=r"edits\.jsonl:2"):
        list(folder.edits())


def test_a_checkpoint_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"after 7 edits.*\[0, 30\]"):
        fabricate(tmp_path, steps=1, facts=30).checkpoint(7)


def test_a_line_left_unfinished_is_not_read_and_the_next_edit_replaces_it(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, setup())
    folder.append_edit({"id": "a"})
    with (tmp_path / "edits.jsonl").open("a") as file:
        file.write('{"id": "b", "sec')
    assert [edit["id"] for edit in folder.edits()] == ["a"]
    folder.append_edit({"id": "b"})
    assert [edit["id"] for edit in folder.edits()] == ["a", "b"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.json"
    write_json(file, {"a": 1})

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]

"""Full disks, missing rights, other writers, truncated and altered files: a clear error each, and nothing lost."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from betaedit.errors import LedgerError
from betaedit.ledger.place import LEDGER
from betaedit.ledger.workspace import Workspace
from support.edits import FACTS, MANY, editor_for
from support.tiny import tiny_llama


def filled(folder: Path) -> Path:
    """A workspace with three facts."""
    with Workspace.create(folder, editor_for(tiny_llama(), value_steps=2)) as workspace:
        workspace.edit(FACTS[:3])
    return folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.mktemp("kept") / "w")


@pytest.fixture
def folder(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "w"))


def problems(folder: Path) -> list[str]:
    with Workspace.open(folder, model=tiny_llama()) as workspace:
        return workspace.verify()


def edit_for_ever(workspace: Workspace) -> None:
    while True:
        workspace.edit(FACTS[3:])


def altered(folder: Path, statement: str) -> Path:
    with sqlite3.connect(folder / LEDGER) as file:
        file.execute(statement)
    return folder


ALTERATIONS = {
    "a fact's joint": "UPDATE writings SET joint = ' ' WHERE id = 2",
    "a fact's answer": "UPDATE writings SET target_new = 'Berlin' WHERE id = 2",
    "a time": "UPDATE events SET at = '2001-01-01' WHERE id = 2",
    "a key": "UPDATE asked SET key = zeroblob(length(key)) WHERE writing = 1 AND layer = 1",
    "a factor": "UPDATE factors SET lefts = zeroblob(length(lefts)) WHERE event = 3",
    "an event's end": "DELETE FROM spans WHERE writing = 3",
    "a fact's state": "UPDATE spans SET until = 4, why = 'forgotten' WHERE writing = 1",
    "missing factors": "DELETE FROM factors WHERE event = 3",
    "the missing arrays of a live fact": "DELETE FROM asked WHERE writing = 1",
    "the model": "UPDATE identity SET value = replace(value, 'betaedit', 'memit-h')",
}


def test_an_unaltered_file_has_no_problems(folder: Path):
    assert problems(folder) == []


@pytest.mark.parametrize("what", ALTERATIONS)
def test_an_alteration_by_anybody_else_is_found(folder: Path, what: str):
    altered(folder, ALTERATIONS[what])
    with Workspace.open(folder, model=tiny_llama()) as workspace:
        assert workspace.store.verify()


@pytest.mark.parametrize("statement", ["DELETE FROM factors WHERE event = 2", "DELETE FROM snapshots WHERE layer = 2"])
def test_what_gc_did_not_take_is_missed_beside_a_snapshot(folder: Path, statement: str):
    with Workspace.open(folder, write=True, model=tiny_llama()) as workspace:
        workspace.edit(MANY, batch_size=10)
        assert workspace.store.path_to(workspace.store.head)[0] is not None, "there is a snapshot"
        assert workspace.store.verify() == []
    altered(folder, statement)
    assert problems(folder)


def test_weights_are_not_built_from_arrays_of_another_size(folder: Path):
    altered(folder, "UPDATE factors SET lefts = x'00' WHERE event = 3")
    assert problems(folder) == ["the factors of event 3 were changed after their commit"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused_or_found(folder: Path, share: float):
    file = folder / LEDGER
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(LedgerError) as refused, Workspace.open(folder, model=tiny_llama()) as workspace:
        raise LedgerError("; ".join(workspace.verify()), hint="-")
    assert str(file) in refused.value.message or refused.value.message


def test_a_file_that_is_no_ledger_is_refused(folder: Path):
    (folder / LEDGER).write_text("notes, and nothing else, but long enough to be looked at" * 20)
    with pytest.raises(LedgerError, match="not a database"):
        Workspace.open(folder)
    (folder / LEDGER).unlink()
    sqlite3.connect(folder / LEDGER).execute("CREATE TABLE identity (value TEXT)").connection.commit()
    with pytest.raises(LedgerError, match="is not a ledger"):
        Workspace.open(folder)


def test_a_ledger_of_a_newer_version_is_refused(folder: Path):
    altered(folder, "PRAGMA user_version = 99")
    with pytest.raises(LedgerError, match="format 99") as refused:
        Workspace.open(folder)
    assert "newer betaedit" in (refused.value.hint or "")


def test_a_full_file_loses_the_edit_in_flight_only(folder: Path):
    with Workspace.open(folder, write=True, model=tiny_llama()) as workspace:
        pages = workspace.store._scalar("PRAGMA page_count")
        workspace.store._scalar(f"PRAGMA max_page_count = {pages + 1}")
        with pytest.raises(LedgerError, match="full") as refused:
            edit_for_ever(workspace)
        assert "Free some disk space" in (refused.value.hint or "")
        workspace.store._scalar(f"PRAGMA max_page_count = {pages + 10_000}")
        workspace.edit(FACTS[4])
        assert workspace.verify(replay=True) == []
    assert problems(folder) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk of a few hundred kilobytes, where this process may."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: str) -> Path:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip(f"this process may not mount a small disk: {done.stderr.decode().strip()}")
        return place

    yield mount
    subprocess.run(["umount", "--lazy", str(place)], capture_output=True, check=False)


def test_a_full_disk_loses_the_edit_in_flight_only(folder: Path, small_disk: Callable[[str], Path]):
    small = Path(shutil.copytree(folder, small_disk("600k") / "w"))
    with Workspace.open(small, write=True, model=tiny_llama()) as workspace:
        with pytest.raises(LedgerError, match="full"):
            edit_for_ever(workspace)
        head = workspace.store.head
        assert head > 4, "some were written before"
        live = [fact.fact for fact in workspace.store.live()]
    away = Path(shutil.copytree(small, folder.parent / "away"))
    with Workspace.open(away, write=True, model=tiny_llama()) as workspace:
        assert [fact.fact for fact in workspace.store.live()] == live
        assert workspace.verify(replay=True) == []
        workspace.edit(FACTS[0])


def test_a_workspace_on_a_read_only_disk_is_read_and_refused_for_writing(
    folder: Path, small_disk: Callable[[str], Path]
):
    disk = small_disk("2m")
    there = Path(shutil.copytree(folder, disk / "w"))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with Workspace.open(there, model=tiny_llama()) as workspace:
        assert [fact.fact for fact in workspace.store.live()] == FACTS[:3]
        assert workspace.verify() == []
    with pytest.raises(LedgerError, match="unable to open") as refused:
        Workspace.open(there, write=True, model=tiny_llama())
    assert refused.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write_is_refused_for_writing(folder: Path):
    folder.chmod(0o500)
    try:
        with pytest.raises(LedgerError, match=r"cannot be written|readonly|unable to open"):
            Workspace.open(folder, write=True, model=tiny_llama())
    finally:
        folder.chmod(0o700)


def test_a_ledger_that_another_program_locks_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("betaedit.ledger.store._BUSY_SECONDS", 0.1)
    other = sqlite3.connect(folder / LEDGER, isolation_level=None)
    with Workspace.open(folder, write=True, model=tiny_llama()) as workspace:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="locked") as refused:
            workspace.edit(FACTS[3])
        assert "Another program" in (refused.value.hint or "")
        other.execute("ROLLBACK")
        workspace.edit(FACTS[3])
        assert workspace.verify(replay=True) == []

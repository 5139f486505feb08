"""``betaedit locate``: a workspace or run whose model lies elsewhere now."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

FACT = ["The home of [Bob] is", "Rome"]


@pytest.fixture
def movable(tiny: list[str], tiny_folder: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A model folder to move, and the options that edit its model."""
    place = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    return place, ["--model", str(place), *tiny[2:]]


def test_a_workspace_is_opened_where_its_model_was_found(betaedit, movable, tmp_path: Path) -> None:
    place, options = movable
    assert betaedit("init", tmp_path / "w", *options).code == 0
    assert betaedit("edit", *FACT, "--workspace", tmp_path / "w").code == 0
    moved = place.rename(tmp_path / "elsewhere")
    lost = betaedit("verify", "--workspace", tmp_path / "w")
    assert lost.code == 4
    assert f"betaedit locate {tmp_path / 'w'} PLACE" in lost.err
    told = json.loads(betaedit("locate", tmp_path / "w", moved, "--json").out)
    assert told == {"path": str(tmp_path / "w"), "model": str(moved)}
    assert betaedit("verify", "--workspace", tmp_path / "w").code == 0
    assert json.loads(betaedit("status", "--workspace", tmp_path / "w", "--json").out)["model"] == str(moved)


def test_a_run_is_exported_where_its_model_was_found(betaedit, movable, tmp_path: Path) -> None:
    place, options = movable
    assert betaedit("edit", *FACT, "--out", tmp_path / "run", *options).code == 0
    moved = place.rename(tmp_path / "elsewhere")
    export = ("export", tmp_path / "run", "--to", "factors", "--out", tmp_path / "factors", "--statistics")
    lost = betaedit(*export, moved / "moments.safetensors")
    assert lost.code == 4
    assert f"betaedit locate {tmp_path / 'run'} PLACE" in lost.err
    assert f"now loads its model from {moved}" in betaedit("locate", tmp_path / "run", moved).out
    assert betaedit(*export, moved / "moments.safetensors").code == 0


@pytest.mark.parametrize("kind", ["workspace", "run"])
def test_another_model_is_refused_and_nothing_is_noted(betaedit, movable, tmp_path: Path, kind: str) -> None:
    _, options = movable
    kept = tmp_path / "kept"
    made = ["init", kept] if kind == "workspace" else ["edit", *FACT, "--out", kept]
    assert betaedit(*made, *options).code == 0
    before = {file: file.read_bytes() for file in kept.glob("*.[jt]*")}
    edited = tmp_path / "edited"
    assert betaedit("edit", *FACT, "--save", edited, *options).code == 0
    refused = betaedit("locate", kept, edited)
    assert refused.code != 0
    assert "another model" in refused.err or "other weights" in refused.err
    assert betaedit("locate", kept, tmp_path / "none").code == 4
    assert {file: file.read_bytes() for file in kept.glob("*.[jt]*")} == before

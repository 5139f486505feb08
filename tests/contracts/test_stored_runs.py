"""What a stored run of every row of ``METHODS`` keeps to: a kill or a full disk loses the batch in flight only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from betaedit import EvaluationCase
from betaedit.editors.method import Method, WrittenBatch
from betaedit.editors.methods import METHODS, find_method
from betaedit.errors import RunFolderError
from betaedit.experiments import run as run_module
from betaedit.experiments.figures import Measures
from betaedit.experiments.folder import RunFolder
from betaedit.experiments.run import run_edits
from betaedit.experiments.state import count_edits, save_batch
from support.edits import FACTS, unchanged, weights
from support.families import language_model
from support.methods import small_editor
from support.room import room_for

OVER = [find_method(name) for name in ("memit-h+scr", "ft+rag", "lora+scr")]
CASES = [EvaluationCase(fact) for fact in FACTS[:3]]
MEASURES = Measures(held_out=("A short held-out text.",))

Save = Callable[[Path, int, WrittenBatch], None]


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(params=[*METHODS.values(), *OVER], ids=lambda row: row.name)
def method(request: pytest.FixtureRequest) -> Method:
    found: Method = request.param
    return found


def run(method: Method, folder: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The weights after a run, and its figures without the times they took."""
    editor = small_editor(method, language_model("llama"))
    run_edits(editor, CASES, measures=MEASURES, folder=folder)
    found = [checkpoint.model_dump() for checkpoint in RunFolder(folder).checkpoints()]
    figures = [{name: value for name, value in each.items() if not name.startswith("seconds")} for each in found]
    return weights(editor.language_model), figures


def stop_at(number: int, stopped: Save, folder: Path, method: Method, ends: type[BaseException]) -> BaseException:
    """A run whose batch ``number`` is stored by ``stopped``; returns the error it ends with."""

    def save(place: Path, first: int, batch: WrittenBatch) -> None:
        (stopped if first == number else save_batch)(place, first, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "save_batch", save)
        with pytest.raises(ends) as ended:
            run(method, folder)
    return ended.value


def killed(folder: Path, first: int, batch: WrittenBatch) -> None:
    save_batch(folder, first, batch)
    raise Killed


def without_room(folder: Path, first: int, batch: WrittenBatch) -> None:
    with room_for(100):
        save_batch(folder, first, batch)


def test_a_killed_run_and_a_full_disk_lose_the_batch_in_flight_only(method: Method, tmp_path: Path) -> None:
    whole, figures = run(method, tmp_path / "whole")
    folder = tmp_path / "broken"
    stop_at(1, killed, folder, method, Killed)
    assert count_edits(folder / "state") == 1
    refused = stop_at(2, without_room, folder, method, RunFolderError)
    assert isinstance(refused, RunFolderError)
    assert "00000002.safetensors cannot be written" in refused.message
    assert "free disk space" in (refused.hint or "")
    assert [file.name for file in (folder / "state").iterdir()] == ["00000001.safetensors"]
    assert [edit["number"] for edit in RunFolder(folder).edits()] == [1]
    resumed, found = run(method, folder)
    assert unchanged(whole, resumed)
    assert found == figures
    assert [edit["number"] for edit in RunFolder(folder).edits()] == [1, 2, 3]

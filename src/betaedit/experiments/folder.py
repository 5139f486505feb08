"""Reading and writing a run folder (its types are in ``record.py``).

Files are written atomically (``files.py``). An unfinished last line of ``edits.jsonl``, left by an interrupted run, is
not read, and is removed by the next write.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from betaedit.errors import RunFolderError
from betaedit.experiments.record import Checkpoint, Outcome, RunSetup
from betaedit.files import atomic_write, file_errors

FORMAT = 1
Stored = TypeVar("Stored", bound=BaseModel)


class Checkpoints:
    """Checkpoints and their outcomes on disk.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def measured(self) -> list[int]:
        """The numbers of edits with a checkpoint, in order."""
        return sorted(int(file.stem) for file in (self.path / "checkpoints").glob("[0-9]*.json"))

    def checkpoint(self, edits: int) -> Checkpoint:
        """The model after ``edits`` edits.

        Raises:
            RunFolderError: There is no such checkpoint, or it cannot be read.
        """
        file = self._checkpoint_file(edits)
        if not file.is_file():
            raise RunFolderError(
                f"{self.path} has no checkpoint after {edits} edits.", hint=f"It has {self.measured() or 'none'}."
            )
        return parse(Checkpoint, _loaded(file.read_bytes(), str(file)), str(file))

    def checkpoints(self) -> list[Checkpoint]:
        """Every checkpoint, by number of edits."""
        return [self.checkpoint(edits) for edits in self.measured()]

    def outcomes(self, edits: int) -> Iterator[Outcome]:
        """The prompts measured after ``edits`` edits, one by one; none without such a file."""
        for place, line in read_lines(self._outcomes_file(edits)):
            yield parse(Outcome, line, place)

    def write_checkpoint(self, checkpoint: Checkpoint, outcomes: Iterable[Outcome] = ()) -> None:
        """Store a checkpoint with its outcomes; the checkpoint is written last, so an existing one is complete."""
        lines = (json.dumps(outcome.model_dump(), ensure_ascii=False) for outcome in outcomes)
        write_text(self._outcomes_file(checkpoint.edits), "".join(f"{line}\n" for line in lines))
        write_json(self._checkpoint_file(checkpoint.edits), checkpoint)

    def remove_checkpoint(self, edits: int) -> None:
        """Delete a checkpoint with its outcomes, if it exists."""
        for file in (self._checkpoint_file(edits), self._outcomes_file(edits)):
            file.unlink(missing_ok=True)

    def _checkpoint_file(self, edits: int) -> Path:
        return self.path / "checkpoints" / f"{edits:08d}.json"

    def _outcomes_file(self, edits: int) -> Path:
        return self.path / "outcomes" / f"{edits:08d}.jsonl"


class RunFolder(Checkpoints):
    """A measured run on disk.

    ``groups`` has the checkpoint of each group, by the number of its last edit, if the run resets the model.

    Args:
        path: The folder.

    Raises:
        RunFolderError: It is not a run folder, or has a newer format.
    """

    def __init__(self, path: Path | str) -> None:
        super().__init__(Path(path))
        self.groups = Checkpoints(self.path / "groups")
        file = self.path / "run.json"
        if not file.is_file():
            missing = "it has no run.json" if self.path.is_dir() else "there is no such folder"
            raise RunFolderError(
                f"{self.path} is not a run folder: {missing}.", hint="Give a folder that a measured run wrote."
            )
        self.setup = parse(RunSetup, _checked_format(file), str(file))

    @classmethod
    def create(cls, path: Path | str, setup: RunSetup) -> RunFolder:
        """A new run folder.

        Raises:
            RunFolderError: There is already a run.
        """
        file = Path(path) / "run.json"
        if file.exists():
            raise RunFolderError(f"{path} already holds a run.", hint="Name a new folder.")
        write_json(file, setup)
        return cls(path)

    def edits(self) -> Iterator[dict[str, Any]]:
        """Every edit made, one by one."""
        for place, line in read_lines(self.path / "edits.jsonl"):
            if not isinstance(line, dict):
                raise RunFolderError(f"{place}: must be a JSON object.", hint="Remove the line.")
            yield line

    def append_edit(self, edit: dict[str, Any]) -> None:
        """Add a line to ``edits.jsonl``."""
        append_line(self.path / "edits.jsonl", edit)


def write_json(path: Path, data: BaseModel | dict[str, Any]) -> None:
    """Write ``data`` as JSON, atomically; missing folders are made.

    Infinite figures of a collapsed model are written as Python writes them: ``Infinity``, ``NaN``.
    """
    plain = data.model_dump() if isinstance(data, BaseModel) else data
    write_text(path, json.dumps(plain, ensure_ascii=False, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file atomically; missing folders are made.

    Raises:
        RunFolderError: It cannot be written.
    """
    with file_errors(path, RunFolderError), atomic_write(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def append_line(path: Path, data: dict[str, Any]) -> None:
    """Add ``data`` as a line of JSON; an unfinished last line is removed.

    Raises:
        RunFolderError: It cannot be written.
    """
    with file_errors(path, RunFolderError), path.open("ab+") as file:
        _cut_unfinished_line(file)
        file.write(f"{json.dumps(data, ensure_ascii=False)}\n".encode())


def _cut_unfinished_line(file: Any) -> None:
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Place and value of every finished line; nothing without a file."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                place = f"{path}:{number}"
                yield place, _loaded(line, place)


def _checked_format(file: Path) -> Any:
    values = _loaded(file.read_bytes(), str(file))
    written = values.get("format", FORMAT) if isinstance(values, dict) else FORMAT
    if isinstance(written, int) and written > FORMAT:
        raise RunFolderError(
            f"{file} has format {written}; this version reads format {FORMAT}.", hint="Install a newer betaedit."
        )
    return values


def _loaded(text: bytes, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = "" if text.count(b"\n") <= 1 else f" at line {error.lineno}"
        raise RunFolderError(f"{place}: is not valid JSON: {error.msg}{line}.", hint="Run it again.") from error
    except UnicodeDecodeError as error:
        raise RunFolderError(f"{place}: is not UTF-8.", hint="Run it again.") from error


def parse(kind: type[Stored], values: Any, place: str) -> Stored:
    """``values`` read at ``place``, as an instance of ``kind``.

    Raises:
        RunFolderError: They do not fit; the first wrong field is named.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the whole"
        raise RunFolderError(f"{place}: [{field}] {first['msg']}.", hint="Run it again.") from error

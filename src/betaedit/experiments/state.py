"""The batches of a run on disk, so that an interrupted run continues from the same weights, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from betaedit.editors.method import EditResult, WrittenBatch
from betaedit.errors import RunFolderError
from betaedit.facts.fact import EARLIER_JOINT, Fact
from betaedit.files import atomic_write, file_errors


def save_batch(folder: Path, first: int, batch: WrittenBatch) -> None:
    """Store a batch whose first edit has the number ``first``, atomically.

    Raises:
        RunFolderError: It cannot be written.
    """
    tensors = {name: tensor.cpu().contiguous() for name, tensor in batch.tensors.items()}
    file = folder / f"{first:08d}.safetensors"
    figures = {"results": batch.results, "again": batch.again}
    metadata = {name: json.dumps([_plain(result) for result in results]) for name, results in figures.items()}
    with file_errors(file, RunFolderError), atomic_write(file) as scratch:
        save_file(tensors, scratch, metadata=metadata)


def count_edits(folder: Path) -> int:
    """The number of stored edits.

    Raises:
        RunFolderError: The last file is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    return int(files[-1].stem) - 1 + len(_load(files[-1]).results) if files else 0


def load_batches(folder: Path, limit: int, after: int = 0) -> Iterator[WrittenBatch]:
    """The batches of the first ``limit`` stored edits, in order, without those of the first ``after``.

    Raises:
        RunFolderError: A file is damaged, or one is missing between others.
    """
    expected = after + 1
    for file in sorted(file for file in folder.glob("*.safetensors") if int(file.stem) > after):
        if expected > limit:
            return
        if int(file.stem) != expected:
            raise RunFolderError(f"{folder} lacks the batch of edit {expected}.", hint="Start the run in a new folder.")
        batch = _load(file)
        expected += len(batch.results)
        yield batch


def _load(file: Path) -> WrittenBatch:
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
            metadata = opened.metadata()
        results, again = (json.loads(metadata[name]) for name in ("results", "again"))
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise RunFolderError(f"{file} cannot be read: {error}", hint="Delete it and those after it.") from error
    return WrittenBatch(
        results=tuple(_result(values) for values in results),
        tensors=tensors,
        again=tuple(_result(values) for values in again),
    )


def _plain(result: EditResult) -> dict[str, Any]:
    fact = result.fact
    words = [fact.prompt, fact.subject, fact.target_new, fact.target_true, fact.id, fact.joint, fact.wordings]
    return {**result.without_fact(), "fact": words}


def _result(values: dict[str, Any]) -> EditResult:
    prompt, subject, new, true, name, *further = values.pop("fact")  # older versions have neither joint nor wordings
    joint, wordings = further or (EARLIER_JOINT, [])
    return EditResult.from_stored(Fact(prompt, subject, new, true, name, joint, tuple(wordings)), values)

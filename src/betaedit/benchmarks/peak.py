"""Peak memory of editing, measured in a process of its own and predicted from the sizes of what it holds."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass

import psutil


@dataclass(frozen=True)
class Peak:
    """Bytes of resident memory.

    Args:
        libraries: Before the model was loaded.
        model: The model's parameters.
        predicted: Of the whole process by the formula of docs/benchmarks.md.
        measured: The most there ever was.
    """

    libraries: int
    model: int
    predicted: int
    measured: int


def measure_peak(model: str, edits: int) -> Peak:
    """Edit the demo's facts in a new process; its statistics must be in the cache already."""
    command = [sys.executable, "-m", "betaedit.benchmarks.peak", model, str(edits)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def _run(name: str, edits: int) -> Peak:
    import transformers  # noqa: F401, PLC0415 - counted among the libraries

    from betaedit.editors.editor import Editor  # noqa: PLC0415
    from betaedit.editors.footprint import editing_bytes  # noqa: PLC0415
    from betaedit.facts.readers import demo_path, read_cases  # noqa: PLC0415
    from betaedit.models.lean import turned_bytes  # noqa: PLC0415

    libraries = psutil.Process().memory_info().rss
    editor = Editor.from_pretrained(name)
    editor.edit(read_cases(demo_path(), limit=edits).cases)
    parameters = sum(p.numel() * p.element_size() for p in editor.model.parameters())
    engine = editor.engine
    held = sum(memory.nbytes for memory in engine.memories.values())
    shapes = [matrix.shape for matrix in engine.matrices.values()]
    beside = editing_bytes(held, shapes, editor.model.dtype.itemsize, turned_bytes(editor.model))
    predicted = libraries + parameters + beside
    measured = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Peak(libraries, parameters, predicted, measured)


if __name__ == "__main__":
    print(json.dumps(asdict(_run(sys.argv[1], int(sys.argv[2])))))  # noqa: T201 - the parent process reads it

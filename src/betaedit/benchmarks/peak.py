"""Peak memory of editing, measured in a separate process, and predicted from the sizes of its tensors."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from betaedit.errors import ModelError
from betaedit.facts.fact import Fact
from betaedit.facts.writer import save_facts


@dataclass(frozen=True)
class Peak:
    """Bytes of resident memory; of GPU memory for a model on a GPU.

    Args:
        libraries: Before the model was loaded.
        model: The model's parameters.
        predicted: Of the whole process by the formula of docs/concepts.md.
        measured: The most there ever was.
    """

    libraries: int
    model: int
    predicted: int
    measured: int


def measure_peak(facts: Sequence[Fact], **options: Any) -> Peak:
    """Write facts in a new process; the statistics must be in the cache already.

    Args:
        facts: The facts; they are handed over in a file, since where they were read from may have been a pipe.
        options: As ``Editor.from_pretrained`` takes them, plain values.

    Raises:
        ModelError: The process ended early, as one does that the system has no memory for.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / "facts.jsonl"
        save_facts(facts, file)
        given = json.dumps({"facts": str(file), "options": options})
        command = [sys.executable, "-m", "betaedit.benchmarks.peak", given]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise ModelError(
            f"the process to be measured ended early: {said[0]}",
            hint="Run `betaedit edit` with the same facts and options to see more.",
        )
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def _run(facts: str, options: dict[str, Any]) -> Peak:
    import torch  # noqa: PLC0415
    import transformers  # noqa: F401, PLC0415 - counted among the libraries

    from betaedit.editors.closed_form.editor import closed_form  # noqa: PLC0415
    from betaedit.editors.closed_form.memory_estimate import editing_bytes  # noqa: PLC0415
    from betaedit.editors.editor import Editor  # noqa: PLC0415
    from betaedit.facts.readers import read_cases  # noqa: PLC0415

    libraries = psutil.Process().memory_info().rss
    editor = Editor.from_pretrained(**options)
    editor.edit(read_cases(facts).cases)
    parameters = sum(p.numel() * p.element_size() for p in editor.model.parameters())
    engine = closed_form(editor).engine
    held = sum(memory.nbytes for memory in engine.memories.values())
    shapes = [matrix.shape for matrix in engine.matrices.values()]
    beside = editing_bytes(held, shapes, editor.model.dtype.itemsize)
    device = editor.language_model.device
    if device.type == "cuda":
        return Peak(0, parameters, parameters + beside, torch.cuda.max_memory_allocated(device))
    return Peak(libraries, parameters, libraries + parameters + beside, _most_resident())


def _most_resident() -> int:
    """Bytes of resident memory that this program held at most.

    What `getrusage` tells begins with what the process that started this one held.
    """
    status = Path("/proc/self/status")
    if status.exists():
        high = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(high.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    print(json.dumps(asdict(_run(**json.loads(sys.argv[1])))))  # noqa: T201 - the parent process reads it

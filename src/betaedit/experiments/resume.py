"""Finds the stored run that a call continues, and earlier measurements of the unedited model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from betaedit.editors.closed_form.config import with_current_names
from betaedit.errors import RunFolderError, StatisticsError
from betaedit.experiments.figures import Measures
from betaedit.experiments.folder import RunFolder, write_json
from betaedit.experiments.record import RunSetup, describe_cases
from betaedit.facts.fact import EvaluationCase
from betaedit.statistics.origin import same_statistics, statistics_label


def open_run(
    path: Path, setup: RunSetup, cases: Sequence[EvaluationCase], measures: Measures, stride: int
) -> RunFolder:
    """The run folder at ``path``: a new one, that of this same run, or that of a run on the first of its ``cases``.

    A run on the first cases loses its measurement of the unedited model, which was on those alone. ``stride`` facts of
    it are processed together, or are a group.

    Raises:
        RunFolderError: Something else is there.
        StatisticsError: The run was made with other statistics.
    """
    if not (path / "run.json").exists():
        if path.is_dir() and any(path.iterdir()):
            raise RunFolderError(f"{path} is not empty and is not a run folder.", hint="Name a new folder.")
        return RunFolder.create(path, setup)
    found = RunFolder(path)
    if found.setup.model["weights"] != setup.model["weights"]:
        raise _another_run(path, f"a different model: {found.setup.model['name']}")
    before, now = _identifying_fields(found.setup), _identifying_fields(setup)
    for name, value in now.items():
        if before[name] != value:
            raise _another_run(path, f"a different {name.removesuffix('s')}")
    if "statistics" in setup.details:
        check_statistics(path, found.setup.details["statistics"], setup.details["statistics"])
    if found.setup.data["facts_sha256"] != setup.data["facts_sha256"]:
        _check_extension(found, cases, stride)
    # Runs of older versions record less about their measurements, or nothing.
    measured = measures.describe(cases[: found.setup.data["records"]])
    if any(measured.get(name) != value for name, value in found.setup.measured.items()):
        raise _another_run(path, "other measurements: other prompts, held-out texts or further figures")
    if found.setup.data["records"] < len(cases):
        found.remove_checkpoint(0)
    changed = {name: getattr(setup, name) for name in ("evaluate_at", "data", "measured")}
    if any(getattr(found.setup, name) != value for name, value in changed.items()):
        write_json(path / "run.json", found.setup.model_copy(update=changed))
    return found


def unedited_beside(runs: Path, setup: RunSetup) -> RunFolder | None:
    """A run in the folder ``runs`` with the same measurement of the unedited model as ``setup``."""
    for file in sorted(runs.glob("*/run.json")):
        try:
            found = RunFolder(file.parent)
        except RunFolderError:  # reported when that folder itself is used
            continue
        same = found.setup.model["weights"] == setup.model["weights"] and all(
            getattr(found.setup, name) == getattr(setup, name) for name in ("measured", "versions")
        )
        if same and 0 in found.measured():
            return found
    return None


def _identifying_fields(setup: RunSetup) -> dict[str, Any]:
    """The fields that determine the edits, except statistics; names of preset and files are excluded."""
    current = with_current_names(setup.config)
    config = {name: value for name, value in current.items() if not name.startswith("statistics_")}
    return {
        "method": setup.method,
        "config": config,
        "batch_size": setup.batch_size,
        "reset_every": setup.reset_every,
        **{name: value for name, value in setup.details.items() if name not in ("preset", "statistics")},
    }


def check_statistics(path: Path, kept: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Refuse statistics other than those that the run at ``path`` was made with, given as ``Moments.to_dict``.

    Raises:
        StatisticsError: They differ.
    """
    if not same_statistics(kept, found):
        raise StatisticsError(
            f"{path} was made with other statistics ({statistics_label(kept)}, not {statistics_label(found)}).",
            hint="Give the original ones with --statistics FILE; `betaedit statistics --save FILE` writes them where "
            "they were collected.",
        )


def _check_extension(found: RunFolder, cases: Sequence[EvaluationCase], stride: int) -> None:
    """Refuse ``cases`` unless they begin with those of the run, and continue after whole strides."""
    n = found.setup.data["records"]
    if n >= len(cases) or describe_cases(cases[:n], None)["facts_sha256"] != found.setup.data["facts_sha256"]:
        raise _another_run(found.path, f"other facts than these {len(cases)}: {n} of {found.setup.data['source']}")
    if n % stride:
        unit = "batch" if found.setup.reset_every is None else "group"
        raise _another_run(
            found.path, f"{n} facts, which do not end with a whole {unit} of {stride}, so none can follow"
        )


def _another_run(path: Path, what: str) -> RunFolderError:
    return RunFolderError(f"{path} holds a run with {what}.", hint="Repeat that run's command, or name a new folder.")

"""Loads what can be measured: a model, a folder, an adapter, a run or a workspace; the last two as editors."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import cast

from betaedit.editors.editor import Editor
from betaedit.editors.methods import find_method
from betaedit.editors.presets import UNTUNED, Preset, find_preset
from betaedit.errors import ConfigError, ModelError, ModelNotFoundError, RunFolderError, StatisticsError
from betaedit.experiments.folder import RunFolder, write_json
from betaedit.experiments.record import Mean, RunSetup
from betaedit.experiments.resume import check_statistics
from betaedit.experiments.state import count_edits, load_batches
from betaedit.extras import import_extra
from betaedit.facts.fact import Fact
from betaedit.ledger.identity import keep_place, load_kept
from betaedit.ledger.place import LEDGER
from betaedit.ledger.store import Store
from betaedit.ledger.workspace import Workspace
from betaedit.models.load import DtypeName, LanguageModel, load_language_model
from betaedit.statistics.moments import Moments


def load_target(
    name: str,
    *,
    statistics: Moments | Path | None = None,
    dtype: DtypeName | None = None,
    device: str | None = None,
) -> LanguageModel:
    """The model behind ``name``, with its edits in its weights.

    The edits of a run folder or workspace are written into the model it was made with; a PEFT adapter is merged into
    its base model.

    Args:
        name: Name of a model, or a folder.
        statistics: The statistics of a run, if they were given to it; default: by its configuration.
        dtype: Type of the weights, default float32; runs and workspaces have their own.
        device: Device of the model.

    Raises:
        ConfigError: The given type of weights or statistics are not those of the run or workspace.
        ModelError: There is no such model, or an adapter does not name its base.
        MissingExtraError: An adapter is given and peft is not installed.
        StatisticsError: The statistics of a run cannot be reproduced here.
        RunFolderError: A run folder is damaged.
        LedgerError: A workspace is damaged, or belongs to another model.
    """
    folder = Path(name)
    if (folder / LEDGER).is_file() or (folder / "run.json").is_file():
        return editor_of(name, statistics=statistics, dtype=dtype, device=device).language_model
    if (folder / "adapter_config.json").is_file():
        return _adapted(folder, dtype or "float32", device)
    try:
        return load_language_model(name, dtype=dtype or "float32", device=device)
    except ModelNotFoundError as error:
        hint = f"{error.hint} Runs, workspaces and adapters are named by their folder."
        raise ModelNotFoundError(error.message, hint=hint) from error


def editor_of(
    name: str,
    *,
    statistics: Moments | Path | None = None,
    dtype: DtypeName | None = None,
    device: str | None = None,
) -> Editor:
    """An editor with the edits of ``name``, in the model they were made with; they are written again by its method.

    Args:
        name: A run folder or a workspace.
        statistics: See ``load_target``.
        dtype: Type of the weights; must be that of the run or workspace, unless an older version did not record it.
        device: Device of the model.

    Raises:
        ConfigError: The given type of weights or statistics are not those of the run or workspace.
        RunFolderError: It is not a run folder, or is damaged.
        ModelError: The model is missing, or its weights differ from the run's.
        StatisticsError: The run was made with other statistics.
    """
    if (Path(name) / LEDGER).is_file():
        return _workspace_editor(name, statistics, dtype, device)
    run = _one_model(_run(name))
    setup = run.setup
    own = cast(DtypeName, setup.dtype or dtype or "float32")
    _check_type(name, own, dtype)
    model = load_kept(run.path, setup.model["name"], dtype=own, device=device)
    _check_weights(run, model)
    config = find_method(setup.method).configure(setup.config)
    editor = Editor(model, method=setup.method, config=config, preset=_preset(setup), statistics=statistics)
    _check_statistics(run, editor)
    state = run.path / "state"
    for batch in load_batches(state, count_edits(state)):
        editor.replay(batch)
    return editor


def locate(name: str, place: str) -> str:
    """Set the place of the model of a run or workspace; returns it as stored.

    Args:
        name: A run folder or a workspace.
        place: Name or folder of its unedited model.

    Raises:
        ModelError: There is no such model, or its weights differ from the run's.
        IdentityError: Its weights differ from the workspace's.
        RunFolderError: It is not a run folder, is damaged, or cannot be written.
        LedgerError: The workspace is damaged, or cannot be written.
    """
    if (Path(name) / LEDGER).is_file():
        with Workspace.open(name) as workspace:
            identity = workspace.store.identity
            model = load_language_model(place, dtype=cast(DtypeName, identity.dtype), device="cpu")
            keep_place(workspace.folder, identity, model)
        return model.place
    run = _run(name)
    model = load_language_model(place, dtype=cast(DtypeName, run.setup.dtype or "float32"), device="cpu")
    _check_weights(run, model)
    moved = run.setup.model | {"name": model.place}
    write_json(run.path / "run.json", run.setup.model_copy(update={"model": moved}))
    return model.place


def facts_of(name: str) -> list[Fact]:
    """The facts that the model of a run or workspace holds, in the order of writing; needs no model.

    Args:
        name: A run folder or a workspace.

    Raises:
        RunFolderError: It is not a run folder, or is damaged.
        LedgerError: The workspace is damaged.
    """
    if (Path(name) / LEDGER).is_file():
        with closing(Store(Path(name) / LEDGER)) as store:
            return [version.fact for version in store.live()]
    run = _one_model(_run(name))
    method = find_method(run.setup.method)
    config = method.resolve_config(method.configure(run.setup.config))
    held: list[Fact] = []
    state = run.path / "state"
    for batch in load_batches(state, count_edits(state)):
        again = [result.fact for result in batch.again]
        new = [result.fact for result in batch.results if result.kept]
        gone = [*again, *config.leaving(held, new)]
        held = [*(fact for fact in held if fact not in gone), *again, *new]
    return held


def _preset(setup: RunSetup) -> Preset | str | None:
    """The preset of a run, for the record of an export; a preset from a file has the run's settings."""
    name = setup.details.get("preset")
    if name is None or name == UNTUNED or find_preset(name):
        return name
    source = "the settings of a run"
    return Preset(name, (), source, parameters=0.0, mlp_size=0, hidden_size=0, values=setup.config)


def _check_weights(run: RunFolder, model: LanguageModel) -> None:
    if model.fingerprint() != run.setup.model["weights"]:
        raise ModelError(
            f"{run.path} was made with other weights than those of {model.place}.",
            hint="Restore the model's files, or give its new place: betaedit locate "
            f"{run.path} PLACE. A run of an older version may need its --dtype.",
        )


def _check_statistics(run: RunFolder, editor: Editor) -> None:
    recorded = run.setup.details.get("statistics")
    if recorded is None:
        return
    try:
        editor.prepare()
    except StatisticsError as error:
        hint = f"{error.hint} Give the original ones with --statistics."
        raise StatisticsError(error.message, hint=hint) from error
    check_statistics(run.path, recorded, editor.editing.describe()["statistics"])


def _workspace_editor(
    name: str, statistics: Moments | Path | None, dtype: DtypeName | None, device: str | None
) -> Editor:
    if statistics is not None:
        raise ConfigError(f"the workspace {name} has its own statistics.", hint="Leave out --statistics.")
    workspace = Workspace.open(name, device=device)
    _check_type(name, workspace.store.identity.dtype, dtype)
    return workspace.editor


def _check_type(name: str, own: str, asked: str | None) -> None:
    if asked not in (None, own):
        raise ConfigError(f"{name} holds edits of {own} weights, not of {asked}.", hint="Leave out --dtype.")


def figures_of(name: str) -> dict[str, tuple[float | None, float | None]]:
    """The main figures of ``name``: of the unedited model and of the last checkpoint.

    Args:
        name: A run folder; nothing is measured in a workspace.

    Raises:
        RunFolderError: It is not a run folder, or is damaged.
    """
    if (Path(name) / LEDGER).is_file():
        return {}
    run = _run(name)
    counts = run.measured()
    if not counts or counts[-1] == 0:
        return {}
    before, after = run.checkpoint(counts[0]), run.checkpoint(counts[-1])
    return {
        "facts written when measured": (before.edits, after.edits),
        "efficacy": (_share(before.efficacy.argmax), _share(after.efficacy.argmax)),
        "generality": (_share(before.generality.argmax), _share(after.generality.argmax)),
        "specificity": (_share(before.specificity.probability), _share(after.specificity.probability)),
        "perplexity": (before.perplexity, after.perplexity),
        "agreement": (before.agreement, after.agreement),
    }


def _run(name: str) -> RunFolder:
    """The run folder ``name``; the error also mentions workspaces."""
    if not (Path(name) / "run.json").is_file():
        missing = "is neither a run folder nor a workspace" if Path(name).is_dir() else "is not a folder"
        raise RunFolderError(f"{name} {missing}.", hint="Give a run folder or a workspace.")
    return RunFolder(name)


def _one_model(run: RunFolder) -> RunFolder:
    """``run``, if one model holds all its facts."""
    if run.setup.reset_every is not None:
        raise RunFolderError(
            f"no model holds all facts of {run.path}: each group of {run.setup.reset_every} was written into the "
            "unedited model.",
            hint="Its figures are in its folder: betaedit report. Make a run without --reset-every.",
        )
    return run


def _share(found: Mean | None) -> float | None:
    return None if found is None else found.mean


def _adapted(folder: Path, dtype: DtypeName, device: str | None) -> LanguageModel:
    peft = import_extra("peft", "peft", "an adapter")
    base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{folder} does not name its base model.", hint="Set base_model_name_or_path in its config.")
    try:
        model = load_language_model(base, dtype=dtype, device=device)
    except ModelNotFoundError as error:
        hint = f"If it has moved, set its new place as base_model_name_or_path in {folder / 'adapter_config.json'}."
        raise ModelNotFoundError(error.message, hint=f"{error.hint} {hint}") from error
    merged = peft.PeftModel.from_pretrained(model.model, folder).merge_and_unload()
    return LanguageModel.wrap(merged, model.tokenizer)

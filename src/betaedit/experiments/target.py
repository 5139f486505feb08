"""Whatever can be measured, as a model: a name, a folder, an adapter, or a run."""

from __future__ import annotations

import json
from pathlib import Path

from betaedit.editors.config import make_config
from betaedit.editors.editor import Editor
from betaedit.errors import MissingExtraError, ModelError, StatisticsError
from betaedit.experiments.folder import RunFolder
from betaedit.experiments.state import count_edits, load_batches
from betaedit.models.load import DtypeName, LanguageModel, load_language_model
from betaedit.statistics.moments import Moments


def load_target(
    name: str,
    *,
    statistics: Moments | Path | None = None,
    dtype: DtypeName = "float32",
    device: str | None = None,
) -> LanguageModel:
    """The model behind ``name``, with its edits in its weights.

    A run folder's edits are put into the model it was made with; a PEFT adapter is merged into its base model.

    Args:
        name: Of a model, or a folder.
        statistics: Those a run was made with, when they were given to it; else as its configuration says.
        dtype: Type of the weights.
        device: Where the model goes.

    Raises:
        ModelError: There is no such model, or an adapter does not name its base.
        MissingExtraError: An adapter is given and peft is not installed.
        StatisticsError: A run was made with statistics that its configuration does not give here.
        RunFolderError: A run folder is damaged.
    """
    folder = Path(name)
    if (folder / "run.json").is_file():
        return _edited(RunFolder(folder), statistics, dtype, device)
    if (folder / "adapter_config.json").is_file():
        return _adapted(folder, dtype, device)
    return load_language_model(name, dtype=dtype, device=device)


def _edited(run: RunFolder, statistics: Moments | Path | None, dtype: DtypeName, device: str | None) -> LanguageModel:
    """Written again by its own engine: facts may have been replaced, and updates processed, on the way."""
    setup = run.setup
    model = load_language_model(setup.model["name"], dtype=dtype, device=device)
    if model.fingerprint() != setup.model["weights"]:
        raise ModelError(
            f"{run.path} was made with other weights of {model.name}.", mend="Measure on the machine that made it."
        )
    editor = Editor(model, method=setup.method, config=make_config(setup.config), statistics=statistics)
    if (own := editor.statistics.to_dict()) != setup.details["statistics"]:
        raise StatisticsError(
            f"{run.path} was made with other statistics ({setup.details['statistics']}, not {own}).",
            mend="Give those it was made with (--statistics).",
        )
    state = run.path / "state"
    for batch in load_batches(state, count_edits(state)):
        editor.replay(batch)
    return model


def _adapted(folder: Path, dtype: DtypeName, device: str | None) -> LanguageModel:
    try:
        from peft import PeftModel  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise MissingExtraError("adapters need peft.", mend='pip install "betaedit[peft]"') from error
    base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{folder} does not name its base model.", mend="Set base_model_name_or_path in its config.")
    model = load_language_model(base, dtype=dtype, device=device)
    merged = PeftModel.from_pretrained(model.model, folder).merge_and_unload()
    return LanguageModel.wrap(merged, model.tokenizer)

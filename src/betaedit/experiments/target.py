"""Whatever can be measured, as a model: a name, a folder, an adapter, or a run."""

from __future__ import annotations

import json
from pathlib import Path

from betaedit.editors.matrix import EditedMatrix
from betaedit.editors.recipes import find_recipe
from betaedit.errors import MissingExtraError, ModelError
from betaedit.experiments.folder import RunFolder
from betaedit.experiments.state import load_batches
from betaedit.models.load import DtypeName, LanguageModel, load_language_model


def load_target(name: str, *, dtype: DtypeName = "float32", device: str | None = None) -> LanguageModel:
    """The model behind ``name``, with its edits in its weights.

    A run folder's edits are put into the model it was made with; a PEFT adapter is merged into its base model.

    Raises:
        ModelError: There is no such model, or an adapter does not name its base.
        MissingExtraError: An adapter is given and peft is not installed.
        RunFolderError: A run folder is damaged.
    """
    folder = Path(name)
    if (folder / "run.json").is_file():
        return _edited(RunFolder(folder), dtype, device)
    if (folder / "adapter_config.json").is_file():
        return _adapted(folder, dtype, device)
    return load_language_model(name, dtype=dtype, device=device)


def _edited(run: RunFolder, dtype: DtypeName, device: str | None) -> LanguageModel:
    model = load_language_model(run.setup.model["name"], dtype=dtype, device=device)
    if model.fingerprint() != run.setup.model["weights"]:
        raise ModelError(
            f"{run.path} was made with other weights of {model.name}.", mend="Measure on the machine that made it."
        )
    if find_recipe(run.setup.method).operator != "none":
        raise ModelError(
            f"a run of {run.setup.method} cannot be turned into a model.",
            mend="Save the model where it is edited (--save), and measure that folder.",
        )
    layers = run.setup.config["layers"]
    matrices = {layer: EditedMatrix(model.anatomy.projection(layer)) for layer in layers}
    for batch in load_batches(run.path / "state"):
        for layer, matrix in matrices.items():
            matrix.add(batch.updates[layer])
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

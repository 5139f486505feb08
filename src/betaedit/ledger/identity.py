"""The identity of a workspace: taken from the editor it is made with, checked against the models it is opened with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from betaedit.editors.closed_form.associative import Resumable
from betaedit.editors.editor import Editor
from betaedit.editors.method import HoldsFacts, require
from betaedit.editors.methods import find_method
from betaedit.errors import IdentityError, LedgerError, ModelNotFoundError
from betaedit.files import atomic_write, file_errors
from betaedit.ledger.place import MODEL_PLACE
from betaedit.ledger.store import Identity, Storage
from betaedit.models.load import DtypeName, LanguageModel, load_language_model
from betaedit.progress import Progress
from betaedit.statistics.moments import Moments
from betaedit.versions import library_versions

STATISTICS = "statistics.safetensors"
_USED = "be used in a workspace: it cannot take single facts out again as a workspace does"
_INSTEAD = "Use memit-h, alphaedit, betaedit, grace, wise or scr; `betaedit edit --out` stores runs of every method."


def identify(editor: Editor, storage: Storage | None) -> Identity:
    """The identity of a workspace that is made with ``editor``; ``storage`` as for ``Workspace.create``."""
    editing = resumable(editor)
    model, matrices = editor.language_model, editing.matrices
    exact = cast(Storage, str(next(iter(matrices.values())).change().dtype).removeprefix("torch."))
    config = editor.config.replace(context_templates=editor.editing.describe()["contexts"])
    return Identity(
        model=model.place,
        weights=model.fingerprint(),
        dtype=str(model.model.dtype).removeprefix("torch."),
        method=editor.method.name,
        recipe=_recipe(editing),
        config=json.loads(config.model_dump_json()),
        statistics=editing.statistics.fingerprint,
        origin=editing.statistics.to_dict(),
        shapes={layer: matrix.shape for layer, matrix in matrices.items()},
        storage=storage or exact,
        exact=exact,
        versions=library_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def identify_holding(editor: Editor) -> Identity:
    """The identity of a workspace whose editor ``HoldsFacts``.

    What the editor says of itself under the name of a hyper-parameter, as sampled prompts, becomes part of the
    configuration: an editor of another day has the same.
    """
    holding(editor)
    model = editor.resources.model
    found = editor.editing.describe()
    found |= {"context_templates": found["contexts"]} if "contexts" in found else {}
    config = editor.config.replace(**{name: found[name] for name in found if name in type(editor.config).model_fields})
    return Identity(
        model=model.place,
        weights=model.fingerprint(),
        dtype=str(model.model.dtype).removeprefix("torch."),
        method=editor.method.name,
        recipe=_fingerprint(editor.editing.describe()),
        config=json.loads(config.model_dump_json()),
        statistics="",
        origin={},
        shapes={},
        storage="float32",
        exact="float32",
        versions=library_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def keep_place(folder: Path, identity: Identity, model: LanguageModel) -> None:
    """Record the place of ``model`` as the place of the model of the workspace ``folder``.

    Raises:
        IdentityError: Its weights differ.
        LedgerError: The place cannot be written.
    """
    checked_model(folder, identity, model)
    with file_errors(folder / MODEL_PLACE, LedgerError), atomic_write(folder / MODEL_PLACE) as scratch:
        scratch.write_text(f"{model.place}\n", encoding="utf-8")


def load_kept(folder: Path, place: str, *, dtype: DtypeName, device: str | None) -> LanguageModel:
    """The model at ``place`` of a run or workspace ``folder``.

    Raises:
        ModelError: As ``load_language_model``.
    """
    try:
        return load_language_model(place, dtype=dtype, device=device)
    except ModelNotFoundError as error:
        hint = f"{error.hint} If it has moved: betaedit locate {folder} PLACE."
        raise ModelNotFoundError(error.message, hint=hint) from error


def checked_model(folder: Path, identity: Identity, model: LanguageModel) -> LanguageModel:
    """``model``, checked to be the unedited model of the workspace ``folder``.

    Raises:
        IdentityError: Its weights differ.
    """
    elsewhere = f"If its model has moved: betaedit locate {folder} PLACE."
    _same(folder, "model", identity.weights, model.fingerprint(), elsewhere)
    return model


def editor_again(folder: Path, identity: Identity, model: LanguageModel, progress: Progress) -> Editor:
    """An editor like the one that the workspace ``folder`` was made with; it has written nothing.

    Raises:
        IdentityError: The statistics in the folder, or the recipe's definition, differ.
    """
    if identity.holds_facts:
        return _holding_again(folder, identity, model, progress)
    moments = Moments.load(folder / STATISTICS)
    _same(folder, "statistics", identity.statistics, moments.fingerprint)
    config = find_method(identity.method).configure(identity.config)
    editor = Editor(model, method=identity.method, config=config, statistics=moments, progress=progress)
    _same(folder, f"recipe {identity.method}", identity.recipe, _recipe(resumable(editor)))
    return editor


def _holding_again(folder: Path, identity: Identity, model: LanguageModel, progress: Progress) -> Editor:
    config = find_method(identity.method).configure(identity.config)
    editor = Editor(model, method=identity.method, config=config, progress=progress)
    holding(editor)
    _same(folder, f"method {identity.method}", identity.recipe, _fingerprint(editor.editing.describe()))
    return editor


def _same(folder: Path, what: str, wanted: str, found: str, further: str = "") -> None:
    if wanted != found:
        hint = "Use the original one, or make a new workspace and import the facts."
        raise IdentityError(
            f"{folder} was made with another {what}: {wanted}, not {found}.", hint=f"{hint} {further}".strip()
        )


def holding(editor: Editor) -> HoldsFacts:
    """What the editor's method built, typed as ``HoldsFacts``.

    Raises:
        MethodError: This method cannot forget single facts exactly.
    """
    return require(editor.editing, HoldsFacts, editor.method, _USED, _INSTEAD)  # type: ignore[type-abstract]


def resumable(editor: Editor) -> Resumable:
    """What the editor's method built, typed as ``Resumable``.

    Raises:
        MethodError: This method writes no keys and values from which single facts can be taken out again.
    """
    return require(
        editor.editing,
        Resumable,  # type: ignore[type-abstract]
        editor.method,
        _USED,
        _INSTEAD,
    )


def _recipe(editing: Resumable) -> str:
    """Fingerprint of what a method computes; names and notes are excluded."""
    return _fingerprint(editing.identity())


def _fingerprint(values: Mapping[str, Any]) -> str:
    plain = json.dumps(values, sort_keys=True)
    return f"sha256:{hashlib.sha256(plain.encode()).hexdigest()}"

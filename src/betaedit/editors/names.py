"""Slips in what an editor is given, found without a model and without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from betaedit.editors.config import make_config
from betaedit.editors.preset_file import named_preset
from betaedit.editors.presets import UNTUNED, Preset
from betaedit.editors.recipes import find_recipe


def check_names(method: str, preset: Preset | str | Path | None, overrides: dict[str, Any]) -> None:
    """Refuse a slip in what ``Editor`` is given before minutes are spent on loading a model.

    Raises:
        MethodError: The method is unknown.
        ConfigError: An override is unknown or impossible, also for the method, or there is no such preset, or its file
            is broken.
    """
    recipe = find_recipe(method)
    if preset not in (None, UNTUNED):
        named_preset(preset)
    config = make_config(overrides)
    if "layers" in overrides:
        recipe.check(config)

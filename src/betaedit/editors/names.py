"""Checks of an editor's arguments that need neither a model nor torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from betaedit.editors.methods import find_method
from betaedit.editors.preset_file import named_preset
from betaedit.editors.presets import UNTUNED, Preset


def check_names(method: str, preset: Preset | str | Path | None, overrides: dict[str, Any]) -> None:
    """Refuse wrong arguments of ``Editor`` before a model is loaded.

    Raises:
        MethodError: The method is unknown.
        ConfigError: An override is unknown or impossible, also for the method, or there is no such preset, or its file
            is broken.
    """
    row = find_method(method)
    if preset not in (None, UNTUNED):
        named_preset(preset)
    config = row.configure(overrides)
    if "layers" in overrides:
        row.check(config)

"""Slips in what an editor is given, found without a model and without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from betaedit.editors.methods import METHODS, find_method
from betaedit.editors.preset_file import named_preset
from betaedit.editors.presets import UNTUNED, Preset
from betaedit.errors import ConfigError, did_you_mean


def check_names(method: str, preset: Preset | str | Path | None, overrides: dict[str, Any]) -> None:
    """Refuse a slip in what ``Editor`` is given before minutes are spent on loading a model.

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


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings that no method could take, before it is known which method is meant.

    Raises:
        ConfigError: A name is unknown to all methods (with the nearest known one), or its value is impossible in all.
    """
    families = list({row.config: None for row in METHODS.values()})
    known = {name for config in families for name in config.model_fields}
    for name, value in settings.items():
        if name not in known:
            hint = did_you_mean(name, sorted(known), "See `betaedit methods --config` for all names.")
            raise ConfigError(f"there is no hyper-parameter {name!r}.", hint=hint)
        errors = []
        for config in families:
            if name not in config.model_fields:
                continue
            try:
                config.of({name: value})
            except ConfigError as error:
                errors.append(error)
            else:
                break
        else:
            raise errors[0]

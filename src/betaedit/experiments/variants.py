"""The methods of a comparison with their settings; named and checked without a model and torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from betaedit.editors.methods import find_method
from betaedit.editors.names import check_names
from betaedit.editors.presets import Preset
from betaedit.errors import ConfigError


@dataclass(frozen=True)
class Variant:
    """A method with its own settings.

    Args:
        method: Its name or alias.
        settings: Hyper-parameters that override all others.
        file: Hyper-parameters of a file for this method alone, which all others override; not part of the name.
    """

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    file: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of its run and folder: ``alphaedit-lookup-last``; letters, digits, dots and dashes."""
        parts = [part for setting in self.settings.items() for part in map(str, setting)]
        return "-".join([find_method(self.method).name, *(re.sub(r"[^\w.]+", "-", part).strip("-") for part in parts)])


def settings_of(variant: Variant, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a variant's file, then the ``overrides`` that its method has, then its own; later ones win."""
    known = find_method(variant.method).config.model_fields
    common = {name: value for name, value in overrides.items() if name in known}
    return {**variant.file, **common, **variant.settings}


def check_variants(
    variants: Sequence[Variant], preset: Preset | str | Path | None, overrides: dict[str, Any]
) -> list[str]:
    """The names of variants, after all checks that need no model.

    Raises:
        MethodError: A method is unknown.
        ConfigError: There is no such preset, a setting is impossible or unknown to all methods, or two variants have
            one name.
    """
    taken: set[str] = set()
    for variant in variants:
        own = settings_of(variant, overrides)
        check_names(variant.method, preset, own)
        taken |= set(own)
    if variants and (missing := [name for name in overrides if name not in taken]):
        check_names(variants[0].method, preset, {name: overrides[name] for name in missing})
    names = [variant.name for variant in variants]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"two methods to compare are both {twice[0]}.", hint="Name each of them once.")
    return names

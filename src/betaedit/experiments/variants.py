"""Which methods are compared, under which settings: named and checked without a model and without torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from betaedit.editors.names import check_names
from betaedit.editors.presets import Preset
from betaedit.editors.recipes import find_recipe
from betaedit.errors import ConfigError


@dataclass(frozen=True)
class Variant:
    """A method under settings of its own.

    Args:
        method: The recipe's name or alias.
        settings: Hyper-parameters over all others.
    """

    method: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What its run and folder are called: ``alphaedit-lookup-last``; letters, digits, dots and dashes."""
        parts = [part for setting in self.settings.items() for part in map(str, setting)]
        return "-".join([find_recipe(self.method).name, *(re.sub(r"[^\w.]+", "-", part).strip("-") for part in parts)])


def check_variants(
    variants: Sequence[Variant], preset: Preset | str | Path | None, overrides: dict[str, Any]
) -> list[str]:
    """The names of variants, once all is refused that can be refused without a model.

    Raises:
        MethodError: A method is unknown.
        ConfigError: There is no such preset, a setting is unknown or impossible, or two variants have one name.
    """
    for variant in variants:
        check_names(variant.method, preset, {**overrides, **variant.settings})
    names = [variant.name for variant in variants]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"two methods to compare are both {twice[0]}.", hint="Name each of them once.")
    return names
